"""Image registries: which digest a tag points to now. The distribution API over HTTP, and nothing beyond what that takes."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlencode

import requests

from kiln.config import Config
from kiln.errors import RefNotFoundError, UpstreamError
from kiln.fetch import short_reason

# An index and a single image, in OCI's and in Docker's words: a registry answers with what the tag points to only if it is asked for by type.
OCI, DOCKER = "application/vnd.oci.image", "application/vnd.docker.distribution"
ACCEPT = f"{OCI}.index.v1+json, {DOCKER}.manifest.list.v2+json, {OCI}.manifest.v1+json, {DOCKER}.manifest.v2+json"
# Docker Hub's name in references is not the host that serves them: that one is below it.
HUB = "docker.io"
SECONDS = (10, 60)


def tag_digest(config: Config, image: str, tag: str) -> str:
    """The digest (``sha256:…``) that ``tag`` of ``image`` (host/name) points to; a mirror is asked in its place where one is set.

    Raises UpstreamError where the registry does not answer, RefNotFoundError with near tags where it has no such tag.
    """
    place = config.mirrored(image)
    host, _, name = place.partition("/")
    plain = re.fullmatch(r"(localhost|127\.0\.0\.1)(:\d+)?", host) is not None
    url = f"{'http' if plain else 'https'}://{'registry-1.' if host == HUB else ''}{host}/v2/{name}"
    with requests.Session() as session:
        answer = _ask(session, "HEAD", f"{url}/manifests/{tag}", {"Accept": ACCEPT})
        if answer.status_code == 404:
            raise RefNotFoundError(
                f"{place} has no tag {tag!r}",
                why=_near(session, url, tag),
                fix="name a tag that is there: --set base=TAG",
            )
        digest = answer.headers.get("Docker-Content-Digest", "")
        if answer.status_code != 200 or not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
            raise UpstreamError(
                f"the registry of {place} did not say what {tag} is",
                why=f"{answer.status_code} {answer.reason} from {url}",
            )
    return digest


def _ask(session: requests.Session, method: str, url: str, headers: dict[str, str]) -> requests.Response:
    try:
        answer = session.request(method, url, headers=headers, timeout=SECONDS)
        challenge = answer.headers.get("WWW-Authenticate", "")
        if answer.status_code == 401 and challenge.lower().startswith("bearer "):
            fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
            asked = urlencode({key: fields[key] for key in ("service", "scope") if key in fields})
            token = _table(session.get(f"{fields.get('realm', '')}?{asked}", timeout=SECONDS))
            session.headers["Authorization"] = f"Bearer {token.get('token') or token.get('access_token')}"
            answer = session.request(method, url, headers=headers, timeout=SECONDS)
    except (requests.RequestException, ValueError) as error:
        raise UpstreamError(
            f"the registry at {url.split('/v2/')[0]} does not answer", why=short_reason(error)
        ) from error
    return answer


def _table(answer: requests.Response) -> dict[str, Any]:
    """An answer's JSON table. Raises ValueError where it is none."""
    found = answer.json()
    if not isinstance(found, dict):
        raise ValueError(f"{answer.url} answered with no table")
    return found


def _near(session: requests.Session, url: str, tag: str) -> str:
    import difflib

    try:
        tags = _table(_ask(session, "GET", f"{url}/tags/list", {})).get("tags")
    except (UpstreamError, ValueError):
        return ""
    tags = [name for name in tags if isinstance(name, str)] if isinstance(tags, list) else []
    near = difflib.get_close_matches(tag, tags, 5)
    return f"Near: {', '.join(near)}." if near else f"It has {len(tags)} others, none of them near."
