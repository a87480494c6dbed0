"""A look inside two versions of one file: which kinds of difference they show. In: both contents; out: findings, never none."""

from __future__ import annotations

import struct
from collections.abc import Callable

from kiln import diffarchives, diffelf
from kiln.diffkinds import Finding, Hints, Kind
from kiln.difftext import changed_lines, orders, text, tokens, window

# Files that are larger are not looked into: both versions and what is made of them lie in memory.
LIMIT = 16 << 20
# A wheel in a tar in a gzip is looked into, and nothing deeper.
DEPTH = 3
_PYC_HEADER = 16


class Inside:
    """Looks into files. ``exists`` says which paths the layer has, for lists of files."""

    def __init__(self, hints: Hints, exists: Callable[[str], bool] = lambda _: False) -> None:
        self._hints, self._exists = hints, exists

    def look(self, path: str, a: bytes, b: bytes) -> list[Finding]:
        """What differs between two contents that are not the same, sorted by kind; ``content`` where nothing could be told."""
        return sorted(set(self._look(path, a, b, DEPTH)))

    def _look(self, path: str, a: bytes, b: bytes, depth: int) -> list[Finding]:
        def deeper(name: str, one: bytes, other: bytes) -> list[Finding]:
            return self._look(name, one, other, depth - 1) if depth else []

        found: list[Finding] | None = None
        if by_name := named(path):
            found = by_name(a, b)
        elif a[:4] == b[:4] == b"PK\x03\x04":
            found = diffarchives.look_zip(a, b, deeper)
        elif a[:3] == b[:3] == b"\x1f\x8b\x08":
            found = diffarchives.look_gzip(path, a, b, deeper)
        elif a[257:262] == b[257:262] == b"ustar":
            found = diffarchives.look_tar(a, b, deeper)
        elif a[:8] == b[:8] == b"!<arch>\n":
            found = diffarchives.look_ar(a, b, deeper)
        elif a[:4] == b[:4] == b"\x7fELF":
            found = diffelf.look(a, b, self._hints)
        if found is None:
            return self._plain(path, a, b)
        if found and found[0].kind in (Kind.PYC, Kind.RECORD):
            # What the name says is where to look; what is in it may be told more closely.
            more = (
                self._plain(path, a[_PYC_HEADER:], b[_PYC_HEADER:]) if found[0].kind == Kind.PYC else self._order(a, b)
            )
            found += [one for one in more if one.kind != Kind.CONTENT]
        return found

    def _order(self, a: bytes, b: bytes) -> list[Finding]:
        order = orders(a, b, self._exists)
        return [order] if order else []

    def _plain(self, path: str, a: bytes, b: bytes) -> list[Finding]:
        """Of text, and of bytes that nothing is known of."""
        if a == b:
            return []
        binary = b"\0" in a[:8192] or b"\0" in b[:8192]
        if path.rpartition("/")[2] == "hostname" and path.removeprefix("/") == "etc/hostname" and not binary:
            return [Finding(Kind.HOST_NAME, f"{text(a.strip())} / {text(b.strip())}")]
        found = tokens(*window(a, b, b"\0" if binary else b"\n"), self._hints)
        if found:
            return found
        if not binary and (order := self._order(a, b)):
            return order
        if binary:
            return [Finding(Kind.CONTENT, f"{len(a)} / {len(b)} bytes, the first that differs at {_first(a, b)}")]
        return [Finding(Kind.CONTENT, changed_lines(*window(a, b)) or "white space or line ends")]


def named(path: str) -> Callable[[bytes, bytes], list[Finding] | None] | None:
    """What looks into a file whose name says what it is."""
    folder, _, name = path.rpartition("/")
    if name.endswith(".pyc"):
        return _pyc
    if folder.endswith(".dist-info"):
        return {"RECORD": _record, "uv_cache.json": _uv_cache}.get(name)
    return None


def _record(a: bytes, b: bytes) -> list[Finding]:
    return [Finding(Kind.RECORD, changed_lines(a, b) or "the same lines in another order")]


def _uv_cache(a: bytes, b: bytes) -> list[Finding]:
    return [Finding(Kind.UV_CACHE, f"{text(a)} / {text(b)}")]


def _pyc(a: bytes, b: bytes) -> list[Finding] | None:
    """PEP 552: the magic number of the Python, flags, then the source's time and size, or its hash."""
    if min(len(a), len(b)) < _PYC_HEADER or a[2:4] != b"\r\n" or b[2:4] != b"\r\n":
        return None
    (flags, time, size), (other_flags, other_time, other_size) = (
        struct.unpack_from("<III", part, 4) for part in (a, b)
    )
    seen = []
    if a[:2] != b[:2]:
        seen.append(f"header: made by another Python (magic {a[0] | a[1] << 8} / {b[0] | b[1] << 8})")
    elif flags != other_flags:
        seen.append(f"header: checked by {_checked(flags)} / by {_checked(other_flags)}")
    elif flags:
        seen += ["header: the hash of the source"] if a[8:16] != b[8:16] else []
    else:
        seen += [f"header: the source's time {time} / {other_time}"] if time != other_time else []
        seen += [f"header: the source's size {size} / {other_size}"] if size != other_size else []
    if a[_PYC_HEADER:] != b[_PYC_HEADER:]:
        seen.append(f"code: the first byte that differs at {_PYC_HEADER + _first(a[_PYC_HEADER:], b[_PYC_HEADER:])}")
    return [Finding(Kind.PYC, "; ".join(seen))]


def _checked(flags: int) -> str:
    return {0: "time", 1: "hash, never looked at", 3: "hash"}.get(flags, f"flags {flags}")


def _first(a: bytes, b: bytes) -> int:
    """The first place where two contents differ."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
    return low
