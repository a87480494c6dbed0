"""A client of one repository in an image registry: manifests and blobs over the distribution API, and who may have them.

Credentials are those of the user's own docker configuration (``docker login``, credential helpers). Whatever comes is compared with the digest
it was asked by; what a registry says of itself is never taken for the digest of what it sent.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import requests

from kiln.canonical import sha256_file
from kiln.errors import AccessDeniedError, HashMismatchError, RefNotFoundError, UpstreamError
from kiln.fetch import short_reason

# An index and a single image, in OCI's and in Docker's words: a registry answers with what the tag points to only if it is asked for by type.
OCI, DOCKER = "application/vnd.oci.image", "application/vnd.docker.distribution"
INDEXES = (f"{OCI}.index.v1+json", f"{DOCKER}.manifest.list.v2+json")
MANIFEST = f"{OCI}.manifest.v1+json"
ACCEPT = ", ".join((*INDEXES, MANIFEST, f"{DOCKER}.manifest.v2+json"))
# Docker Hub's name in references is not the host that serves them: that one is below it.
HUB = "docker.io"
SECONDS = (10, 60)
# A registry that asks for patience gets this much in all, for one request.
PATIENCE = 60.0
# Manifests and configurations are small; what claims to be one and is not must not fill the memory.
SMALL = 8 << 20
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LOOPBACK = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?")


@dataclass(frozen=True)
class Manifest:
    """A manifest as it came, to the byte, and its type."""

    data: bytes
    media_type: str

    @property
    def digest(self) -> str:
        """The digest of its bytes."""
        return digest_of_bytes(self.data)

    @property
    def table(self) -> dict[str, Any]:
        """What it says. Raises ValueError where it is no JSON table."""
        try:
            found = json.loads(self.data)
        except RecursionError as error:
            raise ValueError("a manifest is a table, and this is nested without end") from error
        if not isinstance(found, dict):
            raise ValueError(f"a manifest is a table, and this is a {type(found).__name__}")
        return found


@dataclass(frozen=True)
class Login:
    """What a registry wants to know of the user: a name with a password, or a token that stands for both."""

    user: str = ""
    password: str = ""
    identity_token: str = ""


def docker_login(host: str) -> Login | None:
    """What docker's own configuration has for ``host``, its credential helpers included. Raises AccessDeniedError where a helper fails."""
    # The SDK takes a third of a second to load, and a registry that is open to everybody needs none of it.
    from docker import auth
    from docker.errors import DockerException

    try:
        found = auth.load_config().resolve_authconfig(host)
    except (DockerException, OSError, ValueError) as error:
        raise AccessDeniedError(f"docker's configuration has no usable login for {host}", why=str(error)) from error
    if not found:
        return None
    # The SDK spells the names in one way for its own file and in another for a helper.
    said = {name.lower(): value or "" for name, value in found.items()}
    return Login(said.get("username", ""), said.get("password", ""), said.get("identitytoken", ""))


