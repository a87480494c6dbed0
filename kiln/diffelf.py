"""What differs between two ELF files: the build id, paths of the build, the order in which objects were linked, or the sections named.

64-bit little-endian files with section headers; of others nothing is said here.
"""

from __future__ import annotations

import re
import struct
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from kiln.diffkinds import Finding, Hints, Kind
from kiln.difftext import path_kind, text, tokens, window

_PROGBITS, _NOBITS, _SYMTAB, _DYNSYM = 1, 8, 2, 11
_FILE = 4
_PATHS = re.compile(rb"(?<![\x20-\x7e])/[A-Za-z0-9_.+@~%=,-]+(?:/[A-Za-z0-9_.+@~%=,-]+)+")
# What the linker makes of the layout: addresses, names and offsets.
_TABLES = (".debug", ".eh_frame", ".got", ".plt", ".rela", ".dyn", ".init_array", ".fini_array", ".gnu", ".comment")
# Bytes of the instructions that do nothing, which x86 compilers put between functions.
_FILL = frozenset(b"\x00\x0f\x1f\x2e\x40\x44\x66\x80\x84\x90\xcc")
# What a debugger reads: nothing of it runs, and paths of another length move all of it.
_ABOUT = (".debug", ".line", ".strtab", ".symtab", ".shstrtab", ".comment", ".note.gnu.build-id", ".gnu_debug")


@dataclass(frozen=True)
class _Section:
    name: str
    type: int
    address: int
    offset: int
    size: int
    link: int


@dataclass(frozen=True, slots=True)
class _Symbol:
    name: bytes
    info: int
    section: int
    value: int
    size: int


class Elf:
    """The sections and symbols of an ELF file. Raises ValueError or struct.error where it is none that can be read."""

    def __init__(self, data: bytes) -> None:
        if data[:6] != b"\x7fELF\x02\x01":
            raise ValueError("no 64-bit little-endian ELF file")
        self.data = data
        (table,) = struct.unpack_from("<Q", data, 40)
        each, count, names = struct.unpack_from("<HHH", data, 58)
        if not table or each != 64 or names >= count:
            raise ValueError("no section headers")
        rows = [struct.unpack_from("<IIQQQQIIQQ", data, table + each * number) for number in range(count)]
        strings = self._cut(rows[names][4], rows[names][5])
        self.sections = [
            _Section(_string(strings, row[0]).decode("ascii", "replace"), row[1], row[3], row[4], row[5], row[6])
            for row in rows
        ]

    def _cut(self, offset: int, size: int) -> bytes:
        if offset + size > len(self.data):
            raise ValueError("a section lies outside of the file")
        return self.data[offset : offset + size]

    def bytes_of(self, section: _Section) -> bytes:
        """What the file holds of a section."""
        return b"" if section.type == _NOBITS else self._cut(section.offset, section.size)

    def section(self, name: str) -> bytes:
        """The bytes of all sections of that name, one after the other."""
        return b"".join(self.bytes_of(one) for one in self.sections if one.name == name)

    @cached_property
    def build_id(self) -> tuple[int, int] | None:
        """Where the build id lies in the file, and how long it is."""
        for one in self.sections:
            if one.name == ".note.gnu.build-id" and one.size > 16:
                owner, size, kind = struct.unpack_from("<III", self.data, one.offset)
                if (owner, kind) == (4, 3) and 16 + size <= one.size:
                    return one.offset + 16, size
        return None

    @cached_property
    def symbols(self) -> list[_Symbol]:
        """The named symbols of the symbol table; of the dynamic one where the file was stripped."""
        tables = [one for one in self.sections if one.type == _SYMTAB] or [
            one for one in self.sections if one.type == _DYNSYM
        ]
        return list(self._symbols(tables[0])) if tables else []

    def _symbols(self, table: _Section) -> Iterator[_Symbol]:
        strings = self.bytes_of(self.sections[table.link])
        raw = self.bytes_of(table)
        for name, info, _, section, value, size in struct.iter_unpack("<IBBHQQ", raw[: len(raw) - len(raw) % 24]):
            if name:
                yield _Symbol(_string(strings, name), info, section, value, size)

    def body(self, symbol: _Symbol) -> bytes | None:
        """The bytes of a function or object that has some in the file."""
        if not symbol.size or not 0 < symbol.section < len(self.sections):
            return None
        section = self.sections[symbol.section]
        start = symbol.value - section.address
        if section.type == _NOBITS or start < 0 or start + symbol.size > section.size:
            return None
        return self.data[section.offset + start : section.offset + start + symbol.size]


def _string(strings: bytes, offset: int) -> bytes:
    end = strings.find(b"\0", offset)
    return strings[offset : end if end >= 0 else len(strings)]


def look(a: bytes, b: bytes, hints: Hints) -> list[Finding] | None:
    """What was seen to differ between two ELF files; None where one of them is none that can be read."""
    try:
        one, other = Elf(a), Elf(b)
        return list(_look(one, other, hints))
    except (ValueError, struct.error, IndexError):
        return None


