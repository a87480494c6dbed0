"""Overrides: what the command line may choose instead of the pins, what it is told where it may not, and how a choice is kept."""

from __future__ import annotations

import difflib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from kiln.errors import PinsError, UsageError
from kiln.overrides import apply_choices, parse_choice, save, version_of
from kiln.pins import BasePins, Pins, read_pins
from kiln.workspace import Workspace

STACK = "dsv4-mhc"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
DIGEST = "sha256:" + "5" * 64


@pytest.fixture
def copied(project: Path, tmp_path: Path) -> Workspace:
    (tmp_path / "pins").mkdir()
    for stack in (STACK, "cpu"):
        shutil.copyfile(project / "pins" / f"{stack}.toml", tmp_path / "pins" / f"{stack}.toml")
    return Workspace(tmp_path, tmp_path / "state")


@pytest.fixture
def pins(copied: Workspace) -> Pins:
    return read_pins(copied, STACK)


def base_of(pins: Pins) -> BasePins:
    assert pins.base is not None
    return pins.base


# what is chosen


def test_a_tag_of_a_source(pins: Pins) -> None:
    chosen = apply_choices(pins, ["aiter=v0.1.15"])
    source = chosen.by_name["aiter"]
    assert (source.ref, source.version) == ("v0.1.15", "0.1.15")
    assert chosen.overrides == (("aiter", "v0.1.15"),)
    assert [item for item in chosen.components if item.name != "aiter"] == [
        item for item in pins.components if item.name != "aiter"
    ]


def test_a_commit_of_a_source_keeps_the_pinned_release_in_its_version(pins: Pins) -> None:
    vllm = apply_choices(pins, [f"vllm={COMMIT}"]).by_name["vllm"]
    assert vllm.ref == COMMIT
    assert vllm.version == "0.22.1.dev0+g0123456789ab"


def test_a_source_without_a_version_gets_none(pins: Pins) -> None:
    assert pins.by_name["mori"].version == ""
    assert apply_choices(pins, ["mori=v9.9.9"]).by_name["mori"].version == ""


@pytest.mark.parametrize("text", ["0.1.11", "v0.1.11"])
def test_a_wheel_is_chosen_by_its_version_and_those_beside_it_stay(pins: Pins, text: str) -> None:
    before = pins.by_name["tilelang"].wheels
    after = apply_choices(pins, [f"tilelang={text}"]).by_name["tilelang"].wheels
    assert after == ("tilelang==0.1.11", *before[1:])
    assert len(before) > 1


def test_a_wheel_keeps_its_extras(pins: Pins) -> None:
    flydsl = replace(pins.by_name["flydsl"], wheels=("flydsl[fast]==0.1.7",))
    given_extras = replace(
        pins, components=tuple(flydsl if item.name == "flydsl" else item for item in pins.components)
    )
    assert apply_choices(given_extras, ["flydsl=0.1.8"]).by_name["flydsl"].wheels == ("flydsl[fast]==0.1.8",)


@pytest.mark.parametrize(
    ("text", "tag", "digest", "rocm"),
    [
        ("7.2.4-complete", "7.2.4-complete", "", "7.2.4"),
        (f"7.2.4-complete@{DIGEST}", "7.2.4-complete", DIGEST, "7.2.4"),
        ("7.10-rc1", "7.10-rc1", "", "7.10"),
        # Nothing in such a tag says which ROCm it is.
        ("latest", "latest", "", "7.2.3"),
        (f"7.2.3-complete@{DIGEST}", "7.2.3-complete", DIGEST, "7.2.3"),
    ],
)
def test_a_base_image(pins: Pins, text: str, tag: str, digest: str, rocm: str) -> None:
    old = replace(pins, base=replace(base_of(pins), tag="7.2.3-complete", rocm="7.2.3"))
    base = base_of(apply_choices(old, [f"base={text}"]))
    assert (base.tag, base.digest, base.rocm) == (tag, digest, rocm)
    assert base.image == base_of(pins).image


def test_another_tag_does_not_keep_the_digest_of_the_pinned_one(pins: Pins) -> None:
    assert base_of(pins).digest
    base = base_of(apply_choices(pins, ["base=9.9.9"]))
    assert base.digest == ""
    assert base.reference == f"{base.image}:9.9.9"


@pytest.mark.parametrize("text", ["gfx90a,gfx942", "gfx90a;gfx942", ",gfx90a,,gfx942;"])
def test_archs(pins: Pins, text: str) -> None:
    assert apply_choices(pins, [f"archs={text}"]).archs == ("gfx90a", "gfx942")


