"""Looking into an image: small made trees, one fault in each, and what the script says of it."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.markers import Marker
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tests.unit.plugins.standin import MODEL, PLUGINS

from .conftest import SCRIPTS, load

HIP = Path(__file__).parents[2] / "rehearsal" / "hip"
SITE = "usr/local/lib/python3.12/site-packages"
elf: ModuleType = load("elf")
sys.path.append(str(SCRIPTS))  # where the script's package lies; running it puts the folder first
script: ModuleType = load("inspect_image")
all_files, loading, marking, shared, versioning = (
    importlib.import_module(f"inspection.{name}") for name in ("files", "loader", "markers", "image", "versions")
)


def put(root: Path, inside: str, content: str | bytes = "") -> Path:
    path = root / inside
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def seen(root: Path, section: str) -> dict[str, Any]:
    image = script.Image.at(str(root))
    found: dict[str, Any] = script.look(image, [section])[section]
    return found


def digest(content: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def install(root: Path, name: str, version: str = "1.0", requires: tuple[str, ...] = (), **more: Any) -> Path:
    """A distribution as an installer leaves it; ``files`` are its own, ``extra`` others of its .dist-info."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {one}" for one in requires),
    ]
    lines += [f"Requires-Python: {more['python']}"] if "python" in more else []
    files = {f"{info}/METADATA": "\n".join(lines) + "\n\n", **more.get("files", {})}
    files |= {f"{info}/{key}": text for key, text in more.get("extra", {}).items()}
    record = f"{info}/RECORD,,\n"
    for path, content in files.items():
        raw = content.encode() if isinstance(content, str) else content
        put(root, f"{SITE}/{path}", raw)
        record += f"{path},{digest(raw)},{len(raw)}\n"
    return put(root, f"{SITE}/{info}/RECORD", record)


# --- distributions ---


def test_distributions_are_described(tmp_path: Path) -> None:
    vcs = json.dumps({"url": "https://x/r", "vcs_info": {"vcs": "git", "commit_id": "c" * 40}})
    install(tmp_path, "Kiln.Toy", "1.2", ("other>=1",), files={"toy.py": "x = 1\n"}, extra={"direct_url.json": vcs})
    found = seen(tmp_path, "distributions")
    assert (found["problems"], found["unowned"]) == ([], [])
    (one,) = found["distributions"]
    assert (one["name"], one["version"], one["requires"]) == ("kiln-toy", "1.2", ["other>=1"])
    assert (one["commit"], one["url"] if "url" in one else one["direct_url"]) == ("c" * 40, "https://x/r")
    assert (one["site"], one["debian"], one["editable"]) == (f"/{SITE}", False, False)


@pytest.mark.parametrize(
    ("harm", "file", "word"),
    [
        (lambda site: (site / "toy.py").unlink(), "toy.py", "is missing"),
        (lambda site: (site / "toy.py").write_text("x = 2\n"), "toy.py", "another hash"),
        (lambda site: (site / "toy.py").write_text("x = 20\n"), "toy.py", "has 7 bytes, RECORD says 6"),
        (lambda site: (site / "big.bin").write_bytes(b"1"), "big.bin", "has 1 bytes"),
        (lambda site: (site / "lib.so").write_bytes(bytes(shared.SMALL) + b"x"), "lib.so", "another hash"),
        (lambda site: (site / "toy-1.0.dist-info" / "RECORD").unlink(), "RECORD", "is missing"),
    ],
    ids=["missing", "changed", "longer", "large and shorter", "a large library changed", "no RECORD"],
)
def test_a_changed_file_is_named(tmp_path: Path, harm: Callable[[Path], Any], file: str, word: str) -> None:
    content = {"toy.py": "x = 1\n", "big.bin": bytes(shared.SMALL + 1), "lib.so": bytes(shared.SMALL + 1)}
    install(tmp_path, "toy", files=content)
    assert seen(tmp_path, "distributions")["problems"] == []
    harm(tmp_path / SITE)
    problems = seen(tmp_path, "distributions")["problems"]
    assert [(one["distribution"], one["file"]) for one in problems] == [("toy 1.0", file)]
    assert word in problems[0]["problem"]


def test_a_line_of_record_must_be_one(tmp_path: Path) -> None:
    with install(tmp_path, "toy", files={"toy.py": "x"}).open("a") as record:
        record.write("/etc/passwd,sha256=x,1\ntoy.py,\ntoy.py,,1\ntoy.py,md9=x,1\n")
    problems = {one["problem"] for one in seen(tmp_path, "distributions")["problems"]}
    assert len([one for one in problems if "no path, hash and size" in one]) == 2
    assert "has no hash in RECORD" in problems
    assert any("unsupported hash type md9" in one for one in problems)


def test_files_of_nobody_are_listed(tmp_path: Path) -> None:
    install(tmp_path, "toy", files={"toy.py": "x = 1\n"})
    put(tmp_path, f"{SITE}/sneaked.pth", "import sneaked")
    put(tmp_path, f"{SITE}/pkg/of_debian.py")
    put(tmp_path, f"{SITE}/__pycache__/toy.cpython-312.pyc")
    put(tmp_path, "var/lib/dpkg/info/python3-pkg:amd64.list", f"/.\n/{SITE}/pkg/of_debian.py\n")
    assert seen(tmp_path, "distributions")["unowned"] == [f"/{SITE}/sneaked.pth"]


def test_no_python_is_nothing_to_see(tmp_path: Path) -> None:
    found = seen(tmp_path, "distributions")
    assert (found["looked"], found["nothing"]) == (False, True)
    assert "no folder for distributions" in found["why"]


# --- requirements ---


