"""Shared libraries one by one: what the dynamic loader reads of them, and how it finds them."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import elf

from inspection.image import Image

_SHT_DYNSYM, _SHT_VERDEF, _SHT_VERNEED, _SHT_VERSYM = 11, 0x6FFFFFFD, 0x6FFFFFFE, 0x6FFFFFFF
_WEAK: Final = 2
_CACHE_MAGIC: Final = b"glibc-ld.so.cache1.1"


@dataclass
class Library:
    """What the loader reads of one file. Symbols are kept as bytes; ``undefined`` has those that are not weak, with their versions."""

    path: str
    machine: int
    needed: tuple[str, ...] = ()
    soname: str = ""
    rpath: tuple[str, ...] = ()
    runpath: tuple[str, ...] = ()
    needs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    undefined: list[tuple[bytes, str]] = field(default_factory=list)
    defined: frozenset[bytes] = frozenset()
    versions: frozenset[str] = frozenset()
    trouble: str = ""


def read_library(path: str) -> Library:
    """Read one ELF file through a map of it, so that its size costs no memory. Raises elf.ElfError."""
    try:
        with Path(path).open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise elf.MalformedError("it is empty")  # and a map of nothing is refused
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise elf.CannotLookError(f"it could not be read: {error}") from error
    return _library(path, memoryview(content))  # the map goes with the last view of it


def _library(path: str, view: memoryview) -> Library:
    file = elf.Elf(view)
    found = Library(path, file.machine)
    if file.machine != elf.EM_X86_64:
        return found
    found.needed, found.soname = file.needed, file.soname or ""
    found.rpath, found.runpath, found.needs = file.rpath, file.runpath, file.version_needs
    sections = {one.type: one for one in file.sections}
    if _SHT_DYNSYM not in sections:
        found.trouble = "it has no section headers, so its symbols can't be listed"
    else:
        _symbols(found, view, file.sections, sections)
    return found


def _symbols(found: Library, view: memoryview, all_sections: Any, sections: dict[int, Any]) -> None:
    table = sections[_SHT_DYNSYM]
    if table.link >= len(all_sections):
        raise elf.MalformedError("the names of its dynamic symbols are in a section that isn't there")
    strings = _bytes(view, all_sections[table.link])
    libraries, own = _version_names(view, all_sections, sections)
    found.versions = frozenset(own)
    raw = _bytes(view, table)
    versym = _bytes(view, sections[_SHT_VERSYM]) if _SHT_VERSYM in sections else b""
    numbers = [one & 0x7FFF for (one,) in struct.iter_unpack("<H", versym[: len(versym) // 2 * 2])]
    defined: list[bytes] = []
    for index, (name, info, _, section, _, _) in enumerate(struct.iter_unpack("<IBBHQQ", raw[: len(raw) // 24 * 24])):
        if not name:
            continue
        text = strings[name : strings.find(b"\0", name)]
        if section:
            defined.append(text)
        elif info >> 4 != _WEAK:
            found.undefined.append((text, libraries.get(numbers[index], "") if index < len(numbers) else ""))
    found.defined = frozenset(defined)


def _bytes(view: memoryview, section: Any) -> bytes:
    if section.offset + section.size > len(view):
        raise elf.MalformedError(f"section {section.name} lies outside of the file")
    return bytes(view[section.offset : section.offset + section.size])


def _version_names(view: memoryview, all_sections: Any, sections: dict[int, Any]) -> tuple[dict[int, str], set[str]]:
    """The library that every version number of a symbol stands for, and the versions that the file itself defines."""
    libraries: dict[int, str] = {}
    own: set[str] = set()
    try:
        for kind in (_SHT_VERNEED, _SHT_VERDEF):
            if kind not in sections:
                continue
            table = _bytes(view, sections[kind])
            strings = _bytes(view, all_sections[sections[kind].link])
            if kind == _SHT_VERNEED:
                libraries = dict(_needed_versions(table, strings))
            else:
                own = set(_own_versions(table, strings))
    except (struct.error, IndexError) as error:
        raise elf.MalformedError("the tables of its symbols' versions lead out of the file") from error
    return libraries, own


def _text(strings: bytes, place: int) -> str:
    return strings[place : strings.find(b"\0", place)].decode("ascii", "backslashreplace")


def _needed_versions(table: bytes, strings: bytes) -> Iterator[tuple[int, str]]:
    place = 0
    for _ in range(elf.MAX_VERSIONS):
        _, count, library, where, following = struct.unpack_from("<HHIII", table, place)
        where += place
        for _ in range(count):
            _, _, number, _, step = struct.unpack_from("<IHHII", table, where)
            yield number & 0x7FFF, _text(strings, library)
            where += step
        if not following:
            return
        place += following


def _own_versions(table: bytes, strings: bytes) -> Iterator[str]:
    place = 0
    for _ in range(elf.MAX_VERSIONS):
        _, _, _, _, _, where, following = struct.unpack_from("<HHHHIII", table, place)
        (name, _) = struct.unpack_from("<II", table, place + where)
        yield _text(strings, name)
        if not following:
            return
        place += following


class Loader:
    """Finds libraries as the dynamic loader of the image does (ld.so(8)), and reads each once."""

    def __init__(self, image: Image, environment: dict[str, str]) -> None:
        self.image = image
        self.path = [one for one in environment.get("LD_LIBRARY_PATH", "").split(":") if one]
        self.cache = self._read_cache()
        names = ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib")
        self.defaults = [*([] if self.cache else self._configured("/etc/ld.so.conf")), *names]
        self.loaded: dict[str, str] = {}  # by soname: what an import before this one brings in
        self._read: dict[str, Library | None] = {}

    def _read_cache(self) -> dict[str, str]:
        """ld.so.cache in its format of glibc 2.2 and newer: names and paths; hardware variants after the plain one."""
        try:
            raw = self.image.path("/etc/ld.so.cache").read_bytes()
        except OSError:
            return {}
        start = raw.find(_CACHE_MAGIC)
        found: dict[str, str] = {}
        try:
            (count,) = struct.unpack_from("<I", raw, start + 20)
            for index in range(count if start >= 0 else 0):
                flags, key, value, _, hardware = struct.unpack_from("<iIIIQ", raw, start + 48 + 24 * index)
                if flags == 0x0303 and not hardware:  # ELF for glibc, x86-64
                    found.setdefault(_text(raw, start + key), _text(raw, start + value))
        except struct.error:
            return {}
        return found

    def _configured(self, name: str, depth: int = 0) -> list[str]:
        try:
            lines = self.image.path(name).read_text(encoding="utf-8").splitlines()
        except OSError:
            return []
        found: list[str] = []
        for line in (one.partition("#")[0].strip() for one in lines):
            if line.startswith("include ") and depth < 4:
                for path in sorted(self.image.root.glob(line.removeprefix("include ").strip().lstrip("/"))):
                    found += self._configured(self.image.shown(path), depth + 1)
            elif line.startswith("/"):
                found.append(line)
        return found

    def library(self, path: str) -> Library | None:
        """The library at a real path, None where it is none for this machine. Raises elf.ElfError."""
        if path not in self._read:
            try:
                self._read[path] = read_library(path)
            except elf.NotElfError:
                self._read[path] = None
        return self._read[path]

    def find(self, name: str, by: Library, inherited: tuple[str, ...]) -> str | None:
        """The real path of a needed library; ``inherited`` are the RPATH folders of those that brought ``by`` in."""
        if "/" in name:
            return self._fit(name)
        rpath = () if by.runpath else tuple(self._expanded(by, by.rpath)) + inherited
        folders = [*rpath, *self.path, *self._expanded(by, by.runpath)]
        for folder in folders:
            if found := self._fit(f"{folder}/{name}"):
                return found
        if name in self.cache and (found := self._fit(self.cache[name])):
            return found
        return next((found for one in self.defaults if (found := self._fit(f"{one}/{name}"))), None)

    def _expanded(self, by: Library, folders: Iterable[str]) -> list[str]:
        origin = self.image.shown(Path(by.path).parent)
        return [one.replace("${ORIGIN}", origin).replace("$ORIGIN", origin) for one in folders if one]

    def _fit(self, inside: str) -> str | None:
        path = os.path.realpath(self.image.path(inside))
        if not os.path.isfile(path):  # noqa: PTH113 - asked some ten thousand times
            return None
        try:
            found = self.library(path)
        except elf.ElfError:
            return path  # it is there, and what is wrong with it is said where it is read itself
        return path if found and found.machine == elf.EM_X86_64 else None

    def closure(self, library: Library) -> tuple[list[Library], dict[str, str], dict[str, set[str]]]:
        """Everything that loading brings in, what was only found among the already loaded, and what is nowhere (and who needs it)."""
        scope, elsewhere, nowhere = [library], {}, {}
        queue = [(library, ())]
        seen = {library.path}
        for one, inherited in queue:
            down = inherited if one.runpath else (*self._expanded(one, one.rpath), *inherited)
            for name in one.needed:
                path = self.find(name, one, inherited)
                if path is None and name in self.loaded:
                    path = elsewhere[name] = self.loaded[name]
                if path is None:
                    nowhere.setdefault(name, set()).add(one.path)
                elif path not in seen:
                    seen.add(path)
                    try:
                        found = self.library(path)
                    except elf.ElfError:
                        continue
                    if found:
                        scope.append(found)
                        queue.append((found, down))
        return scope, elsewhere, nowhere
