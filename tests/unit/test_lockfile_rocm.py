"""The lock of a ROCm stack: sources, base image, archives, and what is open; written one way and read strictly."""

from __future__ import annotations

import random
from dataclasses import astuple, replace
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from kiln.canonical import digest_of
from kiln.errors import LockInvalidError, LockStaleError, UnresolvedError
from kiln.git import Submodule
from kiln.lockentries import Archive, BaseImage, Deb, Git, Unresolved, Wheel
from kiln.lockfile import Lock, dump_lock, lock_path, parse_lock, read_lock
from kiln.overrides import apply_choices
from kiln.pins import Pins, read_pins
from kiln.workspace import Workspace

ONE, TWO, THREE = "1" * 40, "2" * 40, "3" * 40
FULL = Lock(
    stack="toy",
    pins_sha256="a" * 64,
    debs=(Deb("curl", "8.1", "amd64", "pool/main/c/curl/curl_8.1_amd64.deb", "b" * 64, 10),),
    wheels=(Wheel("needs", "numpy", "2.0", "numpy-2.0-py3-none-any.whl", "c" * 64, 11),),
    archives=(Archive("compiler", "llvm", "https://files.invalid/llvm-1.tar.gz", "d" * 64, 12),),
    gits=(
        Git(
            "compiler",
            "https://git.invalid/compiler",
            "v1",
            ONE,
            TWO,
            (Submodule("third/a", "https://git.invalid/a", THREE), Submodule("third/a/b", "https://git.invalid/b", ONE)),
            (f"https://git.invalid/fixes@{THREE}", f"https://git.invalid/fixes@{TWO}"),
            ("third/unwanted",),
        ),
        Git("kernels", "https://git.invalid/kernels", ONE, ONE, THREE),
    ),
    images=(BaseImage("registry.invalid/rocm/base", "7.2", f"sha256:{'e' * 64}"),),
    unresolved=(Unresolved("submodule", "compiler", f"third/c@{TWO}", "nobody answers: \"why\" is not\nsaid"),),
    roots=(("packages", "f" * 64), ("wheels", "0" * 64)),
)  # fmt: skip

NAMES = st.text("abcxyz019.+-", max_size=8).map("n".__add__)
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
HASHES = st.integers(0, 2**256 - 1).map("{:064x}".format)
COMMITS = st.integers(0, 2**160 - 1).map("{:040x}".format)
SIZES = st.integers(0, 2**40)
PATHS = st.lists(st.sampled_from(["a", "b c", "3rdparty", "ä", ".x", "..."]), min_size=1, max_size=3).map("/".join)
SUBMODULES = st.builds(Submodule, PATHS, WORDS, COMMITS)
PICKS = st.builds("{}@{}".format, st.sampled_from(["https://git.invalid/x", "https://me@git.invalid/y"]), COMMITS)
GITS = st.builds(
    Git,
    NAMES,
    WORDS.filter(bool),
    WORDS.filter(bool),
    COMMITS,
    COMMITS,
    st.lists(SUBMODULES, max_size=3).map(tuple),
    st.lists(PICKS, max_size=2).map(tuple),
    st.lists(PATHS, max_size=2).map(tuple),
)
LOCKS = st.builds(
    Lock,
    NAMES,
    HASHES,
    st.just(FULL.debs),
    st.just(FULL.wheels),
    st.lists(
        st.builds(Archive, NAMES, NAMES, NAMES.map("https://files.invalid/{}".format), HASHES, SIZES),
        max_size=3,
        unique_by=lambda one: (one.component, one.name),
    ).map(tuple),
    st.lists(GITS, max_size=3, unique_by=lambda git: git.component).map(tuple),
    st.lists(st.builds(BaseImage, NAMES, NAMES, HASHES.map("sha256:{}".format)), max_size=2, unique_by=lambda image: image.name).map(tuple),
    st.lists(st.builds(Unresolved, NAMES, NAMES, WORDS, WORDS), max_size=3, unique_by=lambda one: (one.kind, one.name, one.ref)).map(tuple),
    st.dictionaries(NAMES, HASHES, max_size=2).map(lambda roots: tuple(sorted(roots.items()))),
)  # fmt: skip


def as_sets(lock: Lock) -> list[Any]:
    groups = (lock.debs, lock.wheels, lock.archives, lock.gits, lock.images, lock.unresolved, lock.roots)
    return [lock.stack, lock.pins_sha256, *map(set, groups)]


def test_all_kinds_are_read_back() -> None:
    found = parse_lock(dump_lock(FULL), "toy.lock.toml")
    assert found == FULL
    assert found.sha256 == FULL.sha256


