"""Read ELF files and the AMD GPU code objects inside them, with the standard library alone.

Runs inside a build stage or an image, on Python 3.10 or newer, and needs no binutils or LLVM there. It reads 64-bit
little-endian files as the dynamic loader does (through the program headers), so a library without section headers
can't hide what it needs. Every offset and size is checked before it is used: bad input raises an ``ElfError`` and
nothing else. ``CannotLookError`` is the one that says nothing about the file: this machine lacks what it takes to look.

Sources of the facts here: the System V gABI, chapters 4 and 5; the LSB's symbol versioning; LLVM's
ClangOffloadBundler.rst and clang/lib/Driver/OffloadBundler.cpp; LLVM's AMDGPUUsage.rst, table of ``e_flags``.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

EM_X86_64: Final = 62
EM_AMDGPU: Final = 0xE0

MAX_FILE_BYTES: Final = 1 << 33
MAX_BUNDLE_BYTES: Final = 1 << 32
MAX_RATIO: Final = 1 << 15  # zstd's best: 128 KiB of one byte in a block of 4 bytes; zlib's best is 1032
MAX_NAME_CHARACTERS: Final = 1 << 16  # templates make C++ names of some ten thousand
MAX_ENTRIES: Final = 256  # of a bundle, one a GPU; also the longest entry id, and the most notes that are looked at
MAX_VERSIONS: Final = 1 << 16  # that a file needs of all its libraries

BUNDLE_MAGIC: Final = b"__CLANG_OFFLOAD_BUNDLE__"
COMPRESSED_MAGIC: Final = b"CCOB"

# EF_AMDGPU_MACH, the low byte of e_flags. LLVM's AMDGPUUsage.rst, "AMDGPU ELF Header e_flags".
_MACHINES: Final = """
2c:gfx900 2d:gfx902 2e:gfx904 2f:gfx906 30:gfx908 31:gfx909 32:gfx90c 33:gfx1010 34:gfx1011 35:gfx1012 36:gfx1030
37:gfx1031 38:gfx1032 39:gfx1033 3d:gfx1035 3e:gfx1034 3f:gfx90a 41:gfx1100 42:gfx1013 43:gfx1150 44:gfx1103 45:gfx1036
46:gfx1101 47:gfx1102 48:gfx1200 49:gfx1250 4a:gfx1151 4c:gfx942 4e:gfx1201 4f:gfx950 55:gfx1152 58:gfx1153
51:gfx9-generic 52:gfx10-1-generic 53:gfx10-3-generic 54:gfx11-generic 59:gfx12-generic 5f:gfx9-4-generic
"""
_PROCESSORS: Final = {int(code, 16): name for code, name in (one.split(":") for one in _MACHINES.split())}
_ENTRY_TARGET: Final = re.compile(r"-(gfx[0-9a-z]+(?:-[0-9]+)*(?:-generic)?)((?::[a-z0-9]+[+-])*)$")
_NOT_ZERO: Final = re.compile(rb"[^\0]")

_SHT_DYNSYM: Final = 11
_SHT_NOBITS: Final = 8
_PT_LOAD, _PT_DYNAMIC, _PT_NOTE = 1, 2, 4
_DT_NEEDED, _DT_STRTAB, _DT_STRSZ, _DT_SONAME, _DT_RPATH, _DT_RUNPATH = 1, 5, 10, 14, 15, 29
_DT_VERNEED, _DT_VERNEEDNUM = 0x6FFFFFFE, 0x6FFFFFFF
_NT_GNU_BUILD_ID: Final = 3


class ElfError(Exception):
    """What every function here raises, and nothing else; its text is one sentence for a person."""


class NotElfError(ElfError):
    """No 64-bit little-endian ELF file, nor an offload bundle where one may be."""


class MalformedError(ElfError):
    """It says that it is one, and what it says about itself can't be true."""


class CannotLookError(ElfError):
    """Nothing was learnt about the file: what it takes to read it isn't here."""


@dataclass(frozen=True)
class Section:
    """A section header; ``offset`` and ``size`` are those of its bytes in the file."""

    name: str
    type: int
    offset: int
    size: int
    link: int


@dataclass(frozen=True)
class _Segment:
    type: int
    offset: int
    address: int
    size: int
    align: int


