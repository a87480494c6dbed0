"""One publisher at a time to a repository, where a registry has no lock to give: a tag that says who has it.

A registry takes any tag from anybody, and the last word stands. So whoever wants the lock writes its name, lets ``SETTLE_SECONDS`` pass, and has it if
its name still stands. Nobody writes over another's name; two that looked before either wrote are told apart by that pause, as long as none needs longer
than it from looking to having written. Who needs longer looks again, and the other has it.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from kiln.cacheentry import EMPTY, EMPTY_TYPE
from kiln.canonical import canonical_json
from kiln.errors import BeingPublishedError, RefNotFoundError, UpstreamError
from kiln.registryclient import MANIFEST, Manifest, Repository, digest_of_bytes

TAG = "kiln-publishing"
TYPE = "application/vnd.kiln.publisher.v1"
OWNER, SINCE = "io.kiln.publisher", "io.kiln.since"
SETTLE_SECONDS = 2.0
# Longer than any publication. A publisher that was killed leaves its name behind; after this it counts no more.
STALE_SECONDS = 2 * 3600


@contextmanager
def publishing(repository: Repository, *, settle: float = SETTLE_SECONDS, take_over: bool = False) -> Iterator[None]:
    """Hold the lock of a repository. ``take_over`` takes it from whoever has it.

    Raises BeingPublishedError where somebody else has it, UpstreamError.
    """
    name = secrets.token_hex(8)
    repository.upload(EMPTY)
    while True:
        looked = time.monotonic()
        owner, since = _holder(repository)
        if owner and not take_over:
            raise BeingPublishedError(
                f"somebody else publishes to {repository.place}",
                why=f"{owner} since {since}. A publisher that was killed counts for {STALE_SECONDS // 3600} hours.",
                fix="run the same command again when they are done; if you know that nobody is: --take-over",
            )
        repository.put_manifest(TAG, _name(name))
        if time.monotonic() - looked < settle / 2:
            break
        # Too slow to be safe: another may have looked meanwhile, written, and begun. Whoever stands there after a pause has it.
        time.sleep(settle)
        if _holder(repository)[0] == name:
            break
        take_over = False
    time.sleep(settle)
    if (other := _holder(repository)[0]) != name:
        raise BeingPublishedError(
            f"somebody else began to publish to {repository.place} at the same moment", why=f"The lock went to {other}."
        )
    try:
        yield
    finally:
        # One that was taken over meanwhile is another's now.
        if _holder(repository)[0] == name:
            repository.put_manifest(TAG, _name(""))


def _name(owner: str) -> Manifest:
    config = {"mediaType": TYPE, "digest": digest_of_bytes(EMPTY), "size": len(EMPTY)}
    table = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config,
        "layers": [{**config, "mediaType": EMPTY_TYPE}],
        "annotations": {OWNER: owner, SINCE: datetime.now(UTC).isoformat(timespec="seconds")},
    }
    return Manifest(canonical_json(table), MANIFEST)


def _holder(repository: Repository) -> tuple[str, str]:
    """Who has the lock and since when; two empty words where nobody has."""
    try:
        said = repository.manifest(TAG).table["annotations"]
        owner, since = str(said[OWNER]), str(said[SINCE])
        age = (datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds()
    except RefNotFoundError:
        return "", ""
    except (KeyError, TypeError, ValueError, json.JSONDecodeError) as error:
        raise UpstreamError(
            f"{repository.place}:{TAG} is no publisher's name",
            why=repr(error),
            fix="remove that tag, or take another repository",
        ) from error
    return (owner, since) if owner and age < STALE_SECONDS else ("", "")