def _look(one: Elf, other: Elf, hints: Hints) -> Iterator[Finding]:
    plain, plainer = one.data, other.data
    if one.build_id and other.build_id:
        ids = [elf.data[at : at + size].hex() for elf in (one, other) for at, size in [elf.build_id or (0, 0)]]
        plain, plainer = _without(one.data, one.build_id), _without(other.data, other.build_id)
        if ids[0] != ids[1]:
            alone = "; nothing else differs" if plain == plainer else ""
            yield Finding(Kind.BUILD_ID, f"{ids[0][:16]}… / {ids[1][:16]}…{alone}")
        if plain == plainer:
            return
    found = tokens(*window(plain, plainer, b"\0"), hints)
    if found:
        yield from found
        return
    differing = _sections(one, other)
    order = _link_order(one, other)
    if order:
        yield order
    paths = _paths(one.data, other.data, hints)
    if paths:
        yield paths
    # Paths explain what a debugger reads, another order of objects what moved; nothing that was shown explains the rest.
    rest = [
        name for name in differing if not (paths and (name.startswith(_ABOUT) or _paths_alone(one, other, name, hints)))
    ]
    if order and Counter(_pieces(one)) == Counter(_pieces(other)):
        rest = []
    if rest or not (order or paths):
        names = ", ".join(rest[:6]) or "the headers alone"
        yield Finding(Kind.CONTENT, f"sections that differ: {names}{' …' if len(rest) > 6 else ''}")


def _paths_alone(one: Elf, other: Elf, name: str, hints: Hints) -> bool:
    found = tokens(one.section(name), other.section(name), hints)
    return found is not None and {each.kind for each in found} == {Kind.BUILD_PATH}


def _without(data: bytes, place: tuple[int, int]) -> bytes:
    at, size = place
    return data[:at] + bytes(size) + data[at + size :]


def _pieces(elf: Elf) -> Iterator[tuple[str, bytes]]:
    """What is laid out in the sections that hold code and data: the bodies of symbols, and between them texts, without what fills gaps."""
    laid: dict[int, list[_Symbol]] = defaultdict(list)
    for symbol in elf.symbols:
        if elf.body(symbol) is not None:
            laid[symbol.section].append(symbol)
    for number, section in enumerate(elf.sections):
        if section.type != _PROGBITS or section.name.startswith(_TABLES):
            continue
        data, place = elf.bytes_of(section), 0
        for symbol in sorted(laid[number], key=lambda one: (one.value, one.size)):
            start = symbol.value - section.address
            yield from ((section.name, piece) for piece in _between(data[place:start]))
            yield section.name, data[start : start + symbol.size]
            place = max(place, start + symbol.size)
        yield from ((section.name, piece) for piece in _between(data[place:]))


def _between(data: bytes) -> list[bytes]:
    return [] if set(data) <= _FILL else [piece for piece in data.split(b"\0") if piece]


def _sections(one: Elf, other: Elf) -> list[str]:
    """The names of the sections that differ, in the first file's order."""
    names = dict.fromkeys(part.name for elf in (one, other) for part in elf.sections if part.name)
    return [name for name in names if one.section(name) != other.section(name)]


def _link_order(one: Elf, other: Elf) -> Finding | None:
    """Whether both have the same symbols (name, kind, size), laid out in another order."""

    def identity(symbol: _Symbol) -> tuple[bytes, int, int]:
        return symbol.name, symbol.info, symbol.size

    if Counter(map(identity, one.symbols)) != Counter(map(identity, other.symbols)):
        return None
    orders = []
    for elf in (one, other):
        laid = [symbol for symbol in elf.symbols if elf.body(symbol) is not None]
        # Two names for one address have no order among them.
        orders.append([identity(s) for s in sorted(laid, key=lambda s: (s.section, s.value, identity(s)))])
    if orders[0] == orders[1]:
        return None
    files = [[s.name for s in elf.symbols if s.info & 15 == _FILE and s.name] for elf in (one, other)]
    bodies = [
        Counter((identity(s), elf.body(s)) for s in elf.symbols if elf.body(s) is not None) for elf in (one, other)
    ]
    same = (bodies[0] & bodies[1]).total()
    named = f"; objects: {_list(files[0])} / {_list(files[1])}" if files[0] != files[1] else ""
    return Finding(
        Kind.LINK_ORDER,
        f"the same {len(one.symbols)} symbols in another order, {same} of {bodies[0].total()} with the same bytes{named}",
    )


def _list(names: list[bytes]) -> str:
    return ", ".join(text(name, 24) for name in names[:4]) + (" …" if len(names) > 4 else "")


def _paths(a: bytes, b: bytes, hints: Hints) -> Finding | None:
    """Whether all paths that only one side holds have a partner on the other that is the same file in another build folder."""
    mine, theirs = set(_PATHS.findall(a)), set(_PATHS.findall(b))
    left, right = sorted(mine - theirs), sorted(theirs - mine)
    if not left or len(left) > 1000 or len(right) > 1000:
        return None
    pairs = []
    for path in left:
        partner = next((other for other in right if path_kind(path, other, hints)), None)
        if partner is None:
            return None
        pairs.append((path, partner))
    return Finding(
        Kind.BUILD_PATH,
        f"{text(pairs[0][0])} / {text(pairs[0][1])}" + (f" and {len(pairs) - 1} more" if pairs[1:] else ""),
    )