@pytest.fixture(params=["packaging", "plain"])
def rules(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the packaging that is there, and with the script's own rules."""
    if request.param == "plain":
        monkeypatch.setattr(importlib, "import_module", lambda _: (_ for _ in ()).throw(ImportError()))
    return str(request.param)


@pytest.mark.parametrize(
    ("needs", "problem"),
    [
        ("other>=1.5", ""),
        ("other>=2", "other 1.5+cpu is installed"),
        ("other==1.5", ""),
        ("Other[fast]~=1.2", ""),
        ("absent", "is not installed"),
        ("absent; python_version < '3'", ""),
        ("absent; extra == 'more'", ""),
        ("other (<1.0)", "other 1.5+cpu is installed"),
        ("other>>1", "could not be judged"),
        ("absent @ https://x/y.whl", "is not installed"),
    ],
)
def test_requirements_are_judged(tmp_path: Path, rules: str, needs: str, problem: str) -> None:
    install(tmp_path, "toy", requires=(needs,))
    install(tmp_path, "other", "1.5+cpu")
    found = seen(tmp_path, "requirements")
    assert found["rules"] == rules
    assert [one["problem"].partition(":")[0] for one in found["problems"]] == ([problem] if problem else [])


def test_an_extra_that_is_asked_for_is_judged(tmp_path: Path, rules: str) -> None:
    install(tmp_path, "toy", requires=("other[fast]",))
    install(tmp_path, "other", requires=("quick; extra == 'fast'", "slow; extra == 'slow'"))
    (problem,) = seen(tmp_path, "requirements")["problems"]
    assert (problem["distribution"], problem["extra"], problem["problem"]) == ("other 1.0", "fast", "is not installed")


def test_another_python_is_named(tmp_path: Path, rules: str) -> None:
    install(tmp_path, "toy", python=">=4")
    install(tmp_path, "other", python=">=3.8, <4")
    (problem,) = seen(tmp_path, "requirements")["problems"]
    assert (problem["distribution"], problem["needs"]) == ("toy 1.0", "Python >=4")


numbers = st.integers(0, 3).map(str)
releases = st.lists(numbers, min_size=1, max_size=3).map(".".join)
tails = st.sampled_from(
    ["", "a1", "b2", "rc1", ".post1", ".dev1", "a1.dev2", ".post1.dev3", "+cpu", "+cpu.1", ".post1+g1"]
)
versions = st.builds("".join, st.tuples(st.sampled_from(["", "", "1!"]), releases, tails))


@given(versions, versions, st.sampled_from(["==", "!=", "<=", ">=", "<", ">", "~="]))
def test_clauses_are_judged_as_packaging_does(found: str, wanted: str, operator: str) -> None:
    if operator not in {"==", "!="}:
        wanted = wanted.partition("+")[0]
    if operator == "~=" and len(Version(wanted).release) < 2:
        return
    expected = SpecifierSet(operator + wanted).contains(found, prereleases=True)
    assert versioning.allows(operator + wanted, found) == expected


@given(versions, releases, st.sampled_from(["==", "!="]))
def test_wildcards_are_judged_as_packaging_does(found: str, wanted: str, operator: str) -> None:
    expected = SpecifierSet(f"{operator}{wanted}.*").contains(found, prereleases=True)
    assert versioning.allows(f"{operator}{wanted}.*", found) == expected


comparisons = st.builds(
    "{} {} {}".format,
    st.sampled_from(["python_version", "python_full_version"]),
    st.sampled_from(["==", "!=", "<", ">", "<=", ">="]),
    st.sampled_from(["'3.9'", "'3.11'", "'3.20'"]),
) | st.sampled_from(
    ["sys_platform == 'linux'", "os_name != 'posix'", "extra == 'x'", "'64' in platform_machine", "'z' not in os_name"]
)
markers = st.recursive(
    comparisons,
    lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from(["and", "or"]), inner),
    max_leaves=6,
)


@given(markers, markers, st.sampled_from(["", "x"]))
def test_markers_hold_as_packaging_says(one: str, two: str, extra: str) -> None:
    marker = f"{one} and {two} or {one}"
    assert marking.marker_holds(marker, marking.marker_environment(extra)) == Marker(marker).evaluate({"extra": extra})


@given(st.text("()'\" andornotin=<>~pythos_versi.1", max_size=30))
def test_a_marker_that_is_none_is_refused_and_nothing_else(text: str) -> None:
    try:
        marking.marker_holds(text, marking.marker_environment())
    except ValueError:
        return


# --- libraries ---


def make_elf(
    needed: tuple[str, ...] = (),
    defined: tuple[str, ...] = (),
    undefined: tuple[str, ...] = (),
    weak: tuple[str, ...] = (),
    runpath: str = "",
    rpath: str = "",
    soname: str = "",
    needs: tuple[tuple[str, str], ...] = (),
    own: tuple[str, ...] = (),
    versioned: dict[str, int] | None = None,
    machine: int = 62,
) -> bytes:
    """A small library. ``needs`` are (library, version), numbered from 2 on; ``versioned`` gives a symbol one of those numbers."""
    strings = bytearray(b"\0")

    def text(one: str) -> int:
        strings.extend(one.encode() + b"\0")
        return len(strings) - len(one) - 1

    names = [*((one, 1, 1) for one in defined), *((one, 1, 0) for one in undefined), *((one, 2, 0) for one in weak)]
    symbols = bytes(24) + b"".join(
        struct.pack("<IBBHQQ", text(one), bind << 4, 0, place, 0, 0) for one, bind, place in names
    )
    versym = b"".join(
        struct.pack("<H", number) for number in (0, *((versioned or {}).get(one, 1) for one, _, _ in names))
    )
    verneed = b""
    for index, (library, version) in enumerate(needs):
        last = index == len(needs) - 1
        verneed += struct.pack("<HHIII", 1, 1, text(library), 16, 0 if last else 32)
        verneed += struct.pack("<IHHII", 0, 0, index + 2, text(version), 0)
    verdef = b""
    for index, version in enumerate(own):
        verdef += struct.pack("<HHHHIII", 1, 0, index + 1, 1, 0, 20, 0 if index == len(own) - 1 else 28) + struct.pack(
            "<II", text(version), 0
        )
    tags = [(1, text(one)) for one in needed]
    tags += [(tag, text(value)) for tag, value in ((14, soname), (15, rpath), (29, runpath)) if value]
    blocks = {11: symbols, 3: b"", 0x6FFFFFFF: versym, 0x6FFFFFFE: verneed, 0x6FFFFFFD: verdef}
    place, where = 64 + 2 * 56, {}
    blocks[3] = bytes(strings)
    for kind, block in blocks.items():
        where[kind] = place
        place += len(block)
    tags += [(5, where[3]), (10, len(strings))]
    tags += [(0x6FFFFFFE, where[0x6FFFFFFE]), (0x6FFFFFFF, len(needs))] if needs else []
    dynamic = b"".join(struct.pack("<QQ", *one) for one in [*tags, (0, 0)])
    dynamic_at, place = place, place + len(dynamic)
    named = b"\0.x\0"
    names_at, place = place, place + len(named)
    sections = bytes(64)
    for kind in (11, 3, *(one for one in (0x6FFFFFFF, 0x6FFFFFFE, 0x6FFFFFFD) if blocks[one])):
        sections += struct.pack("<IIQQQQIIQQ", 1, kind, 0, 0, where[kind], len(blocks[kind]), 2, 0, 0, 0)
    count = len(sections) // 64
    sections += struct.pack("<IIQQQQIIQQ", 1, 1, 0, 0, names_at, len(named), 0, 0, 0, 0)
    head = b"\x7fELF\2\1\1" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0, 64, place, 0, 64, 56, 2, 64, count + 1, count)
    load_segment = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, place, place, 4096)
    dynamic_segment = struct.pack("<IIQQQQQQ", 2, 5, dynamic_at, dynamic_at, 0, len(dynamic), len(dynamic), 8)
    return head + load_segment + dynamic_segment + b"".join(blocks.values()) + dynamic + named + sections


