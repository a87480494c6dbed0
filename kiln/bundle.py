"""A bundle: one file with every input of a stack's lock, for a machine without a network. Same lock, same bytes.

It is a tar of plain files, every header of which follows from the index that comes first: what it holds, in order, with sha256 and size. So nothing of a
foreign bundle is believed but its index, and that is compared with the lock of this checkout. Anything else than the very bytes that ``write_bundle``
would have written is refused; nothing is ever unpacked by a name that a bundle gives.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from kiln.canonical import sha256_file
from kiln.console import Console, Meter
from kiln.errors import BundleForeignError, BundleInvalidError, FetchError, SourceError, StoreDamagedError
from kiln.fetch import source_key
from kiln.lockfile import Lock
from kiln.pins import Pins
from kiln.room import Need, require_room
from kiln.store import Store, disk_full_is_an_error
from kiln.workspace import Workspace

SCHEMA = 1
# What a bundle is of. An image with its attestations is to be another.
KIND = "inputs"
INDEX = "index.json"
# A lock of thousands of files has an index of a megabyte; this much is read into memory before anything of it is believed.
INDEX_LIMIT = 1 << 23
CHUNK = 1 << 20
_BLOCK = 512
_END = bytes(2 * _BLOCK)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Member:
    """One file of a bundle: what it is, its sha256 and its size; ``source`` is the component whose source it is, since a lock names a source by its
    tree and not by the bytes of the tar that Kiln makes of it."""

    label: str
    sha256: str
    size: int
    source: str = ""

    @property
    def name(self) -> str:
        """What it is called in the bundle."""
        return f"sha256/{self.sha256}"


@dataclass(frozen=True)
class Index:
    """What a bundle says of itself: the stack, the checksums of its pins and its lock (of what they mean) and of the files that people and Kiln wrote,
    the base images that are not in it, and its members in order."""

    stack: str
    pins_sha256: str
    lock_sha256: str
    files: dict[str, str]
    base_images: tuple[str, ...]
    members: tuple[Member, ...]

    def text(self) -> bytes:
        """The bytes of the index, the same wherever they are made."""
        members = [{"name": member.name, **asdict(member)} for member in self.members]
        data = {"schema": SCHEMA, "kind": KIND, **asdict(self), "members": members}
        return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode("ascii")


@dataclass(frozen=True)
class Bundled:
    """What a bundle was written with, or read into the store: the file's sha256 (empty where it was not asked for), files and bytes in all and new ones."""

    stack: str
    files: int
    size: int
    new_files: int
    new_bytes: int
    base_images: tuple[str, ...]
    sha256: str = ""
    differing: tuple[str, ...] = ()


def make_index(workspace: Workspace, pins: Pins, lock: Lock, store: Store) -> Index:
    """The index of a stack's bundle. Raises SourceError where a source was not fetched."""
    sources: dict[str, tuple[str, int]] = {}
    for git in lock.gits:
        sha256 = store.made(source_key(git))
        if sha256 is None:
            raise SourceError(
                f"the source of {git.label} was not fetched", fix=f"fetch it first: kiln fetch {pins.stack}"
            )
        sources[git.component] = sha256, store.path(sha256).stat().st_size
    return Index(
        pins.stack,
        pins.sha256,
        lock.sha256,
        _files(workspace, pins),
        tuple(image.reference for image in lock.images),
        _members(lock, sources),
    )


def _members(lock: Lock, sources: Mapping[str, tuple[str, int]]) -> tuple[Member, ...]:
    """What a bundle of this lock holds, in its order; ``sources`` are sha256 and size of the sources that there are, by component."""
    files = {entry.sha256: Member(entry.label, entry.sha256, entry.size) for entry in lock.entries()}
    tars = [Member(git.label, *sources[git.component], git.component) for git in lock.gits if git.component in sources]
    return tuple(sorted((*files.values(), *tars), key=lambda member: (member.sha256, member.source)))


def _files(workspace: Workspace, pins: Pins) -> dict[str, str]:
    """The checksums of the files that say what the stack is."""
    paths = [workspace.pins_file(pins.stack), workspace.lock_file(pins.stack)]
    paths += [workspace.image_folder(image) / "image.toml" for image in pins.images]
    return {path.relative_to(workspace.root).as_posix(): sha256_file(path) for path in paths}


