"""The registry client against a small registry that runs in this test, and misbehaves as it is told."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from kiln.errors import AccessDeniedError, HashMismatchError, RefNotFoundError, UpstreamError
from kiln.registryclient import MANIFEST, Login, Manifest, Repository, docker_login

BLOB = bytes(range(256)) * 5000
DIGEST = f"sha256:{hashlib.sha256(BLOB).hexdigest()}"
SPOKEN_FOR = Login("ada", "lovelace")


@dataclass
class Server:
    """A registry with blobs and manifests; ``first`` are statuses (with headers) that it answers with before it does its work."""

    host: str = ""
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    first: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    guard: str = ""
    login: str = ""
    cut: int = 0
    refuses: bool = False

    def repository(self, login: Login | None = None) -> Repository:
        return Repository(f"{self.host}/team/cache", lambda _: login)

    def paths(self) -> list[str]:
        return [what.replace("/v2/team/cache", "").split("?")[0] for what, _ in self.asked]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Server

    def handle_any(self) -> None:
        state, parts = self.state, urlsplit(self.path)
        state.asked.append((f"{self.command} {self.path}", dict(self.headers.items())))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if parts.path == "/token":
            good = not state.login or self.headers.get("Authorization") == state.login
            return self.send(200 if good else 401, json.dumps({"token": "t"}).encode() if good else b"{}")
        if state.first:
            status, headers = state.first.pop(0)
            return self.send(status, b'{"errors": [{"message": "busy or broken"}]}', headers)
        expected = {"bearer": "Bearer t", "basic": state.login}.get(state.guard)
        if expected and self.headers.get("Authorization") != expected:
            challenge = {
                "bearer": f'Bearer realm="http://{state.host}/token",service="s",scope="repository:team/cache:pull,push"',
                "basic": 'Basic realm="x"',
            }[state.guard]
            return self.send(401, b"{}", {"WWW-Authenticate": challenge})
        if state.refuses:
            return self.send(403, b'{"errors": [{"code": "DENIED", "message": "not you"}]}')
        return self.work(parts.path.removeprefix("/v2/team/cache"), parse_qs(parts.query), body)

    def work(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        state, (_, kind, name, *rest) = self.state, path.split("/")
        if self.command == "POST" and "mount" in query:
            there = query["from"] == ["team/other"]
            return self.send(201 if there else 202, b"", {"Location": f"{self.path.split('?')[0]}1"})
        if self.command == "POST":
            return self.send(202, b"", {"Location": "/v2/team/cache/blobs/uploads/1?state=x"})
        if self.command == "PUT" and rest:
            state.blobs[query["digest"][0]] = body
            return self.send(201, b"")
        if self.command == "PUT":
            state.manifests[name] = body
            return self.send(201, b"")
        data = (state.blobs if kind == "blobs" else state.manifests).get(name)
        if data is None:
            return self.send(404, b"{}")
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        return self.send(200, data, {"Content-Type": MANIFEST, "Docker-Content-Digest": digest})

    def send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) - self.state.cut])
        if self.state.cut:
            self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = handle_any  # noqa: N815 - the names that http.server calls

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    made = Server()

    class Http(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that hangs up on an answer that it wants no more of is no error here."""

    http = Http(("127.0.0.1", 0), type("Bound", (Handler,), {"state": made}))
    made.host = f"127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield made
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def test_a_blob_goes_up_once_and_comes_down_the_same(server: Server, tmp_path: Path) -> None:
    repository = server.repository()
    (tmp_path / "up").write_bytes(BLOB)
    assert repository.upload(tmp_path / "up") == DIGEST
    assert repository.upload(BLOB) == DIGEST
    assert server.paths() == [
        f"HEAD /blobs/{DIGEST}",
        "POST /blobs/uploads/",
        "PUT /blobs/uploads/1",
        f"HEAD /blobs/{DIGEST}",
    ]
    got: list[int] = []
    repository.download(DIGEST, len(BLOB), tmp_path / "down", got.append)
    assert (tmp_path / "down").read_bytes() == BLOB
    assert sum(got) == len(BLOB)
    assert repository.blob(DIGEST) == BLOB


def test_a_manifest_by_tag_and_by_digest(server: Server) -> None:
    repository, manifest = server.repository(), Manifest(b'{"schemaVersion":2}', MANIFEST)
    assert repository.digest_of("x") is None
    assert repository.put_manifest("x", manifest) == manifest.digest
    assert repository.digest_of("x") == manifest.digest
    assert repository.manifest("x") == manifest
    with pytest.raises(RefNotFoundError):
        repository.manifest(manifest.digest)
    server.manifests[manifest.digest] = b'{"schemaVersion":3}'
    with pytest.raises(HashMismatchError, match="other bytes than its digest says"):
        repository.manifest(manifest.digest)


@pytest.mark.parametrize("login", [None, SPOKEN_FOR])
@pytest.mark.parametrize("guard", ["bearer", "basic"])
def test_a_login_is_shown_where_it_is_asked_for(server: Server, guard: str, login: Login | None) -> None:
    server.guard, server.blobs[DIGEST] = guard, BLOB
    server.login = "Basic " + base64.b64encode(b"ada:lovelace").decode()
    repository = server.repository(login)
    if login is None:
        with pytest.raises(AccessDeniedError) as caught:
            repository.has_blob(DIGEST)
        assert f"docker login {server.host}" in caught.value.fix
        return
    assert repository.has_blob(DIGEST)
    assert repository.has_blob(DIGEST)
    # Once in, nothing is asked twice; and a password goes to who gives tokens alone where there is one.
    assert len(server.asked) == (4 if guard == "bearer" else 3)
    shown = [headers.get("Authorization", "") for what, headers in server.asked if "/token" not in what]
    assert set(shown) == {"", "Bearer t" if guard == "bearer" else server.login}