def system(root: Path) -> None:
    """An interpreter and the C libraries of an image."""
    put(root, "usr/bin/python3.12", make_elf(("libc.so.6",), ("PyLong_FromLong",)))
    put(
        root,
        "usr/lib/x86_64-linux-gnu/libc.so.6",
        make_elf(defined=("malloc",), own=("libc.so.6", "GLIBC_2.2.5", "GLIBC_2.35")),
    )
    put(
        root,
        "usr/lib/x86_64-linux-gnu/libstdc++.so.6",
        make_elf(("libc.so.6",), ("_Zx",), own=("GLIBCXX_3.4", "GLIBCXX_3.4.9", "CXXABI_1.3")),
    )


def problems_of(root: Path, library: bytes, name: str = "pkg/_c.so") -> list[tuple[str, str]]:
    put(root, f"{SITE}/{name}", library)
    return [
        (one["kind"], one["what"]) for one in seen(root, "libraries")["problems"] if one["file"] == f"/{SITE}/{name}"
    ]


def test_a_library_that_loads_has_no_problem(tmp_path: Path) -> None:
    system(tmp_path)
    content = make_elf(
        ("libc.so.6",), (), ("malloc", "PyLong_FromLong"), ("nobody",), needs=(("libc.so.6", "GLIBC_2.35"),)
    )
    assert problems_of(tmp_path, content) == []
    found = seen(tmp_path, "libraries")
    assert found["interpreter"] == "/usr/bin/python3.12"
    assert found["needs"] == {"GLIBC": ["2.35", f"/{SITE}/pkg/_c.so"]}
    assert found["provides"] == {"GLIBC": "2.35", "GLIBCXX": "3.4.9", "CXXABI": "1.3"}
    assert (found["files"], found["judged"], found["unjudged_symbols"]) == (1, 1, {})


@pytest.mark.parametrize(
    ("library", "problem"),
    [
        (make_elf(("libgone.so.1",)), ("missing-library", "libgone.so.1")),
        (make_elf(("libc.so.6",), (), ("gone",)), ("undefined", "gone")),
        (make_elf(("libc.so.6",), (), tuple("abcde")), ("undefined", "a, b, c and 2 more")),
        (
            make_elf(("libc.so.6",), needs=(("libc.so.6", "GLIBC_2.99"),)),
            ("version", "libc.so.6 of this image has no GLIBC_2.99"),
        ),
        (
            make_elf(("libstdc++.so.6",), needs=(("libstdc++.so.6", "GLIBCXX_3.4.31"),)),
            ("version", "libstdc++.so.6 of this image has no GLIBCXX_3.4.31"),
        ),
        (b"\x7fELF\2\1\1" + bytes(60), None),
        (make_elf(("libc.so.6",))[:300], ("damaged", None)),
        (b"", ("damaged", None)),
    ],
    ids=["missing", "undefined", "many undefined", "newer libc", "newer libstdc++", "a header alone", "cut", "empty"],
)
def test_a_library_that_does_not_load_is_named(
    tmp_path: Path, library: bytes, problem: tuple[str, str | None] | None
) -> None:
    system(tmp_path)
    found = problems_of(tmp_path, library)
    if problem is None:
        assert found == []
        assert list(seen(tmp_path, "libraries")["other"].values()) == ["for machine 0x0"]
        return
    assert [kind for kind, _ in found] == [problem[0]]
    assert problem[1] in {None, found[0][1]}


def test_symbols_of_needed_libraries_count_all_the_way_down(tmp_path: Path) -> None:
    system(tmp_path)
    put(tmp_path, f"{SITE}/pkg.libs/libone.so", make_elf(("libtwo.so", "libc.so.6"), ("one",), runpath="$ORIGIN"))
    put(tmp_path, f"{SITE}/pkg.libs/libtwo.so", make_elf(defined=("two",)))
    content = make_elf(("libone.so",), (), ("one", "two", "malloc"), runpath="${ORIGIN}/../pkg.libs")
    assert problems_of(tmp_path, content) == []
    assert problems_of(tmp_path, make_elf(("libone.so",), (), ("three",), runpath="$ORIGIN/../pkg.libs")) == [
        ("undefined", "three")
    ]


def test_rpath_is_handed_down_and_runpath_is_not(tmp_path: Path) -> None:
    system(tmp_path)
    put(tmp_path, "opt/x/libone.so", make_elf(("libtwo.so",)))
    put(tmp_path, "opt/x/libtwo.so", make_elf(defined=("two",)))
    assert problems_of(tmp_path, make_elf(("libone.so",), (), ("two",), rpath="/opt/x")) == []
    assert problems_of(tmp_path, make_elf(("libone.so",), (), ("two",), runpath="/opt/x")) == [
        ("missing-library", "libtwo.so (for /opt/x/libone.so)")
    ]
    image = script.Image.at(str(tmp_path))
    loader = loading.Loader(image, {})
    library = loader.library(str(tmp_path / SITE / "pkg/_c.so"))
    assert loader.closure(library)[2] == {"libtwo.so": {str(tmp_path / "opt/x/libone.so")}}


