"""The form of a bundle: a tar of plain files, every header of which follows from the index that comes first.

So nothing of a foreign bundle is believed but its index. Anything else than the very bytes that ``write_bundle`` would have written is refused; nothing is ever
unpacked by a name that a bundle gives.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

from kiln.console import Console, Meter
from kiln.errors import BundleInvalidError, FetchError, StoreDamagedError
from kiln.room import Need, require_room
from kiln.store import Store, disk_full_is_an_error

SCHEMA = 2
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


class Written(Protocol):
    """An index of any kind."""

    @property
    def stack(self) -> str:
        """The stack that the bundle is of."""

    @property
    def base_images(self) -> tuple[str, ...]:
        """The base images that it holds."""

    @property
    def members(self) -> tuple[Member, ...]:
        """What comes after the index, in order."""

    def text(self) -> bytes:
        """The bytes of the index, the same wherever they are made."""


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


def write_bundle(index: Written, store: Store, out: Path, console: Console) -> Bundled:
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

            put(header_of(INDEX, len(text)) + text + _padding(len(text)))
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
    put(header_of(member.name, member.size))
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


T = TypeVar("T", bound=Written)


def text_of(kind: str, index: Written) -> bytes:
    """The bytes of an index of some kind: its fields, and of each member the name too."""
    listed = [{"name": member.name, **vars(member)} for member in index.members]
    data = {"schema": SCHEMA, "kind": kind, **vars(index), "members": listed}
    return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode("ascii")


def read_head(stream: BinaryIO, kinds: dict[str, Callable[[dict[str, Any], tuple[Member, ...]], T]]) -> T:
    """The index at the beginning of a bundle, as the entry of ``kinds`` for its kind makes one of it. Raises BundleInvalidError where there is none of these."""
    header = stream.read(_BLOCK)
    try:
        size = int(header[124:135], 8)
    except ValueError:
        size = -1
    if not 0 <= size <= INDEX_LIMIT or header != header_of(INDEX, size):
        raise BundleInvalidError("this file is no bundle", why=f"it does not begin with an {INDEX} as kiln writes it")
    text = _exactly(stream, size, INDEX)
    _skip_padding(stream, size, INDEX)
    try:
        data = json.loads(text)
        schema, kind = data["schema"], data["kind"]
        if known := schema == SCHEMA and kind in kinds:
            index = kinds[kind](data, _members(data["members"]))
            if index.text() == text:
                return index
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise BundleInvalidError(
            "the index of the bundle cannot be read", why=f"{type(error).__name__}: {error}"
        ) from error
    if known:
        raise BundleInvalidError(
            "the index of the bundle is not as kiln writes it", why="a value or its form is another"
        )
    raise BundleInvalidError(
        f"the bundle is of the kind {str(kind)[:40]!r}, schema {str(schema)[:40]!r}",
        why=f"This kiln reads bundles of the kind {' or '.join(map(repr, kinds))}, schema {SCHEMA}.",
        fix="use the kiln of the checkout that it was made in",
    )


def _members(listed: list[dict[str, Any]]) -> tuple[Member, ...]:
    members = tuple(
        Member(str(one["label"]), str(one["sha256"]), int(one["size"]), str(one["source"])) for one in listed
    )
    if not all(_SHA256.fullmatch(member.sha256) and 0 <= member.size < 8**20 for member in members):
        raise ValueError("a member has no sha256, or a size that cannot be")
    return members


def read_members(
    index: Written, stream: BinaryIO, store: Store, console: Console, note: Callable[[Member], object] = lambda _: None
) -> dict[str, int]:
    """Everything after the index into the store; what the store has already is passed over. ``note`` hears of every member that is there.

    Returns the sizes of what was not there before, by sha256. Raises BundleInvalidError, HashMismatchError, DiskFullError; what came before is in the store, and right.
    """
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
        note(member)
        meter.add(1, member.size)
    if (end := stream.read(len(_END) + 1)) != _END:
        raise _cut_off("its end") if len(end) < len(_END) else foreign("something after its last file")
    return missing


def _require_header(stream: BinaryIO, member: Member) -> None:
    header, expected = stream.read(_BLOCK), header_of(member.name, member.size)
    if header == expected:
        return
    if len(header) < _BLOCK or not header.strip(b"\0"):
        raise _cut_off(member.label)
    found = header[:100].rstrip(b"\0").decode("ascii", errors="backslashreplace")
    raise foreign(f"a header of {found!r} where {member.name} ({member.label}) is to come")


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
        raise foreign(f"something between {label} and what comes after it")


def _cut_off(label: str) -> BundleInvalidError:
    return BundleInvalidError("the bundle is cut off", why=f"it ends before {label} is whole")


def foreign(what: str) -> BundleInvalidError:
    """The error for what no bundle holds."""
    return BundleInvalidError("the bundle holds what no bundle holds", why=what)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _padding(size: int) -> bytes:
    return bytes(_padded(size) - size)


def header_of(name: str, size: int) -> bytes:
    """The header of a plain file in a tar (POSIX ustar): mode 0644, no owner, no time. Written here, since what a library writes may change with it."""
    # Sizes from 8 GiB on do not fit into the octal digits; GNU tar and Python write and read them so.
    length = f"{size:011o}\0".encode() if size < 8**11 else b"\x80" + size.to_bytes(11, "big")
    fields = [name.encode("ascii").ljust(100, b"\0"), b"0000644\0", b"0000000\0" * 2, length, b"0" * 11 + b"\0"]
    rest = b"0" + bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2 + bytes(167)
    start = b"".join(fields)
    checksum = sum(start) + 8 * ord(" ") + sum(rest)
    return start + f"{checksum:06o}\0 ".encode() + rest
