"""Every shared library below the site-packages: whether it would load, and which C library it wants."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import elf

from inspection.image import LIBRARY, MOST, Image
from inspection.loader import Library, Loader

# What a machine with the device brings, or ROCm where it is in the image: absent, nothing is said about who needs them.
DRIVERS: Final = re.compile(r"lib(cuda|nvidia-ml|nvcuvid|amdhip64|hsa-runtime64|hiprtc|amd_comgr|rocm_smi64|amd_smi|ze_loader)\.so")
_FAMILIES: Final = ("GLIBC", "GLIBCXX", "CXXABI")


def libraries(image: Image) -> dict[str, Any]:
    """Every shared library below the site-packages: what it needs is found, and every symbol it wants is defined by somebody."""
    loader = Loader(image, dict(os.environ) if image.alive else {})
    paths = _shared_objects(image)
    problems: list[dict[str, str]] = []
    other: dict[str, str] = {}
    mine: list[Library] = []
    for path in paths:
        shown = image.shown(path)
        try:
            found = loader.library(path)
        except elf.ElfError as error:
            kind = "unreadable" if isinstance(error, elf.CannotLookError) else "damaged"
            problems.append({"file": shown, "kind": kind, "what": str(error)})
            continue
        if found is None or found.machine != elf.EM_X86_64:
            other[shown] = "no ELF file" if found is None else f"for machine {found.machine:#x}"
        else:
            mine.append(found)
            # pip's auditwheel gives names of their own; what has the plain one is found when something was imported before.
            for name in {found.soname, Path(path).name} - {""}:
                loader.loaded.setdefault(name, path)
    interpreter = _interpreter(image, loader)
    everywhere = frozenset().union(*(one.defined for one in interpreter)) if interpreter else None
    state = _Judged(image, loader, everywhere, {one.path for one in mine}, problems)
    for one in mine:
        state.look(one)
    return {
        "interpreter": image.shown(interpreter[0].path) if interpreter else "",
        "files": len(paths),
        "judged": len(mine),
        "other": other,
        "problems": problems[:MOST],
        "problem_count": len(problems),
        "absent_drivers": {name: sorted(files)[:20] for name, files in sorted(state.absent.items())},
        "unjudged_symbols": state.unjudged,
        "loaded_before": {name: sorted(files)[:20] for name, files in sorted(state.before.items())},
        "needs": {family: list(state.highest[family]) for family in sorted(state.highest)},
        "provides": _provides(loader),
    }


def _shared_objects(image: Image) -> list[str]:
    found = set()
    for site in image.sites:
        for folder, folders, files in os.walk(site):
            folders.sort()
            found |= {os.path.realpath(f"{folder}/{one}") for one in files if LIBRARY.search(one)}
    return sorted(found)


def _interpreter(image: Image, loader: Loader) -> list[Library]:
    """The program that runs Python here, and what it brings in: every extension finds those symbols."""
    if image.alive:
        candidates = [os.path.realpath("/proc/self/exe")]
    else:
        places = ("usr/local/bin/python3*", "usr/bin/python3*", "usr/local/lib/libpython3*.so*", "usr/lib/*/libpython3*.so*")
        candidates = [os.path.realpath(one) for place in places for one in sorted(image.root.glob(place))]
    for path in candidates:
        try:
            found = loader.library(path)
            if found and found.machine == elf.EM_X86_64 and found.needed:
                return loader.closure(found)[0]
        except elf.ElfError:
            continue
    return []


@dataclass
class _Judged:
    """What the libraries come to, one after another. ``everywhere`` is None where no interpreter was found."""

    image: Image
    loader: Loader
    everywhere: frozenset[bytes] | None
    mine: set[str]
    problems: list[dict[str, str]]
    absent: dict[str, set[str]] = field(default_factory=dict)
    before: dict[str, set[str]] = field(default_factory=dict)
    unjudged: dict[str, int] = field(default_factory=dict)
    highest: dict[str, tuple[str, str]] = field(default_factory=dict)

    def look(self, library: Library) -> None:
        """Judge one library."""
        shown = self.image.shown(library.path)
        scope, elsewhere, nowhere = self.loader.closure(library)
        for name, by in sorted(nowhere.items()):
            # What another one below the site-packages lacks is said of that one.
            if library.path not in by and by <= self.mine:
                continue
            if DRIVERS.match(name):
                self.absent.setdefault(name, set()).add(shown)
                continue
            through = "" if library.path in by else f" (for {self.image.shown(min(by - self.mine))})"
            self._wrong(shown, "missing-library", name + through)
        for name in elsewhere.keys() & set(library.needed):
            self.before.setdefault(name, set()).add(shown)
        self._versions(shown, library)
        if library.trouble:
            self._wrong(shown, "unreadable", library.trouble)
        if self.everywhere is None:
            self.unjudged[shown] = len(library.undefined)
            return
        self._undefined(shown, library, scope, set(nowhere))

    def _undefined(self, shown: str, library: Library, scope: list[Library], nowhere: set[str]) -> None:
        assert self.everywhere is not None
        left = [(name, of) for name, of in library.undefined if name not in self.everywhere]
        for one in scope:
            if not left:
                break
            left = [(name, of) for name, of in left if name not in one.defined]
        # Without a version, a symbol may be any absent library's; with one, it is that library's alone.
        unjudged = [name for name, of in left if (of in nowhere if of else bool(nowhere))]
        if unjudged:
            self.unjudged[shown] = len(unjudged)
        wrong = sorted({name for name, of in left} - set(unjudged))
        if wrong:
            names = ", ".join(name.decode("ascii", "backslashreplace")[:120] for name in wrong[:3])
            self._wrong(shown, "undefined", names + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""))

    def _versions(self, shown: str, library: Library) -> None:
        for name, wanted in library.needs.items():
            for version in wanted:
                self._highest(shown, version)
            path = self.loader.find(name, library, ()) or self.loader.loaded.get(name)
            try:
                found = self.loader.library(path) if path else None
            except elf.ElfError:
                found = None
            # A library that names no versions takes every one; the loader only warns.
            if found and found.versions:
                for version in sorted(set(wanted) - found.versions):
                    self._wrong(shown, "version", f"{name} of this image has no {version}")

    def _highest(self, shown: str, version: str) -> None:
        family, _, number = version.partition("_")
        if family in _FAMILIES and re.fullmatch(r"[0-9]+(\.[0-9]+)*", number):
            known = self.highest.get(family, ("0", ""))
            if _numbers(number) > _numbers(known[0]):
                self.highest[family] = (number, shown)

    def _wrong(self, shown: str, kind: str, what: str) -> None:
        self.problems.append({"file": shown, "kind": kind, "what": what})


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(one) for one in version.split("."))


def _provides(loader: Loader) -> dict[str, str]:
    """The newest version of each family that the image's C and C++ libraries define."""
    best: dict[str, str] = {}
    nobody = Library("", elf.EM_X86_64)
    for name in ("libc.so.6", "libstdc++.so.6"):
        path = loader.find(name, nobody, ())
        try:
            found = loader.library(path) if path else None
        except elf.ElfError:
            found = None
        for version in found.versions if found else ():
            family, _, number = version.partition("_")
            if family in _FAMILIES and re.fullmatch(r"[0-9]+(\.[0-9]+)*", number):
                best[family] = max(best.get(family, "0"), number, key=_numbers)
    return best