def test_the_configured_folders_and_the_environment_are_searched(tmp_path: Path) -> None:
    system(tmp_path)
    put(tmp_path, "opt/rocm/lib/librocm.so.1", make_elf(defined=("rocm",)))
    content = make_elf(("librocm.so.1",), (), ("rocm",))
    assert problems_of(tmp_path, content) == [("missing-library", "librocm.so.1")]
    loader = loading.Loader(script.Image.at(str(tmp_path)), {"LD_LIBRARY_PATH": "/nowhere:/opt/rocm/lib"})
    assert loader.closure(loader.library(str(tmp_path / SITE / "pkg/_c.so")))[2] == {}
    put(tmp_path, "etc/ld.so.conf", "include /etc/ld.so.conf.d/*.conf # all\n")
    put(tmp_path, "etc/ld.so.conf.d/rocm.conf", "# ROCm\n/opt/rocm/lib\n")
    assert problems_of(tmp_path, content) == []


def test_the_loaders_cache_is_read(tmp_path: Path) -> None:
    system(tmp_path)
    put(tmp_path, "opt/lib/libcached.so.1", make_elf(defined=("cached",)))
    name, path = b"libcached.so.1\0", b"/opt/lib/libcached.so.1\0"
    place = 48 + 24
    raw = b"glibc-ld.so.cache1.1" + struct.pack("<IIB3xI12x", 1, len(name + path), 2, 0)
    raw += struct.pack("<iIIIQ", 0x0303, place, place + len(name), 0, 0) + name + path
    put(tmp_path, "etc/ld.so.cache", raw)
    assert problems_of(tmp_path, make_elf(("libcached.so.1",), (), ("cached",))) == []
    put(tmp_path, "etc/ld.so.cache", raw[:60])
    assert problems_of(tmp_path, make_elf(("libcached.so.1",), (), ("cached",))) == [
        ("missing-library", "libcached.so.1")
    ]


def test_a_library_for_another_machine_is_passed_over(tmp_path: Path) -> None:
    system(tmp_path)
    put(tmp_path, f"{SITE}/pkg/arm/libone.so", make_elf(defined=("one",), machine=183))
    put(tmp_path, f"{SITE}/pkg/x86/libone.so", make_elf(defined=("one",)))
    assert problems_of(tmp_path, make_elf(("libone.so",), (), ("one",), runpath="$ORIGIN/arm:$ORIGIN/x86")) == []
    assert seen(tmp_path, "libraries")["other"] == {f"/{SITE}/pkg/arm/libone.so": "for machine 0xb7"}


def test_what_an_import_before_loads_is_found_by_name(tmp_path: Path) -> None:
    system(tmp_path)
    put(tmp_path, f"{SITE}/torch/lib/libtorch.so", make_elf(defined=("at",), soname="libtorch.so"))
    assert problems_of(tmp_path, make_elf(("libtorch.so",), (), ("at",)), "vllm/_C.so") == []
    assert seen(tmp_path, "libraries")["loaded_before"] == {"libtorch.so": [f"/{SITE}/vllm/_C.so"]}


def test_an_absent_driver_is_said_and_its_symbols_are_not_judged(tmp_path: Path) -> None:
    system(tmp_path)
    content = make_elf(
        ("libamdhip64.so.6", "libc.so.6"), (), ("hipMalloc", "unversioned", "gone"),
        needs=(("libamdhip64.so.6", "hip_4.2"), ("libc.so.6", "GLIBC_2.35")), versioned={"hipMalloc": 2, "gone": 3},
    )  # fmt: skip
    # A symbol that says whose it is stays judged: libc is there, and does not have it.
    assert problems_of(tmp_path, content) == [("undefined", "gone")]
    found = seen(tmp_path, "libraries")
    assert found["absent_drivers"] == {"libamdhip64.so.6": [f"/{SITE}/pkg/_c.so"]}
    assert found["unjudged_symbols"] == {f"/{SITE}/pkg/_c.so": 2}


def test_without_an_interpreter_no_symbol_is_judged(tmp_path: Path) -> None:
    assert problems_of(tmp_path, make_elf(defined=(), undefined=("PyLong_FromLong",))) == []
    found = seen(tmp_path, "libraries")
    assert (found["interpreter"], found["unjudged_symbols"]) == ("", {f"/{SITE}/pkg/_c.so": 1})


def test_what_hipcc_made_needs_hip_and_nothing_else(tmp_path: Path) -> None:
    for name in ("module_both", "host_only"):
        put(tmp_path, f"{SITE}/aiter/jit/{name}.so", (HIP / f"{name}.so").read_bytes())
    found = loading.read_library(str(tmp_path / SITE / "aiter/jit/module_both.so"))
    assert {name.decode() for name, _ in found.undefined} | {"__gmon_start__"} <= set(
        elf.Elf((HIP / "module_both.so").read_bytes()).undefined
    )
    assert b"__gmon_start__" not in {name for name, _ in found.undefined}
    assert dict(found.undefined)[b"hipLaunchKernel"] == "libamdhip64.so.6"
    assert list(seen(tmp_path, "libraries")["absent_drivers"]) == ["libamdhip64.so.6"]


@given(st.binary(max_size=400), st.integers(0, 500))
def test_damage_is_an_elf_error_and_nothing_else(noise: bytes, place: int) -> None:
    content = bytearray(make_elf(("libc.so.6",), ("a",), ("b",), needs=(("libc.so.6", "GLIBC_2.35"),), own=("X_1",)))
    content[place : place + len(noise)] = noise
    view = memoryview(bytes(content))
    try:
        loading._library("x", view)
    except elf.ElfError:
        return


# --- what the image says of itself ---


