"""Unit tests do not see the settings of the machine that they run on."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "KILN_ROOT",
        "KILN_STATE",
        "KILN_APT_SOURCES",
        "KILN_CONFIG",
        "KILN_MIRRORS",
        "DOCKER_HOST",
        "DOCKER_CONFIG",
    ):
        monkeypatch.delenv(name, raising=False)
