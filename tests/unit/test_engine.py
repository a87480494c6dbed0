"""Which engine is used and why another is not; what Kiln may install and stop."""

from __future__ import annotations

import json
import os
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import kiln.engine
import kiln.host
from kiln.console import Console
from kiln.engine import CONTAINERD_STORE, Engine, PrivateEngine, Unfit, find_engine, image_digest, probe
from kiln.enginegc import look_in_engine, own_engine
from kiln.errors import EngineError, HostError
from kiln.host import _may_install

VERSION = {"Version": "28.1.0", "ApiVersion": "1.48"}
INFO = {"DriverStatus": [["driver-type", CONTAINERD_STORE]]}
Answers = dict[str, Any]
Serve = Callable[[Answers], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start something that answers on a socket as an engine would; returns its address."""
    running: list[socketserver.BaseServer] = []
    with tempfile.TemporaryDirectory(prefix="kiln-") as folder:

        def start(answers: Answers) -> str:
            class Handler(socketserver.StreamRequestHandler):
                def handle(self) -> None:
                    path = self.rfile.readline().split()[1].decode()
                    while self.rfile.readline().strip():
                        pass
                    answer = answers.get(path)
                    if isinstance(answer, bytes):
                        self.wfile.write(answer)
                        return
                    body = json.dumps(answer if answer is not None else {"message": "no such thing"}).encode()
                    status = "200 OK" if answer is not None else "404 Not Found"
                    self.wfile.write(
                        f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
                    )

            path = f"{folder}/{len(running)}.sock"
            server = socketserver.ThreadingUnixStreamServer(path, Handler)
            running.append(server)
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            return f"unix://{path}"

        yield start
        for server in running:
            server.shutdown()
            server.server_close()


def test_a_good_engine_is_used(serve: Serve) -> None:
    host = serve({"/version": VERSION, "/info": INFO})
    assert probe(host) == Engine(host, "28.1.0", "1.48", private=False)


def test_an_old_engine_is_unfit(serve: Serve) -> None:
    found = probe(serve({"/version": {"Version": "20.10.24", "ApiVersion": "1.41"}, "/info": INFO}))
    assert isinstance(found, Unfit)
    assert "20.10.24 is too old" in found.why


@pytest.mark.parametrize("status", [[["Backing Filesystem", "extfs"]], [], None])
def test_an_engine_that_keeps_no_digests_is_unfit(serve: Serve, status: Any) -> None:
    found = probe(serve({"/version": VERSION, "/info": {"DriverStatus": status}}))
    assert isinstance(found, Unfit)
    assert "containerd image store" in found.why


@pytest.mark.parametrize(
    "answer", [b"", b"no http at all\n", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", [1, 2], "text"]
)
def test_something_that_is_no_engine_is_nobody(serve: Serve, answer: Any) -> None:
    assert probe(serve({"/version": answer, "/info": INFO})) is None


@pytest.mark.parametrize("api", ["", "one", "1.x"])
def test_an_engine_with_a_version_that_is_none_is_unfit(serve: Serve, api: str) -> None:
    assert isinstance(probe(serve({"/version": {"Version": "?", "ApiVersion": api}, "/info": INFO})), Unfit)


def test_an_engine_that_refuses_is_nobody(serve: Serve) -> None:
    assert probe(serve({})) is None


def test_where_nobody_listens_there_is_no_engine(tmp_path: Path) -> None:
    assert probe(f"unix://{tmp_path}/missing.sock") is None


@pytest.mark.parametrize("host", ["tcp://127.0.0.1:2375", "ssh://somewhere"])
def test_an_engine_elsewhere_is_unfit(host: str) -> None:
    found = probe(host)
    assert isinstance(found, Unfit)
    assert "unix://" in found.why


def test_the_engine_that_docker_host_names_comes_first(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(kiln.engine, "buildx_plugin", lambda: tmp_path)
    monkeypatch.setattr(kiln.engine.shutil, "which", lambda name: name)
    host = serve({"/version": VERSION, "/info": INFO})
    monkeypatch.setenv("DOCKER_HOST", host)
    found, unfit = find_engine(tmp_path)
    assert found is not None
    assert (found.host, unfit) == (host, [])
    assert found.environment["DOCKER_HOST"] == host


def test_an_unfit_engine_is_told_and_left_alone(serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    host = serve({"/version": VERSION, "/info": {"DriverStatus": []}})
    monkeypatch.setenv("DOCKER_HOST", host)
    found, unfit = find_engine(tmp_path)
    assert found is None
    assert [other.host for other in unfit] == [host]


@pytest.mark.parametrize(
    ("answer", "digest"),
    [
        ({"Id": "sha256:a"}, "sha256:a"),
        ({"Id": "sha256:a", "Descriptor": {"digest": "sha256:b"}}, "sha256:b"),
        (None, None),
        ({}, None),
    ],
)
def test_the_digest_is_that_of_the_manifest(serve: Serve, answer: Any, digest: str | None) -> None:
    host = serve({"/images/kiln/toy:1/json": answer})
    assert image_digest(Engine(host, "28", "1.48", private=False), "kiln/toy:1") == digest


@pytest.fixture
def private(tmp_path: Path) -> PrivateEngine:
    engine = PrivateEngine(tmp_path)
    engine.folder.mkdir()
    return engine


@pytest.mark.parametrize("text", ["", "no number", "999999999", "-1", "0"])
def test_a_pid_file_that_names_no_process_is_no_engine(private: PrivateEngine, text: str) -> None:
    private.pid_file.write_text(text)
    assert private.pid() is None
    assert private.stop() is False


def test_another_process_with_the_old_number_is_not_touched(private: PrivateEngine) -> None:
    private.pid_file.write_text(str(os.getpid()))
    assert private.pid() is None
    assert private.stop() is False


def test_the_daemon_is_known_by_its_folder_and_stopped(private: PrivateEngine) -> None:
    daemon = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import time; print(flush=True); time.sleep(60)",
            "--data-root",
            str(private.folder / "data"),
        ],
        stdout=subprocess.PIPE,
    )
    with daemon:
        assert daemon.stdout is not None
        daemon.stdout.readline()
        private.pid_file.write_text(str(daemon.pid))
        assert private.pid() == daemon.pid
        assert private.stop() is True
        assert daemon.wait(timeout=10) != 0
    assert private.pid() is None


def test_a_socket_path_that_is_too_long_is_said_before_anything_starts(tmp_path: Path) -> None:
    private = PrivateEngine(tmp_path / ("x" * 120))
    with pytest.raises(EngineError, match="KILN_STATE"):
        private.start(Console(quiet=True))
    assert not private.folder.exists()


def test_on_another_system_kiln_installs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kiln.apt.debian_codename", lambda: None)
    with pytest.raises(HostError) as caught:
        _may_install("mmdebstrap", "it makes the root file system")
    assert "mmdebstrap is not on this machine" in caught.value.what
    assert "it makes the root file system" in caught.value.why
    assert "package manager" in caught.value.fix


@pytest.mark.parametrize(("uid", "may"), [(0, True), (1000, False)])
def test_on_debian_only_root_installs(monkeypatch: pytest.MonkeyPatch, uid: int, may: bool) -> None:
    monkeypatch.setattr("kiln.apt.debian_codename", lambda: "bookworm")
    monkeypatch.setattr(kiln.host.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(kiln.host.os, "geteuid", lambda: uid)
    if may:
        assert _may_install("Docker", "x") == "bookworm"
    else:
        with pytest.raises(HostError, match="as root"):
            _may_install("Docker", "x")


def test_while_packages_are_installed_no_service_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    monkeypatch.setattr(kiln.host, "_POLICY", policy)
    with kiln.host._no_services():
        assert "exit 101" in policy.read_text()
        assert policy.stat().st_mode & 0o111
    assert not policy.exists()
    policy.write_text("mine")
    with kiln.host._no_services():
        assert policy.read_text() == "mine"
    assert policy.read_text() == "mine"


DIGEST, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def test_the_engine_is_asked_for_images_that_no_record_names(serve: Serve) -> None:
    images = [
        {"RepoTags": ["kiln/toy:" + "0" * 16], "Size": 5},
        {"RepoTags": ["kiln/toy:" + "1" * 16, "mine:latest"], "Size": 6},
        {"RepoTags": ["kiln/base:" + "a" * 16], "Size": 7},
        {"RepoTags": ["kiln/standin-base:123456789012"], "Size": 8},
        {"RepoTags": None, "Size": 9},
    ]
    cache = [{"Size": 10, "InUse": True}, {"Size": 11, "InUse": False}]
    host = serve(
        {
            "/v1.45/system/df?type=image&type=build-cache": {"Images": images, "BuildCache": cache},
            f"/images/kiln/toy:{'0' * 16}/json": {"Id": OTHER},
            f"/images/kiln/toy:{'1' * 16}/json": {"Id": DIGEST},
        }
    )
    found = look_in_engine(Engine(host, "28", "1.48", private=True), {DIGEST}, {DIGEST})
    assert asdict(found) == {"images": (("kiln/toy:" + "0" * 16, 5),), "cache": 11}


def test_an_engine_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError):
        look_in_engine(Engine(f"unix://{tmp_path}/none", "28", "1.48", private=True), (), ())


def test_an_engine_that_is_not_kilns_own_is_never_tidied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///somebody/elses.sock")
    assert own_engine(tmp_path) is None