@dataclass(frozen=True)
class CodeObject:
    """One GPU's program.

    ``entry`` is its id in the bundle (empty for a code object that is a file of its own), ``named`` and ``features``
    what that id says (``gfx942``, ``:sramecc+:xnack-``), ``processor`` what the code object itself says in e_flags.
    """

    entry: str
    named: str
    features: str
    processor: str
    size: int
    compressed: bool

    @property
    def disagrees(self) -> bool:
        """Whether the bundle promises another processor than the program was made for."""
        return bool(self.entry) and self.named != self.processor


def _take(data: memoryview, offset: int, size: int, what: str) -> memoryview:
    """``size`` bytes at ``offset``; a slice alone would shorten itself in silence."""
    if offset < 0 or size < 0 or offset + size > len(data):
        raise MalformedError(f"{what} lies at {offset}+{size}, outside of {len(data)} bytes")
    return data[offset : offset + size]


def _unpack(form: str, data: memoryview, offset: int, what: str) -> tuple[int, ...]:
    return struct.unpack(form, _take(data, offset, struct.calcsize(form), what))


def _text(raw: bytes) -> str:
    return raw.decode("ascii", "backslashreplace")


class Elf:
    """A 64-bit little-endian ELF file that is in memory."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        if bytes(self._data[:4]) != b"\x7fELF":
            raise NotElfError("it does not begin as an ELF file does")
        if bytes(self._data[4:6]) != b"\x02\x01":
            raise NotElfError("it is an ELF file, but not a 64-bit little-endian one")
        (self.type, self.machine, _, _, program_headers, section_headers, self.flags, *counts) = _unpack(
            "<HHIQQQIHHHHHH", self._data, 16, "the ELF header"
        )
        _, segment_size, segments, section_size, sections, names = counts
        self.segments = tuple(self._segments(program_headers, segment_size, segments))
        self.sections = tuple(self._sections(section_headers, section_size, sections, names))

    def _segments(self, offset: int, each: int, count: int) -> Iterator[_Segment]:
        if count and each != 56:
            raise MalformedError(f"a program header is said to have {each} bytes, not 56")
        for raw in struct.iter_unpack("<IIQQQQQQ", _take(self._data, offset, 56 * count, "the program header table")):
            yield _Segment(raw[0], raw[2], raw[3], raw[5], raw[7])

    def _sections(self, offset: int, each: int, count: int, names: int) -> Iterator[Section]:
        if not offset:
            return
        if each != 64:
            raise MalformedError(f"a section header is said to have {each} bytes, not 64")
        form = "<IIQQQQIIQQ"
        if not count:  # gABI: then the first header's size is the number of sections, and its link the names' index
            first = _unpack(form, self._data, offset, "the first section header")
            count, names = first[5], first[6]
        rows = list(struct.iter_unpack(form, _take(self._data, offset, 64 * count, "the section header table")))
        if names >= len(rows):
            raise MalformedError(f"the section names are said to be in section {names} of {len(rows)}")
        strings = bytes(_take(self._data, rows[names][4], rows[names][5], "the table of section names"))
        for name, kind, _, _, start, size, link, *_ in rows:
            # A .bss says how much memory it wants; there is nothing of it in the file.
            yield Section(self._string(strings, name), kind, start, 0 if kind == _SHT_NOBITS else size, link)

    @staticmethod
    def _string(strings: bytes, offset: int) -> str:
        end = strings.find(b"\0", offset, offset + MAX_NAME_CHARACTERS)
        if end < 0:
            raise MalformedError(f"a name at {offset} has no end within {len(strings)} bytes of names")
        return _text(strings[offset:end])

    def section(self, name: str) -> memoryview | None:
        """The bytes of the first section of that name, or None."""
        for one in self.sections:
            if one.name == name:
                return _take(self._data, one.offset, one.size, f"section {name}")
        return None

    def _at(self, address: int, what: str) -> int:
        """Where in the file the loader would find what it has at that address."""
        for one in self.segments:
            if one.type == _PT_LOAD and one.address <= address < one.address + one.size:
                return one.offset + address - one.address
        raise MalformedError(f"{what} is said to be at address {address:#x}, where nothing is loaded")

    @cached_property
    def _dynamic(self) -> list[tuple[int, int]]:
        for one in self.segments:
            if one.type == _PT_DYNAMIC:
                raw = _take(self._data, one.offset, one.size - one.size % 16, "the dynamic segment")
                rows: list[tuple[int, int]] = []
                for tag, value in struct.iter_unpack("<QQ", raw):
                    if not tag:
                        break
                    rows.append((tag, value))
                return rows
        return []

    def _tagged(self, tag: int) -> list[int]:
        return [value for one, value in self._dynamic if one == tag]

    @cached_property
    def _strings(self) -> bytes:
        starts, sizes = self._tagged(_DT_STRTAB), self._tagged(_DT_STRSZ)
        if not starts or not sizes:
            raise MalformedError("the dynamic segment names no string table")
        return bytes(_take(self._data, self._at(starts[0], "the string table"), sizes[0], "the string table"))

    def _named(self, tag: int) -> tuple[str, ...]:
        return tuple(self._string(self._strings, value) for value in self._tagged(tag))

    @property
    def needed(self) -> tuple[str, ...]:
        """The libraries that the loader brings in (DT_NEEDED), in its order."""
        return self._named(_DT_NEEDED)

    @property
    def soname(self) -> str | None:
        """The name that others would need it by (DT_SONAME)."""
        return next(iter(self._named(_DT_SONAME)), None)

    @property
    def rpath(self) -> tuple[str, ...]:
        """The folders of DT_RPATH."""
        return tuple(one for text in self._named(_DT_RPATH) for one in text.split(":"))

    @property
    def runpath(self) -> tuple[str, ...]:
        """The folders of DT_RUNPATH."""
        return tuple(one for text in self._named(_DT_RUNPATH) for one in text.split(":"))

    @cached_property
    def version_needs(self) -> dict[str, tuple[str, ...]]:
        """The symbol versions it needs, by library: ``{"libc.so.6": ("GLIBC_2.14", ...)}``, sorted.

        The records of .gnu.version_r (LSB, "Symbol Version Requirements"), reached through DT_VERNEED.
        """
        needs: dict[str, set[str]] = {}
        starts, counts = self._tagged(_DT_VERNEED), self._tagged(_DT_VERNEEDNUM)
        if not starts:
            return {}
        place, budget = self._at(starts[0], "the table of symbol versions"), MAX_VERSIONS
        for left in range(counts[0] if counts else 0, 0, -1):
            _, versions, library, where, following = _unpack("<HHIII", self._data, place, "a library's versions")
            of = needs.setdefault(self._string(self._strings, library), set())
            where += place
            budget -= versions + 1
            if budget < 0 or (left > 1 and not following):
                raise MalformedError("the table of symbol versions is longer than it can be, or ends too early")
            for _ in range(versions):
                *_, version, step = _unpack("<IHHII", self._data, where, "a symbol version")
                of.add(self._string(self._strings, version))
                where += step
            place += following
        return {library: tuple(sorted(of)) for library, of in sorted(needs.items())}

    @cached_property
    def _symbols(self) -> tuple[tuple[str, bool], ...]:
        tables = [one for one in self.sections if one.type == _SHT_DYNSYM]
        if not tables:
            # The loader gets along without knowing how many there are; who wants to list them doesn't.
            if self._dynamic:
                raise CannotLookError("it has no section headers, so its dynamic symbols can't be counted")
            return ()
        table = tables[0]
        if table.link >= len(self.sections):
            raise MalformedError("the names of its dynamic symbols are in a section that isn't there")
        names = self.sections[table.link]
        strings = bytes(_take(self._data, names.offset, names.size, "the names of the dynamic symbols"))
        raw = _take(self._data, table.offset, table.size - table.size % 24, "the table of dynamic symbols")
        return tuple(
            (self._string(strings, name), bool(section))
            for name, _, _, section, _, _ in struct.iter_unpack("<IBBHQQ", raw)
            if name
        )

    @property
    def undefined(self) -> tuple[str, ...]:
        """The dynamic symbols that others must bring, without their versions, in the table's order."""
        return tuple(name for name, defined in self._symbols if not defined)

    @property
    def defined(self) -> tuple[str, ...]:
        """The dynamic symbols that it brings, without their versions, in the table's order."""
        return tuple(name for name, defined in self._symbols if defined)

    @property
    def build_id(self) -> str | None:
        """The linker's id of the content, in hex (note NT_GNU_BUILD_ID)."""
        for one in self.segments:
            if one.type == _PT_NOTE:
                notes, place = _take(self._data, one.offset, one.size, "the notes"), 0
                unit = 8 if one.align == 8 else 4
                for _ in range(MAX_ENTRIES):
                    if place >= len(notes):
                        break
                    owner, size, kind = _unpack("<III", notes, place, "a note")
                    start = place + 12 + owner + -(12 + owner) % unit
                    content = _take(notes, start, size, "a note's content")
                    if kind == _NT_GNU_BUILD_ID and bytes(notes[place + 12 : place + 12 + owner]) == b"GNU\0":
                        return content.hex()
                    place = start + size + -size % unit
        return None

    @property
    def processor(self) -> str:
        """The GPU of a code object (EF_AMDGPU_MACH of e_flags); hex where this table doesn't know it."""
        if self.machine != EM_AMDGPU:
            raise MalformedError(f"it is for machine {self.machine:#x}, not for an AMD GPU")
        return _PROCESSORS.get(self.flags & 0xFF, hex(self.flags & 0xFF))


