"""The component cache on a real registry: what one engine built and pushed, another with nothing in it takes from there, and never on trust."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import requests
import zstandard

from kiln.cacheentry import COMPONENT, KEY, component_entry
from kiln.canonical import canonical_json
from kiln.console import Console
from kiln.engine import PrivateEngine
from kiln.lockfile import dump_lock
from kiln.pins import read_pins
from kiln.records import Layer
from kiln.registryclient import MANIFEST, Manifest, Repository
from kiln.workspace import Workspace
from tests.integration.conftest import Project, Ran

pytestmark = pytest.mark.engine

CONFIG = """
version: 0.1
log: {{level: warn}}
storage: {{filesystem: {{rootdirectory: {folder}}}, cache: {{}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


@dataclass
class Registry:
    """A registry that runs, its folder, and the repository in it that is the cache."""

    folder: Path
    host: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def place(self) -> str:
        return f"{self.host}/team/cache"

    @property
    def repository(self) -> Repository:
        return Repository(self.place)

    def blob_file(self, digest: str) -> Path:
        sha256 = digest.removeprefix("sha256:")
        return self.folder / "docker/registry/v2/blobs/sha256" / sha256[:2] / sha256 / "data"

    def start(self) -> None:
        program = shutil.which("docker-registry")
        assert program, "install Debian's package docker-registry"
        configuration = self.folder.with_suffix(".yml")
        configuration.write_text(CONFIG.format(folder=self.folder, port=self.host.rpartition(":")[2]))
        with self.folder.with_suffix(".log").open("ab") as log:
            self.process = subprocess.Popen([program, "serve", configuration], stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                if requests.get(f"http://{self.host}/v2/", timeout=5).ok:
                    return
            except requests.ConnectionError:
                time.sleep(0.05)
        pytest.fail(self.folder.with_suffix(".log").read_text())

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait(timeout=20)
            self.process = None

    def entry(self, component: str) -> tuple[str, dict[str, Any]]:
        """The tag of the one entry of a component, and its manifest."""
        (tag,) = (tag for tag in self.repository.tags() if tag.startswith(f"{component}-"))
        return tag, self.repository.manifest(tag).table

    def put(self, tag: str, table: dict[str, Any]) -> None:
        self.repository.put_manifest(tag, Manifest(canonical_json(table), MANIFEST))

    def forget_images(self) -> None:
        """Leave the components alone: what is whole is not found."""
        for tag in self.repository.tags():
            if tag.startswith("toy-"):
                shutil.rmtree(self.folder / "docker/registry/v2/repositories/team/cache/_manifests/tags" / tag)


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@dataclass(frozen=True)
class Filled:
    """A project that was built and pushed, the cache's folder, and the digest of its image."""

    root: Path
    store: Path
    cache: Path
    digest: str
    record: dict[str, Any]


@pytest.fixture(scope="module")
def filled(base_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Filled:
    """The toy project with its wheels in two components, built on the shared engine and pushed into a registry."""
    home = tmp_path_factory.mktemp("filled")
    root, state = home / "toy", home / "toy" / "state"
    shutil.copytree(base_project.root, root, symlinks=True, ignore=shutil.ignore_patterns("engine", "builds"))
    pins_file, image_file = root / "pins" / "toy.toml", root / "images" / "toy" / "image.toml"
    lock = base_project.lock
    versions = {wheel.name: wheel.version for wheel in lock.wheels}
    text = pins_file.read_text().replace(f'"idna=={versions["idna"]}", ', "")
    pins_file.write_text(
        text.replace(
            "[components.server]",
            f'[components.more]\nrecipe = "wheels"\nabout = "one wheel more"\nwheels = ["idna=={versions["idna"]}"]\n[components.server]',
        )
    )
    image_file.write_text(image_file.read_text().replace('["small", "server"]', '["small", "more", "server"]'))
    workspace = Workspace(root, state)
    wheels = tuple(replace(one, component="more") if one.name == "idna" else one for one in lock.wheels)
    project = Project(root, state, base_project.host)
    project.lock_file.write_text(
        dump_lock(replace(lock, pins_sha256=read_pins(workspace, "toy").sha256, wheels=wheels))
    )
    registry = Registry(home / "registry", f"127.0.0.1:{free_port()}")
    registry.start()
    try:
        (root / "kiln.toml").write_text(f'[cache]\nregistry = "{registry.place}"\n')
        built = project.kiln("--json", "build", "toy", timeout=600)
        assert built.code == 0, built.err
        (one,) = json.loads(built.out)
        pushed = project.kiln("--json", "cache", "push", "toy")
        assert pushed.code == 0, pushed.err
        names = {tag.rpartition("-")[0] for tag in json.loads(pushed.out)["new"] if not tag.endswith(".key")}
        assert names == {"toy", "small", "more", "server"}
        again = project.kiln("--json", "cache", "push", "toy")
        assert json.loads(again.out)["new"] == []
    finally:
        registry.stop()
    return Filled(root, state / "store", registry.folder, str(one["digest"]), one)


@pytest.fixture
def registry(filled: Filled, tmp_path: Path) -> Iterator[Registry]:
    """A copy of the filled registry of the test's own, to break."""
    shutil.copytree(filled.cache, tmp_path / "registry")
    made = Registry(tmp_path / "registry", f"127.0.0.1:{free_port()}")
    made.start()
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def fresh(filled: Filled, registry: Registry, tmp_path: Path) -> Iterator[Project]:
    """The project on a machine that has built nothing: an engine of its own, an empty state folder, and the cache."""
    root, state = tmp_path / "toy", tmp_path / "s"
    shutil.copytree(filled.root, root, ignore=shutil.ignore_patterns("state"))
    (root / "kiln.toml").write_text(f'[cache]\nregistry = "{registry.place}"\n')
    private = PrivateEngine(state)
    private.start(Console(quiet=True))
    try:
        yield Project(root, state, private.host)
    finally:
        private.stop()


def with_inputs(project: Project, filled: Filled) -> Project:
    """The same with every input in its store, so that a test of the cache does not hang on an index."""
    shutil.copytree(filled.store, project.state / "store")
    return project


def built(done: Ran) -> dict[str, Any]:
    assert done.code == 0, done.err
    (one,) = json.loads(done.out)
    return dict(one)


def log_of(project: Project) -> str:
    return (project.state / "logs" / "build-toy.log").read_text()


def was_built(project: Project, component: str) -> bool:
    """Whether the component's own recipe was carried out."""
    return any(f"[toy {component} " in line or f"[{component} " in line for line in log_of(project).splitlines())


def test_the_whole_image_is_pulled_and_nothing_is_fetched_or_built(fresh: Project, filled: Filled) -> None:
    done = fresh.kiln("--json", "build", "toy")
    one = built(done)
    assert one["digest"] == filled.digest
    assert one["layers"] == filled.record["layers"]
    assert "pulling toy from the cache" in done.err
    assert not (fresh.state / "store").exists()
    assert not (fresh.state / "logs").exists()
    assert not (fresh.state / "contexts").exists()
    again = fresh.kiln("build", "toy")
    assert "is built already" in again.err


def test_components_are_restored_and_the_image_is_the_same_to_the_bit(
    fresh: Project, registry: Registry, filled: Filled
) -> None:
    with_inputs(fresh, filled)
    registry.forget_images()
    # What a restored component is built of need not be there.
    (fresh.state / "store" / "sha256").joinpath
    lock = fresh.lock
    for wheel in (*lock.wheels_of("small"), *lock.wheels_of("more")):
        fresh.blob(wheel.sha256).unlink()
    done = fresh.kiln("--json", "build", "toy")
    one = built(done)
    assert one["digest"] == filled.digest
    assert sorted(one["restored"]) == ["more", "small"]
    assert "taken from the cache: small, more" in done.err
    assert "server is built here whatever the cache has: versions needs /wheels of server-wheels" in done.err
    assert "fetched already" in done.err
    assert not was_built(fresh, "small")
    assert not was_built(fresh, "more")
    assert was_built(fresh, "server")
    for wheel in (*lock.wheels_of("small"), *lock.wheels_of("more")):
        assert not fresh.blob(wheel.sha256).exists()
    ran = subprocess.run(
        ["docker", "run", "--rm", "--network=none", "--entrypoint=python3", one["reference"], "-c", "import idna, packaging"],
        env=fresh.environment,
        check=False,
    )
    assert ran.returncode == 0
