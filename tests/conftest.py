"""Shared by all tests: the project itself, a copy of it, and the small stack `toy` whose inputs are invented."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import settings

from kiln.console import Console
from kiln.lockfile import Deb, Lock, Wheel, read_lock
from kiln.pins import Pins, read_pins
from kiln.workspace import Workspace

PROJECT = Path(__file__).resolve().parents[1]
TOY = PROJECT / "tests" / "golden" / "toy"
_CACHES = shutil.ignore_patterns("__pycache__", ".*_cache", "*.pyc")

# The same examples on every run: a red build is the change's fault, never the dice's.
settings.register_profile("kiln", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("kiln")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--update-golden`` writes the golden files instead of comparing with them."""
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/ anew from what renders now; look at the difference before you commit it")


@pytest.fixture(scope="session")
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(scope="session")
def project() -> Path:
    """The checkout."""
    return PROJECT


@pytest.fixture
def console() -> Console:
    return Console(quiet=True)


@pytest.fixture
def real(tmp_path: Path) -> Workspace:
    """The checkout with a state folder of the test's own."""
    return Workspace(PROJECT, tmp_path / "state")


@pytest.fixture
def project_copy(tmp_path: Path) -> Path:
    """A copy of what people write in the project, for tests that edit it."""
    copy = tmp_path / "project"
    for name in ("pins", "images", "templates", "plugins", "scripts"):
        shutil.copytree(PROJECT / name, copy / name, ignore=_CACHES)
    return copy


@pytest.fixture
def toy(tmp_path: Path) -> Workspace:
    """The stack `toy` in a project of its own, with the project's real templates."""
    root = tmp_path / "toy"
    for name in ("pins", "images", "plugins"):
        shutil.copytree(TOY / name, root / name, ignore=_CACHES)
    shutil.copytree(PROJECT / "templates", root / "templates", ignore=_CACHES)
    return Workspace(root, tmp_path / "state")


@pytest.fixture
def toy_pins(toy: Workspace) -> Pins:
    return read_pins(toy, "toy")


@pytest.fixture
def toy_lock(toy: Workspace, toy_pins: Pins) -> Lock:
    return read_lock(toy, toy_pins)


def invented_lock(pins: Pins) -> Lock:
    """What the lock of `toy` holds. No such files exist: every sha256 is one byte, 32 times over."""
    debs = [("base-files", "12.4", "amd64"), ("python3", "3.11.2-1+b1", "amd64"), ("tzdata", "1:2026a-0", "all")]
    wheels = [
        ("base", "toy-base", "1.0+cpu", "toy_base-1.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl", "extra"),
        ("needs", "toy-dependency", "0.3", "toy_dependency-0.3-py3-none-any.whl", ""),
        ("needs", "toy-second", "4.5.6", "toy_second-4.5.6-py3-none-any.whl", ""),
        ("app", "toy-app", "2.0", "toy_app-2.0-py3-none-any.whl", ""),
        ("tools", "uv", "0.13.8", "uv-0.13.8-py3-none-manylinux_2_17_x86_64.whl", ""),
        ("tools", "flit-core", "3.12.0", "flit_core-3.12.0-py3-none-any.whl", ""),
    ]
    return Lock(
        pins.stack,
        pins.sha256,
        tuple(Deb(name, version, arch, f"pool/main/{name[0]}/{name}/{name}_{version}_{arch}.deb", f"{number:02x}" * 32, 1000 + number) for number, (name, version, arch) in enumerate(debs, 1)),
        tuple(Wheel(component, name, version, file, f"{number:02x}" * 32, 1000 + number, index) for number, (component, name, version, file, index) in enumerate(wheels, 17)),
    )
