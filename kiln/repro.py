"""Building a stack twice from nothing under conditions that differ, and comparing what came out, digest by digest.

Each build is a kiln of its own, with a state folder, a content store (the fetched inputs, nothing that was made) and a private engine of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from kiln.conditions import (
    FIRST,
    SECOND,
    Conditions,
    copy_checkout,
    disk,
    fake_clock,
    host_environment,
    write_runc,
)
from kiln.console import Console
from kiln.engine import Engine, PrivateEngine, probe
from kiln.errors import BuildError, EngineError, KilnError
from kiln.otherengine import other_engine, unpack_docker
from kiln.process import end_group, telling
from kiln.reproducible import below_claim, level_of, measured
from kiln.rootfs import place_file
from kiln.workspace import Workspace

if TYPE_CHECKING:
    from kiln.diff import Diff
    from kiln.lockfile import Lock
    from kiln.ociimage import OciImage
    from kiln.render import Rendered

    Names: TypeAlias = Callable[[OciImage], Sequence[str]]
    Look: TypeAlias = Callable[["Outcome", "Outcome", int], Diff]

FOLDER = "repro"
BUILD_SECONDS = 12 * 3600


@dataclass(frozen=True)
class Outcome:
    """One build: its conditions, its engine, and the record of every image (``kiln.build.Built`` as data), in the stack's order."""

    name: str
    builder: str
    conditions: dict[str, str]
    images: tuple[dict[str, Any], ...]
    seconds: float
    engine: Engine


@dataclass(frozen=True)
class Asked:
    """What is to be built: the stack, the words after it on the command line, and a folder of stand-ins where it is a rehearsal."""

    stack: str
    words: tuple[str, ...] = ()
    standins: Path | None = None

    def command(self, root: Path, state: Path) -> list[str]:
        """The kiln that builds it, and looks at nothing."""
        start = [sys.executable, "-m", "kiln", "--json", "--root", str(root), "--state", str(state)]
        if self.standins:
            words = ["rehearse", self.stack, "--standins", str(self.standins.absolute()), "--no-verify"]
            return [*start, *words, *self.words]
        return [*start, "build", self.stack, *self.words]


@dataclass(frozen=True)
class Compared:
    """One image of all builds: its digests, the level of each component (claimed, measured), what differs from the first build's image (with the
    build's name), and what is claimed and not so, a line each."""

    image: str
    digests: tuple[str, ...]
    components: tuple[tuple[str, str, str], ...]
    differences: tuple[tuple[str, Diff], ...]
    broken_claims: tuple[str, ...]

    def text(self) -> str:
        """For people."""
        verdict = "one digest in all builds" if not self.differences else "DIFFERENT digests"
        lines = [f"{self.image}: {verdict}", *(f"  {digest}" for digest in dict.fromkeys(self.digests))]
        lines += [f"  {name:20} claimed {claimed:16} measured {found}" for name, claimed, found in self.components]
        return "\n".join(lines)

    def data(self) -> dict[str, Any]:
        """As JSON data."""
        plain = {key: value for key, value in vars(self).items() if key != "differences"}
        return plain | {"differences": [{"build": name, **found.data()} for name, found in self.differences]}


def compared(outcomes: Sequence[Outcome], images: Sequence[Rendered], lock: Lock, look: Look) -> list[Compared]:
    """The images of all builds side by side. ``images`` and ``lock`` say what is claimed; ``look`` compares the image at a place of two builds."""
    found = []
    first = outcomes[0]
    builders = [one.builder for one in outcomes]
    for place, rendered in enumerate(images):
        records = [one.images[place] for one in outcomes]
        digests = tuple(record["digest"] for record in records)
        differences = tuple(
            (one.name, look(first, one, place))
            for one, digest in zip(outcomes, digests, strict=True)
            if digest != digests[0]
        )
        layers = [{layer["component"]: layer["digest"] for layer in record["layers"]} for record in records]
        rows, broken = [], []
        for name in rendered.image.components:
            claimed = level_of(rendered.image, name, lock)
            own = [one.get(name, f"none {number}") for number, one in enumerate(layers)]
            changed = [digest != own[0] for digest, whole in zip(own, digests, strict=True) if whole != digests[0]]
            alike = [_same_content(one, own[0]) for (_, one), other in zip(differences, changed, strict=True) if other]
            level = measured(own, builders, same_content=bool(alike) and all(alike))
            rows.append((name, claimed, level))
            if below_claim(claimed, level, across=len(set(builders)) > 1):
                broken.append(f"{rendered.image.name}, {name}: claimed {claimed}, measured {level}")
        found.append(Compared(rendered.image.name, digests, tuple(rows), differences, tuple(broken)))
    return found


def _same_content(difference: Diff, layer: str) -> bool:
    """Whether a layer (by its digest in the first build) has the same files in both, apart from times, order and packing. Of a list that was cut
    short that is not known."""
    from kiln.diffkinds import ignored

    form = ignored(frozenset({"semantic"}))
    found = [one for one in difference.layers if one.digest_a == layer]
    kinds = {str(one.kind) for item in found for one in item.findings}
    kinds |= {str(one.kind) for item in found for file in item.files for one in file.findings}
    whole = all(item.differing == len(item.files) and item.place_a and item.place_b for item in found)
    return bool(found) and whole and kinds <= form


