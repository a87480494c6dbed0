"""Unit tests do not see the settings of the machine that they run on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import pytest

import kiln.uv
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


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all the index uv has: no network, none of this machine's settings."""
    if not kiln.uv._uv().is_file():
        pytest.fail("uv is not in Kiln's own environment, and locking a ROCm stack needs it")
    folder = tmp_path / "links"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}
    settings |= {"UV_CACHE_DIR": str(tmp_path / "cache"), "UV_OFFLINE": "1", "UV_PYTHON_DOWNLOADS": "never"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return folder
