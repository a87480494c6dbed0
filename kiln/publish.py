"""Publishing: from images in the engine with their reports to a registry, signed and attested; tags move last, and all or none.

In the registry nothing has a name until everything about it is there and was read back: manifests go up by digest, then signature and attestations, which
cosign verifies again, then the tag that never moves, then the record, then the tags that do. Whatever ends it before, the next run goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from kiln.attest import PROVENANCE, REPORT, SBOM, compare, provenance, released, text_of
from kiln.config import Config
from kiln.console import Console, Meter, megabytes
from kiln.cosign import Cosign, Signer, Trusted
from kiln.engine import Engine
from kiln.errors import (
    AccessDeniedError,
    AttestationError,
    NotReleasableError,
    ReleaseRecordError,
    SignatureError,
    TagTakenError,
    UpstreamError,
)
from kiln.layers import manifest_text
from kiln.lockfile import Lock
from kiln.ociimage import OciImage, Reader
from kiln.ocistream import Hashed
from kiln.pins import Pins
from kiln.publishlock import publishing
from kiln.records import Built
from kiln.registryclient import Manifest, Repository
from kiln.releases import Release, read_releases, record
from kiln.render import Rendered
from kiln.store import Store, disk_full_is_an_error, write_whole
from kiln.workspace import Workspace

TRIES, WAIT_SECONDS = 4, 2.0
BLOCK = 1 << 20
T = TypeVar("T")


@dataclass(frozen=True)
class Candidate:
    """An image that may be published, with the report that speaks for it."""

    rendered: Rendered
    built: Built
    report: Mapping[str, Any]


@dataclass(frozen=True)
class Published:
    """What came of it: the entry of the record, and which moving tags point to it now (those that did before among them)."""

    release: Release
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Publisher:
    """Everything that publishing needs beside what is published."""

    workspace: Workspace
    store: Store
    engine: Engine
    config: Config
    console: Console
    cosign: Cosign
    signer: Signer
    trusted: Trusted

    def publish(
        self,
        pins: Pins,
        lock: Lock,
        candidates: Sequence[Candidate],
        to: str,
        tags: Sequence[str] = (),
        *,
        backwards: bool = False,
        take_over: bool = False,
    ) -> list[Published]:
        """Publish images of one stack to ``to``/<image>, and let ``tags`` point to them.

        Raises TagTakenError, BeingPublishedError, NotReleasableError (nothing was sent), SignatureError, AttestationError, UpstreamError,
        AccessDeniedError, DiskFullError.
        """
        places = [Repository(f"{to}/{one.rendered.image.name}") for one in candidates]
        # One lock for the whole stack: its images belong together.
        with publishing(places[-1], take_over=take_over):
            for one, repository in zip(candidates, places, strict=True):
                self._require_free(repository, version_tag(pins, one.rendered), one.built.digest)
            moves = [
                (repository, name, one.built.digest, self._now(repository, name, one, pins.stack, backwards=backwards))
                for one, repository in zip(candidates, places, strict=True)
                for name in tags
            ]
            done = []
            for one, repository in zip(candidates, places, strict=True):
                self.console.step(
                    f"publishing {one.rendered.image.name} {one.built.digest[:19]}… to {repository.place}"
                )
                tag = version_tag(pins, one.rendered)
                self._push(repository, one)
                date = datetime.now(UTC).isoformat(timespec="seconds")
                release = released(one.rendered, pins, lock, one.built, one.report, repository.place, tag, date)
                self._sign(one, release, provenance(pins, lock, one.rendered, one.built, self.engine))
                tried(lambda repository=repository, tag=tag, one=one: point(repository, tag, one.built.digest))  # type: ignore[misc]
                record(self.workspace, pins.stack, release)
                done.append(Published(release, tuple(tags)))
            self._move(moves)
        return done

    def _require_free(self, repository: Repository, tag: str, digest: str) -> None:
        there = tried(lambda: repository.digest_of(tag))
        if there not in (None, digest):
            raise TagTakenError(
                f"{repository.place}:{tag} is another image already",
                why=f"there {there}\nhere  {digest}\nThe tag is named after the build key, so the build is not reproducible, or somebody else wrote it.",
                fix=f"compare the two: kiln diff {repository.place}@{there} {digest}",
            )

    def _now(self, repository: Repository, tag: str, one: Candidate, stack: str, *, backwards: bool) -> str | None:
        """What a moving tag points to. Raises NotReleasableError where that is newer than what is published now."""
        there = tried(lambda: repository.digest_of(tag))
        order = [
            release.digest for release in read_releases(self.workspace, stack) if release.repository == repository.place
        ]
        digest = one.built.digest
        if there in (None, digest) or backwards:
            return there
        if there not in order:
            raise NotReleasableError(
                f"{repository.place}:{tag} points to an image that this project did not publish",
                why=f"It is {there}, which the record of releases does not have: it may be newer.",
                fix="bring releases/ up to date (git pull); or say that it may be replaced: --backwards",
            )
        if digest in order and order.index(digest) < order.index(there):
            raise NotReleasableError(
                f"{repository.place}:{tag} points to a later release",
                why=f"now    {there}\nwanted {digest}",
                fix="a moving tag moves forwards; to go back all the same: --backwards",
            )
        return there

    def _push(self, repository: Repository, one: Candidate) -> None:
        """The image's blobs and its manifest, by digest; then the manifest as the registry gives it back, and that every blob is there."""
        data = manifest_text(self.engine, one.built.reference, one.built.digest)
        manifest = Manifest(data, media_type(data))
        blobs = {entry["digest"]: int(entry["size"]) for entry in (manifest.table["config"], *manifest.table["layers"])}
        missing = [digest for digest in blobs if not tried(lambda digest=digest: repository.has_blob(digest))]  # type: ignore[misc]
        if missing:
            size = sum(blobs[digest] for digest in missing)
            self.console.note(f"{len(missing)} of {len(blobs)} blobs to send, {megabytes(size)}")
            meter = Meter(self.console, "sent", len(missing), size)
            with self.store.scratch() as scratch:
                reader = Reader(scratch, lambda: self.engine, lambda: self.config, self.console)
                (image,) = reader.read(one.built.reference)
                for digest in missing:
                    blob = _unpacked(image, digest, scratch / "blob")
                    tried(lambda blob=blob: repository.upload(blob))  # type: ignore[misc]
                    meter.add(1, blobs[digest])
        tried(lambda: repository.put_manifest(manifest.digest, manifest))
        back = tried(lambda: repository.manifest(one.built.digest))
        gone = [digest for digest in blobs if not tried(lambda digest=digest: repository.has_blob(digest))]  # type: ignore[misc]
        if back.data != data or gone:
            raise UpstreamError(
                f"{repository.place} does not have what was sent there",
                why="\n".join(gone) or "the manifest is another",
            )

    def _sign(self, one: Candidate, release: Release, made: Mapping[str, Any]) -> None:
        """Signature and attestations, and what cosign says of them afterwards. What is there already stays."""
        place = release.place
        if self._signed(one, release):
            self.console.note("signed and attested already")
            return
        self.cosign.sign(place, self.signer)
        with self.store.scratch() as scratch:
            for kind, text in (
                (SBOM, one.rendered.sbom),
                (PROVENANCE, text_of(made)),
                (REPORT, text_of(one.report)),
            ):
                write_whole(scratch / "predicate.json", text)
                self.cosign.attest(place, self.signer, kind, scratch / "predicate.json")
        looked_at(self.cosign, self.trusted, place, dict(one.rendered.labels), release)
        self.console.note("signed; SBOM, provenance and report are attested; cosign verified all four")

    def _signed(self, one: Candidate, release: Release) -> bool:
        try:
            looked_at(self.cosign, self.trusted, release.place, dict(one.rendered.labels), release)
        except (SignatureError, AttestationError, ReleaseRecordError):
            return False
        return True

    def _move(self, moves: Sequence[tuple[Repository, str, str, str | None]]) -> None:
        """Move every tag, or none: where one cannot be moved, those that were go back."""
        moved: list[tuple[Repository, str, str | None]] = []
        try:
            for repository, tag, digest, before in moves:
                if before != digest:
                    if before:
                        # What a tag leaves must not be swept up with what has no name.
                        tried(lambda r=repository, t=tag, b=before: point(r, f"was-{t}-{b[7:19]}", b))  # type: ignore[misc]
                    moved.append((repository, tag, before))
                    tried(lambda r=repository, t=tag, d=digest: point(r, t, d))  # type: ignore[misc]
                    self.console.note(f"{repository.place}:{tag} points to it now")
        except BaseException:
            for repository, tag, before in reversed(moved):
                self._back(repository, tag, before)
            raise

    def _back(self, repository: Repository, tag: str, before: str | None) -> None:
        try:
            if before:
                tried(lambda: point(repository, tag, before))
            elif not tried(lambda: repository.remove(tag)):
                self.console.warn(
                    f"{repository.place}:{tag} is new and could not be taken back: this registry removes nothing"
                )
        except UpstreamError as error:
            self.console.warn(f"{repository.place}:{tag} could not be taken back to {before}\n{error.why}")


