"""What breaks on the way, on every way: {busy, failing, cut off, silent, short, wrong} x {wheel, package, git source, base image, blob, manifest, referrer, tag, pull}.

Whatever breaks, Kiln ends with an exit code of its own or goes on; the store holds what its names say; no tag is on a digest of which something is missing; and the
next run, with nothing broken, completes. A sample runs in CI, all of it with FULL=1 (``make faults FULL=1``).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from functools import partial
from pathlib import Path

import pytest

from kiln.baseimage import ensure_base
from kiln.config import Config
from kiln.console import Console
from kiln.engine import PrivateEngine, probe
from kiln.fetch import fetch, fetch_sources, source_key
from kiln.git import GitCache
from kiln.lockentries import BaseImage, Git
from kiln.lockfile import Lock
from kiln.pins import read_pins
from kiln.store import Store
from kiln.workspace import Workspace
from tests.integration.conftest import Project
from tests.integration.registry import Registry
from tests.integration.release.conftest import FULL, Home, attempt, publish, repository, sound, tried, whole_or_nameless
from tests.integration.release.gitserver import git, git_server, make_upstream
from tests.integration.release.proxy import FAULTS, Fault, Proxy, proxy_of
from tests.integration.served import lay_archive, lay_index, served

pytestmark = pytest.mark.engine
UPSTREAM = "https://upstream.invalid"
# git asks a server what it has, and then for a pack. An HTTP header with a digest it does not know: what comes is named by what it is.
SOURCES = {"git refs": r"GET .*/info/refs", "git pack": r"POST .*/git-upload-pack"}
# One cell of every row and of every column, and those that were hardest.
SAMPLE = {
    ("wheel", "wrong-bytes"),
    ("wheel", "truncated"),
    ("package", "reset"),
    ("package", "502"),
    ("base image", "wrong-digest-header"),
    ("git refs", "expired-token"),
    ("git pack", "truncated"),
    ("git pack", "wrong-bytes"),
    ("blob", "429"),
    ("manifest", "500"),
    ("referrer", "reset"),
    ("tag", "expired-token"),
    ("pull", "wrong-bytes"),
    ("pull", "stall"),
}


def cells(*operations: str) -> list[tuple[str, Fault]]:
    """The cells of some rows that are to be tried."""
    return [
        (one, fault)
        for one in operations
        for fault in FAULTS
        if (FULL or (one, fault) in SAMPLE) and not (one in SOURCES and fault == "wrong-digest-header")
    ]


@pytest.fixture(autouse=True)
def counted(operation: str) -> None:
    tried[operation] += 1


@pytest.mark.parametrize(("operation", "fault"), cells("wheel"))
def test_a_wheel(
    base_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, fault: Fault
) -> None:
    workspace = Workspace(base_project.root, base_project.state)
    pins, lock = read_pins(workspace, "toy"), base_project.lock
    wheels = lock.wheels_of("small")
    index = lay_index(tmp_path / "index", base_project, wheels)
    store = Store(tmp_path / "store")
    with served(index) as host, proxy_of(host) as proxy:
        monkeypatch.setenv("PIP_INDEX_URL", f"http://{proxy.host}/simple")
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_TIMEOUT", "2")
        monkeypatch.setenv("PIP_RETRIES", "1")
        rule = proxy.break_next(r"GET .*\.whl$", fault, times=2)
        work = partial(fetch, pins, Lock("toy", "", (), wheels), store, tmp_path / "apt", Console(quiet=True))
        attempt(work)
        assert rule.hits >= 1, operation
        sound(store)
        rule.times = 0
        again = attempt(work)
        assert again is None, again.why
    sound(store)
    assert all(store.path(wheel.sha256).is_file() for wheel in wheels)


@pytest.mark.parametrize(("operation", "fault"), cells("package"))
def test_a_package(
    base_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, fault: Fault
) -> None:
    workspace = Workspace(base_project.root, base_project.state)
    pins, lock = read_pins(workspace, "toy"), base_project.lock
    deb = min((one for one in lock.debs if one.architecture == "all"), key=lambda one: one.size)
    said = lay_archive(tmp_path / "archive", base_project, [deb])
    store = Store(tmp_path / "store")
    with served(tmp_path / "archive") as host, proxy_of(host) as proxy:
        sources = tmp_path / "sources"
        sources.write_text(said.format(host=proxy.host))
        monkeypatch.setenv("KILN_APT_SOURCES", str(sources))
        rule = proxy.break_next(r"GET .*\.deb$", fault, times=2)
        work = partial(fetch, pins, Lock("toy", "", (deb,), ()), store, tmp_path / "apt", Console(quiet=True))
        attempt(work)
        assert rule.hits >= 1, operation
        sound(store)
        rule.times = 0
        again = attempt(work)
        assert again is None, again.why
    sound(store)
    assert store.path(deb.sha256).is_file()


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Git]:
    """A folder of repositories, and what a lock says of the one with a submodule, whose commit is on no tag and no branch's tip."""
    folder = tmp_path_factory.mktemp("upstream")
    commit, module = make_upstream(folder)
    with git_server(folder) as host:
        cache = GitCache(folder / "cache", Config((("https://upstream.invalid/", f"http://{host}/"),)))
        links = cache.submodules(f"{UPSTREAM}/source", commit)
        assert [link.commit for link in links] == [module]
        return folder, Git("app", f"{UPSTREAM}/source", "main", commit, cache.tree(f"{UPSTREAM}/source", commit), links)