@given(LOCKS)
def test_what_is_written_is_read_back(lock: Lock) -> None:
    found = parse_lock(dump_lock(lock), "x.lock.toml")
    assert as_sets(found) == as_sets(lock)
    assert found.sha256 == lock.sha256
    assert dump_lock(found) == dump_lock(lock)


@given(LOCKS, st.randoms(use_true_random=False))
def test_the_order_of_entries_changes_nothing(lock: Lock, dice: random.Random) -> None:
    groups = ("archives", "gits", "images", "unresolved", "roots")
    mixed = replace(lock, **{key: tuple(dice.sample(getattr(lock, key), len(getattr(lock, key)))) for key in groups})
    assert dump_lock(mixed) == dump_lock(lock)
    assert mixed.sha256 == lock.sha256


def test_what_a_person_looks_for_first_stands_first() -> None:
    text = dump_lock(FULL)
    tables = ("[roots]", "[[unresolved]]", "[[image]]", "[[git]]", "[[archive]]", "[[deb]]", "[[wheel]]")
    places = [text.index(table) for table in tables]
    assert places == sorted(places)


CHANGED = {
    "a package": replace(FULL, debs=()),
    "a wheel": replace(FULL, wheels=()),
    "an archive's checksum": replace(FULL, archives=(replace(FULL.archives[0], sha256="9" * 64),)),
    "an archive's address": replace(FULL, archives=(replace(FULL.archives[0], url="https://files.invalid/y"),)),
    "a commit": replace(FULL, gits=(FULL.gits[0], replace(FULL.gits[1], commit=TWO))),
    "a ref": replace(FULL, gits=(FULL.gits[0], replace(FULL.gits[1], ref="v2"))),
    "a tree": replace(FULL, gits=(FULL.gits[0], replace(FULL.gits[1], tree=TWO))),
    "a pick": replace(FULL, gits=(replace(FULL.gits[0], picks=FULL.gits[0].picks[:1]), FULL.gits[1])),
    "the order of picks": replace(FULL, gits=(replace(FULL.gits[0], picks=FULL.gits[0].picks[::-1]), FULL.gits[1])),
    "a submodule": replace(FULL, gits=(replace(FULL.gits[0], submodules=FULL.gits[0].submodules[:1]), FULL.gits[1])),
    "what is left out": replace(FULL, gits=(replace(FULL.gits[0], left_out=()), FULL.gits[1])),
    "a source less": replace(FULL, gits=FULL.gits[:1]),
    "the base image's digest": replace(FULL, images=(replace(FULL.images[0], digest=f"sha256:{'0' * 64}"),)),
    "the base image's tag": replace(FULL, images=(replace(FULL.images[0], tag="7.3"),)),
    "no base image": replace(FULL, images=()),
    "nothing is open": replace(FULL, unresolved=()),
    "the pins": replace(FULL, pins_sha256="0" * 64),
    "the stack": replace(FULL, stack="other"),
}


@pytest.mark.parametrize("changed", CHANGED.values(), ids=CHANGED)
def test_the_checksum_changes_with(changed: Lock) -> None:
    assert changed.sha256 != FULL.sha256


def test_every_such_change_has_a_checksum_of_its_own() -> None:
    assert len({lock.sha256 for lock in CHANGED.values()}) == len(CHANGED)


def test_what_groups_were_resolved_from_is_not_what_is_locked() -> None:
    assert replace(FULL, roots=()).sha256 == FULL.sha256


def test_a_lock_of_packages_and_wheels_alone_has_the_checksum_it_always_had(real: Workspace, toy_lock: Lock) -> None:
    """The kinds of a ROCm stack came later: images that are built from older locks must keep their keys."""
    for lock in (read_lock(real, read_pins(real, "cpu")), toy_lock):
        old = [lock.stack, lock.pins_sha256, sorted(map(astuple, lock.debs)), sorted(map(astuple, lock.wheels))]
        assert lock.sha256 == digest_of(old)


def test_a_checksum_known_by_heart() -> None:
    """Also what is under it (the canonical spelling, the order of an entry's fields) may not change unseen."""
    lock = Lock(FULL.stack, FULL.pins_sha256, FULL.debs, FULL.wheels)
    assert lock.sha256 == "8209117bdfd000b209dcffe0318c0205c91affd76ff89c3b953b1bf7518e9447"