@contextmanager
def builds(
    workspace: Workspace, asked: Asked, console: Console, suite: str, missing: dict[str, str]
) -> Iterator[list[Outcome]]:
    """Build twice, and a third time with the Docker of a Debian ``suite`` where one is named; the engines run until the end, to be asked for files.

    What could not be varied is put into ``missing``, with the reason. Raises BuildError with a build's last words, EngineError, HostError.
    """
    folder = workspace.state / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    try:
        clock: Path | None = fake_clock(workspace.state / "tools", console)
    except KilnError as error:
        clock, missing["date"] = None, error.what
    if suite:
        unpack_docker(workspace.state / "tools", suite, console)
    with ExitStack() as opened:
        opened.callback(shutil.rmtree, folder, ignore_errors=True)
        outcomes = []
        for conditions, docker in [(FIRST, ""), (SECOND, ""), *([(SECOND, suite)] if suite else [])]:
            name = f"{conditions.name}{f'-{docker}' if docker else ''}"
            state = opened.enter_context(disk(folder / name, conditions.other_disk, missing))
            outcomes.append(opened.enter_context(_built(workspace, asked, conditions, docker, state, clock, console)))
        yield outcomes


@contextmanager
def _built(
    workspace: Workspace,
    asked: Asked,
    conditions: Conditions,
    suite: str,
    state: Path,
    clock: Path | None,
    console: Console,
) -> Iterator[Outcome]:
    began = time.monotonic()
    _copy_inputs(workspace, asked, state)
    root = workspace.root
    if conditions.other_folder:
        root = copy_checkout(workspace.root, workspace.state, state / "a-checkout-elsewhere")
    engine = _engine(workspace, conditions, suite, state, clock, console)
    engine.start(console)
    try:
        found = probe(engine.host, private=True)
        assert isinstance(found, Engine), "an engine that started answers"
        console.step(f"build {state.name} on {found.described}: {_said(conditions)}")
        images = _run(asked.command(root, state), root, conditions, clock, engine.host)
        yield Outcome(
            state.name,
            f"Docker {found.version}",
            conditions.described(),
            tuple(images),
            round(time.monotonic() - began, 1),
            found,
        )
    finally:
        engine.stop()


def differences(one: Outcome, other: Outcome, place: int, scratch: Path, names: Names, console: Console) -> Diff:
    """What differs between the images of two builds at a ``place`` of the stack. Raises EngineError, ImageDamagedError."""
    from kiln.config import Config
    from kiln.diff import Options, compare
    from kiln.diffkinds import Hints
    from kiln.ociimage import Reader

    sides = []
    for build in (one, other):
        reader = Reader(scratch, lambda build=build: build.engine, Config, console, "kiln repro")  # type: ignore[misc]
        (image,) = reader.read(build.images[place]["reference"])
        sides.append(replace(image, name=f"build {build.name}"))
    hints = Hints(tuple(build.conditions["host name"] for build in (one, other)))
    return compare(sides[0], sides[1], scratch, console, Options(hints=hints, names=names))


def _said(conditions: Conditions) -> str:
    return ", ".join(f"{name} {value}" for name, value in conditions.described().items())


def _engine(
    workspace: Workspace, conditions: Conditions, suite: str, state: Path, clock: Path | None, console: Console
) -> PrivateEngine:
    folder = state / "engine"
    folder.mkdir()
    seen = None
    if clock:
        # Where a daemon in a root of its own sees it too.
        seen = folder / "clock.so"
        shutil.copyfile(clock, seen)
    path = write_runc(folder / "bin", conditions, seen)
    if not suite:
        return PrivateEngine(state, folder=folder, path=path)
    return other_engine(unpack_docker(workspace.state / "tools", suite, console), folder, path)


def _copy_inputs(workspace: Workspace, asked: Asked, state: Path) -> None:
    """The fetched files into a store of the build's own: by link where that is possible. What Kiln made stays behind, but for a rehearsal's locks,
    which come from the stand-ins."""
    source = workspace.state / ("rehearsal/store" if asked.standins else "store")
    target = state / source.relative_to(workspace.state)
    for path in source.rglob("*"):
        relative = path.relative_to(source)
        if path.is_file() and relative.parts[0] != "made" and not relative.parts[0].startswith("tmp-"):
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            place_file(path, target / relative)


def _run(
    command: Sequence[str], root: Path, conditions: Conditions, clock: Path | None, host: str
) -> list[dict[str, Any]]:
    """Run a kiln under its conditions and return what it built."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "KILN_"))}
    limit = ["taskset", "-c", f"0-{conditions.processors - 1}"] if conditions.processors else []
    argv = [*limit, *command]
    with telling(argv) as ended:
        process = subprocess.Popen(
            argv,
            cwd=root,
            env={
                **environment,
                **host_environment(conditions, clock),
                "DOCKER_HOST": host,
                "PYTHONDONTWRITEBYTECODE": "1",
                # Each build is its own engine's, whatever builders the site has.
                "KILN_BUILDER": "",
            },
            umask=conditions.umask,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            output, errors = process.communicate(timeout=BUILD_SECONDS)
        except BaseException:
            end_group(process)
            raise
        ended(process.returncode)
    if process.returncode != 0:
        raise BuildError(
            f"build {conditions.name} failed, so there is nothing to compare",
            why="\n".join(errors.strip().splitlines()[-25:]),
            fix="see whether it builds at all: kiln build STACK",
        )
    try:
        return list(json.loads(output))
    except (ValueError, TypeError) as error:
        raise EngineError("a build did not say what it built", why=f"{error}\n{output[-400:]}") from error