def test_the_images_own_words_are_read(tmp_path: Path) -> None:
    assert (seen(tmp_path, "app")["versions"], seen(tmp_path, "app")["provenance"]) == (None, None)
    put(tmp_path, "app/versions.txt", "AITER_BRANCH: v0.1.14\nAITER_REPO: https://x/y\n\n")
    put(tmp_path, "app/provenance.json", '{"schema": 1}')
    assert seen(tmp_path, "app")["versions"] == {"AITER_BRANCH": "v0.1.14", "AITER_REPO": "https://x/y"}
    assert seen(tmp_path, "app")["provenance"] == {"schema": 1}
    assert seen(tmp_path, "app")["sbom"] is None
    put(tmp_path, "app/sbom.cdx.json", b'{"a":\r\n"\xc3\xa9"}')
    assert seen(tmp_path, "app")["sbom"] == '{"a":\r\n"é"}'
    put(tmp_path, "app/sbom.cdx.json", b" " * ((16 << 20) + 1))
    assert "sbom.cdx.json has 16777217 bytes" in seen(tmp_path, "app")["trouble"]
    put(tmp_path, "app/sbom.cdx.json", b"\xff")
    assert seen(tmp_path, "app")["trouble"]
    put(tmp_path, "app/sbom.cdx.json", b"{}")
    put(tmp_path, "app/provenance.json", "{")
    assert seen(tmp_path, "app")["trouble"]


# --- packages ---

STATUS = """Package: one
Status: install ok installed
Version: 1:2.0-3
Description: first
 Package: not this
 .
 Version: nor that

Package: half
Status: install ok half-configured
Version: 1

Package: gone
Status: deinstall ok config-files
Version: 1

Package: another
Status: hold ok installed
Version: 4
"""


def test_packages_that_are_installed_are_listed_and_no_others(tmp_path: Path) -> None:
    assert seen(tmp_path, "packages")["packages"] == []
    put(tmp_path, "var/lib/dpkg/status", STATUS)
    assert seen(tmp_path, "packages")["packages"] == [["another", "4"], ["one", "1:2.0-3"]]
    put(tmp_path, "var/lib/dpkg/status", STATUS.replace("Version: 4\n", ""))
    assert seen(tmp_path, "packages") == {"looked": False, "why": "KeyError: 'Version'"}


# --- files ---

KEY = "-----BEGIN {}PRIVATE KEY-----{}" + "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwgg" + "SjAgEAAoIB\n"


@pytest.mark.parametrize(
    ("path", "content", "kind"),
    [
        ("etc/ssl/private/x.pem", KEY.format("", "\n"), "private key"),
        ("opt/x.key", KEY.format("RSA ", "\n"), "private key"),
        ("opt/ssh", KEY.format("OPENSSH ", "\n"), "private key"),
        ("opt/x.json", json.dumps({"key": KEY.format("", "\n")}), "private key"),
        ("opt/x.py", 'BEGIN = b"-----BEGIN PRIVATE KEY-----"\n', ""),
        ("root/.ssh/id_rsa", "x", "file of that name"),
        ("root/.ssh/id_rsa.pub", "x", ""),
        ("root/.netrc", "x", "file of that name"),
        ("root/.bash_history", "ls", "file of that name"),
        ("root/.netrc", "", ""),
        ("root/.npmrc", "//registry/:_authToken=abc\n", "login"),
        ("root/.npmrc", "fund=false\n", ""),
        ("etc/pip.conf", "[global]\nindex-url = https://me:word@host/simple\n", "login"),
        ("etc/pip.conf", "[global]\nindex-url = https://${ME}:${WORD}@host/simple\n", ""),
        ("root/.pypirc", "[x]\npassword = y\n", "login"),
        ("root/.docker/config.json", '{"auths": {"h": {"auth": "x"}}}', "login"),
        ("root/.aws/credentials", "x", "file of that name"),
        ("app/.env", "AWS=AKIA" + "Q3EGRI7ZOVPXL2MN\n", "AWS access key"),
        ("app/readme.md", "AWS=AKIA" + "IOSFODNN7EXAMPLE\n", ""),
        ("app/x.ini", "aws_secret_access_key = " + "a1" * 20 + "\n", "AWS secret key"),
        ("app/x", "ghp_" + "a1B2" * 9, "GitHub token"),
        ("app/x", "hf_" + "abcdefgh" * 4 + "ij", "Hugging Face token"),
        ("src/.git/HEAD", "ref: x", "git repository"),
    ],
)
def test_secrets_are_found_and_never_said(tmp_path: Path, path: str, content: str, kind: str) -> None:
    put(tmp_path, path, content)
    found = seen(tmp_path, "files")
    assert [one["kind"] for one in found["secrets"]] == ([kind] if kind else [])
    if kind not in {"", "git repository"}:
        assert found["secrets"][0]["path"] == f"/{path}"
    if len(content) > 20:
        assert content[20:] not in json.dumps(found)


def test_rights_are_listed_with_the_package_that_gave_them(tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "bin").symlink_to("usr/bin")
    put(tmp_path, "var/lib/dpkg/info/util-linux.list", "/.\n/bin\n/bin/su\n")
    put(tmp_path, "usr/bin/su", "x").chmod(0o4755)
    put(tmp_path, "opt/mine", "x").chmod(0o2755)
    put(tmp_path, "opt/open", "x").chmod(0o666)
    for name, mode in (("tmp", 0o1777), ("opt/box", 0o777), ("opt/group", 0o2775)):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
    found = seen(tmp_path, "files")
    assert found["setuid"] == [
        {"path": "/opt/mine", "mode": "2755", "package": ""},
        {"path": "/usr/bin/su", "mode": "4755", "package": "util-linux"},
    ]
    assert found["world_writable"] == ["/opt/box", "/opt/open"]


