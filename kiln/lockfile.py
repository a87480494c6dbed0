"""The lock: what the pins of a stack resolved to. ``kiln lock`` writes it; every later stage reads it and nothing else.

No entry names a registry's host: where a wheel or a package is fetched from is the affair of the user's own pip and apt
configuration. An index that a wheel needs beside that one is named as the pins name it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection
from dataclasses import asdict, astuple, dataclass, fields, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import tomli_w
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from kiln.canonical import digest_of
from kiln.errors import LockInvalidError, LockMissingError, LockStaleError, UnresolvedError
from kiln.git import Submodule
from kiln.lockentries import Archive, BaseImage, Deb, Entry, Git, Unresolved, Wheel
from kiln.pins import Pins
from kiln.workspace import Workspace

SCHEMA = 1
TOOLS = "tools"
_KEYS = {"schema", "stack", "pins-sha256", "roots", "unresolved", "image", "git", "archive", "deb", "wheel"}
T = TypeVar("T", Wheel, Archive)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~!:-]*")


@dataclass(frozen=True)
class Lock:
    """All inputs of a stack that come from outside the project.

    ``roots`` says what groups of packages and wheels were resolved from (a checksum each): a group whose root is the same is kept as it is.
    """

    stack: str
    pins_sha256: str
    debs: tuple[Deb, ...]
    wheels: tuple[Wheel, ...]
    archives: tuple[Archive, ...] = ()
    gits: tuple[Git, ...] = ()
    images: tuple[BaseImage, ...] = ()
    unresolved: tuple[Unresolved, ...] = ()
    roots: tuple[tuple[str, str], ...] = ()

    def entries(self) -> tuple[Entry, ...]:
        """Every input that is one file, packages first."""
        return (*self.debs, *self.wheels, *self.archives)

    @cached_property
    def sha256(self) -> str:
        """The lock's checksum: over what it locks, not over how the file is written."""
        parts: list[Any] = [
            self.stack,
            self.pins_sha256,
            # Entries of plain texts and numbers: astuple would copy each of those deeply, most of the time that rendering a large stack takes.
            sorted(tuple(vars(deb).values()) for deb in self.debs),
            sorted(tuple(vars(wheel).values()) for wheel in self.wheels),
        ]
        if self.gits or self.images or self.archives or self.unresolved:
            parts += [sorted(map(astuple, group)) for group in (self.archives, self.gits, self.images, self.unresolved)]
        return digest_of(parts)

    @cached_property
    def git_of(self) -> dict[str, Git]:
        """The sources by their components' names."""
        return {git.component: git for git in self.gits}

    def archives_of(self, component: str) -> tuple[Archive, ...]:
        """The archives of one component, in name order."""
        return self._archives_by_component.get(component, ())

    def without(self, components: Collection[str]) -> Lock:
        """The lock less the inputs of some components: what is left to fetch where those need not be built."""
        return replace(
            self,
            wheels=tuple(item for item in self.wheels if item.component not in components),
            archives=tuple(item for item in self.archives if item.component not in components),
            gits=tuple(item for item in self.gits if item.component not in components),
        )

    def require_resolved(self) -> None:
        """Raise UnresolvedError listing everything that is open, if anything is."""
        if self.unresolved:
            raise UnresolvedError(
                f"{len(self.unresolved)} inputs of {self.stack!r} are not resolved, so nothing is built",
                why="\n".join(_by_reason(self.unresolved)),
                fix=f"where the network or a mirror (kiln.toml, KILN_MIRRORS; docs/mirrors.md) reaches them: kiln lock {self.stack}",
            )

    @cached_property
    def _by_component(self) -> dict[str, tuple[Wheel, ...]]:
        return _grouped(self.wheels)

    @cached_property
    def _archives_by_component(self) -> dict[str, tuple[Archive, ...]]:
        return _grouped(self.archives)

    def wheels_of(self, component: str) -> tuple[Wheel, ...]:
        """The wheels of one component, in name order."""
        return self._by_component.get(component, ())


def _grouped(entries: tuple[T, ...]) -> dict[str, tuple[T, ...]]:
    groups: dict[str, list[T]] = {}
    for entry in entries:
        groups.setdefault(entry.component, []).append(entry)
    return {component: tuple(group) for component, group in groups.items()}


def _by_reason(entries: tuple[Unresolved, ...]) -> list[str]:
    """The open entries, those with one reason together under it."""
    reasons = dict.fromkeys(entry.reason for entry in entries)
    return [
        line
        for reason in reasons
        for line in (f"{reason}:", *(f"  {entry.label}" for entry in entries if entry.reason == reason))
    ]


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
    rocm: dict[str, Any] = {
        "archive": [asdict(archive) for archive in sorted(lock.archives, key=lambda a: (a.component, a.name))],
        "git": [_git_data(git) for git in sorted(lock.gits, key=lambda git: git.component)],
        "image": [asdict(image) for image in sorted(lock.images, key=lambda image: image.name)],
        "unresolved": [asdict(entry) for entry in sorted(lock.unresolved, key=lambda e: (e.kind, e.name, e.ref))],
        "roots": dict(sorted(lock.roots)),
    }
    # What a person looks for first stands first: where the sources are from, and what is open.
    order = ("schema", "stack", "pins-sha256", "roots", "unresolved", "image", "git", "archive", "deb", "wheel")
    data |= {key: value for key, value in rocm.items() if value}
    data = {key: data[key] for key in order if key in data}
    header = f"# Written by `kiln lock {lock.stack}` from pins/{lock.stack}.toml. Not for editing: change the pins and lock again.\n\n"
    return header + tomli_w.dumps(data)


