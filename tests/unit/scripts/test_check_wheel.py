"""Judging wheels: one that is right, and one that is wrong in each way the script knows."""

from __future__ import annotations

import base64
import hashlib
import json
import stat
import struct
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

from .conftest import load

HIP = Path(__file__).parents[2] / "rehearsal" / "hip"
elf: ModuleType = load("elf")
check_wheel: ModuleType = load("check_wheel")

VERSION = "0.1.14+g1234"
INFO = f"amd_aiter-{VERSION}.dist-info"
MODULE = "aiter/jit/module_mhc.so"
BOTH, GFX942, COMPRESSED, HOST = (
    (HIP / f"{name}.so").read_bytes() for name in ("module_both", "module_gfx942", "module_compressed", "host_only")
)
ARCHS = ("--archs", "gfx942;gfx950")
DEVICE = ("--device-code", "aiter/jit/*.so", *ARCHS)


def record_line(name: str, content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(content)}\n"


class Wheels:
    """A folder of wheels, and the script run on it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.capsys = capsys
        folder.mkdir()

    def add(
        self,
        files: dict[str, bytes] | None = None,
        *,
        name: str = "amd_aiter",
        version: str = VERSION,
        metadata_text: str | None = None,
        record: Callable[[str], str] = lambda text: text,
        tag: str = "cp312-cp312-linux_x86_64",
    ) -> Path:
        """Write a wheel; ``record`` edits the RECORD that would be right."""
        files = {"aiter/__init__.py": b"# aiter\n", MODULE: BOTH} if files is None else dict(files)
        info = f"{name}-{version}.dist-info"
        said = f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n" if metadata_text is None else metadata_text
        files[f"{info}/METADATA"] = said.encode()
        lines = "".join(record_line(*item) for item in files.items()) + f"{info}/RECORD,,\n"
        path = self.folder / f"{name}-{version}-{tag}.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file, content in files.items():
                archive.writestr(file, content)
            if (lines := record(lines)) != "none":
                archive.writestr(f"{info}/RECORD", lines.encode("utf-8", "surrogateescape"))
        return path

    def check(self, *arguments: str, distribution: str | None = "amd-aiter") -> tuple[int, str, list[str]]:
        """Exit status, standard output, and the lines of what is wrong."""
        names = ("--distribution", distribution) if distribution else ()
        status = check_wheel.main(["--wheels", str(self.folder), "--component", "aiter", *names, *arguments])
        out, err = self.capsys.readouterr()
        return status, out, err.splitlines()

    def problems(self, *arguments: str) -> list[str]:
        status, out, lines = self.check(*arguments)
        assert status == 1, out
        assert all(line.startswith("wrong: ") for line in lines)
        return [line.removeprefix("wrong: ") for line in lines]


@pytest.fixture
def wheels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Wheels:
    return Wheels(tmp_path / "wheels", capsys)


def test_a_right_wheel_passes_all_checks(wheels: Wheels, tmp_path: Path) -> None:
    wheel = wheels.add()
    log, report = tmp_path / "log", tmp_path / "report.json"
    log.write_text("compiling\nfinished\n")
    status, out, lines = wheels.check(
        *("--version", "0.1.14", "--holds", MODULE, "aiter/**/*.py", *DEVICE, "--only-archs"),
        *("--glibc", "2.35", "--glibcxx", "3.4.30", "--min-bytes", "5000", "--report", str(report)),
        *("--log", str(log), "--log-must-not", "error:", "skipp(ed|ing)"),
        *("--installed", f"pytest=={metadata.version('pytest')}"),
    )
    assert (status, lines) == (0, [])
    assert out == (
        f"aiter: pass: {wheel.name} ({wheel.stat().st_size} bytes), 4 files, "
        "device code for gfx942 gfx950 in 1, CXXABI_1.3.9, GLIBC_2.14, GLIBCXX_3.4.21\n"
    )
    assert json.loads(report.read_text()) == {
        "schema_version": 1,
        "component": "aiter",
        "result": "pass",
        "wheels": [
            {
                "file": wheel.name,
                "distribution": "amd-aiter",
                "version": VERSION,
                "size": wheel.stat().st_size,
                "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
            }
        ],
        "device_code": {MODULE: ["gfx942", "gfx950"]},
        "needs": {"CXXABI": "1.3.9", "GLIBC": "2.14", "GLIBCXX": "3.4.21"},
        "problems": [],
        "could_not_look": [],
    }


def test_compressed_device_code_is_looked_into(wheels: Wheels) -> None:
    wheels.add({MODULE: COMPRESSED})
    assert wheels.check(*DEVICE, "--only-archs")[0] == 0


def test_all_problems_at_once_in_one_order(wheels: Wheels, tmp_path: Path) -> None:
    wheels.add({MODULE: GFX942})
    report = tmp_path / "report.json"
    arguments = ("--version", "0.1.15", "--holds", "aiter/none", *DEVICE, "--glibc", "2.5", "--report", str(report))
    said = wheels.problems(*arguments)
    assert len(said) == 5
    assert said == sorted(said) == wheels.problems(*arguments)
    document = json.loads(report.read_text())
    assert document["result"] == "fail"
    assert len(document["problems"]) == 5
    assert {
        "where": MODULE,
        "what": "device code",
        "expected": "gfx950",
        "found": "gfx942",
    } in document["problems"]


def test_no_wheel(wheels: Wheels) -> None:
    assert wheels.problems() == [f"{wheels.folder}: wheels of amd-aiter: expected one wheel, found 0"]


def test_another_distribution(wheels: Wheels) -> None:
    wheels.add()
    wheels.add({}, name="triton", version="3.4.0")
    assert wheels.problems() == [f"{wheels.folder}: wheels of triton: expected none, found 1"]
    assert wheels.check("--distribution", "triton")[0] == 0


def test_the_component_is_the_distribution_where_none_is_named(wheels: Wheels) -> None:
    wheels.add(name="AITER")
    assert wheels.check(distribution=None)[0] == 0


def test_two_wheels_of_one_distribution(wheels: Wheels) -> None:
    wheels.add()
    wheels.add(tag="cp311-cp311-linux_x86_64")
    assert wheels.problems() == [f"{wheels.folder}: wheels of amd-aiter: expected one wheel, found 2"]


def test_a_file_name_that_is_none(wheels: Wheels) -> None:
    wheels.add()
    (wheels.folder / "aiter.whl").write_bytes(b"")
    assert "expected name-version-python-abi-platform.whl, found aiter.whl" in wheels.problems()[0]


@pytest.mark.parametrize("content", [b"no archive", b"", b"PK\5\6"])
def test_an_archive_that_is_none(wheels: Wheels, content: bytes) -> None:
    wheels.add().write_bytes(content)
    assert "archive: expected a readable zip archive" in wheels.problems()[0]


def test_a_damaged_member(wheels: Wheels) -> None:
    path = wheels.add()
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    path.write_bytes(damaged)
    assert "archive: expected a readable zip archive" in wheels.problems()[0]


@pytest.mark.parametrize(
    ("wanted", "found", "same"),
    [
        ("0.1.14", "0.1.14", True),
        ("v0.1.14", "0.1.14+g1234.d2026", True),
        ("0.1.14", "0.1.14+rocm7", True),
        ("0.1.14", "0.1.14.post1", False),
        ("0.1.14", "0.1.14rc1", False),
        ("0.1.14", "0.1.140", False),
        ("0.1.14", "0.1.1", False),
        ("2.13.0+cpu", "2.13.0+cpu", True),
        ("2.13.0+cpu", "2.13.0", False),
        ("2.13.0+cpu", "2.13.0+cpu.1", False),
        ("1.0+A-b", "1.0+a_b", True),
    ],
)
def test_versions_compare_loosely(wanted: str, found: str, same: bool) -> None:
    assert check_wheel.same_version(wanted, found) is same


def test_another_version(wheels: Wheels) -> None:
    wheel = wheels.add()
    assert wheels.problems("--version", "0.1.15") == [
        f"{wheel.name}: Version in METADATA: expected 0.1.15, found {VERSION}",
        f"{wheel.name}: version in the file name: expected 0.1.15, found {VERSION}",
    ]


def test_metadata_that_says_something_else(wheels: Wheels) -> None:
    wheel = wheels.add(metadata_text="Name: other\nVersion: 0.1.15\n")
    assert wheels.problems() == [
        f"{wheel.name}: Name in METADATA: expected amd_aiter, as the file name has, found other",
        f"{wheel.name}: Version in METADATA: expected {VERSION}, as the file name has, found 0.1.15",
    ]


def test_metadata_twice(wheels: Wheels) -> None:
    wheels.add({"other-1.dist-info/METADATA": b"Name: other\n"})
    assert "METADATA: expected one in one .dist-info, found amd_aiter" in wheels.problems()[0]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (lambda _: "none", "RECORD: expected one in one .dist-info, found none"),
        (lambda text: text + "\udce9,,\n", "RECORD: expected a table in UTF-8"),
        (lambda text: text + "gone.py,sha256=x,1\n", "file that RECORD lists: expected gone.py, found no such file"),
        (lambda text: text + text, "line of RECORD: expected path, hash, size; a path once"),
        (lambda text: text.split("\n", 1)[1], "RECORD: expected a line for aiter/__init__.py, found none"),
        (lambda text: text.replace("sha256=", "md5=", 1), "hash of aiter/__init__.py: expected md5="),
        (lambda text: text.replace(",8\n", ",9\n", 1), "size of aiter/__init__.py: expected 9, found 8"),
        (lambda text: text.replace(",8\n", ",\n", 1), "size of aiter/__init__.py: expected a size in RECORD, found 8"),
        (
            lambda text: text.replace(text.split(",")[1], "", 1),
            "hash of aiter/__init__.py: expected a sha256 in RECORD",
        ),
    ],
)
def test_records_that_are_wrong(wheels: Wheels, record: Callable[[str], str], said: str) -> None:
    wheels.add(record=record)
    (problem, *_) = wheels.problems()
    assert said in problem


def test_a_signature_needs_no_line(wheels: Wheels) -> None:
    wheels.add({f"{INFO}/RECORD.jws": b"{}"}, record=lambda text: text.split("\n", 1)[1])
    assert wheels.check()[0] == 0


@pytest.mark.parametrize("name", ["/etc/passwd", "aiter/../../up.py", "C:/x.py", "a\\b.py"])
def test_paths_that_lead_out(wheels: Wheels, name: str) -> None:
    wheel = wheels.add({name: b"x"})
    assert wheels.problems() == [f"{wheel.name}: path in the archive: expected relative, without '..', found {name}"]


def test_a_symbolic_link_and_a_name_twice(wheels: Wheels) -> None:
    wheel = wheels.add({"aiter/a.py": b"", "aiter/link": b"/etc"})
    rewritten = wheel.with_suffix(".new")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(rewritten, "w") as new:
        for info in old.infolist():
            if info.filename == "aiter/link":
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            new.writestr(info, old.read(info))
        with pytest.warns(UserWarning, match="Duplicate name"):
            new.writestr("aiter/a.py", b"")
    rewritten.replace(wheel)
    assert wheels.problems() == [
        f"{wheel.name}: file in the archive: expected each once, found aiter/a.py again",
        f"{wheel.name}: file in the archive: expected no symbolic link, found aiter/link",
    ]


@pytest.mark.parametrize(
    ("path", "pattern", "same"),
    [
        ("aiter/jit/a.so", "aiter/jit/*.so", True),
        ("aiter/jit/deep/a.so", "aiter/jit/*.so", False),
        ("aiter/jit/deep/a.so", "aiter/**/*.so", True),
        ("aiter/a.so", "aiter/**/*.so", True),
        ("other/aiter/a.so", "aiter/*.so", False),
        ("aiter/A.so", "aiter/a.so", False),
        ("aiter", "aiter/**", True),
    ],
)
def test_patterns(path: str, pattern: str, same: bool) -> None:
    assert check_wheel.matches(path, pattern) is same


def test_a_file_that_must_be_there(wheels: Wheels) -> None:
    wheels.add({"aiter/empty.so.txt": b""})
    assert wheels.problems("--holds", "aiter/empty*", "--holds", "aiter/jit/*") == [
        f"{wheels.folder}: aiter/empty*: expected a file that is not empty, found 1 empty",
        f"{wheels.folder}: aiter/jit/*: expected a file that is not empty, found none",
    ]


def test_files_count_where_they_will_be_installed(wheels: Wheels) -> None:
    wheels.add({f"amd_aiter-{VERSION}.data/platlib/{MODULE}": BOTH})
    assert wheels.check("--holds", MODULE, *DEVICE)[0] == 0


def test_device_code_that_lacks_an_arch(wheels: Wheels) -> None:
    wheels.add({MODULE: GFX942, "aiter/jit/host.so": HOST})
    assert wheels.problems(*DEVICE) == [
        "aiter/jit/host.so: device code: expected gfx942, found none",
        "aiter/jit/host.so: device code: expected gfx950, found none",
        f"{MODULE}: device code: expected gfx950, found gfx942",
    ]


def test_device_code_for_another_arch(wheels: Wheels) -> None:
    wheels.add()
    arguments = ("--device-code", MODULE, "--archs", "gfx942")
    assert wheels.check(*arguments)[0] == 0
    assert wheels.problems(*arguments, "--only-archs") == [
        f"{MODULE}: device code: expected only gfx942, found gfx942 gfx950"
    ]


def test_device_code_that_is_not_what_its_bundle_promises(wheels: Wheels) -> None:
    wheels.add({MODULE: BOTH.replace(b"amdhsa--gfx950", b"amdhsa--gfx90a", 1)})
    assert wheels.problems(*DEVICE) == [
        f"{MODULE}: device code of hipv4-amdgcn-amd-amdhsa--gfx90a: expected gfx90a in its e_flags, found gfx950"
    ]


def test_device_code_that_is_damaged_or_no_library(wheels: Wheels) -> None:
    bundle = bytes(elf.Elf(BOTH).section(".hip_fatbin"))
    wheels.add({"aiter/bundle": bundle, MODULE: BOTH.replace(elf.BUNDLE_MAGIC, b"x" * 24)})
    bad, plain = (
        wheels.problems("--device-code", "aiter/**", *ARCHS)[-1],
        wheels.problems("--device-code", "aiter/*", *ARCHS),
    )
    assert "there is no offload bundle" in bad
    assert plain == ["aiter/bundle: device code: expected gfx942 gfx950, found it does not begin as an ELF file does"]


def test_device_code_nowhere(wheels: Wheels) -> None:
    wheels.add({})
    assert wheels.problems(*DEVICE) == [
        f"{wheels.folder}: aiter/jit/*.so, for its device code: expected a file, found none"
    ]


def test_without_libzstd_it_says_that_it_could_not_look(
    wheels: Wheels, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(check_wheel.elf.ctypes, "CDLL", missing)
    wheels.add({MODULE: COMPRESSED})
    report = tmp_path / "report.json"
    status, out, lines = wheels.check(*DEVICE, "--report", str(report))
    assert status == 2
    assert out == "aiter: error: 0 wrong, 1 could not be looked at\n"
    assert lines == [f"could not look: {MODULE}: its device code is compressed with zstd, and libzstd.so.1 isn't here"]
    assert json.loads(report.read_text())["could_not_look"][0]["where"] == MODULE
    # What is wrong stays wrong, whatever else could not be looked at.
    status, out, lines = wheels.check(*DEVICE, "--holds", "aiter/none")
    assert (status, len(lines)) == (1, 2)


def test_a_newer_c_library_than_promised(wheels: Wheels) -> None:
    wheels.add({"aiter/a.so.1": BOTH, "aiter/program": HOST})
    assert wheels.problems("--glibc", "2.2", "--glibcxx", "3.4.20") == [
        "aiter/a.so.1: needs GLIBCXX_3.4.21: expected at most GLIBCXX_3.4.20, found GLIBCXX_3.4.21",
        "aiter/a.so.1: needs GLIBC_2.14: expected at most GLIBC_2.2, found GLIBC_2.14",
        "aiter/a.so.1: needs GLIBC_2.2.5: expected at most GLIBC_2.2, found GLIBC_2.2.5",
        "aiter/program: needs GLIBC_2.2.5: expected at most GLIBC_2.2, found GLIBC_2.2.5",
    ]
    assert wheels.check("--glibc", "2.14", "--glibcxx", "3.4.21")[0] == 0


@pytest.mark.parametrize(
    ("need", "ceiling", "right"),
    [
        ("GLIBC_2.9", "2.35", True),
        ("GLIBC_2.36", "2.35", False),
        ("GLIBC_ABI_DT_RELR", "2.35", False),
        ("GLIBC_ABI_DT_RELR", "2.36", True),
        ("GLIBC_PRIVATE", "2.99", False),
        ("GLIBC_ABI_OF_TOMORROW", "2.99", False),
        ("hip_4.2", "2.35", True),
    ],
)
def test_kinds_of_needs(wheels: Wheels, need: str, ceiling: str, right: bool) -> None:
    wanted = check_wheel._arguments(["--wheels", ".", "--component", "x", "--glibc", ceiling])
    findings = check_wheel.Findings()
    check_wheel.check_need("a.so", need, wanted, findings)
    assert bool(findings.problems) is not right


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"#!/bin/sh\n", "library: expected an x86-64 ELF file"),
        (HOST[:18] + struct.pack("<H", 183) + HOST[20:], "machine of the library: expected x86-64 (62), found 183"),
        (HOST[:2000], "ELF file: expected one that can be read"),
    ],
)
def test_a_library_that_is_none(wheels: Wheels, content: bytes, said: str) -> None:
    wheels.add({"aiter/a.so": content})
    (problem,) = wheels.problems()
    assert said in problem


def test_a_library_that_looks_where_it_was_built(wheels: Wheels) -> None:
    there = b"/tmp/build/lib/torch\0"
    wheels.add({"aiter/a.so": HOST.replace(b"$ORIGIN/../lib/torch\0", there)})
    assert wheels.problems() == [
        "aiter/a.so: folder to look for libraries in: expected none of the build, found /tmp/build/lib/torch"
    ]


def test_too_small(wheels: Wheels) -> None:
    size = wheels.add().stat().st_size
    assert wheels.check("--min-bytes", str(size))[0] == 0
    assert wheels.problems("--min-bytes", str(size + 1)) == [
        f"{wheels.folder}: size of all wheels: expected {size + 1} bytes or more, found {size} bytes"
    ]


def test_a_line_that_the_log_must_not_have(wheels: Wheels, tmp_path: Path) -> None:
    wheels.add()
    log = tmp_path / "log"
    log.write_bytes(b"fine\n\xff module_mhc \x1b[31mskipped\nskipped again\n")
    assert wheels.problems("--log", str(log), "--log-must-not", "skipped", "never") == [
        f"{log}:2: the build log: expected no line with skipped, found \N{REPLACEMENT CHARACTER} module_mhc ?[31mskipped"
    ]
    status, _, lines = wheels.check("--log", str(tmp_path / "none"), "--log-must-not", "skipped")
    assert (status, "the build log could not be read" in lines[0]) == (2, True)


def test_what_is_installed(wheels: Wheels) -> None:
    wheels.add()
    assert wheels.problems("--installed", "PyTest==0.1", "kiln-has-no-such==1") == [
        f"PyTest: version installed in this Python: expected 0.1, found {metadata.version('pytest')}",
        "kiln-has-no-such: version installed in this Python: expected 1, found not installed",
    ]


def test_folders_and_reports_that_cannot_be(wheels: Wheels, tmp_path: Path) -> None:
    wheels.add()
    status, _, lines = wheels.check("--report", str(tmp_path / "none" / "report.json"))
    assert (status, "the report could not be written" in lines[0]) == (2, True)
    wheels.folder = tmp_path / "none"
    status, _, lines = wheels.check()
    assert (status, "the folder could not be read" in lines[0]) == (2, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--device-code", "*.so"),
        ("--archs", "gfx942"),
        ("--only-archs",),
        ("--log", "x"),
        ("--log-must-not", "x"),
        ("--log", "x", "--log-must-not", "("),
        ("--installed", "triton"),
        ("--glibc", "two"),
        ("--wheel", "x"),
    ],
)
def test_usage(wheels: Wheels, arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        wheels.check(*arguments)
    assert ended.value.code == 2
