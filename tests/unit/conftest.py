"""Unit tests do not see the settings of the machine that they run on."""

from __future__ import annotations

from typing import Any, cast

import pytest

from kiln.engine import Engine
from kiln.lockfile import Lock
from kiln.pins import Pins
from kiln.records import Built
from kiln.render import Rendered, render
from kiln.verify.checks import Subject
from kiln.workspace import Workspace

DIGEST = "sha256:" + "a" * 64


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "KILN_ROOT",
        "KILN_STATE",
        "KILN_APT_SOURCES",
        "KILN_CONFIG",
        "KILN_MIRRORS",
        "KILN_BUILDER",
        "DOCKER_HOST",
        "DOCKER_CONFIG",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def rendered(toy: Workspace, toy_pins: Pins, toy_lock: Lock) -> Rendered:
    return render(toy, toy_pins, toy_lock)[0]


@pytest.fixture
def subject(toy: Workspace, toy_pins: Pins, toy_lock: Lock, rendered: Rendered) -> Subject:
    built = Built("toy-serving", rendered.key, DIGEST, "kiln/toy-serving:1", 1.0)
    return Subject(
        toy,
        toy_pins,
        toy_lock,
        rendered.image,
        rendered.labels,
        ("toy-plugin",),
        built,
        Engine("unix:///nowhere", "28", "1.48", private=False),
        cast("Any", None),
    )
