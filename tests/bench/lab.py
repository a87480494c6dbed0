"""Where it is measured: a folder with an engine, a store and an image cache of the benchmark's own. What a person has elsewhere is read and never touched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kiln.console import Console
from kiln.engine import Engine, PrivateEngine, probe
from kiln.lockfile import Lock, read_lock
from kiln.pins import Pins, read_pins
from kiln.store import Store
from kiln.unixhttp import get_json
from kiln.workspace import Workspace

PROJECT = Path(__file__).resolve().parents[2]
STACK = "cpu"
# An image unpacked, the builder's copies of its steps and contexts, and the layers being packed, of either side; 21 GB were seen.
ROOM = 35e9


class BenchError(Exception):
    """A benchmark could not be carried out: what, and the last lines of what was run."""


@dataclass(frozen=True)
class Timed:
    """One run of a program: seconds from start to end, what it said, and the most memory that it held itself where it is kiln."""

    seconds: float
    out: str
    log: str
    memory: int | None = None


class Lab:
    """The benchmark's folder, and programs run in it."""

    def __init__(self, folder: Path, runs: int, console: Console) -> None:
        self.folder, self.runs, self.console = folder.absolute(), runs, console
        self.state = self.folder / "state"
        self.workspace = Workspace(PROJECT, self.state)
        self.store = Store(self.state / "store")

    @cached_property
    def pins(self) -> Pins:
        return read_pins(self.workspace, STACK)

    @cached_property
    def lock(self) -> Lock:
        return read_lock(self.workspace, self.pins)

    @cached_property
    def engine(self) -> Engine:
        """The benchmark's own engine, and no other: its caches are emptied."""
        private = PrivateEngine(self.state)
        if private.pid() is None:
            self.require_room()
            private.start(self.console)
        found = probe(private.host, private=True)
        info = get_json(private.socket, "/info") or {}
        if not isinstance(found, Engine) or info.get("DockerRootDir") != str(private.folder / "data"):
            raise BenchError(f"the engine at {private.host} is not the benchmark's own")
        return found

    def require_room(self) -> None:
        """Raise BenchError where images and cached steps of both sides could fill the disk: others may work on it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(self.folder).free) < ROOM:
            raise BenchError(
                f"builds take up to {ROOM / 1e9:.0f} GB, and {self.folder} has {free / 1e9:.0f} GB left: name another with --folder"
            )

    def close(self) -> None:
        """Stop the engine, if it was started, and remove what it held: it would be built anew anyway. The store stays for the next time."""
        private = PrivateEngine(self.state)
        private.stop()
        if private.pid() is None:
            shutil.rmtree(private.folder, ignore_errors=True)

    def fill_store(self) -> None:
        """Have every input of the stack in the store: linked from the checkout's own where they are there, else fetched."""
        own = PROJECT / ".kiln" / "store"
        if own.is_dir() and not self.store.folder.is_dir():
            self.state.mkdir(parents=True, exist_ok=True)
            shutil.copytree(own, self.store.folder, copy_function=_link, ignore=shutil.ignore_patterns("tmp-*"))
        self.kiln("fetch", STACK)

    def kiln(self, *words: str | Path, root: Path = PROJECT, engine: bool = False) -> Timed:
        """Kiln on this state folder, as a person starts it. Without ``engine`` it finds none: what needs none is measured without."""
        memory = self.folder / "memory"
        memory.unlink(missing_ok=True)
        host = self.engine.host if engine else f"unix://{self.folder / 'no-engine'}"
        argv = [sys.executable, PROJECT / "tests" / "bench" / "measured.py", memory]
        argv += [
            "--root",
            root,
            "--state",
            self.state if engine or words[0] == "fetch" else self.folder / "bare",
            *words,
        ]
        done = self.run(argv, DOCKER_HOST=host, PYTHONPATH=str(PROJECT), KILN_BUILDER="")
        return Timed(done.seconds, done.out, done.log, int(memory.read_text(encoding="ascii")))

    def docker(self, *words: str | Path, cwd: Path | None = None) -> Timed:
        """Docker's own client on the benchmark's engine."""
        return self.run(["docker", *words], cwd=cwd, **self.engine.environment)

    def run(self, argv: Sequence[str | Path], *, cwd: Path | None = None, **env: str) -> Timed:
        """A program, from start to end. Raises BenchError where it fails."""
        self.folder.mkdir(parents=True, exist_ok=True)
        words = [str(word) for word in argv]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("KILN_")}
        began = time.perf_counter()
        done = subprocess.run(
            words, cwd=cwd, env={**inherited, **env}, capture_output=True, text=True, errors="replace", check=False
        )
        seconds = time.perf_counter() - began
        if done.returncode != 0:
            tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
            raise BenchError(f"{' '.join(words[:6])} ended with {done.returncode}:\n{tail}")
        return Timed(round(seconds, 3), done.stdout, done.stderr)

    def forget(self) -> None:
        """Empty the engine: no image, no cached step; and what kiln laid out and noted of earlier builds. The store stays."""
        images = self.docker("images", "--all", "--quiet").out.split()
        if images:
            self.docker("image", "rm", "--force", *dict.fromkeys(images))
        self.docker("builder", "prune", "--all", "--force")
        for name in ("contexts", "builds", "renders"):
            shutil.rmtree(self.state / name, ignore_errors=True)

    def json(self, *words: str | Path, root: Path = PROJECT) -> object:
        """What kiln answers with --json, on the benchmark's engine."""
        argv = [sys.executable, "-m", "kiln", "--json", "--root", root, "--state", self.state, *words]
        return json.loads(self.run(argv, DOCKER_HOST=self.engine.host, PYTHONPATH=str(PROJECT)).out)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