def test_a_source_as_kiln_git_wants_it() -> None:
    git = FULL.git_of["compiler"]
    assert git.source.picks == (("https://git.invalid/fixes", THREE), ("https://git.invalid/fixes", TWO))
    assert (git.source.commit, git.source.tree, git.source.submodules) == (ONE, TWO, git.submodules)
    assert git.label == f"compiler v1 ({ONE[:12]})"
    assert FULL.git_of["kernels"].label == f"kernels {ONE}"
    user = replace(git, picks=(f"https://me@git.invalid/y@{THREE}",))
    assert user.source.picks == (("https://me@git.invalid/y", THREE),)


def test_the_digest_of_a_source_is_over_its_bytes_alone() -> None:
    git = FULL.gits[0]
    for same in (replace(git, ref="main"), replace(git, url="https://elsewhere.invalid/x"), replace(git, commit=THREE)):
        assert same.digest == git.digest
    for other in (replace(git, tree=ONE), replace(git, submodules=git.submodules[:1]), replace(git, left_out=())):
        assert other.digest != git.digest


# what kiln did not write

GIT: dict[str, Any] = {
    "component": "compiler",
    "url": "https://git.invalid/compiler",
    "ref": "v1",
    "commit": ONE,
    "tree": TWO,
    "picks": [f"https://git.invalid/fixes@{THREE}"],
    "left_out": ["third/unwanted"],
    "submodules": [{"path": "third/a", "url": "https://git.invalid/a", "commit": THREE}],
}
SUBMODULE: dict[str, Any] = GIT["submodules"][0]
IMAGE = {"name": "registry.invalid/base", "tag": "7.2", "digest": f"sha256:{'e' * 64}"}
ARCHIVE: dict[str, Any] = {
    "component": "compiler",
    "name": "llvm",
    "url": "https://files.invalid/llvm.tar.gz",
    "sha256": "d" * 64,
    "size": 12,
}
OPEN = {"kind": "git", "name": "kernels", "ref": "v1", "reason": "nobody answers"}


def text_of(**changes: Any) -> str:
    data: dict[str, Any] = {
        "schema": 1,
        "stack": "toy",
        "pins-sha256": "2" * 64,
        "roots": {"wheels": "0" * 64},
        "unresolved": [OPEN],
        "image": [IMAGE],
        "git": [GIT],
        "archive": [ARCHIVE],
    }
    return tomli_w.dumps(data | changes)


def without(entry: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != key}


def test_the_example_that_the_wrong_ones_are_made_of_is_right() -> None:
    lock = parse_lock(text_of(), "toy.lock.toml")
    assert lock.git_of["compiler"].submodules == (Submodule(**SUBMODULE),)
    assert lock.archives_of("compiler") == lock.archives
    assert lock.archives_of("nobody") == ()
    assert [entry.label for entry in lock.entries()] == ["compiler: llvm.tar.gz"]
    assert lock.images[0].reference == f"registry.invalid/base:7.2@sha256:{'e' * 64}"


def test_picks_and_submodules_may_be_left_out() -> None:
    plain = {key: GIT[key] for key in ("component", "url", "ref", "commit", "tree")}
    (git,) = parse_lock(text_of(git=[plain]), "toy.lock.toml").gits
    assert (git.submodules, git.picks, git.left_out) == ((), (), ())


def git_with(**changes: Any) -> str:
    return text_of(git=[GIT | changes])


