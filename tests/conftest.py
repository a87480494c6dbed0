"""Shared by all tests: the project itself, a copy of it, and the small stack `toy` whose inputs are invented."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from kiln.console import Console
from kiln.lockfile import Lock, read_lock
from kiln.pins import Pins, read_pins
from kiln.workspace import Workspace

PROJECT = Path(__file__).resolve().parents[1]
TOY = PROJECT / "tests" / "golden" / "toy"
_CACHES = shutil.ignore_patterns("__pycache__", ".*_cache", "*.pyc")

# Everything of what `make test` takes a sample of, where that is long: FULL=1.
FULL = bool(os.environ.get("FULL"))
# Which moments and how full a disk is decided by chance; the same again with SEED=…. Two workers have one seed.
SEED = os.environ.get("SEED") or str(random.randrange(10**6))  # noqa: S311
os.environ["SEED"] = SEED
# What works on the checkout's own state folder, which one kiln at a time may hold; and what needs neither that nor the toy project.
CHECKOUT = {"e2e", "rehearsal", "test_base_image", "test_cpu_kernels", "test_cpu_operators", "test_defects"}
NEITHER = {"test_diff", "test_make_venv", "test_page"}

# The same examples on every run: a red build is the change's fault, never the dice's.
settings.register_profile("kiln", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("kiln")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--update-golden`` writes the golden files instead of comparing with them."""
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write tests/golden/ anew from what renders now; look at the difference before you commit it",
    )


def pytest_report_header() -> str:
    """Said at the start, for workers are not heard at the end."""
    return f"SEED={SEED}, {'everything' if FULL else 'samples of what takes long (FULL=1: all of it)'}"


def group_of(path: Path) -> str:
    """Whose tests run one after another where several workers share the work (``make test WORKERS=2``): the checkout's, the toy project's, else a file's."""
    inside = path.relative_to(PROJECT / "tests").with_suffix("")
    if CHECKOUT & set(inside.parts):
        return "checkout"
    return "toy" if inside.parts[0] == "integration" and inside.name not in NEITHER else str(inside)


class ByGroup(LoadScopeScheduling):
    """One worker for each group at a time."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(PROJECT / nodeid.partition("::")[0])


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByGroup | None:
    """Groups for who asks for scopes (``--dist loadscope``). Its own marks of groups (3.8) are lost on pytest 9.2, which takes no change of a test's name."""
    return ByGroup(config, log) if config.getoption("dist") == "loadscope" else None


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
    for name in ("templates", "scripts"):
        shutil.copytree(PROJECT / name, root / name, ignore=_CACHES)
    return Workspace(root, tmp_path / "state")


@pytest.fixture
def toy_pins(toy: Workspace) -> Pins:
    return read_pins(toy, "toy")


@pytest.fixture
def toy_lock(toy: Workspace, toy_pins: Pins) -> Lock:
    return read_lock(toy, toy_pins)