def test_left_overs_of_the_build_are_listed(tmp_path: Path) -> None:
    for path in (
        "tmp/pip-build/x", "root/.cache/pip/x", "home/me/.cache/uv", "var/cache/apt/pkgcache.bin", "var/cache/apt/archives/x.deb",
        "var/cache/apt/archives/lock", "var/lib/apt/lists/lock", "var/lib/apt/lists/suite_main_Packages", "var/tmp/y", "var/cache/debconf/z",
    ):  # fmt: skip
        put(tmp_path, path, "x")
    (tmp_path / "var/lib/apt/lists/partial").mkdir()
    assert [one[1:] for one in seen(tmp_path, "files")["left_over"]] == [
        "tmp/pip-build", "tmp/pip-build/x", "var/tmp/y", "root/.cache/pip", "root/.cache/pip/x", "home/me/.cache/uv",
        "var/cache/apt/archives/x.deb", "var/cache/apt/pkgcache.bin", "var/lib/apt/lists/suite_main_Packages",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "content", "name"),
    [
        ("etc/environment", "PATH=/bin\nhttp_proxy=http://p:3128\n", "http_proxy"),
        ("etc/profile.d/x.sh", "export HTTPS_PROXY='http://p'\n", "HTTPS_PROXY"),
        ("etc/environment", 'http_proxy=""\nNO_SUCH_PROXY_THING=1\n', ""),
        ("etc/apt/apt.conf.d/99", 'Acquire::http::Proxy "http://p:3128";\n', "Acquire::Proxy"),
        ("etc/apt/apt.conf.d/99", 'Acquire { http {\n Proxy "http://p"; }; };\n', "Acquire::Proxy"),
        ("etc/apt/apt.conf.d/99", 'APT::Install-Recommends "false";\n', ""),
        ("etc/pip.conf", "[global]\nindex-url = https://mirror/simple\n", "index-url"),
        ("root/.gitconfig", "[http]\n  proxy = http://p\n", "proxy"),
    ],
)
def test_proxies_are_found_by_name(tmp_path: Path, path: str, content: str, name: str) -> None:
    put(tmp_path, path, content)
    assert seen(tmp_path, "files")["proxies"] == ([{"path": f"/{path}", "name": name}] if name else [])


def certificate(word: str) -> str:
    return f"-----BEGIN CERTIFICATE-----\n{base64.b64encode(word.encode() * 20).decode()}\n-----END CERTIFICATE-----\n"


def test_authorities_of_ones_own_are_found(tmp_path: Path) -> None:
    put(tmp_path, "usr/share/ca-certificates/mozilla/A.crt", certificate("a"))
    put(tmp_path, "var/lib/dpkg/info/ca-certificates.list", "/usr/share/ca-certificates/mozilla/A.crt\n")
    put(tmp_path, "etc/ssl/certs/ca-certificates.crt", certificate("a"))
    assert seen(tmp_path, "files")["certificates"] == []
    put(tmp_path, "etc/ssl/certs/ca-certificates.crt", certificate("a") + certificate("mine"))
    put(tmp_path, "usr/local/share/ca-certificates/site.crt", certificate("mine"))
    put(tmp_path, "usr/share/ca-certificates/B.crt", certificate("b"))
    assert seen(tmp_path, "files")["certificates"] == [
        "/usr/local/share/ca-certificates/site.crt", "/usr/share/ca-certificates/B.crt", "/etc/ssl/certs/ca-certificates.crt",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("HTTPS_PROXY", True),
        ("no_proxy", True),
        ("HF_TOKEN", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("TOKENIZERS_PARALLELISM", False),
        ("PATH", False),
        ("KEYBOARD", False),
    ],
)
def test_names_of_variables_that_matter(name: str, said: bool) -> None:
    assert bool(all_files._PROXY_NAME.match(name) or all_files._SECRET_NAME.search(name)) == said


# --- calls ---

AITER = """
@compile_ops("module_mhc")
def mhc_post(out, x, residual, post_layer_mix, comb_res_mix) -> None: ...

def mhc_pre(residual, fn, hc_scale, hc_base, rms_eps=1e-6, *, sinkhorn_repeat=20):
    return residual

def mhc_old(a, b, /, c): ...
"""


def sources(root: Path, vllm: str, kernels: str | None = AITER, more: dict[str, str] | None = None) -> None:
    put(root, f"{SITE}/vllm/__init__.py")
    put(root, f"{SITE}/vllm/_aiter_ops.py", f"# mhc, by aiter\n{vllm}")
    if kernels is not None:
        for name in ("aiter/__init__.py", "aiter/ops/__init__.py"):
            put(root, f"{SITE}/{name}", "from .ops.mhc import *\n" if name == "aiter/__init__.py" else "")
        put(root, f"{SITE}/aiter/ops/mhc.py", kernels)
    for path, content in (more or {}).items():
        put(root, f"{SITE}/{path}", content)


def verdicts(root: Path) -> list[tuple[str, str]]:
    return [(one["verdict"], one["why"]) for one in seen(root, "calls")["calls"]]


@pytest.mark.parametrize(
    ("call", "verdict", "why"),
    [
        ("mhc_post(1, 2, 3, 4, 5)", "fits", ""),
        ("mhc_post(1, 2, 3, 4, comb_res_mix=5)", "fits", ""),
        ("mhc_post(1, 2, 3, 4)", "misfit", "argument comb_res_mix is not given"),
        ("mhc_post(1, 2, 3, 4, 5, 6)", "misfit", "6 arguments by position, it takes 5"),
        ("mhc_post(1, 2, 3, 4, 5, out=6)", "misfit", "argument out is given twice"),
        ("mhc_post(1, 2, 3, 4, 5, store_nt=-1)", "misfit", "it has no argument store_nt"),
        ("mhc_pre(1, 2, 3, 4)", "fits", ""),
        ("mhc_pre(1, 2, 3, 4, 5, sinkhorn_repeat=1)", "fits", ""),
        ("mhc_pre(1, 2, 3, 4, 5, 6)", "misfit", "6 arguments by position, it takes 5"),
        ("mhc_old(1, 2, c=3)", "fits", ""),
        ("mhc_old(1, b=2, c=3)", "misfit", "it has no argument b"),
        ("mhc_pre(*given)", "unknown", "how many arguments * or ** stand for is known only when it runs"),
        ("mhc_pre(*args)", "fits", ""),
        ("mhc_pre(*args, 5, 6)", "misfit", "6 arguments by position, it takes 5"),
        ("mhc_pre(1, 2, 3, 4, **more)", "unknown", "how many arguments * or ** stand for is known only when it runs"),
        ("mhc_pre(1, norm_weight=2, **more)", "misfit", "it has no argument norm_weight"),
    ],
)
def test_calls_are_compared_with_signatures(tmp_path: Path, call: str, verdict: str, why: str) -> None:
    name = call.partition("(")[0]
    sources(
        tmp_path,
        f"def run(given, more):\n    from aiter.ops.mhc import {name}\n    args = (1, 2, 3, 4)\n    return {call}\n",
    )
    assert verdicts(tmp_path) == [(verdict, why)]
    assert seen(tmp_path, "calls")["calls"][0]["in"] == "run"