def digest_of_bytes(data: bytes) -> str:
    """``sha256:…`` of some bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def is_loopback(host: str) -> bool:
    """Whether ``host`` (with a port or without) is this machine, where nobody listens in and plain HTTP will do."""
    return _LOOPBACK.fullmatch(host) is not None


class Repository:
    """One repository (``host/name``) of a registry.

    Every method raises UpstreamError where the registry does not answer or answers with nonsense, AccessDeniedError (one of those) where it
    wants a login or refuses this one.
    """

    def __init__(self, place: str, login: Callable[[str], Login | None] = docker_login) -> None:
        """``login`` is asked once, and only if the registry wants to know who is there."""
        self.place = place
        self.host, _, self.name = place.partition("/")
        scheme = "http" if is_loopback(self.host) else "https"
        self.url = f"{scheme}://{'registry-1.' if self.host == HUB else ''}{self.host}/v2/{self.name}"
        self._find_login = login
        self._login: Login | None = None
        self._asked_login = False
        self._authorization = ""
        self._session = requests.Session()

    def digest_of(self, ref: str) -> str | None:
        """What a tag (or digest) points to, by the registry's word; None where it has no such thing."""
        answer = self._ask("HEAD", f"{self.url}/manifests/{ref}", headers={"Accept": ACCEPT}, known=(200, 404))
        if answer.status_code == 404:
            return None
        digest = answer.headers.get("Docker-Content-Digest", "")
        if not _DIGEST.fullmatch(digest):
            raise UpstreamError(
                f"the registry of {self.place} did not say what {ref} is",
                why=f"{answer.status_code} {answer.reason} from {self.url}",
            )
        return digest

    def manifest(self, ref: str) -> Manifest:
        """The manifest behind a tag or a digest; by a digest, it has that digest.

        Raises RefNotFoundError where there is none, HashMismatchError where it is another than was asked for.
        """
        url = f"{self.url}/manifests/{ref}"
        with self._stream("GET", url, headers={"Accept": ACCEPT}, known=(200, 404)) as answer:
            if answer.status_code == 404:
                raise RefNotFoundError(f"{self.place} has no {ref!r}", fix="name one that is there")
            data = self._body(answer, url)
            found = Manifest(data, answer.headers.get("Content-Type", "").partition(";")[0])
        if _DIGEST.fullmatch(ref) and found.digest != ref:
            raise _other_bytes(f"the manifest {self.place}@{ref}", ref, found.digest)
        return found

    def put_manifest(self, ref: str, manifest: Manifest) -> str:
        """Store a manifest under a tag or its digest; what it names must be there. Returns its digest."""
        self._ask(
            "PUT",
            f"{self.url}/manifests/{ref}",
            headers={"Content-Type": manifest.media_type},
            body=manifest.data,
            known=(200, 201),
        )
        return manifest.digest

    def remove(self, tag: str) -> bool:
        """Take a tag away, and nothing that it points to; whether this registry does such a thing."""
        answer = self._ask("DELETE", f"{self.url}/manifests/{tag}", known=(202, 400, 404, 405, 501))
        return answer.status_code == 202

    def has_blob(self, digest: str) -> bool:
        """Whether the registry says that it has this blob."""
        return self._ask("HEAD", f"{self.url}/blobs/{digest}", known=(200, 404)).status_code == 200

    def blob(self, digest: str) -> bytes:
        """A small blob, whole. Raises RefNotFoundError, HashMismatchError."""
        url = f"{self.url}/blobs/{digest}"
        with self._stream("GET", url, known=(200, 404)) as answer:
            self._require_found(answer, digest)
            data = self._body(answer, url)
        if digest_of_bytes(data) != digest:
            raise _other_bytes(f"the blob {self.place}@{digest}", digest, digest_of_bytes(data))
        return data

    def download(self, digest: str, size: int, path: Path, progress: Callable[[int], object] = lambda _: None) -> None:
        """Write a blob of ``size`` bytes to ``path``, which is removed again where it is not that blob; ``progress`` hears of every part.

        Raises RefNotFoundError, HashMismatchError, and UpstreamError also where the connection ended before the blob did.
        """
        url = f"{self.url}/blobs/{digest}"
        hashed, got = hashlib.sha256(), 0
        try:
            with self._stream("GET", url, known=(200, 404)) as answer, path.open("wb") as stream:
                self._require_found(answer, digest)
                for block in answer.iter_content(1 << 20):
                    got += len(block)
                    if got > size:
                        break
                    hashed.update(block)
                    stream.write(block)
                    progress(len(block))
            if got < size:
                raise UpstreamError(f"{url} ended early", why=f"{got} of {size} bytes came")
            if got > size or f"sha256:{hashed.hexdigest()}" != digest:
                raise _other_bytes(f"the blob {self.place}@{digest}", digest, f"sha256:{hashed.hexdigest()}")
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def upload(self, source: bytes | Path) -> str:
        """Store a blob, in one piece; returns its digest. Nothing is sent where the registry has it."""
        digest = digest_of_bytes(source) if isinstance(source, bytes) else f"sha256:{sha256_file(source)}"
        if self.has_blob(digest):
            return digest
        self._finish_upload(self._ask("POST", f"{self.url}/blobs/uploads/", body=b"", known=(202,)), digest, source)
        return digest

    def mount(self, digest: str, name: str) -> bool:
        """Take a blob over from another repository (``name``) of the same registry, without sending it; whether that went."""
        query = urlencode({"mount": digest, "from": name})
        answer = self._ask("POST", f"{self.url}/blobs/uploads/?{query}", body=b"", known=(201, 202))
        return answer.status_code == 201

    def tags(self) -> list[str]:
        """The tags of the repository, as far as the registry lists them in one answer; none where it is not there."""
        answer = self._ask("GET", f"{self.url}/tags/list", known=(200, 404))
        if answer.status_code == 404:
            return []
        try:
            found = _table(answer).get("tags")
        except ValueError as error:
            raise UpstreamError(f"the registry of {self.place} listed no tags", why=str(error)) from error
        return [tag for tag in found if isinstance(tag, str)] if isinstance(found, list) else []

    def _finish_upload(self, begun: requests.Response, digest: str, source: bytes | Path) -> None:
        place = urljoin(begun.url, begun.headers.get("Location", ""))
        query = urlencode({"digest": digest})
        url = f"{place}{'&' if urlsplit(place).query else '?'}{query}"
        self._ask(
            "PUT",
            url,
            headers={"Content-Type": "application/octet-stream"},
            body=source,
            known=(201,),
            signed_for=place,
        )

    def _require_found(self, answer: requests.Response, digest: str) -> None:
        if answer.status_code == 404:
            raise RefNotFoundError(
                f"{self.place} has no blob {digest}", fix="what names it is older than it, or was cut"
            )

    def _body(self, answer: requests.Response, url: str) -> bytes:
        data = b""
        for block in answer.iter_content(1 << 16):
            data += block
            if len(data) > SMALL:
                raise UpstreamError(
                    f"{url} is larger than a manifest or configuration can be", why=f"over {SMALL} bytes"
                )
        return data

    def _ask(self, method: str, url: str, **how: Any) -> requests.Response:
        """A request whose answer has no body, or a small one."""
        with self._stream(method, url, **how) as answer:
            # Read whole here, so that the connection is free for the next one.
            answer.content  # noqa: B018
            return answer

    @contextmanager
    def _stream(
        self,
        method: str,
        url: str,
        *,
        headers: dict[str, str] | None = None,
        body: bytes | Path | None = None,
        known: tuple[int, ...] = (200,),
        signed_for: str = "",
    ) -> Iterator[requests.Response]:
        """An answer whose status is one of ``known``. ``signed_for``: a place that the registry named itself, which may be on another host."""
        try:
            with self._answer(method, url, headers or {}, body, signed_for) as answer:
                if answer.status_code in (401, 403):
                    raise AccessDeniedError(
                        f"the registry of {self.place} does not let you in",
                        why=f"{answer.status_code} {answer.reason} to {method} {urlsplit(url).path}{_said(answer)}",
                        fix=f"log in as somebody who may: docker login {self.host}",
                    )
                if answer.status_code not in known:
                    raise UpstreamError(
                        f"the registry of {self.place} did not do what it was asked",
                        why=f"{answer.status_code} {answer.reason} to {method} {url}{_said(answer)}",
                    )
                yield answer
        except (requests.RequestException, ValueError) as error:
            raise UpstreamError(
                f"the registry at {self.url.split('/v2/')[0]} does not answer", why=short_reason(error)
            ) from error

    @contextmanager
    def _answer(
        self, method: str, url: str, headers: dict[str, str], body: bytes | Path | None, signed_for: str
    ) -> Iterator[requests.Response]:
        """The answer after logging in, once, and after as much patience as is asked for, within bounds."""
        patience, may_log_in = PATIENCE, True
        foreign = bool(signed_for) and urlsplit(signed_for).netloc != urlsplit(self.url).netloc
        while True:
            with ExitStack() as opened:
                data = opened.enter_context(body.open("rb")) if isinstance(body, Path) else body
                signature = "" if foreign else self._authorization
                answer = opened.enter_context(
                    self._session.request(
                        method, url, headers=headers, data=data, auth=_signed(signature), stream=True, timeout=SECONDS
                    )
                )
                wait = _asked_to_wait(answer)
                if answer.status_code == 401 and may_log_in and not foreign:
                    may_log_in = False
                    if self._log_in(answer.headers.get("WWW-Authenticate", "")):
                        continue
                elif wait is not None and wait <= patience:
                    patience -= max(wait, 1.0)
                    opened.close()
                    time.sleep(wait)
                    continue
                yield answer
                return

    def _log_in(self, challenge: str) -> bool:
        """Do what a challenge asks for; whether it is worth asking again."""
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() not in ("bearer", "basic"):
            return False
        if not self._asked_login:
            self._login, self._asked_login = self._find_login(self.host), True
        login = self._login
        if scheme.lower() == "basic":
            if login is None or not login.user:
                return False
            self._authorization = "Basic " + base64.b64encode(f"{login.user}:{login.password}".encode()).decode()
            return True
        fields = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        table = self._token(
            fields.get("realm", ""), {key: fields[key] for key in ("service", "scope") if key in fields}
        )
        self._authorization = f"Bearer {table.get('token') or table.get('access_token')}"
        return True

    def _token(self, realm: str, asked: dict[str, str]) -> dict[str, Any]:
        login, place = self._login, urlsplit(realm)
        if login and place.scheme != "https" and not is_loopback(place.netloc):
            raise AccessDeniedError(
                f"the registry of {self.place} wants your login sent to {realm}",
                why="That is not an encrypted connection.",
            )
        if login and login.identity_token:
            form = {**asked, "grant_type": "refresh_token", "refresh_token": login.identity_token, "client_id": "kiln"}
            return _table(self._session.post(realm, data=form, auth=_signed(""), timeout=SECONDS))
        known = (login.user, login.password) if login and login.user else _signed("")
        return _table(self._session.get(f"{realm}?{urlencode(asked)}", auth=known, timeout=SECONDS))