def read(path: str | Path) -> bytes:
    """A file's bytes; an ``ElfError`` where it is no file that can be held in memory."""
    try:
        if Path(path).stat().st_size > MAX_FILE_BYTES:
            raise CannotLookError(f"it has more than {MAX_FILE_BYTES} bytes")
        return Path(path).read_bytes()
    except OSError as error:
        raise CannotLookError(f"it could not be read: {error.strerror}") from error


def code_objects(source: str | Path | bytes | memoryview) -> list[CodeObject]:
    """The GPU programs in a file: in a library's .hip_fatbin, in an offload bundle, or the file itself.

    Host entries and empty ones are left out. A library without device code gives an empty list.
    """
    data = memoryview(read(source) if isinstance(source, (str, Path)) else source)
    if bytes(data[:24]) == BUNDLE_MAGIC or bytes(data[:4]) == COMPRESSED_MAGIC:
        return list(_bundles(data))
    file = Elf(data)
    if file.machine == EM_AMDGPU:
        return [CodeObject("", "", "", file.processor, len(data), compressed=False)]
    found: list[CodeObject] = []
    for one in file.sections:
        if one.name == ".hip_fatbin":
            found += _bundles(_take(data, one.offset, one.size, "section .hip_fatbin"))
    return found


def _bundles(data: memoryview) -> Iterator[CodeObject]:
    """All bundles of a .hip_fatbin: the linker lays those of each source file one after another, zeros between."""
    place = 0
    while begin := _NOT_ZERO.search(data, place):
        rest = data[begin.start() :]
        if bytes(rest[:24]) == BUNDLE_MAGIC:
            used, entries = _plain(rest)
            yield from _judged(entries, compressed=False)
        elif bytes(rest[:4]) == COMPRESSED_MAGIC:
            used, content = _decompress(rest)
            if bytes(content[:24]) != BUNDLE_MAGIC:
                raise MalformedError("a compressed offload bundle holds something that is no offload bundle")
            yield from _judged(_plain(memoryview(content))[1], compressed=True)
        else:
            raise MalformedError(f"at {begin.start()} of the device code there is no offload bundle")
        place = begin.start() + used