def test_an_open_registry_is_shown_no_login(server: Server) -> None:
    server.blobs[DIGEST] = BLOB

    def never(_host: str) -> Login | None:
        raise AssertionError("the docker configuration was read")

    assert Repository(f"{server.host}/team/cache", never).has_blob(DIGEST)
    assert "Authorization" not in server.asked[0][1]


def test_a_password_is_not_sent_over_an_open_connection(server: Server) -> None:
    server.first = [(401, {"WWW-Authenticate": 'Bearer realm="http://tokens.invalid/token",service="s"'})]
    with pytest.raises(AccessDeniedError, match=r"wants your login sent to http://tokens\.invalid"):
        server.repository(SPOKEN_FOR).has_blob(DIGEST)


def test_who_may_not_is_told_so(server: Server) -> None:
    server.refuses = True
    with pytest.raises(AccessDeniedError) as caught:
        server.repository().upload(BLOB)
    assert caught.value.exit_code == 25
    # A HEAD has no reasons; the status says it.
    assert "403" in caught.value.why
    with pytest.raises(AccessDeniedError, match="does not let you in"):
        server.repository().put_manifest("x", Manifest(b"{}", MANIFEST))


@pytest.mark.parametrize("status", [429, 503])
def test_a_registry_that_asks_for_patience_gets_it(server: Server, status: int) -> None:
    server.blobs[DIGEST] = BLOB
    soon = formatdate(time.time() - 5, usegmt=True)
    server.first = [(status, {"Retry-After": "1"}), (status, {"Retry-After": soon})]
    began = time.monotonic()
    assert server.repository().blob(DIGEST) == BLOB
    assert 1 <= time.monotonic() - began < 10
    assert len(server.asked) == 3


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "3600"}, {"Retry-After": "tomorrow"}])
def test_patience_has_an_end(server: Server, headers: dict[str, str]) -> None:
    server.first = [(429, headers)]
    with pytest.raises(UpstreamError) as caught:
        server.repository().blob(DIGEST)
    assert "429" in caught.value.why
    assert "busy or broken" in caught.value.why
    assert len(server.asked) == 1


def test_a_registry_that_always_asks_for_patience_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    server.first = [(429, {"Retry-After": "20"})] * 10
    with pytest.raises(UpstreamError):
        server.repository().blob(DIGEST)
    assert sum(slept) == 60


@pytest.mark.parametrize("status", [400, 500, 502, 307])
def test_any_other_answer_is_an_error_with_its_reason(server: Server, status: int) -> None:
    server.first = [(status, {})]
    with pytest.raises(UpstreamError) as caught:
        server.repository().manifest("x")
    assert str(status) in caught.value.why
    assert type(caught.value) is UpstreamError


def test_a_blob_that_ends_early_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.blobs[DIGEST], server.cut = BLOB, 1000
    with pytest.raises(UpstreamError):
        server.repository().download(DIGEST, len(BLOB), tmp_path / "down")
    # Short, and the registry says so: it is not what was asked for, but nothing was changed in it either.
    server.cut = 0
    server.blobs[DIGEST] = BLOB[:-1000]
    with pytest.raises(UpstreamError, match="ended early"):
        server.repository().download(DIGEST, len(BLOB), tmp_path / "down")
    assert not (tmp_path / "down").exists()


@pytest.mark.parametrize("wrong", [b"\0" + BLOB[:-1], BLOB + b"more"], ids=["other bytes", "more"])
def test_a_blob_with_other_bytes_leaves_nothing(server: Server, tmp_path: Path, wrong: bytes) -> None:
    server.blobs[DIGEST] = wrong
    with pytest.raises(HashMismatchError) as caught:
        server.repository().download(DIGEST, len(BLOB), tmp_path / "down")
    assert DIGEST in caught.value.why
    assert not (tmp_path / "down").exists()
    with pytest.raises(HashMismatchError):
        server.repository().blob(DIGEST)


def test_a_blob_that_is_not_there(server: Server, tmp_path: Path) -> None:
    with pytest.raises(RefNotFoundError):
        server.repository().download(DIGEST, 1, tmp_path / "down")
    with pytest.raises(RefNotFoundError):
        server.repository().blob(DIGEST)
    assert not server.repository().has_blob(DIGEST)


def test_a_blob_is_taken_over_where_the_registry_can(server: Server) -> None:
    assert server.repository().mount(DIGEST, "team/other")
    assert not server.repository().mount(DIGEST, "team/unknown")


def test_what_claims_to_be_small_and_is_not(server: Server) -> None:
    server.manifests["x"] = b"0" * (9 << 20)
    with pytest.raises(UpstreamError, match="larger than a manifest"):
        server.repository().manifest("x")


def test_dockers_own_configuration_has_the_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    secret = base64.b64encode(b"ada:lovelace").decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {"registry.invalid:5000": {"auth": secret}}}))
    assert docker_login("registry.invalid:5000") == SPOKEN_FOR
    assert docker_login("other.invalid") is None


def test_a_credential_helper_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "docker-credential-test"
    helper.write_text(
        '#!/bin/sh\nread -r host\nprintf \'{"ServerURL": "%s", "Username": "ada", "Secret": "lovelace"}\' "$host"\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"credHelpers": {"registry.invalid": "test"}}))
    assert docker_login("registry.invalid") == SPOKEN_FOR
    helper.write_text("#!/bin/sh\necho locked; exit 1\n")
    with pytest.raises(AccessDeniedError, match="no usable login"):
        docker_login("registry.invalid")
