"""An image as blobs in the content store: taken there from a registry, and from there into an engine that reaches none.

In: its digest. What it is made of follows from that: the manifest has that digest, and names the digests of the rest.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiln.bundletar import Member
from kiln.canonical import canonical_json
from kiln.console import Console, Meter
from kiln.engine import Engine, image_digest
from kiln.errors import EngineError, ImageDamagedError
from kiln.process import run
from kiln.publish import tried
from kiln.registryclient import HUB, INDEXES, MANIFEST, Repository, digest_of_bytes
from kiln.room import Need, require_room
from kiln.store import Store, disk_full_is_an_error, write_whole

LOAD_SECONDS = 6 * 3600
# What pins may ask for (kiln.pins), in the words of an index.
_PLATFORM = {"os": "linux", "architecture": "amd64"}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Parts:
    """The manifests of an image by digest, its own first (an index, and the platform's in it), and its blobs with their sizes."""

    manifests: Mapping[str, bytes]
    blobs: Mapping[str, int]

    @property
    def digest(self) -> str:
        """The image's."""
        return next(iter(self.manifests))

    @property
    def texts(self) -> tuple[str, ...]:
        """The manifests as an index of a bundle has them."""
        return tuple(data.decode() for data in self.manifests.values())

    def members(self, label: str) -> tuple[Member, ...]:
        """The blobs as members of a bundle."""
        return tuple(
            Member(f"{label}, {digest[7:19]}", digest.removeprefix("sha256:"), size)
            for digest, size in self.blobs.items()
        )


def parts_of(digest: str, manifest: Callable[[str], bytes]) -> Parts:
    """What an image is made of; ``manifest`` gives one by its digest, and what that raises is raised. Raises ImageDamagedError where one is of no image."""
    data = manifest(digest)
    try:
        if digest_of_bytes(data) != digest:
            raise ValueError("it has another digest")
        table = json.loads(data.decode())
        if listed := table.get("manifests"):
            chosen = next(str(one["digest"]) for one in listed if _PLATFORM.items() <= one["platform"].items())
            below = parts_of(chosen, manifest)
            return Parts({digest: data, **below.manifests}, below.blobs)
        blobs = {str(one["digest"]): int(one["size"]) for one in (table["config"], *table["layers"])}
        if not all(map(_DIGEST.fullmatch, blobs)):
            raise ValueError("it names something by no sha256")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, StopIteration, RecursionError) as error:
        raise ImageDamagedError(f"the manifest {digest} is of no image that Kiln knows", why=repr(error)) from error
    return Parts({digest: data}, blobs)


def given(texts: tuple[str, ...]) -> Callable[[str], bytes]:
    """Gives the manifests in ``texts`` by digest; KeyError for another."""
    return {digest_of_bytes(text.encode()): text.encode() for text in texts}.__getitem__


def fetch_parts(repository: Repository, digest: str, store: Store, console: Console) -> Parts:
    """Have everything of an image in the store. Raises RefNotFoundError, HashMismatchError, UpstreamError, ImageDamagedError, DiskFullError."""
    parts = parts_of(digest, lambda one: tried(lambda: repository.manifest(one).data))
    missing = {one: size for one, size in parts.blobs.items() if not store.has(_sha256(one), size)}
    require_room([Need(store.folder, sum(missing.values()), f"the blobs of {repository.place}")])
    meter = Meter(console, "fetched", len(missing), sum(missing.values()))
    for one, size in missing.items():
        with store.scratch() as scratch:
            with disk_full_is_an_error(store.folder):
                tried(lambda one=one, size=size, path=scratch / "blob": repository.download(one, size, path))  # type: ignore[misc]
            store.add(scratch / "blob", sha256=_sha256(one), size=size, label=one, origin=repository.place)
        meter.add(1, size)
    keep_manifests(parts, store)
    return parts


def keep_manifests(parts: Parts, store: Store) -> None:
    """The manifests into the store: last, for who finds them takes it that the rest is there."""
    for data in reversed(list(parts.manifests.values())):
        with store.scratch() as scratch, disk_full_is_an_error(store.folder):
            (scratch / "manifest").write_bytes(data)
            store.add_made(scratch / "manifest")


def held_parts(store: Store, digest: str) -> Parts | None:
    """What the store has of an image, where it has all of it."""
    try:
        parts = parts_of(digest, lambda one: store.path(_sha256(one)).read_bytes())
    except (OSError, ImageDamagedError):
        return None
    return parts if all(store.has(_sha256(one), size) for one, size in parts.blobs.items()) else None


def lay_out(folder: Path, store: Store, images: Mapping[str, Parts], annotation: str) -> None:
    """Make ``folder``, on the store's disk, an OCI layout of these images, each with its key as the value of ``annotation``. Nothing is copied."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for one in {digest for parts in images.values() for digest in (*parts.manifests, *parts.blobs)}:
        os.link(store.path(_sha256(one)), blobs / _sha256(one))
    listed = [_described(parts, {annotation: value}) for value, parts in images.items()]
    write_whole(folder / "oci-layout", '{"imageLayoutVersion":"1.0.0"}')
    (folder / "index.json").write_bytes(canonical_json({"schemaVersion": 2, "manifests": listed}))


def _described(parts: Parts, annotations: dict[str, str]) -> dict[str, Any]:
    data = parts.manifests[parts.digest]
    # OCI leaves it to a manifest whether it says its type.
    kind = json.loads(data).get("mediaType") or (MANIFEST if len(parts.manifests) == 1 else INDEXES[0])
    return {"mediaType": kind, "digest": parts.digest, "size": len(data), "annotations": annotations}


def load(engine: Engine, store: Store, parts: Parts, name: str) -> None:
    """Have an image of the store in the engine, under a name with a tag. The engine compares every blob with its digest.

    Raises EngineError where it does not take it, DiskFullError.
    """
    if image_digest(engine, name) == parts.digest:
        return
    with store.scratch() as scratch:
        # containerd takes a name as it is, and docker looks for it with its host.
        host = name.partition("/")[0]
        full = name if set(host) & set(".:") else f"{HUB}/{name}"
        lay_out(scratch / "layout", store, {full: parts}, "io.containerd.image.name")
        # Straight into the engine: an archive would be tens of gigabytes once more.
        pipe = 'tar -C "$1" -cf - . | docker load --quiet'
        done = run(["sh", "-c", pipe, "sh", scratch / "layout"], env=engine.environment, timeout=LOAD_SECONDS)
    if (found := image_digest(engine, name)) != parts.digest:
        raise EngineError(f"the engine did not take {name}", why=f"{done.tail(3)}\nit has {found}, not {parts.digest}")


def _sha256(digest: str) -> str:
    return digest.removeprefix("sha256:")
