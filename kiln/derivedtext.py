"""Derived pins as a file, and what is different in them: the pattern's tables and keys in their order, each value with the place it came from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import tomli_w
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kiln.vllmfiles import Revision

WIDTH = 110
# What says nothing about what is built.
_NAMES = ("stack.name", "stack.about")
# A version is carried from the pattern where it lacks a place for it.
_AFTER = {"picks": "version", "version": "ref", "digest": "tag", "as-of": "glibc"}


@dataclass(frozen=True)
class Open:
    """A key of the pins without a value: why, and how to find one; ``needed`` says that pins without it are refused."""

    path: str
    what: str
    how: str
    needed: bool


@dataclass(frozen=True)
class Unresolved:
    """A ref that is in the pins and was not resolved to a commit, and why."""

    path: str
    ref: str
    why: str


@dataclass
class Derived:
    """Derived pins: values by their dotted key with their origins, and what to know of them.

    ``open`` are keys without a value, ``unresolved`` refs that nobody resolved to a commit; ``lines`` are the origins of a list's items;
    ``commits`` are what refs point to now; ``beside`` is what upstream has and these pins do not say, a line each.
    """

    stack: str
    pattern: str
    raw: Mapping[str, Any]
    revision: Revision
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    open: dict[str, Open] = field(default_factory=dict)
    unresolved: dict[str, Unresolved] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)
    lines: dict[str, dict[str, str]] = field(default_factory=dict)
    commits: dict[str, str] = field(default_factory=dict)
    beside: list[str] = field(default_factory=list)

    def needed(self) -> list[str]:
        """The open keys without which the pins are refused."""
        return [item.path for item in self.open.values() if item.needed]

    def value(self, path: str) -> Any:
        """What the pins say at a dotted key: derived, or carried over from the pattern; None where it is open or left out."""
        if path in self.open or path in self.dropped:
            return None
        return self.values.get(path, lookup(self.raw, path))

    def table(self, path: str) -> list[tuple[str, str]]:
        """The keys of a table in their order, each with its dotted key: the pattern's, and those that are new behind what they belong to."""
        prefix = f"{path}." if path else ""
        keys = list(lookup(self.raw, path) if path else self.raw)
        named = [*self.values, *self.open]
        for full in named:
            key = full.removeprefix(prefix)
            if full.startswith(prefix) and "." not in key and key not in keys:
                keys.insert(keys.index(_AFTER[key]) + 1 if _AFTER.get(key) in keys else len(keys), key)
        return [(key, prefix + key) for key in keys]


def lookup(raw: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted key of a TOML document, or None. Keys with a point in them are not asked for."""
    found: Any = raw
    for part in path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def differences(derived: Derived) -> dict[str, str]:
    """What differs from the pattern, by dotted key, in words; a list of requirements by its entries."""
    return {
        path: said for path, said in _differences(derived, "") if path not in _NAMES and not path.endswith(".about")
    }


def _differences(derived: Derived, path: str) -> Iterator[tuple[str, str]]:
    for _, full in derived.table(path):
        old, new = lookup(derived.raw, full), derived.value(full)
        if isinstance(old, Mapping):
            if "archives" not in full and "without" not in full:
                yield from _differences(derived, full)
        elif full in derived.open:
            yield full, f"{_shown(old)} -> open"
        elif isinstance(old, list) and isinstance(new, list) and full.rpartition(".")[2] in ("requires", "wheels"):
            if said := "; ".join(_changes(old, new)):
                yield full, said
        elif old != new and _written(old) != _written(new):
            yield full, f"{_shown(old)} -> {_shown(new)}"


def _changes(old: Sequence[str], new: Sequence[str]) -> Iterator[str]:
    before, after = (
        {str(canonicalize_name(item.name)): item for item in map(Requirement, texts)} for texts in (old, new)
    )
    for name in sorted({*before, *after}):
        if name not in after:
            yield f"without {before[name]}"
        elif name not in before:
            yield f"with {after[name]}"
        elif (before[name].specifier, before[name].extras) != (after[name].specifier, after[name].extras):
            yield f"{before[name]} -> {after[name]}"


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return " ".join(map(str, value)) if isinstance(value, list) else _written(value).strip('"')


def text_of(derived: Derived, command: str) -> str:
    """The pins file."""
    lines = [
        _comment(
            f"The stack `{derived.stack}`: what vLLM {derived.revision.ref} pins for its ROCm images, written by `{command}`"
        ),
        _comment(f"out of {derived.revision.origin}."),
        f"# Behind a value stands the file and line that it is from; one without is as in the stack {derived.pattern}. What the fields mean: docs/pins.md.",
    ]
    if derived.open:
        lines.append(f"# Open, each with its reason in its place: {', '.join(derived.open)}.")
    if needed := derived.needed():
        lines.append(f"# `kiln lock` refuses these pins until there is a value for {', '.join(needed)}.")
    return "\n".join([*lines, *_table(derived, "")]) + "\n"


def _table(derived: Derived, path: str) -> Iterator[str]:
    inner: list[str] = []
    if path and any(not isinstance(lookup(derived.raw, full), Mapping) for _, full in derived.table(path)):
        yield ""
        yield f"[{path}]"
    for key, full in derived.table(path):
        old = lookup(derived.raw, full)
        if isinstance(old, Mapping):
            inner.append(full)
        elif full in derived.open:
            yield _comment(f"OPEN: {key} = …: {derived.open[full].what}. To fill it in: {derived.open[full].how}.")
        elif full not in derived.dropped:
            yield from _key(derived, key, full)
    for full in inner:
        if full.endswith(".without-submodules"):
            # Its keys are paths, which may hold points.
            yield from (
                "",
                f"[{full}]",
                *(f"{_written(name)} = {_written(why)}" for name, why in lookup(derived.raw, full).items()),
            )
        else:
            yield from _table(derived, full)


def _key(derived: Derived, key: str, full: str) -> Iterator[str]:
    value, origin = derived.value(full), derived.origins.get(full, "")
    behind = f" {_comment(origin)}" if origin else ""
    written = _written(value)
    if full in derived.lines:
        yield f"{key} = ["
        yield from (f"    {_written(item)}, {_comment(derived.lines[full][item])}" for item in value)
        yield "]"
    elif isinstance(value, list) and len(written) > WIDTH:
        yield f"{key} = [{behind}"
        yield from _rows(value)
        yield "]"
    else:
        yield f"{key} = {written}{behind}"


def _rows(items: Sequence[str]) -> Iterator[str]:
    row = "   "
    for item in items:
        word = f" {_written(item)},"
        if len(row + word) > WIDTH:
            yield row
            row = "   "
        row += word
    yield row


def _comment(text: str) -> str:
    """A TOML comment, which may hold no control characters: what stands in it came out of somebody else's files."""
    return "# " + "".join(sign if sign.isprintable() else " " for sign in text)


def _written(value: Any) -> str:
    """A value as TOML writes it, on one line."""
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", value):
        return value
    if isinstance(value, datetime):
        return tomli_w.dumps({"x": value}).partition(" = ")[2].strip().replace(" ", "T").replace("+00:00", "Z")
    return "" if value is None else tomli_w.dumps({"x": value}).partition(" = ")[2].strip()
