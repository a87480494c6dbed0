"""Pulling a release: found in the record by its pins, looked at before it is downloaded, pulled by digest, and compared with what was asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kiln.config import Config
from kiln.console import Console, Meter, megabytes
from kiln.cosign import Cosign, Trusted
from kiln.engine import Engine, image_digest, image_document
from kiln.errors import (
    EngineError,
    ImageDamagedError,
    NotPublishedError,
    RefNotFoundError,
    UpstreamError,
    UsageError,
)
from kiln.process import raise_if_disk_full
from kiln.publish import looked_at, tried
from kiln.registry import tag_digest
from kiln.registryclient import Repository
from kiln.releases import Release
from kiln.torn import forget_torn

if TYPE_CHECKING:
    from kiln.pins import Pins

# How engines say that what came is not what the digest names.
_OF_BYTES = ("failed precondition", "unexpected commit", "size validation", "digest mismatch", "verification failed")


@dataclass(frozen=True)
class Pulled:
    """An image in the engine, and what is signed of it: the place it was pulled from and its manifest digest."""

    place: str
    digest: str
    labels: Mapping[str, str]
    said: Mapping[str, Any]


@dataclass(frozen=True)
class Puller:
    """Everything that pulling needs."""

    engine: Engine
    config: Config
    console: Console
    cosign: Cosign
    trusted: Trusted

    def pull(self, repository: str, digest: str, release: Release | None) -> Pulled:
        """Have ``repository@digest`` in the engine, if it is signed, attested, and what the record (``release``) says.

        Raises SignatureError, AttestationError, ReleaseRecordError, HashMismatchError (a manifest or configuration), ImageDamagedError (a layer),
        RefNotFoundError, UpstreamError, EngineError, DiskFullError.
        """
        mirrored = self.config.mirrored(repository)
        place = f"{mirrored}@{digest}"
        self.console.step(f"looking at what is signed beside {place}")
        labels, size = tried(lambda: described(Repository(mirrored), digest))
        said = looked_at(self.cosign, self.trusted, place, labels, release)
        self.console.step(f"pulling {place}, {megabytes(size)} for who has nothing of it")
        tried(lambda: self._pull(mirrored, digest, size))
        if (found := image_digest(self.engine, place)) != digest:
            raise EngineError(f"the engine has another image than {place}", why=f"It says {found}.")
        held = (image_document(self.engine, place) or {}).get("Config", {}).get("Labels") or {}
        if held != labels:
            raise ImageDamagedError(f"the engine gives {place} other labels than the registry")
        return Pulled(place, digest, labels, said)

    def _pull(self, repository: str, digest: str, size: int) -> None:
        from docker.errors import DockerException, NotFound
        from requests import RequestException

        from kiln.containers import connect

        meter, got = Meter(self.console, "pulled", 1, size), dict[str, int]()
        error = ""
        try:
            with connect(self.engine) as client:
                for event in client.api.pull(repository, tag=digest, stream=True, decode=True):
                    error = error or str(event.get("error", ""))
                    if event.get("status") == "Downloading":
                        now = int((event.get("progressDetail") or {}).get("current") or 0)
                        meter.add(0, max(now - got.get(event["id"], 0), 0))
                        got[event["id"]] = max(now, got.get(event["id"], 0))
        except NotFound as problem:
            raise RefNotFoundError(f"{repository}@{digest} is not there", why=str(problem.explanation)) from problem
        except (DockerException, RequestException, EngineError) as problem:
            error = getattr(problem, "why", "") or str(problem)
        if any(word in error for word in _OF_BYTES):
            forget_torn(self.engine, error)
            raise ImageDamagedError(
                f"a layer of {repository}@{digest} is not what its digest says",
                why=error,
                fix="nothing of it is used: find out who wrote to the registry, or to the disk below it",
            )
        raise_if_disk_full(error)
        if error:
            raise UpstreamError(f"{repository}@{digest} could not be pulled", why=error)


def described(repository: Repository, digest: str) -> tuple[dict[str, str], int]:
    """The labels of an image in a registry, and the bytes of all its blobs."""
    table = repository.manifest(digest).table
    try:
        config, layers = table["config"], table["layers"]
        labels = json.loads(repository.blob(config["digest"])).get("config", {}).get("Labels") or {}
        sizes = {one["digest"]: int(one["size"]) for one in layers}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UpstreamError(
            f"{repository.place}@{digest} is not one image",
            why="It has no configuration and layers: an index, or no image at all.",
            fix="name one platform's image by its own digest",
        ) from error
    return {str(key): str(value) for key, value in labels.items()}, sum(sizes.values())


def choose(
    releases: Sequence[Release], pins: Pins, image: str, lock: str, versions: Mapping[str, str], *, latest: bool = False
) -> Release:
    """The newest release of an image that has these pins: the same lock, or where versions were chosen, those. ``lock`` is empty where there is none.

    ``latest``: whatever its pins. Raises NotPublishedError, naming the nearest.
    """
    known = [one for one in releases if one.image == image]
    chosen = dict(pins.overrides)
    if latest:
        fitting = known
    elif chosen:
        fitting = [
            one
            for one in known
            if all({**one.components, **one.overrides}.get(name) == ref for name, ref in chosen.items())
        ]
    else:
        fitting = [one for one in known if one.lock == lock and not one.overrides]
    if fitting:
        return fitting[-1]
    wanted = {**versions, **chosen}
    sets = "".join(f" --set {name}={ref}" for name, ref in chosen.items())
    build = f"build it: kiln image {pins.stack}{sets}   (or: make image STACK={pins.stack})"
    what = f"no release of {image} has these pins" if known else f"{image} was never published"
    if not known:
        raise NotPublishedError(what, why=f"releases/{pins.stack}.toml names none.", fix=build)
    near = max(enumerate(known), key=lambda item: (_shared(item[1].components, wanted), item[0]))[1]
    differing = [
        f"{name}: {near.components.get(name, 'not in it')}, wanted {version}"
        for name, version in sorted(wanted.items())
        if near.components.get(name) != version
    ]
    raise NotPublishedError(
        what,
        why=f"nearest: {near.tag} of {near.date[:10]}, {near.place}\n"
        + ("\n".join(f"  {line}" for line in differing) or "  the same versions, from another lock"),
        fix=f"{build}\nor take the nearest: kiln pull {near.place}",
    )


def _shared(one: Mapping[str, str], other: Mapping[str, str]) -> int:
    return sum(other.get(name) == version for name, version in one.items())


def require_digest(config: Config, text: str) -> tuple[str, str]:
    """The repository and the digest in ``text``. Raises UsageError for a tag, with what it points to now."""
    from kiln.named import REFERENCE

    found = REFERENCE.fullmatch(text)
    if not found or "/" not in text:
        raise UsageError(
            f"{text!r} is no stack of this project and no image of a registry",
            fix="kiln pull STACK, or kiln pull host/name@sha256:…",
        )
    if found["digest"]:
        return found["name"], found["digest"]
    try:
        now = tag_digest(config, found["name"], found["tag"] or "latest")
    except UpstreamError as error:
        raise UpstreamError(
            f"{text} is a tag, and its registry does not say what it points to", why=error.why
        ) from error
    raise UsageError(
        f"{text} is a tag, and a tag can move between the check and the use",
        why=f"It points to {now} now.",
        fix=f"kiln pull {found['name']}@{now}",
    )


def recorded(releases: Mapping[str, Sequence[Release]], repository: str, digest: str) -> Release | None:
    """The entry of the record for an image that somebody names by its digest, where there is one."""
    everywhere = [one for of_stack in releases.values() for one in of_stack if one.digest == digest]
    return next((one for one in everywhere if one.repository == repository), everywhere[-1] if everywhere else None)