def require_releasable(one: Candidate, required: Sequence[str], tags: Sequence[str], pins: Pins) -> None:
    """Raise NotReleasableError where a report speaks against an image, or does not have what moving tags stand for: every one of ``required`` passed."""
    statuses = {check["id"]: check["status"] for check in one.report["checks"]}
    bad = [f"{name}: {status}" for name, status in statuses.items() if status in ("fail", "error")]
    if bad:
        raise NotReleasableError(
            f"{one.rendered.image.name} did not pass its verification",
            why="\n".join(bad),
            fix="it must not be published",
        )
    lacking = [
        f"{name}: {statuses.get(name, 'not in the report')}" for name in required if statuses.get(name) != "pass"
    ]
    if tags and lacking:
        raise NotReleasableError(
            f"{one.rendered.image.name} did not pass what {', '.join(tags)} stands for",
            why="\n".join(lacking),
            fix="verify this digest on a machine that can run all checks, and give its report: --report FILE",
        )
    if tags and (pins.overrides or pins.allowed):
        chosen = [*(f"{name}={ref}" for name, ref in pins.overrides), *pins.allowed]
        raise NotReleasableError(
            f"{', '.join(tags)} stands for what the pins say, and this was built from a choice beside them",
            why=", ".join(chosen),
            fix="publish it without a moving tag, or write the choice into the pins",
        )


