"""What of a state folder is named: by a lock, by a release record, or by being what the pins and the lock make now. The rest is for ``kiln gc``."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kiln.errors import LockStaleError
from kiln.fetch import source_key
from kiln.imageparts import held_parts
from kiln.lockfile import Lock, parse_lock, read_lock
from kiln.model import model_key
from kiln.pins import read_pins
from kiln.records import read_record
from kiln.rehearse import FOLDER as REHEARSAL
from kiln.render import render
from kiln.rootfs import rootfs_key
from kiln.store import Store
from kiln.workspace import Workspace

# A lock of other choices than the pins' (--set) is nobody's to delete but gc's: so long it counts like one that is committed.
CHOICE_DAYS = 30
DAY = 86400
_SHA256 = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


@dataclass(frozen=True)
class Kept:
    """What stays: blobs (by sha256), notes of what was made (by key), contexts (by folder), images (by name), build records (by file), and the manifest
    digests that records and releases name; ``bases`` are the digests of base images that locks name.

    ``unknown`` says why it cannot be told what is current; then everything that was made of the inputs stays.
    """

    blobs: frozenset[str]
    notes: frozenset[str]
    contexts: frozenset[str]
    images: frozenset[str]
    records: frozenset[str]
    digests: frozenset[str]
    bases: frozenset[str]
    unknown: str = ""


def state_folders(workspace: Workspace) -> list[Workspace]:
    """The workspace, and the one of its rehearsals where there were any."""
    state = workspace.state / REHEARSAL
    return [workspace, *([Workspace(workspace.root, state, state / "locks")] if state.is_dir() else [])]


def old_choices(workspace: Workspace, now: float) -> list[Path]:
    """The locks of other choices than the pins' that were not written within ``CHOICE_DAYS``."""
    if workspace.rehearsal:
        return []
    files = sorted((workspace.state / "locks").glob("*.lock.toml"))
    return [file for file in files if now - file.lstat().st_mtime > CHOICE_DAYS * DAY]


def kept(workspace: Workspace, now: float | None = None) -> Kept:
    """What is named of this state folder. Raises PinsError, LockInvalidError, RenderError: where a file that names things cannot be read,
    nothing may count as not named."""
    old = set(old_choices(workspace, time.time() if now is None else now))
    pins_folder = workspace.locks or workspace.root / "pins"
    files = [path for folder in (pins_folder, workspace.state / "locks") for path in folder.glob("*.lock.toml")]
    locks = [_parsed(workspace, path) for path in sorted(set(files) - old)]
    released = _released(workspace)
    notes = {source_key(git) for lock in locks for git in lock.gits}
    notes |= {model_key(workspace), model_key(workspace, wrong_answers=True)}
    contexts: set[str] = set()
    keys: set[tuple[str, str]] = set()
    unknown = ""
    for stack in workspace.stacks():
        if not workspace.lock_file(stack).is_file():
            continue
        pins = read_pins(workspace, stack)
        try:
            lock = read_lock(workspace, pins)
        except LockStaleError as error:
            unknown = error.what
            continue
        if not pins.base:
            notes.add(rootfs_key(workspace, pins, lock))
        for rendered in render(workspace, pins, lock):
            contexts |= {Path(context.folder).name for context in rendered.contexts if not context.target}
            keys.add((rendered.image.name, rendered.key))
    made = workspace.state / "store" / "made"
    if unknown:
        notes = {path.name for path in made.glob("*")}
    records = {
        path.name: record
        for path in (workspace.state / "builds").glob("*.json")
        if (record := read_record(path))
        and (unknown or (record.image, record.key) in keys or record.digest.removeprefix("sha256:") in released)
    }
    return Kept(
        blobs=frozenset(
            {entry.sha256 for lock in locks for entry in lock.entries()}
            | _bases(workspace, locks)
            | _noted(made, notes)
            | released
        ),
        notes=frozenset(notes),
        contexts=frozenset(contexts),
        images=frozenset(name for name, _ in keys),
        records=frozenset(records),
        digests=frozenset({record.digest for record in records.values()} | {f"sha256:{one}" for one in released}),
        bases=frozenset(image.digest for lock in locks for image in lock.images),
        unknown=unknown,
    )


def _parsed(workspace: Workspace, path: Path) -> Lock:
    return parse_lock(path.read_text(encoding="utf-8", errors="replace"), workspace.shown(path))


def _released(workspace: Workspace) -> set[str]:
    """Every sha256 that a release record has anywhere: what a release names stays, whatever it calls it."""
    files = (workspace.root / "releases").glob("**/*.toml")
    return {
        found for file in files for found in _SHA256.findall(file.read_text(encoding="utf-8", errors="replace").lower())
    }


def _bases(workspace: Workspace, locks: Iterable[Lock]) -> set[str]:
    """The blobs of base images that a bundle brought, or was made of."""
    held = [held_parts(Store(workspace.state / "store"), image.digest) for lock in locks for image in lock.images]
    return {one.removeprefix("sha256:") for parts in held if parts for one in (*parts.manifests, *parts.blobs)}


def _noted(made: Path, notes: Iterable[str]) -> set[str]:
    """The blobs that notes name."""
    found = set()
    for key in notes:
        try:
            found.add((made / key).read_text(encoding="utf-8").split()[0])
        except (OSError, ValueError, IndexError):
            continue
    return found


def proof_stays(path: Path, digests: Iterable[str]) -> bool:
    """Whether a proof speaks of nothing but images that stay."""
    try:
        shown = {str(image["digest"]) for image in json.loads(path.read_text(encoding="utf-8"))["images"]}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return shown <= set(digests)
