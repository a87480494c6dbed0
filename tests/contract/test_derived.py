"""Pins are read out of the real files of every release, and the table of them is the one that is committed."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from kiln.console import Console
from kiln.derive import asked_nobody, derive
from kiln.derivedtext import differences, text_of
from kiln.deriving import derive_pins
from kiln.pins import read_pins
from kiln.session import Session
from kiln.store import Store
from kiln.vllmfiles import given_revision
from kiln.workspace import Workspace
from tests.contract import derived
from tests.contract.conftest import have
from tests.contract.sources import Release, releases

RELEASES = [pytest.param(one, id=one.version) for one in releases()]


@pytest.mark.usefixtures("need_sources")
def test_the_table_is_current(update_golden: bool) -> None:
    text = derived.document(releases())
    if update_golden:
        derived.DOCUMENT.write_text(text, encoding="utf-8")
    assert derived.DOCUMENT.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("release", RELEASES)
def test_what_a_release_pins_is_what_the_table_says(release: Release) -> None:
    have(release)
    assert derived.row(release) in derived.DOCUMENT.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("release", RELEASES)
def test_the_pins_of_a_release_are_pins_once_what_is_open_is_filled_in(
    release: Release, project_copy: Path, tmp_path: Path, console: Console
) -> None:
    have(release)
    workspace = Workspace(project_copy, tmp_path / "state")
    session = Session(workspace, Store(workspace.state / "store"), console)
    text, data = derive_pins(session, "", release.pins_folder, "", "dsv4-mhc", asked_nobody())
    opened = {item["path"] for item in data["open"]}
    # AITER's requirements are AITER's; the day of the release is the index's to say.
    assert opened - {"base.digest"} == {"python.as-of", "components.flydsl.wheels"}
    # The digest that is known is that of 7.2.3.
    assert ("base.digest" in opened) == (data["pins"]["base.tag"]["value"] != "7.2.3-complete")
    filled = text.replace('name = "derived"', 'name = "filled-in"').replace(
        "# OPEN: wheels", 'wheels = ["flydsl==0.0.0"] # not OPEN'
    )
    workspace.pins_file("filled-in").write_text(filled, encoding="utf-8")
    pins, pattern = read_pins(workspace, "filled-in"), read_pins(workspace, "dsv4-mhc")
    assert list(pins.by_name) == list(pattern.by_name)
    assert pins.by_name["vllm"].ref == f"v{release.version}"
    assert pins.by_name["torch"].version.startswith("2.1")


# What a person put into dsv4-mhc-upstream that is in none of that release's files, and why.
BY_HAND = {
    "stack.images": "Kiln's own folders",
    "python.as-of": "the index's to say, and a day later",
    "components.base-needs.requires": "the exact ones are of AITER's own requirements.txt",
    "components.flydsl.wheels": "of AITER's own requirements.txt",
    "components.build-tools.requires": "AITER's setup.py asks for vcs-versioning",
    "components.triton.version": "of requirements/build/rocm.txt, which says the same beside a Triton 3.7",
    "components.vllm-needs.requires": "and pytest, of AITER's own requirements.txt",
    "components.plugins": "Kiln's own plugin",
    "tools.wheels": "what that plugin is built with",
}


def test_what_was_pinned_by_hand_for_a_release_is_what_is_derived(project: Path) -> None:
    release = next(one for one in releases() if one.version == "0.27.1")
    have(release)
    raw = {
        name: tomllib.loads((project / "pins" / f"{name}.toml").read_text(encoding="utf-8"))
        for name in ("dsv4-mhc", "dsv4-mhc-upstream")
    }
    revision = given_revision(release.pins_folder, "")
    made = derive("dsv4-mhc-upstream", "dsv4-mhc", raw["dsv4-mhc"], revision, derived.said(release), asked_nobody())
    text = tomllib.loads(text_of(made, "kiln pins derive"))
    hand, found = dict(_leaves(raw["dsv4-mhc-upstream"])), dict(_leaves(text))
    differ = {path for path in {*hand, *found} if hand.get(path) != found.get(path) and not path.endswith("about")}
    assert {path for path in differ if not path.startswith("components.plugins.")} == BY_HAND.keys() - {
        "components.plugins"
    }
    needs = "components.vllm-needs.requires"
    assert {*map(str, map(Requirement, hand[needs]))} - {*map(str, map(Requirement, found[needs]))} == {"pytest==9.0.3"}
    assert {*map(str, map(Requirement, found[needs]))} <= {*map(str, map(Requirement, hand[needs]))}
    # On the pattern of that very stack nothing else differs either.
    again = derive("x", "dsv4-mhc-upstream", raw["dsv4-mhc-upstream"], revision, derived.said(release), asked_nobody())
    assert differences(again).keys() == {"python.as-of", needs}
    assert differences(again)[needs] == "without pytest==9.0.3"


def _leaves(table: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield path + key, value