def require_cells(one: Candidate, cells: Sequence[str]) -> None:
    """Raise NotReleasableError where the report of an image, a merged one, does not say that each of these cells was asked for and passed."""
    there: Mapping[str, Mapping[str, Any]] = one.report.get("cells", {})
    lacking = []
    for name in cells:
        cell = there.get(name, {"status": "not in the report", "required": True})
        if cell["status"] != "pass" or not cell["required"]:
            said = cell["status"] if cell["required"] else f"{cell['status']}, in a merge that did not ask for it"
            lacking.append(f"{name}: {said}")
    if lacking:
        raise NotReleasableError(
            f"{len(lacking)} of {len(cells)} cells did not report that {one.rendered.image.name} passed",
            why="\n".join([f"the digest is {one.built.digest}", *lacking]),
            fix="verify this digest in each of them, and give what comes of: kiln report merge FILE... --matrix FILE --out FILE",
        )


def version_tag(pins: Pins, rendered: Rendered) -> str:
    """The tag that never moves: the version of what the stack is about (AITER; else vLLM), and the build key."""
    versions = {name: item.ref for name, item in pins.by_name.items() if item.ref}
    versions |= {unit.name: unit.version for unit in rendered.units if unit.name not in versions}
    lead = next((versions[name] for name in ("aiter", "vllm") if name in versions), pins.stack)
    kept = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in lead)
    return f"{'v' if kept[0].isdigit() else ''}{kept}-{rendered.key[:16]}"


def looked_at(
    cosign: Cosign, trusted: Trusted, place: str, labels: Mapping[str, str], release: Release | None
) -> dict[str, Any]:
    """What is signed beside an image and fits it, verified by cosign (``attest.compare`` says what that is).

    Raises SignatureError, AttestationError, ReleaseRecordError, UpstreamError.
    """
    cosign.verify(place, trusted)
    sbom, made, report = (cosign.attested(place, trusted, kind)[-1] for kind in (SBOM, PROVENANCE, REPORT))
    return compare(place, place.rpartition("@")[2], sbom, made, report, labels, release)


def point(repository: Repository, tag: str, digest: str) -> None:
    """Let a tag point to a manifest that the registry has."""
    if repository.digest_of(tag) != digest:
        repository.put_manifest(tag, repository.manifest(digest))


def media_type(manifest: bytes) -> str:
    """The type that a manifest says it is of."""
    return str(Manifest(manifest, "").table["mediaType"])


def _unpacked(image: OciImage, digest: str, path: Path) -> Path:
    """A blob of a saved image as a file, compared with its digest."""
    with (
        disk_full_is_an_error(path.parent),
        path.open("wb") as target,
        image.blobs.open(f"blobs/sha256/{digest.removeprefix('sha256:')}") as stream,
    ):
        hashed = Hashed(stream, digest, f"a blob of {image.name}")
        while block := hashed.read(BLOCK):
            target.write(block)
        hashed.check()
    return path


def tried(ask: Callable[[], T]) -> T:
    """What was asked for, asked again where the registry failed: a few times, with a pause that grows. A refusal is not asked again."""
    for attempt in range(TRIES - 1):
        try:
            return ask()
        except AccessDeniedError:
            raise
        except UpstreamError:
            time.sleep(WAIT_SECONDS * 2**attempt)
    return ask()
