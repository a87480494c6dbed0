"""Pins are read out of the real files of every release, and the table of them is the one that is committed."""

from __future__ import annotations

from pathlib import Path

import pytest

from kiln.console import Console
from kiln.derive import asked_nobody
from kiln.deriving import derive_pins
from kiln.pins import read_pins
from kiln.session import Session
from kiln.store import Store
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