def write_bundle(index: Index, store: Store, out: Path, console: Console) -> Bundled:
    """Write a bundle: beside its place, and renamed into it whole. Every file is compared with its sha256 while it is read.

    Raises FetchError where a file is missing, StoreDamagedError where one is not what it is named after, DiskFullError (before anything is written where
    it can be known).
    """
    text = index.text()
    size = sum(_BLOCK + _padded(length) for length in (len(text), *(member.size for member in index.members)))
    require_room([Need(out.parent, size + len(_END), f"the bundle {out.name}")])
    for member in index.members:
        if not store.has(member.sha256, member.size):
            raise FetchError(f"{member.label} is not in the store", fix=f"fetch it first: kiln fetch {index.stack}")
    # One name for all runs: what a killed one left is written over.
    beside = out.with_name(f".{out.name}.part")
    whole = hashlib.sha256()
    meter = Meter(console, "bundled", len(index.members), size)
    try:
        with disk_full_is_an_error(out.parent), beside.open("wb") as stream:

            def put(data: bytes) -> None:
                whole.update(data)
                stream.write(data)

            put(_header(INDEX, len(text)) + text + _padding(len(text)))
            for member in index.members:
                _put_blob(store, member, put)
                meter.add(1, member.size)
            put(_END)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(out)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    total = sum(member.size for member in index.members)
    return Bundled(
        index.stack, len(index.members), total, len(index.members), total, index.base_images, whole.hexdigest()
    )


def _put_blob(store: Store, member: Member, put: Callable[[bytes], None]) -> None:
    found = hashlib.sha256()
    put(_header(member.name, member.size))
    with store.path(member.sha256).open("rb") as blob:
        while data := blob.read(CHUNK):
            found.update(data)
            put(data)
    if found.hexdigest() != member.sha256:
        # Says what is there, and removes it.
        store.check(member.sha256, member.label)
        raise StoreDamagedError(
            f"{member.label} in the content store reads differently each time", fix="check the disk"
        )
    put(_padding(member.size))


def read_index(stream: BinaryIO) -> Index:
    """The index at the beginning of a bundle. Raises BundleInvalidError where there is none, or one of another kind."""
    header = stream.read(_BLOCK)
    try:
        size = int(header[124:135], 8)
    except ValueError:
        size = -1
    if not 0 <= size <= INDEX_LIMIT or header != _header(INDEX, size):
        raise BundleInvalidError("this file is no bundle", why=f"it does not begin with an {INDEX} as kiln writes it")
    text = _exactly(stream, size, INDEX)
    _skip_padding(stream, size, INDEX)
    try:
        data = json.loads(text)
        said = data["schema"], data["kind"]
        if said == (SCHEMA, KIND):
            index = _parsed(data)
            if index.text() == text:
                return index
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise BundleInvalidError(
            "the index of the bundle cannot be read", why=f"{type(error).__name__}: {error}"
        ) from error
    if said == (SCHEMA, KIND):
        raise BundleInvalidError(
            "the index of the bundle is not as kiln writes it", why="a value or its form is another"
        )
    raise BundleInvalidError(
        f"the bundle is of the kind {str(said[1])[:40]!r}, schema {str(said[0])[:40]!r}",
        why=f"This kiln reads bundles of the kind {KIND!r}, schema {SCHEMA}.",
        fix="use the kiln of the checkout that it was made in",
    )


def _parsed(data: dict[str, Any]) -> Index:
    members = tuple(
        Member(str(one["label"]), str(one["sha256"]), int(one["size"]), str(one["source"])) for one in data["members"]
    )
    if not all(_SHA256.fullmatch(member.sha256) and 0 <= member.size < 8**20 for member in members):
        raise ValueError("a member has no sha256, or a size that cannot be")
    files = {str(name): str(sha256) for name, sha256 in data["files"].items()}
    bases = tuple(str(image) for image in data["base_images"])
    return Index(str(data["stack"]), str(data["pins_sha256"]), str(data["lock_sha256"]), files, bases, members)


def require_own(index: Index, lock: Lock) -> None:
    """Raise BundleForeignError where a bundle was made for another lock, BundleInvalidError where it holds more or less than this lock names."""
    if (index.stack, index.pins_sha256, index.lock_sha256) != (lock.stack, lock.pins_sha256, lock.sha256):
        raise BundleForeignError(
            "the bundle was made for another lock",
            why=f"bundle         {index.stack!r}, lock {index.lock_sha256!r}\nthis checkout  {lock.stack!r}, lock {lock.sha256!r}",
        )
    sources = {one.source: (one.sha256, one.size) for one in index.members if one.source}
    expected = _members(lock, sources)
    lines = [f"lacking: the source of {git.label}" for git in lock.gits if git.component not in sources]
    lines += [f"lacking: {one.label}" for one in expected if one not in index.members]
    lines += [f"not in the lock: {one.label!r} ({one.sha256})" for one in index.members if one not in expected]
    if lines or expected != index.members:
        raise BundleInvalidError(
            "the bundle holds something else than its lock names",
            why="\n".join(lines[:10]) or "a file twice, or in another order",
        )


