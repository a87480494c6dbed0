"""What the root file system is made with. That its bytes are the same is shown by `kiln repro` and on a bare machine (tests/e2e/test_newcomer.py)."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from kiln.console import Console
from kiln.lockfile import Lock
from kiln.pins import Pins
from kiln.rootfs import make_rootfs
from kiln.store import Store
from kiln.workspace import Workspace

# Writes what it was given to where the tar goes.
PROGRAM = """#!/bin/sh
for word; do case $word in */rootfs.tar) env | cut -d= -f1 | sort >"$word";; esac; done
"""


def test_nothing_of_the_callers_environment_reaches_maintainer_scripts(
    real: Workspace,
    toy_pins: Pins,
    toy_lock: Lock,
    console: Console,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = tmp_path / "bin" / "mmdebstrap"
    program.parent.mkdir()
    program.write_text(PROGRAM)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for name in ("PYTHONOPTIMIZE", "PYTHONHASHSEED", "DEBIAN_FRONTEND", "PERL5LIB", "LANG"):
        monkeypatch.setenv(name, "1")
    store = Store(tmp_path / "store")
    made = store.path(make_rootfs(real, toy_pins, replace(toy_lock, debs=()), store, console))
    # PWD is the shell's own.
    assert set(made.read_text().split()) - {"PWD", "SHLVL", "_"} == {
        "LC_ALL",
        "PATH",
        "PYTHONDONTWRITEBYTECODE",
        "SOURCE_DATE_EPOCH",
        "TMPDIR",
        "TZ",
    }
