"""The component cache on a real registry: what one engine built and pushed, another with nothing in it takes from there, and never on trust."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

from kiln.cacheentry import COMPONENT, KEY, component_entry
from kiln.canonical import canonical_json
from kiln.engine import PrivateEngine
from kiln.lockfile import dump_lock
from kiln.pins import read_pins
from kiln.records import Layer
from kiln.registryclient import MANIFEST, Manifest, Repository
from kiln.workspace import Workspace
from tests.integration.conftest import Project, Ran
from tests.integration.registry import Registry as RealRegistry
from tests.integration.registry import free_port

pytestmark = pytest.mark.engine


@dataclass
class Registry(RealRegistry):
    """The registry, and the repository in it that is the cache."""

    @property
    def place(self) -> str:
        return f"{self.host}/team/cache"

    @property
    def repository(self) -> Repository:
        return Repository(self.place)

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
    # The sockets below it must stay short.
    root, state = tmp_path / "toy", Path(tempfile.mkdtemp(prefix="kiln-"))
    shutil.copytree(filled.root, root, ignore=shutil.ignore_patterns("state"))
    (root / "kiln.toml").write_text(f'[cache]\nregistry = "{registry.place}"\n')
    project = Project(root, state, PrivateEngine(state).host)
    started = project.kiln("engine", "up")
    assert started.code == 0, started.err
    try:
        yield project
    finally:
        assert project.kiln("engine", "down").code == 0
        shutil.rmtree(state)


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
    told = fresh.kiln("plan", "toy").out
    assert told.count("to build: never built here; in the cache") == 3
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
    lock = fresh.lock
    for wheel in (*lock.wheels_of("small"), *lock.wheels_of("more")):
        fresh.blob(wheel.sha256).unlink()
    done = fresh.kiln("--json", "build", "toy")
    one = built(done)
    assert one["digest"] == filled.digest
    assert sorted(one["restored"]) == ["more", "small"]
    assert not (fresh.state / "restored").exists()
    assert "taken from the cache: small, more" in done.err
    assert "server is built here whatever the cache has: versions needs /wheels of server-wheels" in done.err
    assert "fetched already" in done.err
    assert not was_built(fresh, "small")
    assert not was_built(fresh, "more")
    assert was_built(fresh, "server")
    for wheel in (*lock.wheels_of("small"), *lock.wheels_of("more")):
        assert not fresh.blob(wheel.sha256).exists()
    ran = subprocess.run(
        [
            "docker",
            "run",
            "--rm",
            "--network=none",
            "--entrypoint=python3",
            one["reference"],
            "-c",
            "import idna, packaging",
        ],
        env=fresh.environment,
        check=False,
    )
    assert ran.returncode == 0


def bump(project: Project) -> None:
    """Put another wheel into the component `more`: another key, another layer."""
    workspace, lock = Workspace(project.root, project.state), project.lock
    (flit,) = (wheel for wheel in lock.wheels_of("tools") if wheel.name == "flit-core")
    pins_file = project.root / "pins" / "toy.toml"
    pins_file.write_text(
        pins_file.read_text().replace('wheels = ["idna==', f'wheels = ["flit-core=={flit.version}", "idna==')
    )
    pinned = read_pins(workspace, "toy").sha256
    wheels = (*lock.wheels, replace(flit, component="more"))
    project.lock_file.write_text(dump_lock(replace(lock, pins_sha256=pinned, wheels=wheels)))


def test_another_version_of_one_component_builds_that_one_alone(
    fresh: Project, filled: Filled, base_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_inputs(fresh, filled)
    bump(fresh)
    one = built(fresh.kiln("--json", "build", "toy"))
    assert one["restored"] == ["small"]
    assert was_built(fresh, "more")
    assert not was_built(fresh, "small")
    assert one["digest"] != filled.digest
    # The same from sources alone, on another engine.
    monkeypatch.setenv("KILN_CACHE", "")
    shutil.copytree(fresh.root, tmp_path / "other")
    other = with_inputs(Project(tmp_path / "other", tmp_path / "other" / "state", base_project.host), filled)
    whole = built(other.kiln("--json", "build", "toy"))
    assert whole["restored"] == []
    assert whole["digest"] == one["digest"]


def right_from_source(project: Project, filled: Filled, done: Ran, *builds: str) -> None:
    """The image is the right one, and what the cache had wrong was built."""
    one = built(done)
    assert one["digest"] == filled.digest
    for component in builds:
        assert was_built(project, component)
        assert component not in one["restored"]


def test_changed_bytes_in_the_registry_are_named_and_what_they_stood_for_is_built(
    fresh: Project, registry: Registry, filled: Filled
) -> None:
    with_inputs(fresh, filled)
    tag, entry = registry.entry("small")
    path = registry.blob_file(entry["layers"][0]["digest"])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    done = fresh.kiln("--quiet", "--json", "build", "toy")
    right_from_source(fresh, filled, done, "small")
    assert not was_built(fresh, "more")
    # The whole image holds that layer too.
    assert "could not be pulled" in done.err
    assert f"warning: the layer of the cache entry {registry.place}:{tag} is damaged" in done.err
    assert entry["layers"][0]["digest"] in done.err


def test_an_image_manifest_with_other_bytes_is_not_taken(fresh: Project, registry: Registry, filled: Filled) -> None:
    with_inputs(fresh, filled)
    path = registry.blob_file(filled.digest)
    path.write_bytes(path.read_bytes() + b"\n")
    done = fresh.kiln("--json", "build", "toy")
    right_from_source(fresh, filled, done)
    assert f"the manifest {registry.place}@{filled.digest} has other bytes than its digest says" in done.err


def test_a_record_that_names_another_image_is_not_taken(fresh: Project, registry: Registry, filled: Filled) -> None:
    with_inputs(fresh, filled)
    tag = next(tag for tag in registry.repository.tags() if tag.endswith(".key"))
    record = registry.repository.manifest(tag).table
    manifest = registry.repository.manifest(filled.digest).table
    config = json.loads(registry.repository.blob(manifest["config"]["digest"]))
    config["config"]["Labels"]["io.kiln.lock.sha256"] = "0" * 64
    data = canonical_json(config)
    other = Manifest(
        canonical_json(
            {
                **manifest,
                "config": {**manifest["config"], "digest": registry.repository.upload(data), "size": len(data)},
            }
        ),
        MANIFEST,
    )
    registry.repository.put_manifest(other.digest, other)
    registry.put(tag, {**record, "subject": {"mediaType": MANIFEST, "digest": other.digest, "size": len(other.data)}})
    done = fresh.kiln("--json", "build", "toy")
    right_from_source(fresh, filled, done)
    assert f"the cached image {registry.place}:{tag} is another than its key stands for" in done.err
    assert "io.kiln.lock.sha256" in done.err


def test_entries_of_another_component_or_key_are_named_and_not_used(
    fresh: Project, registry: Registry, filled: Filled
) -> None:
    with_inputs(fresh, filled)
    registry.forget_images()
    (small, one), (more, other) = registry.entry("small"), registry.entry("more")
    registry.put(small, {**other, "annotations": {**other["annotations"], COMPONENT: "small"}})
    registry.put(
        more, {**other, "annotations": {**other["annotations"], KEY: other["annotations"][KEY][:16] + "0" * 48}}
    )
    listed = json.loads(fresh.kiln("--json", "cache", "ls", "toy").out)["components"]
    problems = {row["component"]: row["problem"] for row in listed}
    assert "another key" in problems["small"]
    assert "another key" in problems["more"]
    assert problems["server"] == ""
    done = fresh.kiln("--json", "build", "toy")
    right_from_source(fresh, filled, done, "small", "more")
    for tag in (small, more):
        assert f"the cache entry {registry.place}:{tag} is of another key than its tag says" in done.err
    assert one["annotations"][KEY] in done.err


def false_entry(registry: Registry, component: str, repack: bool) -> str:
    """Replace an entry by a well-formed one: the same files packed another way, or a file more. Returns its tag."""
    tag, table = registry.entry(component)
    tar = zstandard.ZstdDecompressor().stream_reader(registry.repository.blob(table["layers"][0]["digest"])).read()
    if not repack:
        stream = io.BytesIO(tar)
        with tarfile.open(fileobj=stream, mode="a") as archive:
            extra = tarfile.TarInfo("usr/local/evil")
            extra.size = 4
            archive.addfile(extra, io.BytesIO(b"evil"))
        tar = stream.getvalue()
    packed = zstandard.ZstdCompressor(level=19).compress(tar)
    layer = Layer(
        component, registry.repository.upload(packed), f"sha256:{hashlib.sha256(tar).hexdigest()}", len(packed)
    )
    config, manifest = component_entry("toy", table["annotations"][KEY], layer, "linux/amd64")
    registry.repository.upload(config)
    registry.repository.put_manifest(tag, manifest)
    return tag


def test_a_well_formed_entry_with_another_file_is_refused_where_the_key_was_built_here(
    fresh: Project, registry: Registry, filled: Filled
) -> None:
    with_inputs(fresh, filled)
    # The project was built before, and its engine has lost the image since.
    shutil.copytree(filled.root / "state" / "builds", fresh.state / "builds")
    registry.forget_images()
    tag = false_entry(registry, "small", repack=False)
    done = fresh.kiln("--json", "build", "toy")
    right_from_source(fresh, filled, done, "small")
    assert f"the cache entry {registry.place}:{tag} is not what was built under this key" in done.err
    small = next(layer for layer in filled.record["layers"] if layer["component"] == "small")
    assert f"expected {small['digest']}" in done.err
    # What is wrong there is not replaced either, but said.
    pushed = fresh.kiln("cache", "push", "toy")
    assert pushed.code == 26
    assert tag in pushed.err


def test_an_entry_that_becomes_another_layer_is_found_after_the_build_and_the_image_is_built_again(
    fresh: Project, registry: Registry, filled: Filled
) -> None:
    with_inputs(fresh, filled)
    registry.forget_images()
    tag = false_entry(registry, "more", repack=True)
    done = fresh.kiln("--json", "build", "toy")
    right_from_source(fresh, filled, done, "more")
    assert "toy has other layers than the cache entries that it was built from" in done.err
    assert f"{registry.place}:{tag}" in done.err
    assert built(done)["restored"] == ["small"]


def test_a_registry_that_is_away_or_empty_stops_nothing(fresh: Project, registry: Registry, filled: Filled) -> None:
    with_inputs(fresh, filled)
    registry.stop()
    away = fresh.kiln("--json", "build", "toy")
    right_from_source(fresh, filled, away, "small", "more")
    assert away.err.count("the cache is not used") == 1
    assert "cache" in json.loads(fresh.kiln("--json", "plan", "toy").out)["toy"]["components"]["small"]
    assert fresh.kiln("cache", "push", "toy").code == 15


def test_every_build_is_pushed_where_that_is_set(fresh: Project, registry: Registry, filled: Filled) -> None:
    with_inputs(fresh, filled)
    place = f"{registry.host}/another/cache"
    (fresh.root / "kiln.toml").write_text(f'[cache]\nregistry = "{place}"\npush = true\n')
    built(fresh.kiln("--json", "build", "toy"))
    names = {tag.rpartition("-")[0] for tag in Repository(place).tags()}
    assert names == {"toy", "small", "more", "server"}
    listed = json.loads(fresh.kiln("--json", "cache", "ls", "toy").out)["components"]
    assert all(row["engine"] and row["registry"] for row in listed)
