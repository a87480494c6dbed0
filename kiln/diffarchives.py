"""What differs between two archives that are files of an image: times and order of their members, the header of a gzip, or a member itself."""

from __future__ import annotations

import hashlib
import io
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from kiln.diffkinds import Finding, Kind
from kiln.difftext import shown_text

# Looks at a member: its name and both its contents in, what was seen out.
Look = Callable[[str, bytes, bytes], list[Finding]]
# Archives with more members are not listed in memory; members that are larger, or unpack to more, are compared by their checksum alone.
MEMBERS, LIMIT = 50_000, 16 << 20
NAMED = 5


@dataclass
class _Listed:
    """Members of an archive: contents by name, in order, and what is written of each beside its content."""

    order: list[str] = field(default_factory=list)
    content: dict[str, object] = field(default_factory=dict)
    about: dict[str, dict[str, object]] = field(default_factory=dict)

    def add(self, name: str, content: object, **about: object) -> None:
        """The next member; one of a name that was there already gets a number."""
        if len(self.order) >= MEMBERS:
            raise ValueError("too many members")
        number = 1
        key = name
        while key in self.content:
            number += 1
            key = f"{name} ({number})"
        self.order.append(key)
        self.content[key], self.about[key] = content, about


def look_zip(a: bytes, b: bytes, look: Look) -> list[Finding] | None:
    """Of two zips (wheels, jars); None where one is none that can be read."""
    try:
        with zipfile.ZipFile(io.BytesIO(a)) as one, zipfile.ZipFile(io.BytesIO(b)) as other:
            listed, infos = zip(*(_zip(archive) for archive in (one, other)), strict=True)

            def both(name: str) -> tuple[bytes, bytes] | None:
                if max(infos[0][name].file_size, infos[1][name].file_size) > LIMIT:
                    return None
                return one.read(infos[0][name]), other.read(infos[1][name])

            found = _members(listed[0], listed[1], both, look, Kind.ZIP_ORDER)
            times = _differing(listed[0], listed[1], "time")
    except (
        zipfile.BadZipFile,
        ValueError,
        NotImplementedError,
        RuntimeError,
        OSError,
        EOFError,
        zlib.error,
        struct.error,
    ):
        return None
    if times:
        name = times[0]
        clocks = " / ".join("{}-{:02}-{:02} {:02}:{:02}:{:02}".format(*side[name].date_time) for side in infos)
        found.append(Finding(Kind.ZIP_TIME, f"{_count(times)}: {shown_text(name)} {clocks}"))
    return found or [Finding(Kind.CONTENT, "a zip with the same members, compressed or written otherwise")]


def _zip(archive: zipfile.ZipFile) -> tuple[_Listed, dict[str, zipfile.ZipInfo]]:
    listed, infos = _Listed(), {}
    for info in archive.infolist():
        # The extra field 0x5455 is the time once more, in seconds since 1970.
        extra = info.extra if info.extra[:2] == b"UT" else b""
        listed.add(info.filename, (info.CRC, info.file_size), time=(info.date_time, extra), mode=info.external_attr)
        infos[listed.order[-1]] = info
    return listed, infos


def look_tar(a: bytes, b: bytes, look: Look) -> list[Finding] | None:
    """Of two plain tars; None where one is none that can be read."""
    try:
        with (
            tarfile.open(fileobj=io.BytesIO(a), mode="r:") as one,
            tarfile.open(fileobj=io.BytesIO(b), mode="r:") as other,
        ):
            listed, infos = zip(*(_tar(archive) for archive in (one, other)), strict=True)

            def both(name: str) -> tuple[bytes, bytes] | None:
                members = [side[name] for side in infos]
                if not all(member.isreg() and member.size <= LIMIT for member in members):
                    return None
                first, second = (archive.extractfile(m) for archive, m in zip((one, other), members, strict=True))
                return (first.read(), second.read()) if first and second else None

            found = _members(listed[0], listed[1], both, look, Kind.ARCHIVE_MEMBER)
    except (tarfile.TarError, ValueError, OverflowError, EOFError):
        return None
    found += _written(listed[0], listed[1], ("time", "mode", "owner"))
    return found or [Finding(Kind.CONTENT, "a tar with the same members, written otherwise")]


def _tar(archive: tarfile.TarFile) -> tuple[_Listed, dict[str, tarfile.TarInfo]]:
    listed, infos = _Listed(), {}
    for info in archive:
        stream = archive.extractfile(info) if info.isreg() else None
        content = hashlib.file_digest(stream, "sha256").digest() if stream else info.linkname  # type: ignore[arg-type]
        listed.add(
            info.name,
            (info.type, content),
            time=info.mtime,
            mode=info.mode,
            owner=(info.uid, info.gid, info.uname, info.gname),
        )
        infos[listed.order[-1]] = info
    return listed, infos


def look_ar(a: bytes, b: bytes, look: Look) -> list[Finding] | None:
    """Of two ar archives (static libraries, Debian packages); None where one is none that can be read."""
    try:
        one, other = _ar(a), _ar(b)
    except (ValueError, IndexError):
        return None

    def both(name: str) -> tuple[bytes, bytes] | None:
        contents = [side.content[name] for side in (one, other)]
        return tuple(contents) if all(isinstance(part, bytes) for part in contents) else None  # type: ignore[return-value]

    found = _members(one, other, both, look, Kind.LINK_ORDER) + _written(one, other, ("time", "mode", "owner"))
    return found or [Finding(Kind.CONTENT, "an ar archive with the same members, written otherwise")]