@pytest.mark.parametrize(("operation", "fault"), cells(*SOURCES))
def test_a_git_source(
    upstream: tuple[Path, Git], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, fault: Fault
) -> None:
    folder, source = upstream
    store, cache, lock = Store(tmp_path / "store"), tmp_path / "git", Lock("toy", "", (), (), gits=(source,))
    # What a site sets that does not want to wait for five minutes, as the setting of Kiln's own has it.
    monkeypatch.setenv("GIT_HTTP_LOW_SPEED_TIME", "1")
    monkeypatch.setenv("GIT_HTTP_LOW_SPEED_LIMIT", "1")
    with git_server(folder) as host, proxy_of(host) as proxy:
        config = Config((("https://upstream.invalid/", f"http://{proxy.host}/"),))
        rule = proxy.break_next(SOURCES[operation], fault, times=2)
        work = partial(fetch_sources, lock, store, GitCache(cache, config), Console(quiet=True))
        error = attempt(work)
        assert rule.hits >= 1, operation
        # Either it was asked again by itself, or nothing says that it is there.
        assert (store.made(source_key(source)) is None) == (error is not None)
        assert error is None or (error.exit_code == 15 and error.why), error
        # One commit was to be had: a fault is no reason to ask for everything that there is.
        assert not any(git(one, "branch", "--list") for one in cache.glob("*.git"))
        right(store, cache)
        rule.times = 0
        again = attempt(work)
        assert again is None, again.why
    right(store, cache)
    with tarfile.open(store.path(store.made(source_key(source)) or "")) as tar:
        assert {"file", "data", "module/file", "module/data"} <= set(tar.getnames())
        assert tar.extractfile("module/data").read() == shown(folder, source.submodules[0].commit)  # type: ignore[union-attr]


def right(store: Store, cache: Path) -> None:
    """No wrong blob in the store, and no wrong object in a repository: git reads every one and compares it with its name."""
    sound(store)
    for one in cache.glob("*.git"):
        git(one, "fsck", "--full", "--strict")


def shown(folder: Path, commit: str) -> bytes:
    return subprocess.run(
        ["git", "show", f"{commit}:data"], cwd=folder / "module", capture_output=True, check=True
    ).stdout


PUBLISHED = {
    "blob": r"(PUT|PATCH|POST) .*/blobs/uploads/",
    "manifest": r"PUT .*/manifests/sha256:",
    "referrer": r"PUT .*/manifests/sha256-.*\.(sig|att)$",
    "tag": r"PUT .*/manifests/(?!sha256|kiln-)",
}


@pytest.mark.parametrize(("operation", "fault"), cells(*PUBLISHED))
def test_a_push(publisher: Project, registry: Registry, home: Home, operation: str, fault: Fault) -> None:
    shutil.rmtree(registry.folder / "docker")
    (publisher.root / "releases" / "toy.toml").unlink()
    with proxy_of(registry.host) as proxy:
        rule = proxy.break_next(PUBLISHED[operation], fault, times=2)
        publish(publisher, proxy.host, home.report, home.keys, "--tag", "latest")
        assert rule.hits >= 1
        whole_or_nameless(registry, home)
        rule.times = 0
        done = publish(publisher, proxy.host, home.report, home.keys, "--tag", "latest", "--take-over")
        assert done.code == 0, done.err
    there = repository(registry)
    assert there.digest_of("latest") == there.digest_of(home.tag) == home.digest
    whole_or_nameless(registry, home)


def through(project: Project, proxy: Proxy, registry: Registry) -> None:
    path = project.root / "releases" / "toy.toml"
    path.write_text(path.read_text().replace(registry.host, proxy.host))


@pytest.mark.parametrize(("operation", "fault"), cells("pull"))
def test_a_pull(machine: Project, registry: Registry, home: Home, operation: str, fault: Fault) -> None:
    layers = "|".join(re.escape(one["digest"]) for one in repository(registry).manifest(home.digest).table["layers"])
    with proxy_of(registry.host) as proxy:
        through(machine, proxy, registry)
        rule = proxy.break_next(rf"GET .*/blobs/({layers})", fault, times=2)
        first = machine.kiln("pull", "toy")
        assert rule.hits >= 1, (operation, first.err, proxy.seen)
        rule.times = 0
        done = machine.kiln("--json", "pull", "toy")
        assert done.code == 0, done.err
    assert home.digest in done.out


@pytest.mark.parametrize(("operation", "fault"), cells("base image"))
def test_a_base_image(machine: Project, registry: Registry, home: Home, operation: str, fault: Fault) -> None:
    engine = probe(PrivateEngine(machine.state).host, private=True)
    assert engine is not None
    assert not hasattr(engine, "reason")
    with proxy_of(registry.host) as proxy:
        rule = proxy.break_next(r"GET .*/(blobs|manifests)/", fault, times=2)
        image = BaseImage(f"{proxy.host}/kiln/toy", home.tag, home.digest)
        work = partial(ensure_base, engine, Config(), image, Console(quiet=True))
        error = attempt(work)
        assert rule.hits >= 1, (operation, error, proxy.seen)
        rule.times = 0
        again = attempt(work)
        assert again is None, again.why