def read_bundle(
    workspace: Workspace, pins: Pins, lock: Lock, index: Index, stream: BinaryIO, store: Store, console: Console
) -> Bundled:
    """Everything after the index into the store; what the store has already is passed over, so that a run that was cut off goes on where it stopped.

    Raises BundleForeignError, BundleInvalidError (cut off, changed, or with something else in it), HashMismatchError where a file's bytes are
    wrong, DiskFullError. What came before that is in the store, and right.
    """
    require_own(index, lock)
    here = _files(workspace, pins)
    if here.keys() != index.files.keys():
        raise _foreign(f"checksums of {', '.join(map(repr, index.files))[:200]}, and not of {', '.join(here)}")
    missing = {one.sha256: one.size for one in index.members if not store.has(one.sha256, one.size)}
    require_room([Need(store.folder, sum(missing.values()), f"{len(missing)} files of the bundle")])
    meter = Meter(console, "unbundled", len(index.members), sum(member.size for member in index.members))
    for member in index.members:
        _require_header(stream, member)
        if store.has(member.sha256, member.size):
            stream.seek(_padded(member.size), os.SEEK_CUR)
        else:
            _store(stream, member, store)
            _skip_padding(stream, member.size, member.label)
        if member.source:
            _note(store, source_key(lock.git_of[member.source]), member)
        meter.add(1, member.size)
    if (end := stream.read(len(_END) + 1)) != _END:
        raise _cut_off("its end") if len(end) < len(_END) else _foreign("something after its last file")
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


def _require_header(stream: BinaryIO, member: Member) -> None:
    header, expected = stream.read(_BLOCK), _header(member.name, member.size)
    if header == expected:
        return
    if len(header) < _BLOCK or not header.strip(b"\0"):
        raise _cut_off(member.label)
    found = header[:100].rstrip(b"\0").decode("ascii", errors="backslashreplace")
    raise _foreign(f"a header of {found!r} where {member.name} ({member.label}) is to come")


def _store(stream: BinaryIO, member: Member, store: Store) -> None:
    with store.scratch() as scratch:
        with disk_full_is_an_error(store.folder), (scratch / "blob").open("wb") as blob:
            left = member.size
            while left:
                data = stream.read(min(CHUNK, left))
                if not data:
                    raise _cut_off(member.label)
                blob.write(data)
                left -= len(data)
        store.add(scratch / "blob", sha256=member.sha256, size=member.size, label=member.label, origin="the bundle")


def _exactly(stream: BinaryIO, size: int, label: str) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise _cut_off(label)
    return data


def _skip_padding(stream: BinaryIO, size: int, label: str) -> None:
    if _exactly(stream, len(_padding(size)), label).strip(b"\0"):
        raise _foreign(f"something between {label} and what comes after it")


def _cut_off(label: str) -> BundleInvalidError:
    return BundleInvalidError("the bundle is cut off", why=f"it ends before {label} is whole")


def _foreign(what: str) -> BundleInvalidError:
    return BundleInvalidError("the bundle holds what no bundle holds", why=what)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _padding(size: int) -> bytes:
    return bytes(_padded(size) - size)


def _header(name: str, size: int) -> bytes:
    """The header of a plain file in a tar (POSIX ustar): mode 0644, no owner, no time. Written here, since what a library writes may change with it."""
    # Sizes from 8 GiB on do not fit into the octal digits; GNU tar and Python write and read them so.
    length = f"{size:011o}\0".encode() if size < 8**11 else b"\x80" + size.to_bytes(11, "big")
    fields = [name.encode("ascii").ljust(100, b"\0"), b"0000644\0", b"0000000\0" * 2, length, b"0" * 11 + b"\0"]
    rest = b"0" + bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2 + bytes(167)
    start = b"".join(fields)
    checksum = sum(start) + 8 * ord(" ") + sum(rest)
    return start + f"{checksum:06o}\0 ".encode() + rest
