"""A project that was published to a real registry, copied for every test; and a machine that has nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kiln.console import Console
from kiln.cosign import Cosign
from kiln.engine import PrivateEngine
from kiln.errors import KilnError
from kiln.host import ensure_cosign
from kiln.registryclient import Repository
from kiln.releases import read_releases
from kiln.store import Store
from kiln.workspace import Workspace
from tests.conftest import FULL as FULL
from tests.conftest import SEED as SEED
from tests.integration.conftest import REPOSITORY, Project, Ran, model_folder
from tests.integration.registry import Registry, registry_in

# What was broken, and how often: told at the end.
tried: Counter[str] = Counter()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if tried:
        told = ", ".join(f"{what} {times}" for what, times in tried.items())
        terminalreporter.write_line(f"{sum(tried.values())} faults, SEED={SEED}: {told}")


@dataclass(frozen=True)
class Home:
    """A project whose image was built, verified and published once, and the folder of the registry that it went to."""

    project: Project
    report: Path
    keys: Path
    registry: Path
    tag: str
    digest: str


@pytest.fixture(scope="session")
def cosign() -> Cosign:
    return Cosign(ensure_cosign(REPOSITORY / ".kiln", Console(quiet=True)))


@pytest.fixture(scope="session")
def home(base_project: Project, cosign: Cosign, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Built, verified, published: what the tests then copy."""
    folder = tmp_path_factory.mktemp("published")
    root = folder / "toy"
    shutil.copytree(base_project.root, root, symlinks=True, ignore=shutil.ignore_patterns("engine"))
    project = Project(root, root / "state", base_project.host)
    verified = project.kiln("--json", "verify", "toy", "--model", str(model_folder(folder / "model")))
    assert verified.code == 0, verified.err
    report = folder / "report.json"
    report.write_text(json.dumps(json.loads(verified.out)[0]))
    keys = make_keys(cosign, folder / "keys")
    with registry_in(folder / "registry") as registry:
        done = publish(project, registry.host, report, keys)
        assert done.code == 0, done.err
        (release,) = json.loads(done.out)["releases"]
    return Home(project, report, keys, registry.folder, release["tag"], release["digest"])


def make_keys(cosign: Cosign, folder: Path) -> Path:
    folder.mkdir()
    subprocess.run(
        [cosign.program, "generate-key-pair"], cwd=folder, check=True, capture_output=True, env={"COSIGN_PASSWORD": ""}
    )
    return folder


def publish(project: Project, host: str, report: Path, keys: Path, *more: str) -> Ran:
    words = ("--to", f"{host}/kiln", "--key", str(keys / "cosign.key"), "--report", str(report), *more)
    return project.kiln("--json", "publish", "toy", *words)


@pytest.fixture
def registry(home: Home, tmp_path: Path) -> Iterator[Registry]:
    """A copy of the registry of the test's own, to break."""
    shutil.copytree(home.registry, tmp_path / "registry")
    with registry_in(tmp_path / "registry") as made:
        yield made


@pytest.fixture
def publisher(home: Home, registry: Registry, tmp_path: Path) -> Project:
    """The project as it published, with a record that names this test's registry."""
    shutil.copytree(home.project.root, tmp_path / "toy", symlinks=True)
    project = Project(tmp_path / "toy", tmp_path / "toy" / "state", home.project.host)
    point_record(project, registry)
    return project


def point_record(project: Project, registry: Registry) -> None:
    path = project.root / "releases" / "toy.toml"
    (known,) = read_releases(Workspace(project.root, project.state), "toy")
    path.write_text(path.read_text().replace(known.repository, f"{registry.host}/kiln/toy"))


@pytest.fixture
def machine(publisher: Project) -> Iterator[Project]:
    """The checkout on a machine that has nothing: an engine of its own and an empty state folder."""
    # The sockets below it must stay short.
    state = Path(tempfile.mkdtemp(prefix="kiln-"))
    shutil.rmtree(publisher.state)
    with engine_in(publisher.root, state) as project:
        yield project
    (state / "tools").unlink(missing_ok=True)
    shutil.rmtree(state)


@contextmanager
def engine_in(root: Path, state: Path) -> Iterator[Project]:
    """A project with an engine of its own in ``state``."""
    state.mkdir(exist_ok=True)
    # The programs are shared: they are no part of what is tested here.
    if (tools := REPOSITORY / ".kiln" / "tools").is_dir():
        (state / "tools").symlink_to(tools)
    project = Project(root, state, PrivateEngine(state).host)
    started = project.kiln("engine", "up")
    assert started.code == 0, started.err
    try:
        yield project
    finally:
        assert project.kiln("engine", "down").code == 0


def repository(registry: Registry) -> Repository:
    return Repository(f"{registry.host}/kiln/toy")


def no_image(machine: Project) -> bool:
    listed: Any = subprocess.run(
        ["docker", "image", "ls", "--quiet"], env=machine.environment, capture_output=True, text=True, check=True
    )
    return not listed.stdout.strip()


def sound(store: Store, *, scratch: bool = False) -> None:
    """Every blob of the store has the bytes that it is named after, and nothing else lies there (``scratch``: but what a killed run left aside)."""
    for path in (store.folder / "sha256").rglob("*"):
        if path.is_file():
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    assert scratch or not list(store.folder.glob("tmp-*"))


def attempt(work: partial[object]) -> KilnError | None:
    try:
        work()
    except KilnError as error:
        return error
    return None


def whole_or_nameless(registry: Registry, home: Home) -> None:
    """Nothing wrong lies in the registry, and a tag that people pull is there only with all that belongs to it."""
    for path in (registry.folder / "docker/registry/v2/blobs/sha256").glob("*/*/data"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.parent.name
    names = set(repository(registry).tags())
    if names & {"latest", home.tag}:
        assert {f"{home.digest.replace(':', '-')}.{suffix}" for suffix in ("sig", "att")} <= names
        assert repository(registry).digest_of(home.tag) in (None, home.digest)