def _ar(data: bytes) -> _Listed:
    """The members but for the tables that ar makes of them: names that are too long (//) and symbols (/)."""
    listed, place, names = _Listed(), 8, b""
    while place + 60 <= len(data):
        header = data[place : place + 60]
        if header[58:] != b"`\n":
            raise ValueError("no ar header")
        size = int(header[48:58])
        content = data[place + 60 : place + 60 + size]
        if size < 0 or len(content) != size:
            raise ValueError("a member goes beyond the end")
        raw = header[:16].rstrip()
        if raw == b"//":
            names = content
        elif raw not in (b"/", b"/SYM64/"):
            name = names[int(raw[1:]) :].partition(b"/\n")[0] if raw[:1] == b"/" else raw.rstrip(b"/")
            listed.add(
                name.decode("utf-8", "replace"), content, time=header[16:28], owner=header[28:40], mode=header[40:48]
            )
        place += 60 + size + size % 2
    return listed


@dataclass(frozen=True)
class _Gzip:
    time: int
    name: bytes
    rest: bytes
    body: int


def look_gzip(name: str, a: bytes, b: bytes, look: Look) -> list[Finding] | None:
    """Of two gzips; None where one is none that can be read."""
    try:
        one, other = _gzip(a), _gzip(b)
    except (ValueError, IndexError, struct.error):
        return None
    found = []
    if (one.time, one.name, one.rest) != (other.time, other.name, other.rest):
        seen = f"time {one.time} / {other.time}" if one.time != other.time else ""
        if one.name != other.name:
            names = " / ".join(
                shown_text(part.decode("utf-8", "backslashreplace")) or "none" for part in (one.name, other.name)
            )
            seen += f"{', ' if seen else ''}name {names}"
        if seen:
            found.append(Finding(Kind.GZIP_TIME, seen))
    if a[one.body :] == b[other.body :]:
        return found or [Finding(Kind.CONTENT, "the header of a gzip differs, in neither time nor name")]
    contents = [_gunzip(data) for data in (a, b)]
    if contents[0] is None or contents[1] is None:
        return [*found, Finding(Kind.CONTENT, "a gzip that was not unpacked: it is too large, or damaged")]
    if contents[0] == contents[1]:
        return [*found, Finding(Kind.CONTENT, "a gzip of the same content, compressed otherwise")]
    inner = look(name.removesuffix(".gz").replace(".tgz", ".tar"), contents[0], contents[1])
    return [*found, Finding(Kind.ARCHIVE_MEMBER, "what is packed in it differs"), *inner]


def _gzip(data: bytes) -> _Gzip:
    """The header (RFC 1952): bits 2, 3, 4 and 1 of the flags say that there are a further field, a name, a comment and a checksum."""
    _, flags, time, rest = struct.unpack_from("<3sBI2s", data, 0)
    place, name = 10, b""
    if flags & 4:
        place += 2 + struct.unpack_from("<H", data, place)[0]
    for bit in (8, 16):
        if flags & bit:
            end = data.index(b"\0", place)
            name = data[place:end] if bit == 8 else name
            place = end + 1
    return _Gzip(time, name, rest, place + (2 if flags & 2 else 0))


def _gunzip(data: bytes) -> bytes | None:
    inflate = zlib.decompressobj(31)
    try:
        content = inflate.decompress(data, LIMIT)
    except zlib.error:
        return None
    return content if inflate.eof and not inflate.unused_data else None


def _members(
    one: _Listed, other: _Listed, both: Callable[[str], tuple[bytes, bytes] | None], look: Look, order: Kind
) -> list[Finding]:
    """What the members show: which there are, what is in them, and their order."""
    found: list[Finding] = []
    for side, names in (("first", one.content.keys() - other.content), ("second", other.content.keys() - one.content)):
        if names:
            found.append(Finding(Kind.ARCHIVE_MEMBER, f"only the {side} has {_names(sorted(names))}"))
    differing = sorted(
        name for name in one.content.keys() & other.content.keys() if one.content[name] != other.content[name]
    )
    if differing:
        found.append(Finding(Kind.ARCHIVE_MEMBER, f"{_names(differing)} differ{'s' if len(differing) == 1 else ''}"))
    for name in differing[:NAMED]:
        if contents := both(name):
            found += [Finding(part.kind, f"{shown_text(name)}: {part.detail}") for part in look(name, *contents)]
    # In what both have.
    orders = [[name for name in side.order if name in one.content and name in other.content] for side in (one, other)]
    if orders[0] != orders[1]:
        found.append(Finding(order, f"{len(orders[0])} members in another order"))
    return found


def _differing(one: _Listed, other: _Listed, key: str) -> list[str]:
    return [
        name for name in one.order if name in other.about and one.about[name].get(key) != other.about[name].get(key)
    ]


def _written(one: _Listed, other: _Listed, keys: tuple[str, ...]) -> list[Finding]:
    """What is written of the members beside their contents."""
    counts = Counter({key: len(_differing(one, other, key)) for key in keys})
    return [
        Finding(Kind.ARCHIVE_MEMBER, f"the {key} of {_names(_differing(one, other, key))}")
        for key in keys
        if counts[key]
    ]


def _names(names: list[str]) -> str:
    shown = ", ".join(shown_text(name) for name in names[:NAMED])
    return shown + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _count(names: list[str]) -> str:
    return f"{len(names)} member{'s' if len(names) != 1 else ''}"