WRONG = {
    "a source without a commit": (text_of(git=[without(GIT, "commit")]), "compiler"),
    "a source without a tree": (text_of(git=[without(GIT, "tree")]), "compiler"),
    "a source without an address": (text_of(git=[without(GIT, "url")]), "compiler"),
    "a source without a ref": (text_of(git=[without(GIT, "ref")]), "compiler"),
    "a source without a component": (text_of(git=[without(GIT, "component")]), "an entry without a name"),
    "a commit cut short": (git_with(commit=ONE[:12]), "compiler"),
    "a commit in capitals": (git_with(commit="A" * 40), "compiler"),
    "a commit with a line end": (git_with(commit=ONE + "\n"), "compiler"),
    "a commit that is a number": (git_with(commit=1), "compiler"),
    "a tree cut short": (git_with(tree=""), "compiler"),
    "an unknown key of a source": (git_with(branch="main"), "compiler"),
    "a component that climbs": (git_with(component="../compiler"), "../compiler"),
    "a component that is an option": (git_with(component="--upload-pack"), "--upload-pack"),
    "picks that are one string": (git_with(picks="https://git.invalid/fixes"), "compiler"),
    "a pick that is a number": (git_with(picks=[5]), "compiler"),
    "a pick by a tag": (git_with(picks=["https://git.invalid/fixes@v1"]), "compiler"),
    "a pick without an address": (git_with(picks=[THREE]), "compiler"),
    "a pick with an empty address": (git_with(picks=[f"@{THREE}"]), "compiler"),
    "a pick without an @": (git_with(picks=[f"https://git.invalid/fixes/{THREE}"]), "compiler"),
    "left_out that is one string": (git_with(left_out="third"), "compiler"),
    "left_out with a truth value": (git_with(left_out=[True]), "compiler"),
    "submodules that are a number": (git_with(submodules=5), "compiler"),
    "submodules that are words": (git_with(submodules=["third"]), "compiler"),
    "a submodule cut short": (git_with(submodules=[SUBMODULE | {"commit": ONE[:7]}]), "compiler"),
    "a submodule without a commit": (git_with(submodules=[without(SUBMODULE, "commit")]), "an entry without a name"),
    "a submodule with an unknown key": (git_with(submodules=[SUBMODULE | {"branch": "x"}]), "an entry without a name"),
    "a submodule that climbs": (git_with(submodules=[SUBMODULE | {"path": "a/../../b"}]), "compiler"),
    "a submodule of this machine": (git_with(submodules=[SUBMODULE | {"path": "/etc"}]), "compiler"),
    "a submodule that is everything": (git_with(submodules=[SUBMODULE | {"path": ""}]), "compiler"),
    "a source that is a word": (text_of(git=["compiler"]), ""),
    "sources that are a number": (text_of(git=5), ""),
    "an image without a digest": (text_of(image=[without(IMAGE, "digest")]), "registry.invalid/base"),
    "an image without a tag": (text_of(image=[without(IMAGE, "tag")]), "registry.invalid/base"),
    "an image whose digest is a tag": (text_of(image=[IMAGE | {"digest": "latest"}]), "registry.invalid/base"),
    "an image whose digest is of another kind": (text_of(image=[IMAGE | {"digest": "md5:" + "e" * 64}]), "registry.invalid/base"),
    "an image whose digest goes on": (text_of(image=[IMAGE | {"digest": IMAGE["digest"] + "\n"}]), "registry.invalid/base"),
    "an image with an unknown key": (text_of(image=[IMAGE | {"size": "1"}]), "registry.invalid/base"),
    "an archive without a checksum": (text_of(archive=[without(ARCHIVE, "sha256")]), "llvm"),
    "an archive with half a checksum": (text_of(archive=[ARCHIVE | {"sha256": "d" * 32}]), "llvm"),
    "an archive without an address": (text_of(archive=[without(ARCHIVE, "url")]), "llvm"),
    "an archive without a component": (text_of(archive=[without(ARCHIVE, "component")]), "llvm"),
    "an archive of a negative size": (text_of(archive=[ARCHIVE | {"size": -1}]), "llvm"),
    "an archive whose size is a word": (text_of(archive=[ARCHIVE | {"size": "12"}]), "llvm"),
    "an archive whose name climbs": (text_of(archive=[ARCHIVE | {"name": "../llvm"}]), "../llvm"),
    "an archive whose component climbs": (text_of(archive=[ARCHIVE | {"component": "a/../.."}]), "llvm"),
    "an archive whose file has no name": (text_of(archive=[ARCHIVE | {"url": "https://files.invalid/"}]), "llvm"),
    "an archive whose file is hidden": (text_of(archive=[ARCHIVE | {"url": "https://files.invalid/.."}]), "llvm"),
    "an archive with an unknown key": (text_of(archive=[ARCHIVE | {"mirror": "x"}]), "llvm"),
    "something open without a reason": (text_of(unresolved=[without(OPEN, "reason")]), "kernels"),
    "something open without a kind": (text_of(unresolved=[without(OPEN, "kind")]), "kernels"),
    "something open with an unknown key": (text_of(unresolved=[OPEN | {"since": "today"}]), "kernels"),
    "something open that is a word": (text_of(unresolved=["kernels"]), ""),
    "roots that are a list": (text_of(roots=["wheels"]), ""),
    "a root that is a number": (text_of(roots={"wheels": 5}), "wheels"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "name"), WRONG.values(), ids=WRONG)
def test_what_kiln_did_not_write_is_refused_by_name(text: str, name: str) -> None:
    with pytest.raises(LockInvalidError) as caught:
        parse_lock(text, "pins/toy.lock.toml")
    assert "pins/toy.lock.toml" in caught.value.what
    assert name in caught.value.why
    assert "kiln lock toy" in caught.value.fix


