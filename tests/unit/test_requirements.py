"""What a source's own requirements files ask for, against the locked wheels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kiln.errors import ResolveError
from kiln.lockentries import Wheel
from kiln.pins import Pins, read_pins
from kiln.requirements import requirements_in, unmet
from kiln.workspace import Workspace

FILES = {
    "requirements.txt": b"flydsl==0.1.7  # a comment\n-r more/others.txt\n--extra-index-url x\nnot a requirement!\nNumPy>=2 ; python_version < '3'\n",
    "more/others.txt": b"einops>=0.8\n-r ../requirements.txt\npandas\n",
}


@pytest.fixture
def pins(real: Workspace) -> Pins:
    return read_pins(real, "dsv4-mhc")


def wheel(name: str, version: str) -> Wheel:
    return Wheel("base-needs", name, version, f"{name}-{version}-py3-none-any.whl", "0" * 64, 1)


def test_files_that_include_each_other_are_read_once() -> None:
    found = [str(requirement) for requirement in requirements_in("aiter", "requirements.txt", FILES.get)]
    assert found == ["flydsl==0.1.7", "einops>=0.8", "pandas", 'NumPy>=2; python_version < "3"']


def test_locked_wheels_that_fit_are_no_matter(pins: Pins) -> None:
    assert (
        unmet(pins, "aiter", FILES.get, [wheel("flydsl", "0.1.7"), wheel("einops", "0.9.dev1"), wheel("numpy", "1.0")])
        == []
    )


def test_a_locked_wheel_that_the_source_does_not_want_is_named(pins: Pins) -> None:
    found = unmet(pins, "aiter", FILES.get, [wheel("flydsl", "0.2.0"), wheel("einops", "0.7")])
    assert [(entry.kind, entry.name, entry.ref) for entry in found] == [
        ("wheel", "aiter", "flydsl==0.1.7"),
        ("wheel", "aiter", "einops>=0.8"),
    ]
    assert found[0].reason.startswith("aiter v0.1.14 asks for it in its requirements.txt, and 0.2.0 is locked")


def test_a_component_that_names_no_files_asks_for_nothing(pins: Pins) -> None:
    assert unmet(pins, "torch", FILES.get, [wheel("flydsl", "9")]) == []


def test_a_file_that_is_not_there_is_an_error(pins: Pins) -> None:
    with pytest.raises(ResolveError, match=r"the source of aiter has no requirements\.txt"):
        unmet(pins, "aiter", {}.get, [])
    assert replace(pins.by_name["aiter"], requirements=()).requirements == ()


def test_the_real_pins_name_files_inside_their_sources(pins: Pins) -> None:
    named = {item.name: item.requirements for item in pins.components if item.requirements}
    assert set(named) == {"aiter", "vllm"}
    assert not any(Path(path).is_absolute() for paths in named.values() for path in paths)