@pytest.mark.parametrize(
    "text",
    [
        "from aiter.ops.mhc import mhc_pre as f\nf(1)",
        "import aiter.ops.mhc as m\nm.mhc_pre(1)",
        "import aiter\naiter.ops.mhc.mhc_pre(1)",
        "import aiter\naiter.mhc_pre(1)",
        "from aiter import mhc_pre\nf = mhc_pre\nf(1)",
        "import aiter.ops.mhc as m\nf = m.mhc_pre\ndef g():\n    return f(1)",
        "from aiter.ops import mhc\ngetattr(mhc, 'mhc_pre')(1)",
        "from functools import partial\nfrom aiter.ops.mhc import mhc_pre\nf = partial(mhc_pre, 1, 2)\nf(3)",
        "try:\n    from aiter.ops.mhc import mhc_pre\nexcept ImportError:\n    mhc_pre = None\nmhc_pre(1)",
        "class C:\n    @staticmethod\n    def mhc_pre(a):\n        from aiter.ops.mhc import mhc_pre\n        return mhc_pre(a)",
    ],
    ids=[
        "as",
        "module",
        "dotted",
        "star",
        "alias",
        "alias of another scope",
        "getattr",
        "partial",
        "guarded",
        "a method of its name",
    ],
)
def test_aliases_are_followed(tmp_path: Path, text: str) -> None:
    sources(tmp_path, text)
    assert [verdict for verdict, _ in verdicts(tmp_path)] == ["misfit"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from aiter.ops.mhc import mhc_pre\nwrap(mhc_pre)(1)", ["unknown"]),
        ("from aiter.ops.mhc import mhc_pre\nwrapped = torch.compile(mhc_pre)", ["unknown"]),
        ("from aiter.ops.mhc import mhc_pre\ncallable(mhc_pre)", []),
        ("from aiter.ops.mhc import mhc_pre\ndef g(mhc_pre):\n    mhc_pre(1)", []),
        ("from aiter.ops.mhc import mhc_fused", ["misfit"]),
        ("try:\n    from aiter.ops.mhc import mhc_fused\nexcept ImportError:\n    pass", ["guarded"]),
        ("import aiter.ops.mhc as m\nm.mhc_fused(1)", ["misfit"]),
    ],
    ids=[
        "called through a wrapper",
        "wrapped",
        "asked about",
        "shadowed",
        "not there",
        "not there, and thought of",
        "an attribute that is not there",
    ],
)
def test_what_is_no_plain_call(tmp_path: Path, text: str, expected: list[str]) -> None:
    sources(tmp_path, text)
    assert [verdict for verdict, _ in verdicts(tmp_path)] == expected


def test_a_module_that_is_not_there_is_named(tmp_path: Path) -> None:
    sources(tmp_path, "def run():\n    from aiter.ops.triton.mhc import mhc_new\n    mhc_new(1)\n")
    why = f"/{SITE}/aiter/ops/__init__.py has no triton.mhc.mhc_new"
    assert verdicts(tmp_path) == [("misfit", why), ("misfit", why)]


def test_without_aiter_the_calls_are_absent(tmp_path: Path) -> None:
    sources(tmp_path, "from aiter.ops.mhc import mhc_pre\nmhc_pre(1)", kernels=None)
    assert verdicts(tmp_path) == [("absent", "aiter is not installed")]
    assert seen(tmp_path, "calls")["installed"] == {"aiter": False, "tilelang": False}


def test_vllms_own_operators_are_followed_to_aiter(tmp_path: Path) -> None:
    more = {
        "vllm/kernels/__init__.py": "",
        "vllm/kernels/mhc.py": "from vllm._aiter_ops import ops\n"
        "def mhc_pre_aiter(a, b):\n    return ops.mhc_pre(a)\n"
        'direct_register_custom_op(op_name="mhc_pre_aiter", op_func=mhc_pre_aiter)\n',
        "vllm/layer.py": "# aiter's mhc\nimport torch\ntorch.ops.vllm.mhc_pre_aiter(1)\ntorch.ops.vllm.mhc_pre_aiter(1, 2)\n",
    }
    put(tmp_path, f"{SITE}/vllm/kernels/__init__.py")
    sources(
        tmp_path,
        "class ops:\n    @staticmethod\n    def mhc_pre(a, b):\n        pass\n",
        more={**more, "vllm/kernels/mhc.py": "# aiter\n" + more["vllm/kernels/mhc.py"]},
    )
    found = {
        (Path(one["file"]).name, one["line"]): (one["verdict"], one["why"]) for one in seen(tmp_path, "calls")["calls"]
    }
    assert found == {
        ("mhc.py", 4): ("misfit", "argument b is not given"),
        ("layer.py", 3): ("misfit", "argument b is not given"),
        ("layer.py", 4): ("fits", ""),
    }


def test_tilelangs_own_functions_are_compared(tmp_path: Path) -> None:
    more = {
        "tilelang/__init__.py": "from .jit import jit\n",
        "tilelang/jit.py": "@overload\ndef jit(f): ...\ndef jit(out_idx=None, target='auto'):\n    pass\n",
        "tilelang/language/__init__.py": "from .alloc import alloc_shared\nfrom tvm.script import *\n",
        "tilelang/language/alloc.py": "def alloc_shared(shape, dtype, scope='shared'):\n    pass\n",
        "vllm/tile_kernels.py": "import tilelang\nimport tilelang.language as T\n@tilelang.jit(target='hip')\n"
        "def mhc_kernel():\n    T.alloc_shared(1)\n    T.alloc_shared(1, 2)\n    T.prim(1)\ntilelang.jit(pass_configs={})\n",
    }
    sources(tmp_path, "", more=more)
    assert verdicts(tmp_path) == [
        ("fits", ""),
        ("misfit", "argument dtype is not given"),
        ("fits", ""),
        ("unknown", "what it is is known only when it runs"),
        ("misfit", "it has no argument pass_configs"),
    ]


def test_a_source_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    sources(tmp_path, "def broken(:\n")
    found = seen(tmp_path, "calls")
    assert (found["looked"], "no Python source" in found["why"]) == (False, True)


# --- the switch ---