VALUES = st.recursive(
    st.one_of(st.integers(-9, 9), st.booleans(), st.text("a/.@\n", max_size=3), st.sampled_from([ONE, "0" * 64])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from([*GIT, *IMAGE, *ARCHIVE, *OPEN, "path", "other"]), inner, max_size=8),
    ),
    max_leaves=12,
)
KINDS = ("git", "image", "archive", "unresolved", "roots")


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(KINDS, VALUES)))
def test_no_table_gets_past_with_another_error(changes: dict[str, Any]) -> None:
    try:
        lock = parse_lock(text_of(**changes), "toy.lock.toml")
    except LockInvalidError:
        return
    assert all(len(git.commit) == 40 for git in lock.gits)


@given(st.sampled_from(sorted(GIT)), VALUES)
def test_no_field_of_a_source_gets_past_with_another_error(key: str, value: Any) -> None:
    try:
        (git,) = parse_lock(git_with(**{key: value}), "toy.lock.toml").gits
    except LockInvalidError:
        return
    # What was read can be used: no pick without an address, no path that climbs.
    assert all(url and len(commit) == 40 for url, commit in git.source.picks)
    assert all(".." not in sub.path.split("/") for sub in git.submodules)


# what is open


def test_nothing_is_built_from_what_is_open_and_all_of_it_is_listed() -> None:
    entries = (
        *FULL.unresolved,
        Unresolved("image", "registry.invalid/base", "7.2", "refused"),
        Unresolved("packages", "ubuntu jammy", "22 packages by name", "no base image"),
    )
    with pytest.raises(UnresolvedError) as caught:
        replace(FULL, unresolved=entries).require_resolved()
    assert caught.value.exit_code == 18
    assert caught.value.what.startswith("3 inputs of 'toy'")
    for entry in entries:
        assert entry.label in caught.value.why
        assert entry.reason.splitlines()[0] in caught.value.why
    assert "kiln lock toy" in caught.value.fix


def test_a_lock_with_nothing_open_may_be_built_from() -> None:
    replace(FULL, unresolved=()).require_resolved()


# where it lies


@pytest.fixture
def rocm(real: Workspace) -> Pins:
    return read_pins(real, "dsv4-mhc")


def test_the_lock_lies_beside_the_pins(real: Workspace, rocm: Pins) -> None:
    assert lock_path(real, rocm) == real.root / "pins" / "dsv4-mhc.lock.toml"
    no_op = apply_choices(rocm, [f"aiter={rocm.by_name['aiter'].ref}"])
    assert lock_path(real, no_op) == lock_path(real, rocm)


def test_with_overrides_it_lies_in_the_state_folder_under_a_name_of_its_own(real: Workspace, rocm: Pins) -> None:
    one = lock_path(real, apply_choices(rocm, ["aiter=v0.1.15"]))
    other = lock_path(real, apply_choices(rocm, ["aiter=v0.1.16"]))
    assert one != other
    assert one.parent == other.parent == real.state / "locks"
    assert lock_path(real, apply_choices(rocm, ["aiter=v0.1.15"])) == one


def test_the_committed_lock_is_of_the_committed_pins(real: Workspace, rocm: Pins) -> None:
    lock = read_lock(real, rocm)
    assert dump_lock(lock) == lock_path(real, rocm).read_text(encoding="utf-8")
    sources = {component.name for component in rocm.components if component.git}
    open_sources = {entry.name for entry in lock.unresolved if entry.kind == "git"}
    assert set(lock.git_of) | open_sources == sources
    assert not set(lock.git_of) & open_sources


def test_a_lock_of_the_pins_is_stale_for_overrides(real: Workspace, rocm: Pins) -> None:
    chosen = apply_choices(rocm, ["aiter=v0.1.15"])
    path = lock_path(real, chosen)
    path.parent.mkdir(parents=True)
    path.write_text(lock_path(real, rocm).read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(LockStaleError):
        read_lock(real, chosen)


@pytest.mark.parametrize(
    "strange",
    [
        {"gits": (replace(FULL.gits[1], component="ghost"),)},
        {"archives": (replace(FULL.archives[0], component="ghost"),)},
        {"wheels": (replace(FULL.wheels[0], component="ghost"),)},
    ],
    ids=["source", "archive", "wheel"],
)
def test_what_is_of_a_component_that_the_pins_do_not_name_is_refused(
    toy: Workspace, toy_pins: Pins, strange: dict[str, Any]
) -> None:
    lock = replace(Lock(toy_pins.stack, toy_pins.sha256, (), ()), **strange)
    toy.lock_file("toy").write_text(dump_lock(lock), encoding="utf-8")
    with pytest.raises(LockInvalidError, match="ghost"):
        read_lock(toy, toy_pins)
