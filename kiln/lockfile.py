"""The lock: what the pins of a stack resolved to. ``kiln lock`` writes it; every later stage reads it and nothing else.

No entry names a registry's host: where a wheel or a package is fetched from is the affair of the user's own pip and apt
configuration. An index that a wheel needs beside that one is named as the pins name it.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import asdict, astuple, dataclass, fields
from functools import cached_property
from typing import Any

import tomli_w
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from kiln.canonical import digest_of
from kiln.errors import LockInvalidError, LockMissingError, LockStaleError
from kiln.pins import Pins
from kiln.workspace import Workspace

SCHEMA = 1
TOOLS = "tools"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~!:-]*")


@dataclass(frozen=True)
class Deb:
    """One Debian package, by name, version, architecture, its path in the pool, sha256 and size in bytes."""

    name: str
    version: str
    architecture: str
    pool: str
    sha256: str
    size: int

    @property
    def file(self) -> str:
        """The file name, as the pool has it."""
        return self.pool.rsplit("/", 1)[-1]

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"{self.name} {self.version} ({self.architecture})"


@dataclass(frozen=True)
class Wheel:
    """One wheel, by name, version, file name, sha256 and size in bytes; ``component`` is what it goes into.

    ``index`` is empty for the user's own index, else the name of an extra index in the pins.
    """

    component: str
    name: str
    version: str
    file: str
    sha256: str
    size: int
    index: str = ""

    @property
    def label(self) -> str:
        """How messages call it."""
        return self.file


Entry = Deb | Wheel


@dataclass(frozen=True)
class Lock:
    """All inputs of a stack that come from outside the project."""

    stack: str
    pins_sha256: str
    debs: tuple[Deb, ...]
    wheels: tuple[Wheel, ...]

    def entries(self) -> tuple[Entry, ...]:
        """Every input, packages first."""
        return (*self.debs, *self.wheels)

    @cached_property
    def sha256(self) -> str:
        """The lock's checksum: over what it locks, not over how the file is written."""
        return digest_of(
            [self.stack, self.pins_sha256, sorted(map(astuple, self.debs)), sorted(map(astuple, self.wheels))]
        )

    @cached_property
    def _by_component(self) -> dict[str, tuple[Wheel, ...]]:
        groups: dict[str, list[Wheel]] = {}
        for wheel in self.wheels:
            groups.setdefault(wheel.component, []).append(wheel)
        return {component: tuple(group) for component, group in groups.items()}

    def wheels_of(self, component: str) -> tuple[Wheel, ...]:
        """The wheels of one component, in name order."""
        return self._by_component.get(component, ())


def dump_lock(lock: Lock) -> str:
    """The lock as the text of its file: sorted, so that a difference between two locks is a difference in what they lock."""
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "stack": lock.stack,
        "pins-sha256": lock.pins_sha256,
        "deb": [asdict(deb) for deb in sorted(lock.debs, key=lambda deb: (deb.name, deb.architecture))],
        "wheel": [
            {key: value for key, value in asdict(wheel).items() if value != ""}
            for wheel in sorted(lock.wheels, key=lambda wheel: (wheel.component, wheel.name))
        ],
    }
    header = f"# Written by `kiln lock {lock.stack}` from pins/{lock.stack}.toml. Not for editing: change the pins and lock again.\n\n"
    return header + tomli_w.dumps(data)


def parse_lock(text: str, shown: str) -> Lock:
    """The lock in ``text``. Raises LockInvalidError naming ``shown`` and the first entry that cannot be right."""
    try:
        data = tomllib.loads(text)
        if data["schema"] != SCHEMA:
            raise _invalid(shown, f"it has schema {data['schema']!r}; this kiln reads schema {SCHEMA}")
        if unknown := data.keys() - {"schema", "stack", "pins-sha256", "deb", "wheel"}:
            raise _invalid(shown, f"unknown key {min(unknown)!r}")
        for key in ("stack", "pins-sha256"):
            if not isinstance(data[key], str):
                raise _invalid(shown, f"{key} is {data[key]!r}")
        lock = Lock(
            stack=data["stack"],
            pins_sha256=data["pins-sha256"],
            debs=tuple(_entry(Deb, item, shown) for item in data.get("deb", [])),
            wheels=tuple(_entry(Wheel, item, shown) for item in data.get("wheel", [])),
        )
    except tomllib.TOMLDecodeError as error:
        raise _invalid(shown, f"it is not TOML: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise _invalid(shown, f"it lacks {error}") from error
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or brackets within brackets without end.
        raise _invalid(shown, f"it cannot be read: {error}") from error
    return lock


def _entry(kind: type[Any], item: dict[str, Any], shown: str) -> Any:
    allowed = {field.name: field for field in fields(kind)}
    name = item.get("name", "an entry without a name")
    if unknown := item.keys() - allowed.keys():
        raise _invalid(shown, f"{name}: unknown key {min(unknown)!r}")
    for key, value in item.items():
        if not isinstance(value, int if key == "size" else str) or isinstance(value, bool):
            raise _invalid(shown, f"{name}: {key} is {value!r}")
    if missing := [key for key in allowed if key not in item and key != "index"]:
        raise _invalid(shown, f"{name}: no {missing[0]}")
    entry = kind(**item)
    if not _SHA256.fullmatch(entry.sha256):
        raise _invalid(shown, f"{name}: {entry.sha256!r} is no sha256")
    # Names become paths and lines of requirements files: nothing that could climb out of a folder or become an option.
    if not all(_SAFE_NAME.fullmatch(text) for text in (entry.name, entry.version, entry.file)) or entry.size < 0:
        raise _invalid(shown, f"{name}: the name, the version, the file name or the size cannot be right")
    if isinstance(entry, Wheel):
        try:
            parse_wheel_filename(entry.file)
        except InvalidWheelFilename as error:
            raise _invalid(shown, f"{name}: {error}") from error
    return entry


def _invalid(shown: str, why: str) -> LockInvalidError:
    stack = shown.rsplit("/", 1)[-1].removesuffix(".lock.toml")
    return LockInvalidError(
        f"{shown} is not a lock that kiln wrote",
        why=why,
        fix=f"restore it from version control, or write it anew: kiln lock {stack}",
    )


def read_lock(workspace: Workspace, pins: Pins) -> Lock:
    """The lock of a stack, proven to be made from exactly these pins.

    Raises LockMissingError, LockInvalidError, or LockStaleError with the command that mends it.
    """
    path = workspace.lock_file(pins.stack)
    shown = workspace.shown(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise LockMissingError(
            f"the stack {pins.stack!r} has no lock",
            why=f"{shown} does not exist, and kiln builds nothing whose inputs are not locked.",
            fix=f"kiln lock {pins.stack}",
        ) from None
    except UnicodeDecodeError as error:
        raise _invalid(shown, f"it is not text: {error}") from error
    lock = parse_lock(text, shown)
    if lock.stack != pins.stack or lock.pins_sha256 != pins.sha256:
        raise LockStaleError(
            f"the lock of {pins.stack!r} was made from other pins",
            why=f"{shown} says pins {lock.pins_sha256[:16]}…, but pins/{pins.stack}.toml is {pins.sha256[:16]}… now.",
            fix=f"kiln lock {pins.stack}   (or undo the edit of pins/{pins.stack}.toml)",
        )
    if strangers := {wheel.component for wheel in lock.wheels} - pins.by_name.keys() - {TOOLS}:
        raise _invalid(shown, f"it has wheels for {min(strangers)!r}, which the pins do not name")
    return lock
