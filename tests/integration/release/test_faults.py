"""What breaks on the way, on every way: {busy, failing, cut off, silent, short, wrong} x {wheel, package, base image, blob, manifest, referrer, tag, pull}.

Whatever breaks, Kiln ends with an exit code of its own or goes on; the store holds what its names say; no tag is on a digest of which something is missing; and the
next run, with nothing broken, completes. A sample runs in CI, all of it with FULL=1 (``make faults FULL=1``).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kiln.console import Console
from kiln.engine import PrivateEngine, probe
from kiln.errors import KilnError
from kiln.fetch import fetch
from kiln.lockentries import BaseImage, Deb
from kiln.lockfile import Lock
from kiln.pins import read_pins
from kiln.store import Store
from kiln.workspace import Workspace
from tests.integration.conftest import Project
from tests.integration.registry import Registry
from tests.integration.release.conftest import Home, publish, repository
from tests.integration.release.proxy import FAULTS, Fault, Proxy, proxy_of

pytestmark = pytest.mark.engine
FULL = bool(os.environ.get("FULL"))
# One cell of every row and of every column, and those that were hardest.
SAMPLE = {
    ("wheel", "wrong-bytes"),
    ("wheel", "truncated"),
    ("package", "reset"),
    ("package", "502"),
    ("base image", "wrong-digest-header"),
    ("blob", "429"),
    ("manifest", "500"),
    ("referrer", "reset"),
    ("tag", "expired-token"),
    ("pull", "wrong-bytes"),
    ("pull", "stall"),
}


def cells(*operations: str) -> list[tuple[str, Fault]]:
    return [(one, fault) for one in operations for fault in FAULTS if FULL or (one, fault) in SAMPLE]


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


class _Quiet(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder over HTTP; its host."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(("operation", "fault"), cells("wheel"))
def test_a_wheel(
    base_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, fault: Fault
) -> None:
    workspace = Workspace(base_project.root, base_project.state)
    pins, lock = read_pins(workspace, "toy"), base_project.lock
    wheels = lock.wheels_of("small")
    for wheel in wheels:
        page = tmp_path / "index" / "simple" / wheel.name
        page.mkdir(parents=True)
        shutil.copy(base_project.blob(wheel.sha256), page / wheel.file)
        (page / "index.html").write_text(f'<a href="{wheel.file}#sha256={wheel.sha256}">{wheel.file}</a>')
    store = Store(tmp_path / "store")
    with served(tmp_path / "index") as host, proxy_of(host) as proxy:
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
    pool = tmp_path / "archive"
    pool.mkdir()
    shutil.copy(base_project.blob(deb.sha256), pool / "one.deb")
    write_packages(pool, deb)
    store = Store(tmp_path / "store")
    with served(pool) as host, proxy_of(host) as proxy:
        sources = tmp_path / "sources"
        sources.write_text(f"Types: deb\nURIs: http://{proxy.host}/\nSuites: ./\nTrusted: yes\n")
        monkeypatch.setenv("KILN_APT_SOURCES", str(sources))
        monkeypatch.setattr("kiln.fetch.sources_for", lambda *_: sources.read_text())
        rule = proxy.break_next(r"GET .*one\.deb$", fault, times=2)
        work = partial(fetch, pins, Lock("toy", "", (deb,), ()), store, tmp_path / "apt", Console(quiet=True))
        attempt(work)
        assert rule.hits >= 1, operation
        sound(store)
        rule.times = 0
        again = attempt(work)
        assert again is None, again.why
    sound(store)
    assert store.path(deb.sha256).is_file()


def write_packages(pool: Path, deb: Deb) -> None:
    fields = {
        "Package": deb.name,
        "Version": deb.version,
        "Architecture": deb.architecture,
        "Filename": "./one.deb",
        "Size": str(deb.size),
        "SHA256": deb.sha256,
        "Maintainer": "nobody",
        "Description": "one",
    }
    (pool / "Packages").write_text("".join(f"{key}: {value}\n" for key, value in fields.items()) + "\n")
    packages = (pool / "Packages").read_bytes()
    digest = hashlib.sha256(packages).hexdigest()
    (pool / "Release").write_text(
        f"Suite: stable\nDate: Sun, 01 Nov 2026 00:00:00 UTC\nSHA256:\n {digest} {len(packages)} Packages\n"
    )


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


def whole_or_nameless(registry: Registry, home: Home) -> None:
    """Nothing wrong lies in the registry, and a tag that people pull is there only with all that belongs to it."""
    for path in (registry.folder / "docker/registry/v2/blobs/sha256").glob("*/*/data"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.parent.name
    names = set(repository(registry).tags())
    if names & {"latest", home.tag}:
        assert {f"{home.digest.replace(':', '-')}.{suffix}" for suffix in ("sig", "att")} <= names
        assert repository(registry).digest_of(home.tag) in (None, home.digest)


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
    from kiln.baseimage import ensure_base
    from kiln.config import Config

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