def test_several_choices_in_any_order_are_one(pins: Pins) -> None:
    choices = ["aiter=v0.1.15", "archs=gfx942", "base=9.9.9", "flydsl=0.1.8"]
    one, other = apply_choices(pins, choices), apply_choices(pins, choices[::-1])
    assert one == other
    assert dict(one.overrides) == {"aiter": "v0.1.15", "archs": "gfx942", "base": "9.9.9", "flydsl": "0.1.8"}
    assert one.sha256 == other.sha256 != pins.sha256


def test_a_name_may_be_written_in_capitals_and_with_blanks(pins: Pins) -> None:
    assert apply_choices(pins, [" AITER = v0.1.15 "]) == apply_choices(pins, ["aiter=v0.1.15"])
    assert parse_choice("AITER=V1") == ("aiter", "V1")


def test_the_same_choice_twice_is_one(pins: Pins) -> None:
    assert apply_choices(pins, ["aiter=v0.1.15", "aiter=v0.1.15"]) == apply_choices(pins, ["aiter=v0.1.15"])


def test_wheels_of_a_cpu_stack_can_be_chosen(copied: Workspace) -> None:
    pins = read_pins(copied, "cpu")
    named = next(item for item in pins.components if item.wheels)
    chosen = apply_choices(pins, [f"{named.name}=99.9"]).by_name[named.name]
    assert chosen.wheels[0].endswith("==99.9")


# what changes nothing


def unchanged(pins: Pins) -> list[str]:
    base = base_of(pins)
    return [
        f"aiter={pins.by_name['aiter'].ref}",
        f"base={base.tag}",
        f"base={base.tag}@{base.digest}",
        f"archs={','.join(pins.archs)}",
        f"archs={';'.join(pins.archs)}",
        f"flydsl={pins.by_name['flydsl'].wheels[0].partition('==')[2]}",
    ]


def test_a_choice_that_says_what_the_pins_say_changes_nothing(pins: Pins) -> None:
    for choice in unchanged(pins):
        assert apply_choices(pins, [choice]) == pins, choice
    assert apply_choices(pins, []) is pins


def test_the_checksum_does_not_see_choices_that_change_nothing(pins: Pins) -> None:
    alone = apply_choices(pins, ["triton=v3.9"])
    among = apply_choices(pins, [*unchanged(pins)[:1], "triton=v3.9", *unchanged(pins)[3:4]])
    assert among == alone
    assert alone.sha256 not in (pins.sha256, apply_choices(pins, ["triton=v3.8"]).sha256)


# what is refused


@pytest.mark.parametrize(
    "text", ["", "aiter", "=v1", "aiter=", " = ", "aiter=v1 v2", "aiter=v'1", 'aiter="v1"', "aiter=a\\b", "aiter=a\nb"]
)
def test_what_is_not_name_and_ref(pins: Pins, text: str) -> None:
    with pytest.raises(UsageError, match="is not NAME=REF"):
        apply_choices(pins, [text])