def _signed(authorization: str) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
    """Signs a request. Given as `auth`, it keeps requests from putting in what a .netrc says instead."""

    def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
        if authorization:
            request.headers["Authorization"] = authorization
        return request

    return sign


def _asked_to_wait(answer: requests.Response) -> float | None:
    """The seconds after which a registry that is too busy wants to be asked again; None where it is not, or does not say."""
    text = answer.headers.get("Retry-After", "")
    if answer.status_code not in (429, 503) or not text:
        return None
    if text.isdigit():
        return float(text)
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def _said(answer: requests.Response) -> str:
    """What a registry gives as its reasons, in its own form, cut to a line."""
    try:
        errors = json.loads(answer.raw.read(4096, decode_content=True))["errors"]
        return ": " + "; ".join(str(one.get("message") or one.get("code")) for one in errors)[:200]
    except Exception:  # noqa: BLE001 - whatever it sent, the status says enough
        return ""


def _table(answer: requests.Response) -> dict[str, Any]:
    """An answer's JSON table. Raises ValueError where it is none."""
    found = answer.json()
    if not isinstance(found, dict):
        raise ValueError(f"{answer.url} answered with no table")
    return found


def _other_bytes(what: str, expected: str, found: str) -> HashMismatchError:
    return HashMismatchError(
        f"{what} has other bytes than its digest says",
        why=f"expected {expected}\ngot      {found}",
        fix="nothing of it was taken: find out who wrote to the registry, or to the disk below it",
    )
