"""The pins of a ROCm stack: what the real file says, and what a person is told for every rule that an edit of it can break."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kiln.errors import PinsError
from kiln.pins import Pick, Pins, bad_arch, read_pins
from kiln.workspace import Workspace

STACK = "dsv4-mhc"
Edit = Callable[[str, str], None]


@pytest.fixture
def copied(project: Path, tmp_path: Path) -> Workspace:
    """The real pins alone, in a project of their own."""
    (tmp_path / "pins").mkdir()
    shutil.copyfile(project / "pins" / f"{STACK}.toml", tmp_path / "pins" / f"{STACK}.toml")
    return Workspace(tmp_path, tmp_path / "state")


@pytest.fixture
def edit(copied: Workspace) -> Edit:
    """Replace a part of the real pins by another."""

    def replace(old: str, new: str) -> None:
        path = copied.pins_file(STACK)
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"the example {old!r} is {text.count(old)} times in the pins"
        path.write_text(text.replace(old, new), encoding="utf-8")

    return replace


def line(workspace: Workspace, start: str) -> str:
    """The one line of the pins that begins so: what changes with every bump is not copied into the tests."""
    found = [
        one for one in workspace.pins_file(STACK).read_text(encoding="utf-8").splitlines() if one.startswith(start)
    ]
    assert len(found) == 1, f"{start!r} begins {len(found)} lines"
    return found[0]


def keys(error: PinsError) -> list[str]:
    return [one.partition(": ")[0] for one in error.why.splitlines()]


def test_the_real_pins_are_read(real: Workspace) -> None:
    pins = read_pins(real, STACK)
    assert (pins.stack, pins.target, pins.packages.distribution) == (STACK, "rocm", "ubuntu")
    assert pins.base is not None
    assert pins.base.digest.startswith("sha256:")
    assert pins.base.reference == f"{pins.base.image}:{pins.base.tag}@{pins.base.digest}"
    assert pins.archs
    assert not [arch for arch in pins.archs if bad_arch(arch)]
    assert pins.overrides == pins.allowed == ()
    sources = {component.name for component in pins.components if component.git}
    assert sources >= {"cpython", "triton", "torch", "aiter", "vllm"}
    assert [name for name in sources if not pins.by_name[name].ref] == []


def test_what_the_real_pins_say_of_one_source(real: Workspace) -> None:
    triton = read_pins(real, STACK).by_name["triton"]
    assert [pick.git for pick in triton.picks] == ["https://github.com/triton-lang/triton"] * len(triton.picks)
    assert all(isinstance(pick, Pick) and len(pick.ref) >= 7 for pick in triton.picks)
    assert {archive.name: archive.version_from for archive in triton.archives} == {
        "llvm": "cmake/llvm-hash.txt",
        "json": "cmake/json-version.txt",
    }
    assert "triton" in triton.provides
    assert not triton.holds_wheels


def test_the_newest_moment_of_the_wheels_is_in_utc(copied: Workspace, edit: Edit) -> None:
    edit(line(copied, "as-of"), "as-of = 2026-05-30T02:00:00+02:00")
    assert read_pins(copied, STACK).as_of == "2026-05-30T00:00:00Z"


@pytest.mark.parametrize("start", ["as-of", "digest"])
def test_these_may_be_left_out(copied: Workspace, edit: Edit, start: str) -> None:
    edit(line(copied, start) + "\n", "")
    pins = read_pins(copied, STACK)
    assert pins.base is not None
    assert (pins.as_of if start == "as-of" else pins.base.digest) == ""


def test_without_a_digest_the_reference_is_the_tag(copied: Workspace, edit: Edit) -> None:
    edit(line(copied, "digest") + "\n", "")
    base = read_pins(copied, STACK).base
    assert base is not None
    assert base.reference == f"{base.image}:{base.tag}"


# What begins with ^ is a whole line of the file, found by how it begins.
WRONG = {
    "no archs": ("^archs", "", "stack.archs"),
    "an empty list of archs": ("^archs", "archs = []", "stack.archs"),
    "an arch twice": ("^archs", 'archs = ["gfx942", "gfx942"]', "stack.archs"),
    "an arch of another maker": ("^archs", 'archs = ["sm_90"]', "stack.archs"),
    "an arch with a feature": ("^archs", 'archs = ["gfx942:xnack-"]', "stack.archs"),
    "an arch in capitals": ("^archs", 'archs = ["GFX942"]', "stack.archs"),
    "archs in one string": ("^archs", 'archs = "gfx942;gfx950"', "stack.archs"),
    "a number among the archs": ("^archs", 'archs = ["gfx942", 950]', "stack.archs"),
    "an image with a tag in its name": ("dev-ubuntu-22.04", "dev-ubuntu-22.04:7", "base.image"),
    "an image without a host": ("^image = ", 'image = "dev-ubuntu"', "base.image"),
    "no image": ("^image = ", "", "base.image"),
    "no tag": ("^tag = ", "", "base.tag"),
    "no ROCm version": ("^rocm = ", "", "base.rocm"),
    "a ROCm version with one part": ("^rocm = ", 'rocm = "7"', "base.rocm"),
    "a ROCm version that is a tag": ("^rocm = ", 'rocm = "7.2.3-complete"', "base.rocm"),
    "a digest cut short": ("^digest = ", 'digest = "sha256:b64aecbe"', "base.digest"),
    "a digest without its kind": ("^digest = ", f'digest = "{"0" * 64}"', "base.digest"),
    "a digest in capitals": ("^digest = ", f'digest = "sha256:{"A" * 64}"', "base.digest"),
    "a digest that is empty": ("^digest = ", 'digest = ""', "base.digest"),
    "an unknown key in base": ("^rocm = ", 'rocm = "7.2.3"\ndistro = "jammy"', "base.distro"),
    "Debian's packages": ("[ubuntu]", "[debian]", "ubuntu"),
    "a time without a zone": ("^as-of", "as-of = 2026-05-30T00:00:00", "python.as-of"),
    "a time that is a string": ("^as-of", 'as-of = "2026-05-30T00:00:00Z"', "python.as-of"),
    "a day": ("^as-of", "as-of = 2026-05-30", "python.as-of"),
    "git without ref": ('ref = "v3.12.12"\n', "", "components.cpython"),
    "ref without git": ('git = "https://github.com/python/cpython"\n', "", "components.cpython"),
    "git over ssh": ("https://github.com/python/cpython", "git@github.com:python/cpython", "components.cpython.git"),
    "git unencrypted": ("https://github.com/python/cpython", "http://github.com/python/cpython", "components.cpython.git"),
    "git on this machine": ("https://github.com/python/cpython", "/srv/cpython", "components.cpython.git"),
    "a ref that is a number": ('ref = "v3.12.12"', "ref = 3", "components.cpython.ref"),
    "a pick without a commit": ("^picks", 'picks = ["https://github.com/triton-lang/triton"]', "components.triton.picks"),
    "a pick with an empty commit": ("^picks", 'picks = ["https://github.com/a/b@"]', "components.triton.picks"),
    "a pick that is a commit alone": ("^picks", 'picks = ["555d04f"]', "components.triton.picks"),
    "a pick over ssh": ("^picks", 'picks = ["git@github.com:a/b@555d04f"]', "components.triton.picks"),
    "picks of what has no source": ("[components.amd-smi]", '[components.amd-smi]\npicks = ["https://a.invalid/b@1234567"]', "components.amd-smi"),
    "archives of what has no source": (
        '[components.aiter]\n',
        '[components.amd-smi.archives.x]\nurl = "https://a.invalid/x.zip"\n\n[components.aiter]\n',
        "components.amd-smi",
    ),
    "left-out submodules of what has no source": (
        '[components.aiter]\n',
        '[components.amd-smi.without-submodules]\nx = "unused"\n\n[components.aiter]\n',
        "components.amd-smi",
    ),
    "an archive without an address": ("^url = \"https://oai", "", "components.triton.archives.llvm.url"),
    "an archive without encryption": ("https://oai", "http://oai", "components.triton.archives.llvm.url"),
    "a part named by no file": ('version-from = "cmake/llvm-hash.txt"\n', "", "components.triton.archives.llvm"),
    "a file that names no part": ("llvm-{version:.8}-", "llvm-", "components.triton.archives.llvm"),
    "a file outside of the source": ("cmake/llvm-hash.txt", "../llvm-hash.txt", "components.triton.archives.llvm.version-from"),
    "a file of this machine": ("cmake/llvm-hash.txt", "/etc/hostname", "components.triton.archives.llvm.version-from"),
    "a checksum cut short": (
        'version-from = "cmake/llvm-hash.txt"',
        'version-from = "cmake/llvm-hash.txt"\nsha256 = "abc"',
        "components.triton.archives.llvm.sha256",
    ),
    "an unknown key in an archive": (
        'version-from = "cmake/llvm-hash.txt"',
        'version-from = "cmake/llvm-hash.txt"\nstrip = 1',
        "components.triton.archives.llvm.strip",
    ),
    "an address with a part that nobody fills": ("llvm-{version:.8}-", "llvm-{version:.8}-{arch}-", "components.triton.archives.llvm.url"),
    "an archive whose name is a path": ("[components.triton.archives.llvm]", '[components.triton.archives."../llvm"]', "components.triton.archives.../llvm"),
    "an address that the lock would refuse": ("releases/download/{version}/include.zip", "{version}/include.zip?raw=1", "components.triton.archives.json.url"),
    "a reason that is no text": ("^\"csrc/cutlass\"", '"csrc/cutlass" = true', "components.flash-attention.without-submodules.csrc/cutlass"),
    "on a component below": ('on = ["base-needs", "flydsl", "build-tools", "triton", "torch"]', 'on = ["vllm"]', "components.aiter.on"),
    "on itself": ('on = ["base-needs", "flydsl", "build-tools", "triton", "torch"]', 'on = ["aiter"]', "components.aiter.on"),
    "on nobody": ('on = ["base-needs", "flydsl", "build-tools", "triton", "torch"]', 'on = ["ghost"]', "components.aiter.on"),
    "provided twice": ('provides = ["amd-aiter"]', 'provides = ["triton"]', "components.aiter.provides"),
    "provided twice under another spelling": ('provides = ["amd-aiter"]', 'provides = ["Triton_Kernels"]', "components.aiter.provides"),
    "provided twice by one": ('provides = ["amd-aiter"]', 'provides = ["amd-aiter", "amd_aiter"]', "components.aiter.provides"),
    "an unknown key in a component": ('recipe = "cpython"', 'recipe = "cpython"\nbranch = "main"', "components.cpython.branch"),
    "an unknown key in the stack": ("^archs", 'archs = ["gfx942"]\narch = "gfx942"', "stack.arch"),
    "wheels from a source": ('recipe = "cpython"', 'recipe = "wheels"\nwheels = ["cpython==3"]', "components.cpython"),
    "wheels of a recipe that builds": ('recipe = "aiter"', 'recipe = "aiter"\nwheels = ["flydsl==0.1.7"]', "components.aiter"),
    "requirements of a recipe that builds": ('recipe = "aiter"', 'recipe = "aiter"\nrequires = ["flydsl"]', "components.aiter"),
    "an index of a recipe that builds": ('recipe = "aiter"', 'recipe = "aiter"\nindex = "extra"', "components.aiter"),
    "left-out dependencies of a recipe that builds": ("[tools]", '[components.vllm.without]\nx = "unused"\n\n[tools]', "components.vllm"),
    "wheels and requirements": ('wheels = ["flydsl==0.1.7"]', 'wheels = ["flydsl==0.1.7"]\nrequires = ["numpy"]', "components.flydsl"),
    "neither wheels nor requirements": ('wheels = ["flydsl==0.1.7"]\n', "", "components.flydsl"),
    "a wheel that is not exact": ("flydsl==0.1.7", "flydsl>=0.1.7", "components.flydsl.wheels"),
    "a requirement that is none": ('"cmake>=3.26.1,<4"', '"cmake >>= 3"', "components.build-tools.requires"),
    "local sources beside git": ('recipe = "aiter"', 'recipe = "aiter"\nsources = ["plugins/x"]', "components.aiter"),
    "plugins out of git": ('recipe = "cpython"', 'recipe = "plugins"\nsources = ["plugins/x"]', "components.cpython"),
    "the same image twice": ("^images", 'images = ["rocm-base", "rocm-base"]', "stack.images"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "key"), WRONG.values(), ids=WRONG)
def test_a_mistake_is_named_with_its_key(copied: Workspace, edit: Edit, old: str, new: str, key: str) -> None:
    edit(line(copied, old[1:]) if old.startswith("^") else old, new)
    with pytest.raises(PinsError) as caught:
        read_pins(copied, STACK)
    assert key in keys(caught.value)


# The stages of both Dockerfiles, the images, and the stage in which another component's wheels are built.
TAKEN = [
    "base",
    "packages",
    "system",
    "python",
    "tools",
    "toolchain",
    "versions",
    "rocm-base",
    "rocm-serving",
    "triton-wheels",
]


@pytest.mark.parametrize("name", TAKEN)
def test_a_component_may_not_take_the_name_of_another_build_stage(copied: Workspace, edit: Edit, name: str) -> None:
    edit("[components.tilelang]", f"[components.{name}]")
    with pytest.raises(PinsError) as caught:
        read_pins(copied, STACK)
    assert f"components.{name}" in keys(caught.value)


@pytest.mark.parametrize("name", ["debs", "checks", "wheels-flydsl", "source-aiter", "archives-triton"])
def test_a_component_may_not_take_the_name_of_a_build_context(copied: Workspace, edit: Edit, name: str) -> None:
    """A stage and a named context of one name: one of them hides the other, and steps get files that they did not ask for."""
    edit("[components.tilelang]", f"[components.{name}]")
    with pytest.raises(PinsError) as caught:
        read_pins(copied, STACK)
    assert f"components.{name}" in keys(caught.value)


@pytest.mark.parametrize("name", ["debs-and-more", "wheels", "base-image"])
def test_a_name_that_is_only_like_a_stage_is_free(copied: Workspace, edit: Edit, name: str) -> None:
    edit("[components.tilelang]", f"[components.{name}]")
    assert name in read_pins(copied, STACK).by_name


@pytest.mark.parametrize(
    "more",
    ['dependencies-of = "tilelang"', 'requires = ["numpy"]\n[components.flydsl.without]\nnumpy = "unused"'],
    ids=["dependencies-of", "without"],
)
def test_what_locking_a_rocm_stack_does_not_heed_is_refused(copied: Workspace, edit: Edit, more: str) -> None:
    """A key that reads well and does nothing is worse than one that is refused."""
    edit('wheels = ["flydsl==0.1.7"]', more)
    with pytest.raises(PinsError, match=r"components\.flydsl"):
        read_pins(copied, STACK)


def test_an_index_that_locking_a_rocm_stack_does_not_ask_is_refused(copied: Workspace, edit: Edit) -> None:
    edit('wheels = ["flydsl==0.1.7"]', 'wheels = ["flydsl==0.1.7"]\nindex = "extra"')
    edit("[components.cpython]", '[indexes]\nextra = "https://index.example.invalid/"\n\n[components.cpython]')
    with pytest.raises(PinsError, match="index"):
        read_pins(copied, STACK)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('target = "cpu"', 'target = "cpu"\narchs = ["gfx942"]', "stack.archs"),
        ('glibc = "2.36"', 'glibc = "2.36"\nas-of = 2026-05-30T00:00:00Z', "python.as-of"),
        ("[tools]", '[base]\nimage = "a/b"\ntag = "1"\nrocm = "7.2"\n\n[tools]', "base"),
        ("[debian]", "[ubuntu]", "debian"),
    ],
)
def test_what_is_a_rocm_stacks_is_unknown_to_a_cpu_stack(toy: Workspace, old: str, new: str, key: str) -> None:
    path = toy.pins_file("toy")
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises(PinsError) as caught:
        read_pins(toy, "toy")
    assert key in keys(caught.value)


@pytest.mark.parametrize(
    "version", ["not a version", "1..2", "v-x", pytest.param("1" * 5000, id="more digits than a number has")]
)
def test_a_version_that_no_wheel_could_have_is_refused(copied: Workspace, edit: Edit, version: str) -> None:
    """Overrides reckon with it, and the wheel is built as it: better said at once than hours later."""
    edit('version = "0.1.14"', f'version = "{version}"')
    with pytest.raises(PinsError) as caught:
        read_pins(copied, STACK)
    assert "components.aiter.version" in keys(caught.value)


def test_all_mistakes_are_named_at_once(copied: Workspace, edit: Edit) -> None:
    edit(line(copied, "archs"), 'archs = ["sm_90"]')
    edit(line(copied, "digest"), 'digest = "latest"')
    edit('ref = "v3.12.12"\n', "")
    edit('provides = ["amd-aiter"]', 'provides = ["torch"]')
    with pytest.raises(PinsError) as caught:
        read_pins(copied, STACK)
    assert sorted(keys(caught.value)) == [
        "base.digest",
        "components.aiter.provides",
        "components.cpython",
        "stack.archs",
    ]
    assert "4 problems" in caught.value.what


@pytest.mark.parametrize("arch", ["gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201"])
def test_names_of_architectures(arch: str) -> None:
    assert bad_arch(arch) is None


@pytest.mark.parametrize(
    "arch", ["", "gfx", "gfx9", "gfx94", "942", "gfx942 ", "gfx94x", "gfx12010", "gfx9-4-generic", "native", "gfx942\n"]
)
def test_what_is_no_architecture(arch: str) -> None:
    assert repr(arch) in str(bad_arch(arch))


def test_comments_and_order_within_a_table_do_not_change_the_checksum(copied: Workspace, edit: Edit) -> None:
    before = read_pins(copied, STACK)
    tag, rocm = line(copied, "tag = "), line(copied, "rocm = ")
    edit(rocm, "# a word\n" + tag + "  # another")
    edit(tag + "\ndigest", rocm + "\ndigest")
    assert read_pins(copied, STACK) == before


@pytest.mark.parametrize(
    ("old", "new"), [('ref = "v0.1.14"', 'ref = "v0.1.15"'), ("555d04f", "555d04e"), ("gfx950", "gfx90a")]
)
def test_a_choice_changes_the_checksum(copied: Workspace, edit: Edit, old: str, new: str) -> None:
    before: Pins = read_pins(copied, STACK)
    path = copied.pins_file(STACK)
    wanted = [one for one in path.read_text(encoding="utf-8").splitlines() if old in one and not one.startswith("#")]
    edit(wanted[0], wanted[0].replace(old, new))
    assert read_pins(copied, STACK).sha256 != before.sha256