def _plain(data: memoryview) -> tuple[int, list[tuple[str, memoryview]]]:
    """How long an uncompressed bundle is, and its entries.

    Layout (ClangOffloadBundler.rst, "Bundled Code Object Layout"), integers of 64 bits: magic, number of entries, then
    for each its offset from the magic, its size, the length of its id, and the id.
    """
    (count,) = _unpack("<Q", data, 24, "the number of bundle entries")
    if count > MAX_ENTRIES:
        raise MalformedError(f"an offload bundle is said to have {count} entries")
    place, end, entries = 32, 32, []
    for _ in range(count):
        offset, size, length = _unpack("<QQQ", data, place, "a bundle entry")
        if length > MAX_ENTRIES:
            raise MalformedError(f"a bundle entry's id is said to have {length} characters")
        name = _text(bytes(_take(data, place + 24, length, "a bundle entry's id")))
        place += 24 + length
        entries.append((name, _take(data, offset, size, f"bundle entry {name}")))
        end = max(end, place, offset + size)
    return end, entries


def _judged(entries: list[tuple[str, memoryview]], *, compressed: bool) -> Iterator[CodeObject]:
    """The code objects among a bundle's entries, each one asked what it is itself.

    Ids (ClangOffloadBundler.rst, "Bundle Entry ID"): kind, triple, target id: ``hipv4-amdgcn-amd-amdhsa--gfx942``. A
    target id is a processor and features (AMDGPUUsage.rst, "Target ID"): ``gfx942:sramecc+:xnack-``.
    """
    for name, content in entries:
        if not content or name.startswith("host-"):
            continue
        target = _ENTRY_TARGET.search(name)
        if not target:
            raise MalformedError(f"bundle entry {name} names no AMD GPU")
        try:
            processor = Elf(content).processor
        except ElfError as error:
            raise MalformedError(f"bundle entry {name} holds no code object: {error}") from error
        yield CodeObject(name, target[1], target[2], processor, len(content), compressed)


