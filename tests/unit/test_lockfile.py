"""The lock: written one way, read strictly, and refused with the command that mends it."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from kiln.errors import LockInvalidError, LockMissingError, LockStaleError
from kiln.lockentries import Deb, Wheel
from kiln.lockfile import Lock, dump_lock, parse_lock, read_lock
from kiln.pins import Pins
from kiln.workspace import Workspace

# Printable ASCII, what TOML gives a meaning to, and a few letters and marks from farther away.
LETTERS = "".join(map(chr, range(32, 127))) + "\t\n\r\0\x7fäß€→\ufeff𝄞"
NAMES = st.text("abcxyz019.+-", max_size=8).map("n".__add__)
HASHES = st.integers(0, 2**256 - 1).map("{:064x}".format)
SIZES = st.integers(0, 2**40)
DEBS = st.builds(Deb, NAMES, NAMES, st.sampled_from(["amd64", "all"]), NAMES.map("pool/{}.deb".format), HASHES, SIZES)
WHEELS = st.builds(
    Wheel,
    NAMES,
    NAMES,
    NAMES,
    st.integers(0, 999).map("w-1.{}-py3-none-any.whl".format),
    HASHES,
    SIZES,
    st.sampled_from(["", "extra"]),
)
LOCKS = st.builds(
    Lock,
    NAMES,
    HASHES,
    st.lists(DEBS, max_size=5, unique_by=lambda deb: (deb.name, deb.architecture)).map(tuple),
    st.lists(WHEELS, max_size=5, unique_by=lambda wheel: (wheel.component, wheel.name)).map(tuple),
)
GOOD_DEB = {
    "name": "d",
    "version": "1",
    "architecture": "all",
    "pool": "pool/d_1_all.deb",
    "sha256": "0" * 64,
    "size": 1,
}
GOOD_WHEEL = {
    "component": "c",
    "name": "w",
    "version": "1",
    "file": "w-1-py3-none-any.whl",
    "sha256": "1" * 64,
    "size": 1,
}


def text_of(**changes: Any) -> str:
    data = {"schema": 1, "stack": "toy", "pins-sha256": "2" * 64, "deb": [GOOD_DEB], "wheel": [GOOD_WHEEL], **changes}
    return tomli_w.dumps({key: value for key, value in data.items() if value is not None})


@given(LOCKS)
def test_what_is_written_is_read_back(lock: Lock) -> None:
    found = parse_lock(dump_lock(lock), "x.lock.toml")
    assert found.sha256 == lock.sha256
    assert (set(found.debs), set(found.wheels)) == (set(lock.debs), set(lock.wheels))


@given(LOCKS, st.randoms(use_true_random=False))
def test_the_order_of_entries_changes_nothing(lock: Lock, dice: random.Random) -> None:
    mixed = replace(
        lock,
        debs=tuple(dice.sample(lock.debs, len(lock.debs))),
        wheels=tuple(dice.sample(lock.wheels, len(lock.wheels))),
    )
    assert dump_lock(mixed) == dump_lock(lock)
    assert mixed.sha256 == lock.sha256


@given(LOCKS.filter(lambda lock: lock.wheels))
def test_the_checksum_changes_with_any_entry(lock: Lock) -> None:
    first, *others = lock.wheels
    for changed in (
        replace(first, version=first.version + "x"),
        replace(first, size=first.size + 1),
        replace(first, component=first.component + "x"),
    ):
        assert replace(lock, wheels=(changed, *others)).sha256 != lock.sha256


def test_the_example_that_the_wrong_ones_are_made_of_is_right() -> None:
    lock = parse_lock(text_of(), "toy.lock.toml")
    assert lock.wheels_of("c") == lock.wheels
    assert lock.wheels_of("nobody") == ()
    assert [entry.label for entry in lock.entries()] == ["d 1 (all)", "w-1-py3-none-any.whl"]


WRONG = {
    "not TOML": "schema = ",
    "nothing": "",
    "another schema": text_of(schema=2),
    "no stack": text_of(stack=None),
    "no pins-sha256": text_of(**{"pins-sha256": None}),
    "stack is a number": text_of(stack=5),
    "pins-sha256 is a number": text_of(**{"pins-sha256": 5}),
    "unknown key at the top": text_of(extra="x"),
    "wheels are a number": text_of(wheel=5),
    "wheels are words": text_of(wheel=["one"]),
    "unknown key": text_of(wheel=[{**GOOD_WHEEL, "colour": "red"}]),
    "missing field": text_of(wheel=[{key: value for key, value in GOOD_WHEEL.items() if key != "sha256"}]),
    "a package without its pool": text_of(deb=[{key: value for key, value in GOOD_DEB.items() if key != "pool"}]),
    "size is a word": text_of(wheel=[{**GOOD_WHEEL, "size": "1"}]),
    "size is a truth value": text_of(wheel=[{**GOOD_WHEEL, "size": True}]),
    "size is negative": text_of(deb=[{**GOOD_DEB, "size": -1}]),
    "version is a number": text_of(deb=[{**GOOD_DEB, "version": 1}]),
    "sha256 too short": text_of(wheel=[{**GOOD_WHEEL, "sha256": "1" * 63}]),
    "sha256 in capitals": text_of(wheel=[{**GOOD_WHEEL, "sha256": "A" * 64}]),
    "sha256 with a line end": text_of(wheel=[{**GOOD_WHEEL, "sha256": "1" * 64 + "\n"}]),
    "file climbs": text_of(wheel=[{**GOOD_WHEEL, "file": "../w-1-py3-none-any.whl"}]),
    "file is a path": text_of(wheel=[{**GOOD_WHEEL, "file": "/w-1-py3-none-any.whl"}]),
    "file is an option": text_of(wheel=[{**GOOD_WHEEL, "file": "-rf.whl"}]),
    "file is nothing": text_of(wheel=[{**GOOD_WHEEL, "file": ""}]),
    "file is a folder": text_of(deb=[{**GOOD_DEB, "pool": "pool/"}]),
    "file is the folder above": text_of(deb=[{**GOOD_DEB, "pool": "pool/.."}]),
    "file is no wheel": text_of(wheel=[{**GOOD_WHEEL, "file": "w.txt"}]),
    "a name that is an option of pip": text_of(wheel=[{**GOOD_WHEEL, "name": "--index-url"}]),
    "a version that is a second line of requirements": text_of(wheel=[{**GOOD_WHEEL, "version": "1\n--index-url=x"}]),
    "a number of 5000 digits": f"schema = {'9' * 5000}",
    "ten thousand lists in one another": f"schema = {'[' * 10000}",
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_what_kiln_did_not_write_is_refused(text: str) -> None:
    with pytest.raises(LockInvalidError) as caught:
        parse_lock(text, "pins/toy.lock.toml")
    assert "pins/toy.lock.toml" in caught.value.what
    assert caught.value.why
    assert "kiln lock toy" in caught.value.fix


@given(st.text(LETTERS))
def test_no_text_gets_past_with_another_error(text: str) -> None:
    with pytest.raises(LockInvalidError):
        parse_lock(text, "toy.lock.toml")


VALUES = st.recursive(
    st.one_of(st.integers(-9, 9), st.booleans(), st.text(LETTERS, max_size=3), st.just("0" * 64)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from([*GOOD_WHEEL, *GOOD_DEB, "index", "other"]), inner, max_size=8),
    ),
    max_leaves=12,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "schema": st.sampled_from([1, True, "1"]),
            "stack": VALUES,
            "pins-sha256": VALUES,
            "deb": VALUES,
            "wheel": VALUES,
        },
    )
)
def test_no_table_gets_past_with_another_error(data: dict[str, Any]) -> None:
    try:
        lock = parse_lock(tomli_w.dumps(data), "toy.lock.toml")
    except LockInvalidError:
        return
    assert all(len(entry.sha256) == 64 for entry in lock.entries())


def test_a_current_lock_is_read(toy: Workspace, toy_pins: Pins) -> None:
    lock = read_lock(toy, toy_pins)
    assert lock.pins_sha256 == toy_pins.sha256
    assert {wheel.component for wheel in lock.wheels} == {"base", "needs", "app", "tools"}


def test_a_missing_lock_is_code_11_and_names_the_command(toy: Workspace, toy_pins: Pins) -> None:
    toy.lock_file("toy").unlink()
    with pytest.raises(LockMissingError) as caught:
        read_lock(toy, toy_pins)
    assert caught.value.exit_code == 11
    assert "kiln lock toy" in str(caught.value)


def test_a_lock_of_other_pins_is_code_12_and_names_the_command(toy: Workspace, toy_pins: Pins) -> None:
    with pytest.raises(LockStaleError) as caught:
        read_lock(toy, replace(toy_pins, sha256="f" * 64))
    assert caught.value.exit_code == 12
    assert "kiln lock toy" in str(caught.value)


def test_the_lock_of_another_stack_is_stale(toy: Workspace, toy_pins: Pins) -> None:
    path = toy.lock_file("toy")
    path.write_text(path.read_text().replace('stack = "toy"', 'stack = "other"'))
    with pytest.raises(LockStaleError, match="'toy'"):
        read_lock(toy, toy_pins)


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"<<<<<<< HEAD\n"])
def test_a_broken_lock_is_code_13_and_names_the_command(toy: Workspace, toy_pins: Pins, data: bytes) -> None:
    toy.lock_file("toy").write_bytes(data)
    with pytest.raises(LockInvalidError) as caught:
        read_lock(toy, toy_pins)
    assert caught.value.exit_code == 13
    assert "kiln lock toy" in str(caught.value)


def test_a_wheel_for_a_component_that_the_pins_do_not_name_is_refused(toy: Workspace, toy_pins: Pins) -> None:
    path = toy.lock_file("toy")
    path.write_text(path.read_text().replace('component = "app"', 'component = "ghost"'))
    with pytest.raises(LockInvalidError, match="ghost"):
        read_lock(toy, toy_pins)
