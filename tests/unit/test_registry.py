"""Asking a registry which digest a tag points to: against one that runs in this test, and speaks as registries do."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from kiln.config import Config
from kiln.errors import RefNotFoundError, UpstreamError
from kiln.registry import tag_digest
from kiln.registryclient import ACCEPT, Repository

DIGEST = "sha256:" + "5" * 64
NAME = "rocm/base"


@dataclass
class Registry:
    """What the registry says, by method and path: status, headers, body; and what it was asked."""

    host: str = ""
    answers: dict[str, tuple[int, dict[str, str], str]] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    token: str = ""

    @property
    def image(self) -> str:
        return f"{self.host}/{NAME}"

    def answer(self, what: str, status: int, body: object = "", **headers: str) -> None:
        text = body if isinstance(body, str) else json.dumps(body)
        self.answers[what] = (status, {name.replace("_", "-"): value for name, value in headers.items()}, text)

    def paths(self) -> list[str]:
        return [what for what, _ in self.asked]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    made = Registry()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self) -> None:
            path = urlsplit(self.path).path
            made.asked.append((f"{self.command} {self.path}", dict(self.headers.items())))
            status, headers, body = made.answers.get(f"{self.command} {path}", (404, {}, "{}"))
            guarded = made.token and not path.startswith("/token")
            if guarded and self.headers.get("Authorization") != f"Bearer {made.token}":
                challenge = (
                    f'Bearer realm="http://{made.host}/token",service="the registry",scope="repository:{NAME}:pull"'
                )
                status, headers, body = 401, {"WWW-Authenticate": challenge}, "{}"
            data = body.encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = respond  # noqa: N815 - the names that http.server calls

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.host = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


MANIFEST = f"HEAD /v2/{NAME}/manifests/7.2"
TAGS = f"GET /v2/{NAME}/tags/list"


def test_the_digest_is_what_the_registry_says_in_its_headers(registry: Registry) -> None:
    registry.answer(MANIFEST, 200, Docker_Content_Digest=DIGEST)
    assert tag_digest(Config(), registry.image, "7.2") == DIGEST
    ((what, headers),) = registry.asked
    assert what == MANIFEST
    # Without it a registry answers with one platform's image where the tag points to an index.
    assert headers["Accept"] == ACCEPT
    assert "image.index" in ACCEPT
    assert "manifest.list" in ACCEPT


def test_a_token_is_got_where_one_is_asked_for(registry: Registry) -> None:
    registry.token = "sesame"
    registry.answer(MANIFEST, 200, Docker_Content_Digest=DIGEST)
    registry.answer("GET /token", 200, {"token": "sesame"})
    assert tag_digest(Config(), registry.image, "7.2") == DIGEST
    assert [what.split("?")[0] for what in registry.paths()] == [MANIFEST, "GET /token", MANIFEST]
    query = parse_qs(urlsplit(registry.paths()[1].split()[1]).query)
    assert query == {"service": ["the registry"], "scope": [f"repository:{NAME}:pull"]}
    # The token is for the registry, not for who gives tokens.
    assert "Authorization" not in registry.asked[1][1]


def test_a_token_may_be_called_an_access_token(registry: Registry) -> None:
    registry.token = "sesame"
    registry.answer(MANIFEST, 200, Docker_Content_Digest=DIGEST)
    registry.answer("GET /token", 200, {"access_token": "sesame"})
    assert tag_digest(Config(), registry.image, "7.2") == DIGEST


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, {"token": "wrong"}),
        (200, {}),
        (403, {"errors": ["denied"]}),
        (500, "<html>not JSON</html>"),
        (200, ""),
        (200, ["sesame"]),
        (200, '"sesame"'),
    ],
    ids=["wrong", "none", "denied", "not JSON", "empty", "a list", "a word"],
)
def test_without_a_right_token_the_registry_has_not_answered(registry: Registry, status: int, body: object) -> None:
    registry.token = "sesame"
    registry.answer(MANIFEST, 200, Docker_Content_Digest=DIGEST)
    registry.answer("GET /token", status, body)
    with pytest.raises(UpstreamError):
        tag_digest(Config(), registry.image, "7.2")
    assert len(registry.asked) <= 3


@pytest.mark.parametrize(
    "challenge",
    [
        "Bearer ",
        'Bearer service="x"',
        'Bearer realm="nowhere"',
        'Bearer realm="ftp://x.invalid/"',
        'Basic realm="x"',
        "",
    ],
)
def test_a_challenge_that_leads_nowhere(registry: Registry, challenge: str) -> None:
    registry.answer(MANIFEST, 401, **({"WWW_Authenticate": challenge} if challenge else {}))
    with pytest.raises(UpstreamError):
        tag_digest(Config(), registry.image, "7.2")


def test_a_scheme_in_small_letters_is_the_same_scheme(registry: Registry) -> None:
    """RFC 9110: the name of an authentication scheme is case-insensitive."""
    registry.answer(MANIFEST, 401, WWW_Authenticate=f'bearer realm="http://{registry.host}/token"')
    registry.answer("GET /token", 200, {"token": "x"})
    with pytest.raises(UpstreamError):
        tag_digest(Config(), registry.image, "7.2")
    assert "GET /token" in [what.split("?")[0] for what in registry.paths()]


def test_a_tag_that_is_not_there_is_answered_with_near_ones(registry: Registry) -> None:
    registry.answer(TAGS, 200, {"name": NAME, "tags": ["7.2.3-complete", "7.2.4-complete", "latest"]})
    with pytest.raises(RefNotFoundError) as caught:
        tag_digest(Config(), registry.image, "7.2.5-complete")
    assert caught.value.exit_code == 16
    assert f"{registry.image} has no tag '7.2.5-complete'" in caught.value.what
    assert "7.2.3-complete" in caught.value.why
    assert "7.2.4-complete" in caught.value.why
    assert "latest" not in caught.value.why
    assert "--set base=" in caught.value.fix


@pytest.mark.parametrize(
    ("tags", "why"),
    [
        (["latest", "edge"], "It has 2 others, none of them near."),
        ([], "It has 0 others, none of them near."),
        (None, "It has 0 others, none of them near."),
    ],
)
def test_a_tag_that_is_like_no_other(registry: Registry, tags: object, why: str) -> None:
    registry.answer(TAGS, 200, {"tags": tags})
    with pytest.raises(RefNotFoundError) as caught:
        tag_digest(Config(), registry.image, "7.2")
    assert caught.value.why == why


@pytest.mark.parametrize(
    ("status", "body"),
    [(500, "<html>"), (403, ""), (200, ["7.1"]), (200, '"7.1"'), (200, "null")],
    ids=["500", "403", "a list", "a word", "null"],
)
def test_a_registry_that_lists_no_tags_has_no_such_tag_all_the_same(
    registry: Registry, status: int, body: object
) -> None:
    registry.answer(TAGS, status, body)
    with pytest.raises(RefNotFoundError, match=r"has no tag '7\.2'"):
        tag_digest(Config(), registry.image, "7.2")


@pytest.mark.parametrize("status", [400, 403, 429, 500, 503])
def test_any_other_answer_is_no_answer(registry: Registry, status: int) -> None:
    registry.answer(MANIFEST, status, Docker_Content_Digest=DIGEST)
    with pytest.raises(UpstreamError) as caught:
        tag_digest(Config(), registry.image, "7.2")
    assert caught.value.exit_code == (25 if status == 403 else 15)
    assert str(status) in caught.value.why
    assert registry.host in caught.value.what
    assert ("docker login" if status == 403 else "kiln.toml") in caught.value.fix


@pytest.mark.parametrize(
    "digest", ["", "5" * 64, "sha256:55", "sha256:" + "A" * 64, "sha512:" + "5" * 128, DIGEST + "0"]
)
def test_an_answer_without_a_right_digest_is_no_answer(registry: Registry, digest: str) -> None:
    registry.answer(MANIFEST, 200, **({"Docker_Content_Digest": digest} if digest else {}))
    with pytest.raises(UpstreamError, match=r"did not say what 7\.2 is"):
        tag_digest(Config(), registry.image, "7.2")


def test_a_registry_that_moved_is_followed(registry: Registry) -> None:
    registry.answer(MANIFEST, 307, Location="/v2/elsewhere/manifests/7.2")
    registry.answer("HEAD /v2/elsewhere/manifests/7.2", 200, Docker_Content_Digest=DIGEST)
    assert tag_digest(Config(), registry.image, "7.2") == DIGEST


def test_a_registry_that_refuses_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    # Bound and not listening: nobody else gets the port while the test runs.
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(UpstreamError) as caught:
            tag_digest(Config(), f"{host}/{NAME}", "7.2")
    assert host in caught.value.what
    assert caught.value.why == "Connection refused"


@pytest.mark.parametrize(
    ("prefix", "replacement", "path"),
    [
        ("registry.invalid", "{host}", "rocm/base"),
        ("registry.invalid", "{host}/mirrored", "mirrored/rocm/base"),
        ("registry.invalid/rocm", "{host}/x/y", "x/y/base"),
        ("registry.invalid/rocm/base", "{host}/ours", "ours"),
    ],
)
def test_a_mirror_is_asked_in_its_place(registry: Registry, prefix: str, replacement: str, path: str) -> None:
    registry.answer(f"HEAD /v2/{path}/manifests/7.2", 200, Docker_Content_Digest=DIGEST)
    config = Config(((prefix, replacement.format(host=registry.host)),))
    assert tag_digest(config, "registry.invalid/rocm/base", "7.2") == DIGEST
    assert registry.paths() == [f"HEAD /v2/{path}/manifests/7.2"]


def test_a_mirror_that_has_not_the_tag_is_the_one_that_is_named(registry: Registry) -> None:
    config = Config((("registry.invalid", registry.host),))
    with pytest.raises(RefNotFoundError, match=registry.host):
        tag_digest(config, f"registry.invalid/{NAME}", "7.2")


def test_who_is_asked_for_an_image_of_another_host() -> None:
    """Any host but this machine is spoken to over an encrypted connection."""
    images = ("registry.invalid:5000/a/b", "localhost:5000/a", "localhost.invalid/a", "127.0.0.1/a")
    assert [Repository(image).url for image in images] == [
        "https://registry.invalid:5000/v2/a/b",
        "http://localhost:5000/v2/a",
        "https://localhost.invalid/v2/a",
        "http://127.0.0.1/v2/a",
    ]
    # Docker Hub answers below the name that references have.
    hub = Repository("docker.io/rocm/a").url
    assert hub.startswith("https://")
    assert hub.endswith(".docker.io/v2/rocm/a")