def _decompress(data: memoryview) -> tuple[int, bytes]:
    """How long a compressed bundle is, and the plain one in it.

    Layout (LLVM's CompressedOffloadBundle, clang/lib/Driver/OffloadBundler.cpp, RawCompressedBundleHeader), packed:
    ``CCOB``, version and method of 16 bits each (0 zlib, 1 zstd, as llvm::compression::Format has them), then
      version 1: uncompressed size of 32 bits;
      version 2: total size, header included, and uncompressed size, of 32 bits each;
      version 3: the same of 64 bits each;
    then 64 bits: the low half of the plain bundle's MD5. Version 1 does not say how long it is: the stream ends itself.
    """
    version, method = _unpack("<HH", data, 4, "a compressed bundle's header")
    if version not in {1, 2, 3}:
        raise MalformedError(f"a compressed offload bundle is of version {version}; 1, 2 and 3 are known")
    form = {1: "<IQ", 2: "<IIQ", 3: "<QQQ"}[version]
    *total, size, check = _unpack(form, data, 8, "a compressed bundle's header")
    header = 8 + struct.calcsize(form)
    packed = _take(data, header, total[0] - header if total else len(data) - header, "a compressed bundle")
    if size > min(MAX_BUNDLE_BYTES, MAX_RATIO * len(packed)):
        raise MalformedError(f"{len(packed)} bytes of a compressed bundle are said to hold {size}")
    if method not in {0, 1}:
        raise MalformedError(f"a compressed offload bundle uses method {method}; 0 (zlib) and 1 (zstd) are known")
    used, content = (_unzstd if method else _unzlib)(packed, size)
    if len(content) != size:
        raise MalformedError(f"a compressed bundle is said to hold {size} bytes and holds {len(content)}")
    if hashlib.md5(content, usedforsecurity=False).digest()[:8] != struct.pack("<Q", check):
        raise MalformedError("a compressed bundle's content does not have the checksum that its header gives")
    return (total[0] if total else header + used), content


def _unzlib(packed: memoryview, size: int) -> tuple[int, bytes]:
    stream = zlib.decompressobj()
    try:
        # One byte more than promised, so that too much is seen without unpacking all of it.
        content = stream.decompress(packed, size + 1)
    except zlib.error as error:
        raise MalformedError(f"a compressed bundle does not decompress: {error}") from error
    if not stream.eof:
        raise MalformedError("a compressed bundle's stream does not end where its content should")
    return len(packed) - len(stream.unused_data), content


def _unzstd(packed: memoryview, size: int) -> tuple[int, bytes]:
    """Through libzstd itself: Python learns zstd in 3.14, and this must run before anything is installed."""
    try:
        zstd = ctypes.CDLL("libzstd.so.1")
    except OSError as error:
        raise CannotLookError("its device code is compressed with zstd, and libzstd.so.1 isn't here") from error
    number, pointer = ctypes.c_size_t, ctypes.c_char_p
    zstd.ZSTD_findFrameCompressedSize.restype = zstd.ZSTD_decompress.restype = number
    zstd.ZSTD_findFrameCompressedSize.argtypes = [pointer, number]
    zstd.ZSTD_decompress.argtypes = [ctypes.c_void_p, number, pointer, number]
    raw = bytes(packed)
    frame = zstd.ZSTD_findFrameCompressedSize(raw, len(raw))
    if zstd.ZSTD_isError(number(frame)):
        raise MalformedError("a compressed bundle holds no whole zstd frame")
    content = ctypes.create_string_buffer(max(size, 1))
    length = zstd.ZSTD_decompress(content, size, raw, frame)
    if zstd.ZSTD_isError(number(length)):
        raise MalformedError("a compressed bundle does not decompress with zstd")
    return frame, ctypes.string_at(content, length)
