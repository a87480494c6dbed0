"""Where things lie: the project folder that a person edits, and the state folder that Kiln fills."""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kiln.errors import UsageError
from kiln.store import write_whole

STATE_FOLDER = ".kiln"


@dataclass(frozen=True)
class Workspace:
    """The two folders that everything else is relative to.

    ``root`` holds ``pins/``, ``images/``, ``templates/``, ``scripts/`` and ``plugins/``; ``state`` is made and filled by
    Kiln and may be deleted at any time (it costs a download and a build). A rehearsal keeps its locks apart, in ``locks``.
    """

    root: Path
    state: Path
    locks: Path | None = None

    @classmethod
    def find(cls, root: Path | None = None, state: Path | None = None) -> Workspace:
        """The workspace at ``root``, or the nearest one at or above the current folder.

        ``KILN_ROOT`` and ``KILN_STATE`` stand in for the arguments. Raises UsageError where there is none.
        """
        chosen = root or _env_path("KILN_ROOT") or _search(Path.cwd())
        if not (chosen / "pins").is_dir():
            raise UsageError(
                f"{chosen} is not a Kiln project",
                why="A Kiln project is a folder that holds pins/, images/ and templates/.",
                fix="run kiln in a checkout of the project, or name one with --root",
            )
        chosen = chosen.resolve()
        return cls(chosen, (state or _env_path("KILN_STATE") or chosen / STATE_FOLDER).absolute())

    @property
    def rehearsal(self) -> bool:
        """Whether what is built here is built from stand-ins."""
        return self.locks is not None

    def pins_file(self, stack: str) -> Path:
        """What a person chose for ``stack``."""
        return self.root / "pins" / f"{stack}.toml"

    def lock_file(self, stack: str, chosen: str = "") -> Path:
        """What the pins of ``stack`` resolved to; with other choices than the pins (their checksum), a file in the state folder."""
        if chosen:
            return self.state / "locks" / f"{stack}-{chosen[:16]}.lock.toml"
        return (self.locks or self.root / "pins") / f"{stack}.lock.toml"

    def image_folder(self, image: str) -> Path:
        """The folder of one image: image.toml by hand, the rest rendered."""
        return self.root / "images" / image

    def stacks(self) -> list[str]:
        """The names of the stacks that have pins, sorted."""
        files = (self.root / "pins").glob("*.toml")
        return sorted(f.stem for f in files if not f.name.endswith(".lock.toml") and f.stem != "advisories")

    @contextmanager
    def exclusive(self, waiting: Callable[[str], None]) -> Iterator[None]:
        """Hold the state folder alone; a second kiln waits for the first, and ``waiting`` is told whom it waits for.

        What a killed run left behind is removed: while the folder is held, a working folder in it belongs to nobody.
        """
        self.state.mkdir(parents=True, exist_ok=True)
        with (self.state / "lock").open("a+", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                waiting(
                    f"another kiln (pid {lock.read().strip() or 'unknown'}) is working in {self.state}; waiting for it"
                )
                fcntl.flock(lock, fcntl.LOCK_EX)
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            for left in (self.state / "store").glob("tmp-*"):
                shutil.rmtree(left, ignore_errors=True)
            yield

    @property
    def identity(self) -> str:
        """What tells this state folder from every other, on this machine or another: made once, kept in it."""
        path = self.state / "identity"
        if not path.is_file():
            self.state.mkdir(parents=True, exist_ok=True)
            write_whole(path, uuid.uuid4().hex)
        return path.read_text(encoding="utf-8")

    def shown(self, path: Path) -> str:
        """``path`` as a person would type it: relative to the current folder where it lies below it."""
        try:
            return str(path.relative_to(Path.cwd()))
        except ValueError:
            return str(path)


def _env_path(name: str) -> Path | None:
    value = os.environ.get(name)
    return Path(value).absolute() if value else None


def _search(start: Path) -> Path:
    for folder in (start, *start.parents):
        if (folder / "pins").is_dir() and (folder / "images").is_dir():
            return folder
    return start
