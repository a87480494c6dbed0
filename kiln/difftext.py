"""What differs between two texts (or any bytes that hold text): times, identifiers, paths, host names, or only the order of lines.

A kind is given only where the bytes show it: both sides are cut into the same pieces, with tokens of one class between them, and everything outside of
the tokens is equal.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Callable
from itertools import pairwise, zip_longest

from kiln.diffkinds import Finding, Hints, Kind

# Lists of lines take some ten times their text in memory.
LINES_LIMIT = 4 << 20
# How far a number may lie from a known time and still be one: three years, for caches and wheels are older than the build.
NEAR = 3 * 366 * 86400
_BACK = 1 << 12

_DATE = rb"(?:19|20)\d\d[-/](?:0[1-9]|1[0-2])[-/](?:0[1-9]|[12]\d|3[01])"
_HOUR = rb"(?:[01]\d|2[0-3]):[0-5]\d(?::[0-6]\d(?:[.,]\d{1,9})?)?"
_ZONE = rb"(?:\s?(?:Z|UTC|GMT|[+-](?:0\d|1[0-4]):?[0-5]\d))"
_MONTH = rb"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*"
_DAY = rb"(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]*,?\s+)"
_WORDS = (
    # ISO 8601, and its parts
    _DATE + rb"(?:[T ]" + _HOUR + _ZONE + rb"?)?",
    # C's ctime and date(1): Sun Nov  1 00:00:00 UTC 2026; __DATE__: Nov  1 2026
    _DAY + rb"?" + _MONTH + rb"\s+\d{1,2},?\s+(?:" + _HOUR + rb"\s+(?:[A-Z]{2,5}\s+)?)?(?:19|20)\d\d",
    # RFC 2822: Sun, 01 Nov 2026 00:00:00 +0000
    _DAY + rb"?\d{1,2}[ -]" + _MONTH + rb"[ -](?:19|20)\d\d(?:\s+" + _HOUR + _ZONE + rb"?)?",
    # 20261101T000000Z, 20261101000000
    rb"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])T?(?:[01]\d|2[0-3])[0-5]\d[0-5]\dZ?",
    _HOUR + _ZONE + rb"?",
)
_NAME = rb"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,62}[A-Za-z0-9])?"
_LEADS = (
    rb"""(?i:\b(?:build[-_ ]?)?host(?:[-_ ]?name)?["']?\s*[=:]\s*["']?)""",
    rb"(?i:\b(?:built|compiled|build) (?:by|on|at) (?:[a-z_][a-z0-9_-]*@)?)",
    rb"\((?:[a-z_][a-z0-9_-]*)@",
    rb"\bLinux (?=\S+ \d+\.\d+)",
)
_UUID = rb"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
# A short one must have a digit and a letter: words such as "deadbeef" and plain numbers are none.
_HEX = rb"(?=[a-f]*[0-9]|[A-F]*[0-9])(?=[0-9]*[a-fA-F])(?:[0-9a-f]{12,}|[0-9A-F]{12,})"
_PATH = rb"/(?:[A-Za-z0-9_.+@~%=,-]+/)*[A-Za-z0-9_.+@~%=,-]+"
# Below these every path is of the machine that built, whatever it ends with.
_PASSING = re.compile(rb"/(?:tmp|var/tmp|build|builds|workspace|home|root)(?:/|$)")


def _pattern(hints: Hints) -> re.Pattern[bytes]:
    """One expression for all classes of tokens; where several begin at one place, the first of them counts."""
    edge, end = rb"(?<![A-Za-z0-9])", rb"(?![A-Za-z0-9])"
    parts = [
        rb"(?P<lead>" + rb"|".join(_LEADS) + rb")(?P<host>" + _NAME + rb")",
        edge + rb"(?P<time>" + rb"|".join(_WORDS) + rb")" + end,
        edge + rb"(?P<id>" + _UUID + rb"|" + _HEX + rb")" + end,
        rb"(?<![\d.])(?P<epoch>\d{10}(?:\d{3}|\d{6}|\d{9})?)(?:\.\d+)?(?!\d)",
        rb"(?<![A-Za-z0-9_./:-])(?P<path>" + _PATH + rb")",
    ]
    if hints.hosts:
        names = rb"|".join(re.escape(name.encode()) for name in sorted(hints.hosts, key=len, reverse=True))
        parts.insert(0, edge + rb"(?P<known>" + names + rb")(?![A-Za-z0-9-])")
    return re.compile(rb"|".join(parts))


def window(a: bytes, b: bytes, ends: bytes = b"\n") -> tuple[bytes, bytes]:
    """Both without what they begin and end with in common, but for the rest of a line on either side."""
    shortest = min(len(a), len(b))
    start = _common(shortest, lambda size: a[:size] == b[:size])
    tail = _common(shortest - start, lambda size: a[len(a) - size :] == b[len(b) - size :] if size else True)
    start = max(a.rfind(ends, max(start - _BACK, 0), start) + 1, start - _BACK, 0)
    # A tail that is common to both begins at different places in them.
    stop = a.find(ends, len(a) - tail, len(a) - tail + _BACK)
    keep = tail - (stop - (len(a) - tail)) if stop >= 0 else max(tail - _BACK, 0)
    return a[start : len(a) - keep], b[start : len(b) - keep]


def _common(limit: int, same: Callable[[int], bool]) -> int:
    """The largest size up to ``limit`` for which ``same`` holds (it holds for all smaller ones)."""
    return bisect_left(range(limit), 1, key=lambda size: not same(size + 1))


def tokens(a: bytes, b: bytes, hints: Hints) -> list[Finding] | None:
    """The kinds of the tokens that differ, where nothing else does; None where something else does too (or nothing)."""
    pattern = _pattern(hints)
    seen: dict[Kind, tuple[bytes, bytes]] = {}
    place_a = place_b = 0
    for one, other in zip_longest(pattern.finditer(a), pattern.finditer(b)):
        if one is None or other is None:
            return None
        if a[place_a : one.start()] != b[place_b : other.start()]:
            return None
        place_a, place_b = one.end(), other.end()
        if one[0] != other[0]:
            kind = _kind(one, other, hints)
            if kind is None:
                return None
            seen.setdefault(kind, (one[0], other[0]))
    if a[place_a:] != b[place_b:] or not seen:
        return None
    return [Finding(kind, f"{text(one)} / {text(other)}") for kind, (one, other) in sorted(seen.items())]


def _kind(one: re.Match[bytes], other: re.Match[bytes], hints: Hints) -> Kind | None:
    """What a pair of tokens at the same place shows, if anything."""
    groups, others = one.groupdict(), other.groupdict()
    if groups.get("known") and others.get("known"):
        return Kind.HOST_NAME
    if groups["host"] and others["host"]:
        return Kind.HOST_NAME if groups["lead"] == others["lead"] else None
    if groups["time"] and others["time"]:
        return Kind.TIMESTAMP
    if groups["id"] and others["id"]:
        return Kind.RANDOM_ID if len(groups["id"]) == len(others["id"]) else None
    if groups["epoch"] and others["epoch"]:
        near = all(near_time(int(found["epoch"]), hints) for found in (groups, others))
        return Kind.TIMESTAMP if near else None
    if groups["path"] and others["path"]:
        return path_kind(groups["path"], others["path"], hints)
    return None


def near_time(number: int, hints: Hints) -> bool:
    """Whether a number is a time near those of the builds, in seconds, or in parts of them."""
    seconds = int(str(number)[:10])
    return any(abs(seconds - time) <= NEAR for time in hints.times)


def path_kind(one: bytes, other: bytes, hints: Hints) -> Kind | None:
    """Whether two paths are the same file in two build folders; they may also differ in a time or an id alone."""
    known = [path.encode().rstrip(b"/") for path in hints.paths]
    if any(one == path or one.startswith(path + b"/") for path in known) and any(
        other == path or other.startswith(path + b"/") for path in known
    ):
        return Kind.BUILD_PATH
    if _PASSING.match(one) and _PASSING.match(other):
        return Kind.BUILD_PATH
    # The same name below another folder: /a/src/main.c and /b/src/main.c. Another name in the same folder is another file.
    if one.rpartition(b"/")[2] == other.rpartition(b"/")[2] and b"/" in one[1:] and b"/" in other[1:]:
        return Kind.BUILD_PATH
    return None


def text(data: bytes, limit: int = 60) -> str:
    """Bytes as a message shows them: on one line, nothing that a terminal would obey."""
    shown = shown_text(data[: limit * 4].decode("utf-8", "backslashreplace"))
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def shown_text(raw: str) -> str:
    """A name or a value without control characters or lone surrogates, so that a terminal, JSON and a page can show it."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in raw)


def orders(a: bytes, b: bytes, exists: Callable[[str], bool]) -> Finding | None:
    """Whether two texts are the same lines (or data) in another order, and of which kind that is. ``exists`` says which paths the layer has."""
    if len(a) > LINES_LIMIT or len(b) > LINES_LIMIT:
        return None
    lines, others = a.splitlines(), b.splitlines()
    if len(a) == len(b) and lines != others and sorted(lines) == sorted(others):
        moved = sum(one != other for one, other in zip(lines, others, strict=True))
        count = f"{moved} of {len(lines)} lines stand elsewhere"
        if (_by_bytes(lines) and _by_locale(others)) or (_by_bytes(others) and _by_locale(lines)):
            return Finding(Kind.LOCALE_ORDER, f"{count}: one side is sorted by bytes, the other as people sort")
        names = {line for line in lines if line.strip()}
        if not _by_bytes(lines) and not _by_bytes(others) and names and all(exists(_name(line)) for line in names):
            return Finding(Kind.DIRECTORY_ORDER, f"{count}: every line names a file of this layer")
        return Finding(Kind.LINE_ORDER, count)
    return _sets(lines, others) or _data(a, b)


def _name(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape").strip().removeprefix("./").strip("/")


def _by_bytes(lines: list[bytes]) -> bool:
    return all(one <= other for one, other in pairwise(lines))


def _by_locale(lines: list[bytes]) -> bool:
    """Whether the lines are sorted without regard to case: with punctuation as it is, or left out (as older C libraries have it)."""
    folded = [line.decode("utf-8", "replace").casefold() for line in lines]
    bare = ["".join(char for char in line if char.isalnum()) for line in folded]
    return any(all(one <= other for one, other in pairwise(keys)) for keys in (folded, bare))


_SET = re.compile(rb"\{('[^'{}]*'(?:, '[^'{}]*')+)\}")


def _sets(lines: list[bytes], others: list[bytes]) -> Finding | None:
    """A set as Python prints it, with its elements in another order, and nothing else that differs."""
    if len(lines) != len(others):
        return None
    seen: tuple[bytes, bytes] | None = None
    for one, other in zip(lines, others, strict=True):
        if one == other:
            continue
        found, elsewhere = _SET.findall(one), _SET.findall(other)
        if not found or _SET.sub(b"{}", one) != _SET.sub(b"{}", other) or len(found) != len(elsewhere):
            return None
        if any(sorted(x.split(b", ")) != sorted(y.split(b", ")) for x, y in zip(found, elsewhere, strict=True)):
            return None
        seen = seen or (one, other)
    return Finding(Kind.HASH_ORDER, f"{text(seen[0])} / {text(seen[1])}") if seen else None


def _data(a: bytes, b: bytes) -> Finding | None:
    """The same JSON, with the keys of its objects in another order."""
    if a[:1] not in (b"{", b"[") or a == b:
        return None
    try:
        one, other = json.loads(a), json.loads(b)
    except (ValueError, RecursionError):
        return None
    if json.dumps(one) == json.dumps(other) or json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True):
        return None
    return Finding(Kind.LINE_ORDER, "the same JSON data, with keys in another order")


def changed_lines(a: bytes, b: bytes, limit: int = 3) -> str:
    """The first lines that only one side has, marked - and +."""
    if max(len(a), len(b)) > LINES_LIMIT:
        return f"{len(a)} / {len(b)} bytes differ"
    lines, others = a.splitlines(), b.splitlines()
    mine, theirs = set(lines), set(others)
    gone = [line for line in lines if line not in theirs]
    new = [line for line in others if line not in mine]
    shown = [*(f"-{text(line, 100)}" for line in gone[:limit]), *(f"+{text(line, 100)}" for line in new[:limit])]
    more = max(len(gone) - limit, 0) + max(len(new) - limit, 0)
    return "; ".join(shown) + (f"; and {more} more lines" if more else "")
