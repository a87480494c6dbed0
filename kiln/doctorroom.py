"""What ``kiln doctor`` finds of the room on the disks: what each command would take now, by the estimate that it makes itself before it begins (kiln/room.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kiln.build import known_build
from kiln.cache import in_engine
from kiln.console import megabytes
from kiln.doctor import VERIFY, Asked, Finding, Pairs, Stack
from kiln.engine import Engine, PrivateEngine, find_engine
from kiln.errors import KilnError
from kiln.fetch import missing_of
from kiln.lockfile import Lock, read_lock
from kiln.records import all_records
from kiln.releases import read_releases
from kiln.render import render
from kiln.room import MORE_ROOM, Need, data_root, disks, fetch_need, needs_of, to_build
from kiln.store import Store

# Seen with the CPU stack: the tiny checkpoint, and the bytecode that is kept of an image.
VERIFY_BYTES = 250_000_000


def room_findings(question: Asked) -> Iterator[Finding]:
    """For each stack and each command that writes much: what it takes, and whether that is free."""
    if not any(question.of(("fetch", "build", "pull", *VERIFY))):
        return
    engine, _ = find_engine(question.workspace.state)
    for stack in question.stacks:
        yield from _of_stack(question, stack, engine)


def _of_stack(question: Asked, stack: Stack, engine: Engine | None) -> Iterator[Finding]:
    state, name = question.workspace.state, f"room ({stack.name})"
    try:
        lock = read_lock(question.workspace, stack.pins)
        fetched = fetch_need(state / "store", missing_of(lock, Store(state / "store")))
        built = _build_needs(question, stack, lock, engine)
    except KilnError as error:
        pairs = question.of(("fetch", "build"), [stack])
        if pairs:
            yield Finding(name, "warning", "how much is taken is not known", pairs, error.what, error.fix)
    else:
        # A lock has no sizes of sources and base images.
        more = "the sources and the base image come on top: their sizes are not known" if stack.pins.base else ""
        yield from _judged(name, "fetch", [fetched], question.of(["fetch"], [stack]), more)
        yield from _judged(name, "build", [fetched, *built], question.of(["build"], [stack]), more)
    seen = Need(state, VERIFY_BYTES, "the tiny checkpoint and Python's bytecode, as the cpu stack's were")
    yield from _judged(name, "verify", [seen], question.of(VERIFY, [stack]), "")
    yield from _pull(question, stack, engine)


def _build_needs(question: Asked, stack: Stack, lock: Lock, engine: Engine | None) -> list[Need]:
    """What building the images takes that the engine has not. Without an engine there will be a private one, in the state folder."""
    workspace = question.workspace
    records, here = all_records(workspace), in_engine(workspace, engine) if engine else set()
    sizes: dict[str, int] = {}
    for rendered in render(workspace, stack.pins, lock):
        if not (engine and known_build(workspace, rendered, engine)):
            sizes |= to_build(rendered, stack.pins, lock, records, here)
    folder = data_root(engine) if engine else PrivateEngine(workspace.state).folder
    return needs_of(sizes, workspace.state, folder)


def _pull(question: Asked, stack: Stack, engine: Engine | None) -> Iterator[Finding]:
    pairs = question.of(["pull"], [stack])
    try:
        releases = read_releases(question.workspace, stack.name)
    except KilnError:
        # kiln pull says what is wrong with it.
        return
    folder = data_root(engine) if engine else PrivateEngine(question.workspace.state).folder
    if pairs and releases and folder:
        need = Need(folder, releases[-1].size, f"the layers of {releases[-1].tag} as they come")
        yield from _judged(
            f"room ({stack.name})", "pull", [need], pairs, "unpacked they take more, by how much is not known"
        )


def _judged(name: str, command: str, needs: Sequence[Need], pairs: Pairs, more: str) -> Iterator[Finding]:
    if not pairs:
        return
    wanted = disks(needs)
    if not wanted:
        yield Finding(name, "ok", f"{command} takes none: everything is there", pairs)
    for disk in wanted:
        found = f"{command} takes {megabytes(disk.size)} where {disk.needs[0].folder} is, and {megabytes(disk.free)} are free"
        if disk.size > disk.free:
            means = f"{megabytes(disk.size - disk.free)} are missing, so it is not begun"
            yield Finding(name, "missing", found, pairs, means, MORE_ROOM.replace("\n", "; "))
        else:
            yield Finding(name, "ok", found, pairs, more)
