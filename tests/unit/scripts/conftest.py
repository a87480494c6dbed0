"""Imports the scripts by path: they are programs for the inside of an image, not a package."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[3] / "scripts"


def load(name: str) -> ModuleType:
    """Import ``scripts/<name>.py`` under its own name, as running it would."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_texts() -> Iterator[ModuleType]:
    """``scripts/tiny_texts.py``."""
    yield load("tiny_texts")
    sys.modules.pop("tiny_texts", None)


@pytest.fixture(scope="session")
def make_tiny_model(tiny_texts: ModuleType) -> Iterator[ModuleType]:
    """``scripts/make_tiny_model.py``, which imports ``tiny_texts``."""
    assert sys.modules["tiny_texts"] is tiny_texts
    yield load("make_tiny_model")
    sys.modules.pop("make_tiny_model", None)


@pytest.fixture(scope="session")
def ask_server() -> Iterator[ModuleType]:
    """``scripts/ask_server.py``."""
    yield load("ask_server")
    sys.modules.pop("ask_server", None)


@pytest.fixture(scope="session")
def run_gate(ask_server: ModuleType) -> Iterator[ModuleType]:
    """``scripts/run_gate.py``, which imports ``ask_server``."""
    assert sys.modules["ask_server"] is ask_server
    yield load("run_gate")
    sys.modules.pop("run_gate", None)