def _git_data(git: Git) -> dict[str, Any]:
    data = {key: value for key, value in asdict(git).items() if value not in ("", (), [])}
    if git.submodules:
        data["submodules"] = [asdict(submodule) for submodule in git.submodules]
    return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}


def parse_lock(text: str, shown: str) -> Lock:
    """The lock in ``text``. Raises LockInvalidError naming ``shown`` and the first entry that cannot be right."""
    try:
        data = tomllib.loads(text)
        if data["schema"] != SCHEMA:
            raise _invalid(shown, f"it has schema {data['schema']!r}; this kiln reads schema {SCHEMA}")
        if unknown := data.keys() - _KEYS:
            raise _invalid(shown, f"unknown key {min(unknown)!r}")
        for key in ("stack", "pins-sha256"):
            if not isinstance(data[key], str):
                raise _invalid(shown, f"{key} is {data[key]!r}")
        lock = Lock(
            stack=data["stack"],
            pins_sha256=data["pins-sha256"],
            debs=tuple(_entry(Deb, item, shown) for item in data.get("deb", [])),
            wheels=tuple(_entry(Wheel, item, shown) for item in data.get("wheel", [])),
            archives=tuple(_entry(Archive, item, shown) for item in data.get("archive", [])),
            gits=tuple(_git(item, shown) for item in data.get("git", [])),
            images=tuple(_image(item, shown) for item in data.get("image", [])),
            unresolved=tuple(Unresolved(**_texts(Unresolved, item, shown)) for item in data.get("unresolved", [])),
            roots=_roots(data.get("roots", {}), shown),
        )
    except tomllib.TOMLDecodeError as error:
        raise _invalid(shown, f"it is not TOML: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise _invalid(shown, f"it lacks {error}") from error
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or brackets within brackets without end.
        raise _invalid(shown, f"it cannot be read: {error}") from error
    return lock


def _texts(kind: type[Any], item: dict[str, Any], shown: str, more: tuple[str, ...] = ()) -> dict[str, str]:
    """The strings of an entry that is nothing but strings (and the keys ``more``, left out here)."""
    wanted = [field.name for field in fields(kind) if field.name not in more]
    name = item.get("component", item.get("name", "an entry without a name"))
    if unknown := item.keys() - {*wanted, *more}:
        raise _invalid(shown, f"{name}: unknown key {min(unknown)!r}")
    for key in wanted:
        if not isinstance(item.get(key), str):
            raise _invalid(shown, f"{name}: {key} is {item.get(key)!r}")
    return {key: item[key] for key in wanted}


def _git(item: dict[str, Any], shown: str) -> Git:
    plain = _texts(Git, item, shown, ("submodules", "picks", "left_out"))
    name = plain["component"]
    listed = item.get("submodules", [])
    if not isinstance(listed, list) or not all(isinstance(sub, dict) for sub in listed):
        raise _invalid(shown, f"{name}: submodules is {listed!r}")
    submodules = tuple(Submodule(**_texts(Submodule, sub, shown)) for sub in listed)
    lists = {key: item.get(key, []) for key in ("picks", "left_out")}
    if not all(isinstance(value, list) and all(isinstance(text, str) for text in value) for value in lists.values()):
        raise _invalid(shown, f"{name}: picks and left_out are lists of strings")
    git = Git(
        plain["component"],
        plain["url"],
        plain["ref"],
        plain["commit"],
        plain["tree"],
        submodules,
        tuple(lists["picks"]),
        tuple(lists["left_out"]),
    )
    commits = [
        git.commit,
        git.tree,
        *(sub.commit for sub in submodules),
        *(pick.rpartition("@")[2] for pick in git.picks),
    ]
    if wrong := [commit for commit in commits if not _COMMIT.fullmatch(commit)]:
        raise _invalid(shown, f"{name}: {wrong[0]!r} is no 40-digit commit")
    if wrong := [pick for pick in git.picks if not pick.rpartition("@")[0]]:
        raise _invalid(shown, f"{name}: the pick {wrong[0]!r} has no address")
    paths = [PurePosixPath(sub.path) for sub in submodules]
    climbing = any(path.is_absolute() or ".." in path.parts or not path.parts for path in paths)
    if not _SAFE_NAME.fullmatch(name) or climbing:
        raise _invalid(shown, f"{name}: the name or a submodule's path cannot be right")
    return git


def _roots(table: Any, shown: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(table, dict) or not all(
        isinstance(text, str) and _SHA256.fullmatch(text) for text in table.values()
    ):
        raise _invalid(shown, f"roots is {table!r}")
    return tuple(table.items())


def _image(item: dict[str, Any], shown: str) -> BaseImage:
    image = BaseImage(**_texts(BaseImage, item, shown))
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", image.digest):
        raise _invalid(shown, f"{image.name}: {image.digest!r} is no digest")
    return image


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
    names = (entry.name, entry.component if isinstance(entry, Archive) else entry.version, entry.file)
    if not all(_SAFE_NAME.fullmatch(text) for text in names) or entry.size < 0:
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


def lock_path(workspace: Workspace, pins: Pins) -> Path:
    """Where the lock of these pins lies: beside the pins, or with overrides in the state folder."""
    return workspace.lock_file(pins.stack, pins.sha256 if pins.overrides else "")


def read_lock(workspace: Workspace, pins: Pins) -> Lock:
    """The lock of a stack, proven to be made from exactly these pins.

    Raises LockMissingError, LockInvalidError, or LockStaleError with the command that mends it.
    """
    path = lock_path(workspace, pins)
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
    holders = {one.component for group in (lock.wheels, lock.gits, lock.archives) for one in group}
    if strangers := holders - pins.by_name.keys() - {TOOLS}:
        raise _invalid(shown, f"it has inputs of {min(strangers)!r}, which the pins do not name")
    return lock
