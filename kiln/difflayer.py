"""Two versions of a layer, compared member by member: each tar is read as a stream, and of a member a small record is kept.

A second reading of both lays the files whose contents differ into scratch space, as far as it is bounded, for the look inside.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from kiln.console import Console
from kiln.diffinside import LIMIT, Inside, named
from kiln.diffkinds import Finding, Hints, Kind
from kiln.difftext import shown_text
from kiln.ociimage import OciImage
from kiln.ocistream import Tar

# What lies in scratch space at once, of one layer: files that differ beyond it are named and not looked into.
SPOOL_FILES, SPOOL_BYTES = 5000, 1 << 30
SAY_EVERY = 20_000
_TYPES = {
    "0": "file",
    "1": "hard link",
    "2": "symbolic link",
    "3": "character device",
    "4": "block device",
    "5": "folder",
    "6": "fifo",
}
_XATTR = "SCHILY.xattr."
# pax records that say what the header says as well, or times that nothing keeps; the others count as the tar's form.
_KNOWN_PAX = {"path", "linkpath", "size", "uid", "gid", "uname", "gname", "mtime"}

Key = tuple[str, int]
_T = TypeVar("_T")
# Shows two versions of a file, which lie at these paths: for a tool from outside.
Show = Callable[[str, Path, Path], str]


class Member(NamedTuple):
    """What is kept of a member: ``form`` is what of its header changes nothing when it is unpacked."""

    type: str
    mode: int
    owner: tuple[int, int]
    names: tuple[str, str]
    mtime: str
    size: int
    sha256: bytes
    link: str
    xattrs: tuple[tuple[str, str], ...]
    form: tuple[str, ...]


class _Shared:
    """One object for equal values."""

    def __init__(self) -> None:
        self._known: dict[object, Any] = {}

    def __call__(self, value: _T) -> _T:
        found: _T = self._known.setdefault(value, value)
        return found


@dataclass(frozen=True)
class FileDifference:
    """A file that differs: how (added, removed, changed), what was found, and what a tool from outside shows of it (``inside``)."""

    path: str
    change: str
    findings: tuple[Finding, ...]
    inside: str = ""


@dataclass
class Compared:
    """What a comparison of two tars found: what is about the whole tar, and the files, in the order of their names."""

    findings: list[Finding] = field(default_factory=list)
    files: list[FileDifference] = field(default_factory=list)
    kinds: Counter[Kind] = field(default_factory=Counter)
    ignored: Counter[Kind] = field(default_factory=Counter)
    differing: int = 0
    members: int = 0


class LayerPair:
    """A layer of one image and its counterpart in another."""

    def __init__(self, one: tuple[OciImage, int], other: tuple[OciImage, int], scratch: Path, console: Console) -> None:
        self._sides = (one, other)
        self._scratch, self._console = scratch, console

    def read_both(self) -> None:
        """Read both to their ends. Raises ImageDamagedError where one is not what its digests say."""
        for image, index in self._sides:
            with image.open_layer(index):
                pass

    def compare(self, hints: Hints, ignore: frozenset[str], keep: int, show: Show | None, shown: int) -> Compared:
        """Everything that differs. At most ``keep`` files are listed; all are counted. ``show`` is called for ``shown`` files.

        Raises ImageDamagedError where a tar is not whole or not what its digests say.
        """
        first = self._records(0, {})
        second = self._records(1, first)
        found = Compared(members=max(len(first), len(second)))
        pairs = sorted(key for key in first.keys() | second.keys() if _apart(first.get(key), second.get(key)))
        order = _order(first, second)
        if order:
            _count(found, [order], ignore, found.findings)
        looked = self._contents(first, second, pairs)
        inside = Inside(hints, lambda path: (path, 1) in first)
        for key in pairs:
            one, other = first.get(key), second.get(key)
            path = shown_text(key[0]) + (f" (entry {key[1]} of this name)" if key[1] > 1 else "")
            files = looked.get(key)
            findings = list(_findings(key[0], one, other, files, inside))
            kept: list[Finding] = []
            _count(found, findings, ignore, kept)
            if not kept:
                continue
            found.differing += 1
            if len(found.files) < keep:
                text = ""
                if show and files and shown > 0:
                    shown -= 1
                    text = show(path, *files)
                change = "removed" if other is None else "added" if one is None else "changed"
                found.files.append(FileDifference(path, change, tuple(kept), text))
        if not pairs and not order:
            _count(found, [Finding(Kind.TAR_FORM, "no member differs, and the tars do")], ignore, found.findings)
        for one_file, other_file in looked.values():
            one_file.unlink()
            other_file.unlink()
        return found

    def _records(self, side: int, twin: dict[Key, Member]) -> dict[Key, Member]:
        image, index = self._sides[side]
        records: dict[Key, Member] = {}
        shared = _Shared()
        with image.open_layer(index) as tar:
            for number, (key, member) in enumerate(_keyed(tar)):
                digest = hashlib.sha256()
                tar.content(member, digest.update)
                found = _member(member, digest.digest() if member.isreg() else b"", shared)
                # What does not differ is kept once.
                records[key] = twin[key] if twin.get(key) == found else found
                if number and number % SAY_EVERY == 0:
                    self._console.note(f"layer {index + 1} of {image.name}: {number} files read")
        return records

    def _contents(
        self, first: dict[Key, Member], second: dict[Key, Member], pairs: list[Key]
    ) -> dict[Key, tuple[Path, Path]]:
        """Where both versions lie of the files whose contents differ, as far as they are small enough."""
        wanted: dict[Key, int] = {}
        left = SPOOL_BYTES
        for key in pairs:
            one, other = first.get(key), second.get(key)
            if one and other and one.type == other.type and one.sha256 != other.sha256:
                size = one.size + other.size
                if max(one.size, other.size) <= LIMIT and size <= left and len(wanted) < SPOOL_FILES:
                    wanted[key] = len(wanted)
                    left -= size
        if wanted:
            self._console.note(f"looking into {len(wanted)} files")
            for side in (0, 1):
                self._spool(side, wanted)
        return {key: (self._file(0, number), self._file(1, number)) for key, number in wanted.items()}

    def _spool(self, side: int, wanted: dict[Key, int]) -> None:
        image, index = self._sides[side]
        left = len(wanted)
        with image.open_layer(index, check=False) as tar:
            for key, member in _keyed(tar):
                if key in wanted:
                    with self._file(side, wanted[key]).open("wb") as out:
                        tar.content(member, out.write)
                    left -= 1
                if not left:
                    return

    def _file(self, side: int, number: int) -> Path:
        return self._scratch / f"file-{side}-{number}"


def _keyed(tar: Tar) -> Iterator[tuple[Key, tarfile.TarInfo]]:
    """The members by path and, where a tar has a path more than once, its number. No path is ever gone to, so a hostile one is a name like any other."""
    seen: set[str] = set()
    again: Counter[str] = Counter()
    for member in tar.members():
        path = _plain(member.name)
        if path in seen:
            again[path] += 1
        seen.add(path)
        yield (path, again[path] + 1 if path in again else 1), member


def _plain(name: str) -> str:
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name.rstrip("/") or "."


def _member(member: tarfile.TarInfo, sha256: bytes, shared: _Shared) -> Member:
    pax = member.pax_headers
    kind = member.type.decode("ascii", "replace").replace("\0", "0")
    if kind in "34":
        kind += f" {member.devmajor},{member.devminor}"
    form = tuple(f"{key}={pax[key]}" for key in sorted(pax) if key not in _KNOWN_PAX and not key.startswith(_XATTR))
    if member.name.rstrip("/") != _plain(member.name):
        form = (f"name={member.name}", *form)
    xattrs = tuple((key.removeprefix(_XATTR), pax[key]) for key in sorted(pax) if key.startswith(_XATTR))
    # Most members of a layer share these: one object for all.
    return Member(
        shared(kind),
        member.mode,
        shared((member.uid, member.gid)),
        shared((member.uname, member.gname)),
        shared(str(pax.get("mtime", member.mtime))),
        member.size,
        sha256,
        member.linkname,
        xattrs,
        form,
    )


def _apart(one: Member | None, other: Member | None) -> bool:
    return one is None or other is None or one != other


def _order(first: dict[Key, Member], second: dict[Key, Member]) -> Finding | None:
    """Whether what both have stands in another order."""
    mine = [key for key in first if key in second]
    theirs = [key for key in second if key in first]
    if mine == theirs:
        return None
    moved = [key[0] for key, other in zip(mine, theirs, strict=True) if key != other]
    return Finding(
        Kind.ORDER, f"{len(moved)} of {len(mine)} members stand elsewhere, the first is {shown_text(moved[0])}"
    )


def _count(found: Compared, findings: list[Finding], ignore: frozenset[str], kept: list[Finding]) -> None:
    """Count each kind once for a file, and keep the findings that are not ignored."""
    for kind in {one.kind for one in findings}:
        (found.ignored if kind in ignore else found.kinds)[kind] += 1
    kept += [one for one in findings if one.kind not in ignore]


def _findings(
    path: str, one: Member | None, other: Member | None, files: tuple[Path, Path] | None, inside: Inside
) -> Iterator[Finding]:
    """Everything that differs of a file; ``files`` are both its contents, where they differ and are at hand."""
    if one is None or other is None:
        there = one or other
        assert there is not None
        yield Finding(Kind.REMOVED if one else Kind.ADDED, _described(there))
        if there.type == "0" and path.rpartition("/")[2] == "uv_cache.json" and named(path):
            yield Finding(Kind.UV_CACHE, f"only the {'first' if one else 'second'} image has it")
        return
    yield from _mode(one, other)
    for kind, seen in _headers(one, other):
        yield Finding(kind, shown_text(seen)[:200])
    if one.type == other.type and one.sha256 != other.sha256:
        if files:
            yield from inside.look(path, files[0].read_bytes(), files[1].read_bytes())
        else:
            why = "too large" if max(one.size, other.size) > LIMIT else "too many files differ"
            yield Finding(Kind.CONTENT, f"{one.size} / {other.size} bytes, not looked into: {why}")


def _headers(one: Member, other: Member) -> Iterator[tuple[Kind, str]]:
    """What differs in the headers, but for the mode."""
    pairs = (
        (Kind.TYPE, _type(one), _type(other)),
        (Kind.OWNER, "{}:{}".format(*one.owner), "{}:{}".format(*other.owner)),
        (Kind.OWNER, "names {}:{}".format(*one.names), "{}:{}".format(*other.names)),
        (Kind.MTIME, one.mtime, other.mtime),
        (Kind.LINK, one.link or "none", other.link or "none"),
        (Kind.XATTR, _listed(one.xattrs, other.xattrs), _listed(other.xattrs, one.xattrs)),
        (Kind.TAR_FORM, "; ".join(one.form), "; ".join(other.form)),
    )
    for kind, mine, theirs in pairs:
        if mine.removeprefix("names ") != theirs:
            yield kind, f"{mine} / {theirs}"
    if one.size != other.size and one.type == other.type and one.sha256 == other.sha256:
        yield Kind.TAR_FORM, f"the size in the header: {one.size} / {other.size}"


def _listed(mine: tuple[tuple[str, str], ...], theirs: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(f"{key}={value}" for key, value in mine if (key, value) not in theirs) or "none"


def _mode(one: Member, other: Member) -> Iterator[Finding]:
    bits = one.mode ^ other.mode
    if one.type == other.type == "5" and bits & 0o2000:
        yield Finding(Kind.SETGID, f"{one.mode:04o} / {other.mode:04o}")
        bits &= ~0o2000
    if bits:
        # A umask takes bits away from one side; it never gives one and takes another.
        taken = (one.mode & bits, other.mode & bits)
        umask = not bits & ~0o077 and 0 in taken
        yield Finding(
            Kind.MODE,
            f"{one.mode:04o} / {other.mode:04o}" + (f": only bits that a umask takes ({bits:03o})" if umask else ""),
        )


def _type(member: Member) -> str:
    return _TYPES.get(member.type[:1], f"type {member.type}") + member.type[1:]


def _described(member: Member) -> str:
    return f"{_type(member)}, {member.size} bytes" if member.type == "0" else _type(member)
