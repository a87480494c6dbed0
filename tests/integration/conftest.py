"""A small project on the real engine: the product's templates and scripts, two small wheels, and a stand-in for vLLM's server."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kiln.containers import LABEL
from kiln.engine import find_engine
from kiln.lockfile import Lock, dump_lock, read_lock
from kiln.pins import Pins, read_pins
from kiln.rootfs import rootfs_key
from kiln.store import Store
from kiln.workspace import Workspace

REPOSITORY = Path(__file__).parents[2]
HERE = Path(__file__).parent

PINS = """
schema = 1
[stack]
name = "toy"
about = "two small wheels and a stand-in server"
target = "cpu"
platform = "linux/amd64"
images = ["toy"]
epoch = 2026-11-01T00:00:00Z
[python]
version = "3.11"
glibc = "2.36"
[debian]
suite = "bookworm"
architecture = "amd64"
packages = {packages}
[components.small]
recipe = "wheels"
about = "two small wheels"
wheels = ["idna=={idna}", "packaging=={packaging}"]
[components.server]
recipe = "plugins"
about = "the stand-in server"
sources = ["standin"]
[tools]
wheels = {tools}
"""

IMAGE = """
[image]
name = "toy"
about = "a stand-in"
target = "cpu"
template = "serving.Dockerfile.j2"
components = ["small", "server"]
[runtime]
entrypoint = ["standin-serve"]
user = "0:0"
workdir = "/"
[runtime.env]
TOY = "1"
[reproducible]
default = "same-digest"
[verify]
serve = []
memory-gib = 1
start-seconds = 20
answer-seconds = 20
[verify.settings.default]
about = "default"
path = "unfused"
[verify.settings.tilelang]
about = "opt-in"
path = "fused"
[verify.settings.tilelang.env]
VLLM_ROCM_USE_TILELANG_MHC = "1"
"""


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Project:
    """A project folder, its state folder, and kiln run on it as a person would."""

    root: Path
    state: Path
    host: str

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "kiln", "--root", str(self.root), "--state", str(self.state), *words]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "DOCKER_HOST": self.host, "PYTHONPATH": str(REPOSITORY)}

    def kiln(self, *words: str, timeout: float = 300) -> Ran:
        done = subprocess.run(
            self.command(*words), env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Ran(done.returncode, done.stdout, done.stderr)

    @property
    def owner(self) -> str:
        """What docker's ``--filter`` takes for the containers of this state folder: others share the engine."""
        return f"label={LABEL}={Workspace(self.root, self.state).identity}"

    @property
    def lock_file(self) -> Path:
        return self.root / "pins" / "toy.lock.toml"

    @property
    def lock(self) -> Lock:
        workspace = Workspace(self.root, self.state)
        return read_lock(workspace, read_pins(workspace, "toy"))

    def blob(self, sha256: str) -> Path:
        return self.state / "store" / "sha256" / sha256[:2] / sha256

    def set_server(self, mode: str) -> None:
        """How the stand-in misbehaves: set in the image's own environment, as a wrong image would have it."""
        path = self.root / "images" / "toy" / "image.toml"
        text = IMAGE.replace('TOY = "1"', f'TOY = "1"\nSTANDIN = "{mode}"')
        path.write_text(re.sub(r"-seconds = \d+", "-seconds = 4", text) if mode in ("hang", "start-never") else text)


@pytest.fixture(scope="session")
def engine_host() -> str:
    """The address of a real engine; where there is none, one is started, and it is a failure if that cannot be."""
    # One that runs is asked for without holding the checkout's state folder, in which another worker's `make image` may be at work.
    running, _ = find_engine(REPOSITORY / ".kiln")
    if running is not None:
        return running.host
    done = subprocess.run(
        [sys.executable, "-m", "kiln", "--root", str(REPOSITORY), "--json", "engine", "up"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    if done.returncode != 0:
        message = f"no container engine, and none could be started: {done.stderr}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return str(json.loads(done.stdout)["host"])


@pytest.fixture(scope="session")
def base_project(tmp_path_factory: pytest.TempPathFactory, engine_host: str) -> Project:
    """The toy project, fetched and built once; what the checkout's store has of it already, from `make image STACK=cpu`, is copied from there."""
    root = tmp_path_factory.mktemp("toy")
    for folder in ("templates", "scripts"):
        shutil.copytree(REPOSITORY / folder, root / folder)
    shutil.copytree(HERE / "standin", root / "standin")
    (root / "images" / "toy").mkdir(parents=True)
    (root / "pins").mkdir()
    (root / "images" / "toy" / "image.toml").write_text(IMAGE)
    real_workspace = Workspace(REPOSITORY, REPOSITORY / ".kiln")
    real_pins = read_pins(real_workspace, "cpu")
    real = read_lock(real_workspace, real_pins)
    chosen = {wheel.name: wheel for wheel in real.wheels if wheel.name in ("idna", "packaging")}
    data = tomllib.loads((REPOSITORY / "pins" / "cpu.toml").read_text())
    text = PINS.format(
        packages=json.dumps(data["debian"]["packages"]),
        tools=json.dumps(data["tools"]["wheels"]),
        **{name: wheel.version for name, wheel in chosen.items()},
    )
    (root / "pins" / "toy.toml").write_text(text)
    project = Project(root, root / "state", engine_host)
    pins = read_pins(Workspace(root, root / "state"), "toy")
    wheels = (*(replace(wheel, component="small") for wheel in chosen.values()), *real.wheels_of("tools"))
    lock = Lock("toy", pins.sha256, real.debs, wheels)
    project.lock_file.write_text(dump_lock(lock))
    take_what_is_there(Workspace(root, root / "state"), pins, lock)
    done = project.kiln("build", "toy", timeout=600)
    assert done.code == 0, done.err
    return project


def take_what_is_there(workspace: Workspace, pins: Pins, lock: Lock) -> None:
    """Copy the inputs, and the root file system that they make, out of the checkout's own store: most are the cpu stack's."""
    store, there = Store(workspace.state / "store"), Store(REPOSITORY / ".kiln" / "store")
    key = rootfs_key(workspace, pins, lock)
    rootfs = there.made(key)
    for sha256 in (*(one.sha256 for one in (*lock.debs, *lock.wheels)), *([rootfs] if rootfs else [])):
        if there.path(sha256).is_file():
            store.path(sha256).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(there.path(sha256), store.path(sha256))
    if rootfs:
        store.remember(key, rootfs)


@pytest.fixture
def project(base_project: Project, tmp_path: Path) -> Project:
    """A copy of the toy project of one's own, to break; built files and blobs are copied, not linked."""
    shutil.copytree(base_project.root, tmp_path / "toy", symlinks=True, ignore=shutil.ignore_patterns("engine"))
    return Project(tmp_path / "toy", tmp_path / "toy" / "state", base_project.host)


def model_folder(folder: Path) -> Path:
    """A checkpoint in name only, for the stand-in: the questions and answers are there."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    prompts = [
        {
            "id": f"q{n}",
            "prompt": f"Question {n}?",
            "messages": [{"role": "user", "content": f"Question {n}?"}],
            "answer": f"Answer {n}.",
            "token_ids": [n, n + 1, 0],
        }
        for n in range(3)
    ]
    (folder / "answers.json").write_text(json.dumps({"schema_version": 1, "model_name": "standin", "prompts": prompts}))
    return folder
