"""What lies in the state folder and is not named any more (``kiln.kept``): found, counted, removed.

Removing may be cut off at any moment. A file goes by itself; a folder that counts as whole for having its name is renamed first, so that no later
run takes a torn one for it; and what a removal left behind is the next one's to find.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kiln.console import megabytes
from kiln.engine import PrivateEngine
from kiln.kept import DAY, Kept, kept, old_choices, proof_stays, state_folders
from kiln.records import read_record
from kiln.workspace import Workspace

# `kiln diff` works in the scratch folder without holding the state folder: what is younger may be in use.
SCRATCH_DAYS = 1
ASIDE = "tmp-gc-"
_REPORT = re.compile(r"(sha256)-([0-9a-f]{64})\b.*")
_BESIDE = re.compile(r"\..+\.(?P<pid>\d+)")


@dataclass(frozen=True)
class Item:
    """Something that may go: a file or a folder, of which kind, and its files as (device and inode, number of links, size)."""

    kind: str
    path: Path
    files: tuple[tuple[tuple[int, int], int, int], ...]

    @property
    def size(self) -> int:
        """The bytes in its files; one that has two names in it counts once."""
        return sum({inode: size for inode, _, size in self.files}.values())


@dataclass(frozen=True)
class Row:
    """One kind of what may go: how many things, the bytes in them, and the bytes that are free when everything that may go is gone."""

    kind: str
    items: int
    size: int
    frees: int


@dataclass(frozen=True)
class Found:
    """What may go, and what is left alone although it looks as if nobody needed it (a line each, with the reason); the manifest digests of images that
    stay, and of the base images. ``unknown``: it cannot be told which images are current."""

    items: tuple[Item, ...]
    left_alone: tuple[str, ...]
    digests: frozenset[str] = frozenset()
    bases: frozenset[str] = frozenset()
    unknown: bool = False

    def rows(self) -> list[Row]:
        """A row for each kind that there is. A file that has another name in something that stays frees nothing; one that has two names in what goes
        frees its bytes once, in the first kind that has it."""
        links = Counter(inode for item in self.items for inode, _, _ in item.files)
        counted: set[tuple[int, int]] = set()
        rows: dict[str, Row] = {}
        for item in self.items:
            frees = 0
            for inode, names, size in item.files:
                if inode not in counted and links[inode] >= names:
                    counted.add(inode)
                    frees += size
            row = rows.get(item.kind, Row(item.kind, 0, 0, 0))
            rows[item.kind] = Row(item.kind, row.items + 1, row.size + item.size, row.frees + frees)
        return list(rows.values())


def table(rows: Sequence[Row]) -> str:
    """The rows for people."""
    cells = [("", "things", "size", "frees")]
    cells += [(row.kind, str(row.items), megabytes(row.size), megabytes(row.frees)) for row in rows]
    cells.append(("all", str(sum(row.items for row in rows)), "", megabytes(sum(row.frees for row in rows))))
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    return "\n".join(
        "  ".join(text.rjust(width) if place else text.ljust(width) for place, (text, width) in enumerate(pairs))
        for line in cells
        for pairs in [list(zip(line, widths, strict=True))]
    )


def look(workspace: Workspace, days: int = 0, now: float | None = None) -> Found:
    """What of the state folder, and of the rehearsals' in it, is not named and did not come or change within the last ``days``.

    The state folder must be held (``Workspace.exclusive``). Raises what ``kiln.kept.kept`` raises.
    """
    moment = time.time() if now is None else now
    items: list[Item] = []
    left_alone: list[str] = []
    folders = {one: kept(one, moment) for one in state_folders(workspace)}
    for one, names in folders.items():
        if names.unknown:
            left_alone.append(
                f"what was built in {workspace.shown(one.state)}: {names.unknown}, so it cannot be told what is current"
            )
        for kind, path in _unnamed(one, names, moment):
            reason = "" if kind != "leftovers" else in_use(path)
            if reason:
                left_alone.append(f"{workspace.shown(path)}: {reason}")
            elif moment - path.lstat().st_ctime >= days * DAY:
                items.append(Item(kind, path, _files(path)))
    gone = {item.path for item in items}
    # A record that is too young to go keeps its image.
    young = [path for one in folders for path in (one.state / "builds").glob("*.json") if path not in gone]
    return Found(
        tuple(items),
        tuple(left_alone),
        frozenset(record.digest for record in map(read_record, young) if record).union(
            *(names.digests for names in folders.values())
        ),
        frozenset[str]().union(*(names.bases for names in folders.values())),
        any(names.unknown for names in folders.values()),
    )


def _unnamed(workspace: Workspace, names: Kept, now: float) -> Iterator[tuple[str, Path]]:
    """Every path that is not named, with its kind."""
    state = workspace.state
    yield from (
        ("stored files", path) for path in _below(state / "store" / "sha256", "*/*") if path.name not in names.blobs
    )
    yield from (("notes", path) for path in _below(state / "store" / "made") if path.name not in names.notes)
    if not names.unknown:
        yield from (("contexts", path) for path in _below(state / "contexts") if path.name not in names.contexts)
        yield from (("rendered files", path) for path in _below(state / "renders") if path.name not in names.images)
        yield from (
            ("build records", path) for path in _below(state / "builds", "*.json") if path.name not in names.records
        )
        for path in _below(state / "reports"):
            if (match := _REPORT.fullmatch(path.name)) and ":".join(match.groups()) not in names.digests:
                yield "reports", path
        yield from (
            ("proofs", path) for path in _below(state / "proofs", "*.json") if not proof_stays(path, names.digests)
        )
        yield from (("bytecode", path) for path in _below(state / "bytecode") if _digest(path) not in names.digests)
    yield from (("locks of choices", path) for path in old_choices(workspace, now))
    yield from (("leftovers", path) for path in _leftovers(state, now))


def _below(folder: Path, pattern: str = "*") -> list[Path]:
    """What is in a folder, in name order, less what killed runs left."""
    return [path for path in sorted(folder.glob(pattern)) if not path.name.startswith(("tmp-", "."))]


def _digest(folder: Path) -> str:
    """Of which image digest a folder of bytecode is."""
    try:
        return (folder / "digest").read_text(encoding="utf-8")
    except OSError:
        return ""


def _leftovers(state: Path, now: float) -> Iterator[Path]:
    """What killed runs left: working folders, a build twice, layers laid out for a build, files that were being written by a process that is gone."""
    folders = ("", "store", "git", "contexts", "bytecode", "renders", "tools")
    yield from (path for folder in folders for path in sorted((state / folder).glob("tmp-*")))
    yield from (path for path in (state / "repro", state / "restored") if path.is_dir())
    yield from sorted((state / "tools").glob(".lm-eval-*"))
    for path in sorted((state / "scratch").glob("*")):
        with suppress(FileNotFoundError):
            if now - path.lstat().st_mtime > SCRATCH_DAYS * DAY:
                yield path
    for folder in ("", "store/made", "builds", "reports", "proofs", "locks", "restored"):
        for path in sorted((state / folder).glob(".*")):
            match = _BESIDE.fullmatch(path.name)
            if match and path.is_file() and not Path("/proc", match["pid"]).exists():
                yield path


def in_use(folder: Path) -> str:
    """Why a leftover folder must stay: a disk is mounted in it, or a kiln or an engine that outlived its parent runs on it; else empty."""
    try:
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()]
    except OSError:
        mounts = []
    # The kernel writes a blank in a path as \040.
    place = str(folder.resolve()).replace(" ", "\\040")
    if mounted := [mount for mount in mounts if mount == place or mount.startswith(f"{place}/")]:
        return f"a disk is mounted in it; take it away with: umount --recursive {mounted[0]}"
    for state in folder.glob("*"):
        if pid := PrivateEngine(state).pid():
            return f"an engine runs in it (pid {pid}); stop it with: kill {pid}"
        if _held(state / "lock"):
            return "a kiln that outlived its parent is working in it; wait for it"
    return ""


def _held(lock: Path) -> bool:
    """Whether a process holds this lock of a state folder."""
    try:
        with lock.open(encoding="utf-8") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _files(path: Path) -> tuple[tuple[tuple[int, int], int, int], ...]:
    """The files of a path (no link is followed), each with its inode, its number of names and its size."""
    places = [path]
    if path.is_dir() and not path.is_symlink():
        places = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    found = [place.lstat() for place in places]
    return tuple(
        ((one.st_dev, one.st_ino), one.st_nlink, one.st_size) for one in found if not stat.S_ISDIR(one.st_mode)
    )


def remove(items: Sequence[Item]) -> list[str]:
    """Remove what was found; returns what could not be, a line each with the reason. A file that is gone already is fine."""
    failed = []
    for item in items:
        try:
            _remove(item.path)
        except OSError as error:
            failed.append(f"{item.path}: {error.strerror or error}")
    return failed


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    if not path.name.startswith("tmp-"):
        # Under its name a folder counts as whole.
        path = path.rename(Path(tempfile.mkdtemp(prefix=ASIDE, dir=path.parent)) / path.name).parent
    shutil.rmtree(path)
