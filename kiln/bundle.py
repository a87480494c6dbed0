"""A bundle of inputs: one file with every input of a stack's lock, for a machine without a network. Same lock, same bytes (form: ``kiln.bundletar``).

What its index says is compared with the lock of this checkout before anything is stored: the manifests of the base image stand in it, and the lock has their digest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from kiln.bundletar import Bundled, Member, foreign, read_members, text_of
from kiln.canonical import sha256_file
from kiln.console import Console
from kiln.errors import BundleForeignError, BundleInvalidError, FetchError, ImageDamagedError, SourceError
from kiln.fetch import source_key
from kiln.imageparts import Parts, given, held_parts, keep_manifests, parts_of
from kiln.lockfile import Lock
from kiln.pins import Pins
from kiln.store import Store
from kiln.workspace import Workspace

KIND = "inputs"


@dataclass(frozen=True)
class Index:
    """What a bundle says of itself: the stack, the checksums of its pins and its lock (of what they mean) and of the files that people and Kiln wrote,
    the base images with their manifests, and its members in order."""

    stack: str
    pins_sha256: str
    lock_sha256: str
    files: dict[str, str]
    base_images: tuple[str, ...]
    manifests: tuple[str, ...]
    members: tuple[Member, ...]

    def text(self) -> bytes:
        """The bytes of the index, the same wherever they are made."""
        return text_of(KIND, self)


def make_index(workspace: Workspace, pins: Pins, lock: Lock, store: Store) -> Index:
    """The index of a stack's bundle. Raises SourceError, FetchError where a source or a base image was not fetched."""
    sources: dict[str, tuple[str, int]] = {}
    for git in lock.gits:
        sha256 = store.made(source_key(git))
        if sha256 is None:
            raise SourceError(
                f"the source of {git.label} was not fetched", fix=f"fetch it first: kiln fetch {pins.stack}"
            )
        sources[git.component] = sha256, store.path(sha256).stat().st_size
    bases = [held_parts(store, image.digest) for image in lock.images]
    if None in bases:
        raise FetchError(
            "the base image was not fetched", fix=f"fetch it and write the bundle: kiln bundle {pins.stack}"
        )
    there = [parts for parts in bases if parts]
    return Index(
        pins.stack,
        pins.sha256,
        lock.sha256,
        _files(workspace, pins),
        tuple(image.reference for image in lock.images),
        tuple(text for parts in there for text in parts.texts),
        _members(lock, sources, there),
    )


def _members(lock: Lock, sources: Mapping[str, tuple[str, int]], bases: Sequence[Parts]) -> tuple[Member, ...]:
    """What a bundle of this lock holds, in its order; ``sources`` are sha256 and size of the sources that there are, by component; ``bases`` the base images."""
    files = {entry.sha256: Member(entry.label, entry.sha256, entry.size) for entry in lock.entries()}
    files |= {one.sha256: one for parts in bases for one in parts.members("base image")}
    tars = [Member(git.label, *sources[git.component], git.component) for git in lock.gits if git.component in sources]
    return tuple(sorted((*files.values(), *tars), key=lambda member: (member.sha256, member.source)))


def _files(workspace: Workspace, pins: Pins) -> dict[str, str]:
    """The checksums of the files that say what the stack is."""
    paths = [workspace.pins_file(pins.stack), workspace.lock_file(pins.stack)]
    paths += [workspace.image_folder(image) / "image.toml" for image in pins.images]
    return {path.relative_to(workspace.root).as_posix(): sha256_file(path) for path in paths}


def parsed(data: dict[str, Any], members: tuple[Member, ...]) -> Index:
    """An index of what was read; what it raises means that it is none (``bundletar.read_head``)."""
    files = {str(name): str(sha256) for name, sha256 in data["files"].items()}
    bases, manifests = tuple(map(str, data["base_images"])), tuple(map(str, data["manifests"]))
    "".join(manifests).encode()
    return Index(
        str(data["stack"]), str(data["pins_sha256"]), str(data["lock_sha256"]), files, bases, manifests, members
    )


def require_own(index: Index, lock: Lock) -> list[Parts]:
    """The base images as the bundle has them. Raise BundleForeignError where a bundle was made for another lock, BundleInvalidError where it holds more or less than this lock names."""
    if (index.stack, index.pins_sha256, index.lock_sha256) != (lock.stack, lock.pins_sha256, lock.sha256):
        raise BundleForeignError(
            "the bundle was made for another lock",
            why=f"bundle         {index.stack!r}, lock {index.lock_sha256!r}\nthis checkout  {lock.stack!r}, lock {lock.sha256!r}",
        )
    sources = {one.source: (one.sha256, one.size) for one in index.members if one.source}
    try:
        bases = [parts_of(image.digest, given(index.manifests)) for image in lock.images]
    except (KeyError, ImageDamagedError) as error:
        raise BundleInvalidError(
            "the bundle holds no base image as its lock names it", why=f"the manifest: {error}"
        ) from error
    if tuple(text for parts in bases for text in parts.texts) != index.manifests:
        raise BundleInvalidError(
            "the bundle holds something else than its lock names", why="a manifest of no base image"
        )
    expected = _members(lock, sources, bases)
    lines = [f"lacking: the source of {git.label}" for git in lock.gits if git.component not in sources]
    lines += [f"lacking: {one.label}" for one in expected if one not in index.members]
    lines += [f"not in the lock: {one.label!r} ({one.sha256})" for one in index.members if one not in expected]
    if lines or expected != index.members:
        raise BundleInvalidError(
            "the bundle holds something else than its lock names",
            why="\n".join(lines[:10]) or "a file twice, or in another order",
        )
    return bases


def read_bundle(
    workspace: Workspace, pins: Pins, lock: Lock, index: Index, stream: BinaryIO, store: Store, console: Console
) -> Bundled:
    """Everything after the index into the store; what the store has already is passed over, so that a run that was cut off goes on where it stopped.

    Raises BundleForeignError, BundleInvalidError (cut off, changed, or with something else in it), HashMismatchError where a file's bytes are
    wrong, DiskFullError. What came before that is in the store, and right.
    """
    bases = require_own(index, lock)
    here = _files(workspace, pins)
    if here.keys() != index.files.keys():
        raise foreign(f"checksums of {', '.join(map(repr, index.files))[:200]}, and not of {', '.join(here)}")

    def note(member: Member) -> None:
        if member.source:
            _note(store, source_key(lock.git_of[member.source]), member)

    missing = read_members(index, stream, store, console, note)
    for parts in bases:
        keep_manifests(parts, store)
    differing = tuple(name for name in here if here[name] != index.files[name])
    return Bundled(
        index.stack,
        len(index.members),
        sum(member.size for member in index.members),
        len(missing),
        sum(missing.values()),
        tuple(image.reference for image in lock.images),
        differing=differing,
    )


def _note(store: Store, key: str, member: Member) -> None:
    """Note what a source is. Its tar has the same bytes wherever it is made: one that was made here is believed, and not the bundle's."""
    known = store.made(key)
    if known not in (None, member.sha256):
        raise BundleInvalidError(
            f"the source of {member.label} in the bundle is not the one that was fetched here",
            why=f"here    {known}\nbundle  {member.sha256}",
            fix="nothing was replaced. Find out which of the two is wrong",
        )
    store.remember(key, member.sha256)
