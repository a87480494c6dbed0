"""Rehearsing a ROCm stack: the same pins, templates, stages and checks, with stand-ins for what comes from upstreams.

A folder of stand-ins has ``standins.json`` (the base image's stand-in), ``kiln.toml`` (mirrors and apt sources), ``pip.conf``, and in
``locks``, a file for each stack, the wheels that stand for those of its real lock. What is built says of itself that it is a rehearsal, in a
label, in /app/provenance.json and in its name; it lies in a state folder of its own, which all stacks share.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from kiln.config import Config, read_config
from kiln.console import Console
from kiln.engine import Engine, image_document
from kiln.errors import EngineError, UsageError
from kiln.git import GitCache
from kiln.process import run
from kiln.session import Session
from kiln.store import Store
from kiln.workspace import Workspace

FOLDER = "rehearsal"


class StandinGit(GitCache):
    """Repositories of stand-ins: nobody can make a commit with the id that the pins name, so a tag of that name stands for it."""

    def resolve(self, url: str, ref: str) -> str:
        """As ``GitCache.resolve``; for a full commit id, the tag ``standin-<id>``."""
        return super().resolve(url, f"standin-{ref}" if re.fullmatch(r"[0-9a-f]{40}", ref) else ref)


def rehearsal(workspace: Workspace, standins: Path, stack: str, engine: Engine, console: Console) -> Session:
    """A session that takes everything from the folder ``standins``. Raises UsageError where that is no folder of stand-ins, or has none for
    the stack.

    pip is pointed at the stand-ins for as long as this process lives.
    """
    try:
        base = json.loads((standins / "standins.json").read_text(encoding="utf-8"))["base"]
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"{standins} is no folder of stand-ins",
            why=str(error),
            fix="make them: make rehearse (tests/rehearsal/standins.py)",
        ) from error
    state = workspace.state / FOLDER
    apart = Workspace(workspace.root, state, state / "locks")
    seed = standins / "locks" / f"{stack}.lock.toml"
    if not seed.is_file():
        there = sorted(path.name.removesuffix(".lock.toml") for path in seed.parent.glob("*.lock.toml"))
        raise UsageError(
            f"{standins} has no stand-ins for {stack!r}",
            why=f"It has them for {', '.join(there) or 'no stack'}.",
            fix="name one of those, or make them for this stack too (STACKS in tests/rehearsal/standins.py)",
        )
    # With other stand-ins everything that was learnt from the earlier ones is wrong.
    made_from = standins / "made-from"
    identity = f"{standins.absolute()} {made_from.read_text(encoding='utf-8') if made_from.is_file() else ''}"
    note = state / "standins"
    if not note.is_file() or note.read_text(encoding="utf-8") != identity:
        for old in ("git", "locks", "apt"):
            shutil.rmtree(state / old, ignore_errors=True)
        (state / "locks").mkdir(parents=True)
        note.write_text(identity, encoding="utf-8")
    if not (lock := state / "locks" / seed.name).is_file():
        lock.write_bytes(seed.read_bytes())
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        del os.environ[name]
    os.environ["PIP_CONFIG_FILE"] = str((standins / "pip.conf").absolute())
    config = read_config(apart, {"KILN_CONFIG": str((standins / "kiln.toml").absolute())})
    _load_base(engine, standins / base["archive"], base["name"], base["digest"])
    return Session(
        apart,
        Store(state / "store"),
        console,
        base["name"],
        engine,
        config,
        StandinGit(state / "git", config),
    )


def rehearsed(workspace: Workspace, engine: Engine, console: Console) -> Session:
    """A session that looks at what a rehearsal made here, and takes nothing from anywhere."""
    state = workspace.state / FOLDER
    apart = Workspace(workspace.root, state, state / "locks")
    return Session(apart, Store(state / "store"), console, FOLDER, engine, Config(), GitCache(state / "git", Config()))


def _load_base(engine: Engine, archive: Path, name: str, digest: str) -> None:
    if image_document(engine, name):
        return
    done = run(["docker", "load", "--quiet", "--input", archive], env=engine.environment, timeout=600)
    tagged = run(["docker", "tag", digest, name], env=engine.environment)
    if done.code != 0 or tagged.code != 0:
        raise EngineError("the engine could not load the stand-in of the base image", why=done.tail() + tagged.tail())
