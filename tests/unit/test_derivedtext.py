"""Whatever vLLM's files say, derived pins are TOML with the values that were read."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiln.derivedtext import Derived, Open, differences, lookup, text_of
from kiln.vllmfiles import UPSTREAM, Revision

PROJECT = Path(__file__).resolve().parents[2]
PATTERNS = {
    stack: tomllib.loads((PROJECT / "pins" / f"{stack}.toml").read_text(encoding="utf-8"))
    for stack in ("dsv4-mhc", "dsv4-mhc-upstream")
}
# TOML has no surrogates, and neither has what is read out of a file as UTF-8.
TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)


def derived(stack: str = "dsv4-mhc", **revision: str) -> Derived:
    said = {"git": UPSTREAM, "ref": "v1", "version": "1", "commit": "", "released": "", "origin": "here", **revision}
    return Derived("new", stack, PATTERNS[stack], Revision(read={}.get, **said))  # type: ignore[arg-type]


@pytest.mark.parametrize("stack", sorted(PATTERNS))
def test_where_nothing_was_derived_it_is_the_pattern(stack: str) -> None:
    assert tomllib.loads(text_of(derived(stack), "x")) == PATTERNS[stack]
    assert differences(derived(stack)) == {}


@given(TEXTS, TEXTS, st.lists(TEXTS, max_size=12), TEXTS)
def test_any_value_and_any_place_are_written_as_toml(ref: str, where: str, items: list[str], origin: str) -> None:
    made = derived(origin=origin)
    made.values |= {"components.aiter.ref": ref, "components.base-needs.requires": items, "stack.archs": items}
    made.origins["components.aiter.ref"] = where
    made.origins["stack.archs"] = where
    made.lines["components.base-needs.requires"] = dict.fromkeys(items, where)
    made.open["base.digest"] = Open("base.digest", where, origin, needed=False)
    found: dict[str, Any] = tomllib.loads(text_of(made, f"kiln {where}"))
    assert found["components"]["aiter"]["ref"] == ref
    assert found["components"]["base-needs"]["requires"] == items
    assert found["stack"]["archs"] == items
    assert "digest" not in found["base"]
    assert lookup(found, "base.tag") == "7.2.3-complete"


def test_a_new_key_stands_behind_what_it_belongs_to() -> None:
    made = derived()
    made.values["components.mori.version"] = "1.1.0"
    made.values["components.mori.picks"] = ["https://github.com/ROCm/mori@abcdef0"]
    made.dropped.add("components.triton.picks")
    lines = text_of(made, "x").splitlines()
    at = lines.index("[components.mori]")
    assert [line.partition(" ")[0] for line in lines[at + 1 : at + 7]] == [
        "recipe", "about", "git", "ref", "version", "picks",
    ]  # fmt: skip
    assert differences(made) == {
        "components.mori.version": "none -> 1.1.0",
        "components.mori.picks": "none -> https://github.com/ROCm/mori@abcdef0",
        "components.triton.picks": "https://github.com/triton-lang/triton@555d04f https://github.com/triton-lang/triton@dd998b6 -> none",
    }


def test_a_list_of_requirements_differs_by_its_entries() -> None:
    made = derived()
    path = "components.build-tools.requires"
    made.values[path] = ["cmake>=3.26.1,<5", "Cython", "setuptools_rust>=1.9", "setuptools-scm>=8", "odd"]
    assert differences(made) == {path: "cmake<4,>=3.26.1 -> cmake<5,>=3.26.1; with odd; without wheel"}