@pytest.mark.parametrize(
    ("envs", "expected"),
    [
        (
            'environment_variables = {"VLLM_ROCM_USE_TILELANG_MHC": lambda: bool(int(os.getenv("VLLM_ROCM_USE_TILELANG_MHC", "0")))}',
            True,
        ),
        ('variables["VLLM_ROCM_USE_TILELANG_MHC"] = lambda: True', True),
        ('on = os.getenv("VLLM_ROCM_USE_TILELANG_MHC")', False),
        ("# VLLM_ROCM_USE_TILELANG_MHC", False),
    ],
)
def test_the_switch_is_defined_or_only_named(tmp_path: Path, envs: str, expected: bool) -> None:
    put(tmp_path, f"{SITE}/vllm/__init__.py")
    assert seen(tmp_path, "switch")["envs"] is False
    put(tmp_path, f"{SITE}/vllm/envs.py", envs)
    assert (seen(tmp_path, "switch")["envs"], seen(tmp_path, "switch")["in_vllm"]) == (True, expected)


def test_plugins_are_found_by_their_entry_points(tmp_path: Path) -> None:
    put(tmp_path, f"{SITE}/vllm/__init__.py")
    points = (
        "[vllm.general_plugins]\none = there.plugin:register\ntwo = gone.plugin:register\n[console_scripts]\nx = y:z\n"
    )
    install(tmp_path, "kiln-vllm-mhc-switch", extra={"entry_points.txt": points})
    found = [(one["distribution"], one["name"], one["there"]) for one in seen(tmp_path, "switch")["plugins"]]
    assert found == [("kiln-vllm-mhc-switch", "one", False), ("kiln-vllm-mhc-switch", "two", False)]
    put(tmp_path, f"{SITE}/there/plugin.py")
    assert [one["there"] for one in seen(tmp_path, "switch")["plugins"]] == [True, False]


def with_the_real_plugin(image: Path, model: str) -> str:
    """What the switch plugin of this project says of a vLLM with this model source."""
    put(image, f"{SITE}/vllm/__init__.py")
    put(image, f"{SITE}/vllm/models/deepseek_v4/cpu/model.py", model)
    points = {"entry_points.txt": "[vllm.general_plugins]\nkiln_mhc_switch = kiln_vllm_mhc_switch.plugin:register\n"}
    install(image, "kiln-vllm-mhc-switch", extra=points)
    package = "kiln_vllm_mhc_switch"
    shutil.copytree(PLUGINS / "vllm-mhc-switch" / package, image / SITE / package, dirs_exist_ok=True)
    (plugin,) = seen(image, "switch")["plugins"]
    # The plugin looks at both platforms' code; there is none for a GPU here.
    assert "vllm.model_executor.layers.mhc of vLLM in the image: the module is not there" in plugin["broken"]["rocm"]
    return str(plugin["broken"]["cpu"])


def test_the_plugins_own_check_of_what_it_hooks_is_asked(tmp_path: Path) -> None:
    assert with_the_real_plugin(tmp_path / "right", MODEL) == ""
    said = with_the_real_plugin(tmp_path / "renamed", MODEL.replace("use_fused_mhc", "use_joined_mhc"))
    assert "UnknownVllmCodeError" in said
    assert "DeepseekV4DecoderLayer.__init__" in said
    assert "SyntaxError" in with_the_real_plugin(tmp_path / "cut", "def broken(:")


def test_who_asks_for_the_switch_is_found(tmp_path: Path) -> None:
    put(tmp_path, f"{SITE}/vllm/__init__.py")
    put(tmp_path, f"{SITE}/vllm/config.py", "envs.VLLM_ROCM_USE_TILELANG_MHC")
    assert seen(tmp_path, "switch")["readers"] == []
    put(tmp_path, f"{SITE}/vllm/model_executor/layers/mhc.py", "on = envs.VLLM_ROCM_USE_TILELANG_MHC")
    assert seen(tmp_path, "switch")["readers"] == [f"/{SITE}/vllm/model_executor/layers/mhc.py"]


# --- AITER's module ---


def test_the_mhc_module_is_described(tmp_path: Path) -> None:
    (tmp_path / SITE).mkdir(parents=True)
    assert seen(tmp_path, "mhc_module")["aiter"] is False
    put(tmp_path, f"{SITE}/aiter/jit/module_mhc.cpython-312.so", "x")
    found = seen(tmp_path, "mhc_module")
    assert (found["there"], found["instead"]) == (False, ["module_mhc.cpython-312.so"])
    shutil.copy(HIP / "module_both.so", tmp_path / SITE / "aiter/jit/module_mhc.so")
    found = seen(tmp_path, "mhc_module")
    assert [one["processor"] for one in found["code"]] == ["gfx942", "gfx950"]
    assert found["sha256"] == hashlib.sha256((HIP / "module_both.so").read_bytes()).hexdigest()
    assert (found["init"], found["exported"]) == ([], [])
    put(tmp_path, f"{SITE}/aiter/jit/module_mhc.so", make_elf(defined=("PyInit_module_mhc", "mhc_pre")))
    found = seen(tmp_path, "mhc_module")
    assert (found["init"], found["exported"], found["code"]) == (["PyInit_module_mhc"], ["mhc_pre"], [])
    put(tmp_path, f"{SITE}/aiter/jit/module_mhc.so", "no library")
    assert seen(tmp_path, "mhc_module")["trouble"]


# --- the program ---


def test_it_runs_on_its_own_and_every_section_answers(tmp_path: Path) -> None:
    system(tmp_path)
    install(tmp_path, "toy")
    put(tmp_path, f"{SITE}/vllm/__init__.py")
    words = [sys.executable, str(SCRIPTS / "inspect_image.py"), "--root", str(tmp_path)]
    ran = subprocess.run(words, check=True, capture_output=True, text=True, cwd=tmp_path)
    document = json.loads(ran.stdout)
    assert set(script.SECTIONS) <= set(document)
    assert all(document[name]["looked"] for name in script.SECTIONS), document
    assert ran.stderr == ""


def test_a_section_that_breaks_says_why_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(script.SECTIONS, "app", lambda _: 1 / 0)
    document = script.look(script.Image.at(str(tmp_path)), ["app", "files"])
    assert document["app"] == {"looked": False, "why": "ZeroDivisionError: division by zero"}
    assert document["files"]["looked"] is True