@pytest.mark.parametrize(
    ("name", "near"),
    [("aitr", "aiter"), ("vlm", "vllm"), ("arch", "archs"), ("bsae", "base"), ("tile-lang", "tilelang")],
)
def test_an_unknown_name_is_answered_with_near_ones_and_all(pins: Pins, name: str, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        apply_choices(pins, [f"{name}=v1"])
    assert repr(name) in caught.value.what
    first, _, rest = caught.value.why.partition("What can be set: ")
    assert near in first
    assert {"aiter", "archs", "base", "cpython", "flydsl", "tilelang", "vllm"} <= set(rest.rstrip(".").split(", "))


def test_a_name_like_no_other_is_answered_with_all(pins: Pins) -> None:
    assert not difflib.get_close_matches("zzzzzz", list(pins.by_name))
    with pytest.raises(UsageError) as caught:
        apply_choices(pins, ["zzzzzz=1"])
    assert caught.value.why.startswith("What can be set: ")


@pytest.mark.parametrize("name", ["vllm-needs", "base-needs", "amd-smi"])
def test_what_has_no_ref_or_version_of_its_own_cannot_be_set(pins: Pins, name: str) -> None:
    with pytest.raises(UsageError, match=f"nothing called '{name}'"):
        apply_choices(pins, [f"{name}=1"])


@pytest.mark.parametrize("choice", ["base=7.2.4", "archs=gfx942"])
def test_a_cpu_stack_has_no_base_and_no_archs(copied: Workspace, choice: str) -> None:
    with pytest.raises(UsageError) as caught:
        apply_choices(read_pins(copied, "cpu"), [choice])
    assert "base" not in caught.value.why.partition("What can be set: ")[2].rstrip(".").split(", ")


@pytest.mark.parametrize("text", ["sm_90", "gfx942,sm_90", "gfx942 gfx950", ",", ";,"])
def test_archs_that_are_none(pins: Pins, text: str) -> None:
    with pytest.raises(UsageError, match=r"archs|NAME=REF"):
        apply_choices(pins, [f"archs={text}"])


@pytest.mark.parametrize(
    "text",
    [
        "7.2.4@sha256:abc",
        f"7.2.4@{'5' * 64}",
        f"7.2.4@{DIGEST}0",
        # Neither a tag nor a digest alone: a Dockerfile that names them would not be read.
        f"@{DIGEST}",
        "rocm/other:7.2.4",
        "7.2.4:7.2.5",
        "-7",
    ],
)
def test_what_is_no_tag_of_a_base_image(pins: Pins, text: str) -> None:
    with pytest.raises(UsageError, match="base="):
        apply_choices(pins, [f"base={text}"])


@pytest.mark.parametrize("text", ["main", COMMIT, "0.1.x", ">=0.1.10"])
def test_a_wheel_has_no_branches_and_commits(pins: Pins, text: str) -> None:
    if text == COMMIT:
        text = "abc" + COMMIT
    with pytest.raises(UsageError, match="chosen by its version"):
        apply_choices(pins, [f"tilelang={text}"])


def test_a_contradiction_names_both(pins: Pins) -> None:
    with pytest.raises(UsageError) as caught:
        apply_choices(pins, ["aiter=v0.1.15", "aiter=v0.1.16"])
    assert "v0.1.15" in caught.value.what
    assert "v0.1.16" in caught.value.what


@pytest.mark.parametrize("turned", [False, True])
def test_a_contradiction_with_what_is_pinned_is_one_in_either_order(pins: Pins, turned: bool) -> None:
    choices = ["aiter=v0.1.15", f"aiter={pins.by_name['aiter'].ref}"]
    with pytest.raises(UsageError, match="set twice"):
        apply_choices(pins, choices[::-1] if turned else choices)


# versions


@pytest.mark.parametrize(
    ("pinned", "ref", "version"),
    [
        ("0.1.14", "v0.1.15", "0.1.15"),
        ("0.1.14", "0.1.15", "0.1.15"),
        ("0.1.14", "v0.1.15-rc1", "0.1.15rc1"),
        ("0.1.14", "v0.1.15rc2", "0.1.15rc2"),
        ("0.1.14", "v0.1.12.post1", "0.1.12.post1"),
        ("0.1.14", "v0.1.12-1", "0.1.12.post1"),
        ("2.10.0+git8514f05", "v2.11.0", "2.11.0"),
        ("2.10.0+git8514f05", COMMIT, "2.10.0.dev0+g0123456789ab"),
        ("0.22.1.dev0+g5cb4ba95c758", "0123456", "0.22.1.dev0+g0123456"),
        ("1!2.0rc1", "0123456", "1!2.0.dev0+g0123456"),
        ("3.6.0", "main", "3.6.0.dev0+main"),
        ("3.6.0", "release/3.6.x", "3.6.0.dev0+release.3.6.x"),
        ("3.6.0", "My_Branch--2", "3.6.0.dev0+my.branch.2"),
        ("", "v1.0", ""),
        ("", COMMIT, ""),
    ],
)
def test_the_version_that_a_ref_is_built_as(pinned: str, ref: str, version: str) -> None:
    assert version_of(pinned, ref) == version


REFS = st.one_of(
    st.text(min_size=1, max_size=20),
    st.text("v0123456789.-_+/rcpostdevä", min_size=1, max_size=16),
    st.text("0123456789abcdef", min_size=7, max_size=40),
)
PINNED = st.sampled_from(["", "0.1.14", "2.10.0+git8514f05", "0.22.1.dev0+g5cb4ba95c758", "1!2.0rc1.post3", "3"])


@given(PINNED, REFS)
def test_a_version_is_one_for_every_ref(pinned: str, ref: str) -> None:
    found = version_of(pinned, ref)
    assert bool(found) == bool(pinned)
    if found:
        # InvalidVersion where it is none.
        Version(found)


@pytest.mark.parametrize("ref", ["_", "--", "分支", "/"])
def test_a_branch_without_a_plain_letter_has_a_version_too(ref: str) -> None:
    assert Version(version_of("3.6.0", ref)).base_version == "3.6.0"


@given(st.text("0123456789abcdef", min_size=12, max_size=40), st.text("0123456789abcdef", min_size=12, max_size=40))
def test_commits_that_differ_at_the_beginning_differ_in_their_versions(one: str, other: str) -> None:
    assert (version_of("0.1.14", one) == version_of("0.1.14", other)) == (one[:12] == other[:12])


# keeping them


CHOICES = [
    ["aiter=v0.1.15"],
    [f"vllm={COMMIT}"],
    ["mori=v9.9.9"],
    ["tilelang=0.1.11"],
    ["base=9.9.9-complete"],
    [f"base=9.9.9-complete@{DIGEST}"],
    ["archs=gfx90a"],
    ["archs=gfx950,gfx942,gfx90a", "aiter=main", "triton=0123456", "flydsl=0.2", "base=9.9"],
]


@pytest.mark.parametrize("choices", CHOICES, ids=lambda choices: " ".join(choices))
def test_what_is_saved_is_read_as_the_same_pins_without_overrides(
    copied: Workspace, pins: Pins, choices: list[str]
) -> None:
    chosen = apply_choices(pins, choices)
    lines = save(copied, chosen)
    found = read_pins(copied, STACK)
    assert found == replace(chosen, sha256=found.sha256, overrides=())
    assert found.sha256 not in (pins.sha256, chosen.sha256)
    assert lines
    assert all(" -> " in line for line in lines)
    assert apply_choices(found, choices) == found


def test_saving_changes_the_chosen_lines_alone(copied: Workspace, pins: Pins) -> None:
    path = copied.pins_file(STACK)
    before = path.read_text(encoding="utf-8").splitlines()
    lines = save(copied, apply_choices(pins, ["aiter=v9.9.9", "archs=gfx90a"]))
    after = path.read_text(encoding="utf-8").splitlines()
    changed = [line for line in difflib.ndiff(before, after) if line[0] in "+-"]
    assert sorted(line for line in changed if line[0] == "+") == [
        '+ archs = ["gfx90a"]',
        '+ ref = "v9.9.9"',
        '+ version = "9.9.9"',
    ]
    assert len(changed) == 6
    assert [line for line in after if line.startswith("#")] == [line for line in before if line.startswith("#")]
    assert lines == [
        f"components.aiter.ref: {pins.by_name['aiter'].ref} -> v9.9.9",
        f"components.aiter.version: {pins.by_name['aiter'].version} -> 9.9.9",
        f"stack.archs: {list(pins.archs)} -> ['gfx90a']",
    ]


def test_a_digest_that_is_not_known_leaves_the_file(copied: Workspace, pins: Pins) -> None:
    save(copied, apply_choices(pins, ["base=9.9.9"]))
    assert "digest = " not in copied.pins_file(STACK).read_text(encoding="utf-8")
    found = read_pins(copied, STACK)
    assert base_of(found).digest == ""
    # And one comes into a file that had none.
    save(copied, apply_choices(found, [f"base=9.9.9@{DIGEST}"]))
    assert base_of(read_pins(copied, STACK)).digest == DIGEST


def test_saving_nothing_changes_no_byte(copied: Workspace, pins: Pins) -> None:
    before = copied.pins_file(STACK).read_bytes()
    assert save(copied, pins) == []
    assert copied.pins_file(STACK).read_bytes() == before


@pytest.mark.parametrize("choice", ["archs=gfx942,gfx942", "archs=gfx90a,gfx942,gfx90a"])
def test_what_is_accepted_can_be_saved_and_read(copied: Workspace, pins: Pins, choice: str) -> None:
    """The pins want every arch once: what they would refuse must not get past the command line either."""
    try:
        chosen = apply_choices(pins, [choice])
    except UsageError:
        return
    save(copied, chosen)
    try:
        read_pins(copied, STACK)
    except PinsError as error:
        pytest.fail(f"{choice} was accepted and saved, and now the pins cannot be read: {error.why}")


@pytest.mark.parametrize(("ref", "version"), [("v3.12.13", "3.12.13"), ("0" * 40, ""), ("main", "")])
def test_a_version_that_only_the_source_knows_is_not_made_up(pins: Pins, ref: str, version: str) -> None:
    chosen = apply_choices(pins, [f"cpython={ref}"]).by_name["cpython"]
    assert (chosen.ref, chosen.version) == (ref, version)
