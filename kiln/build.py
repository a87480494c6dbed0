"""The stage *build*: rendered files and the store in; an image in the engine, its digest and a record out.

BuildKit does the building (``docker buildx bake`` on the rendered bake file) and puts the image into the engine's store. Kiln lays out the
contexts, watches, takes the digest from BuildKit's metadata, never from a log, and asks the engine whether it holds that very image.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from kiln.builders import ENGINE, Builder, load_archive, require_same
from kiln.console import Console, megabytes
from kiln.engine import Engine, image_digest
from kiln.errors import BuilderLostError, BuildError, EngineError, SourceError
from kiln.fetch import source_key
from kiln.layers import read_layers
from kiln.lockentries import Deb, Git, Wheel
from kiln.lockfile import Lock
from kiln.pins import Pins
from kiln.plan import ROOTFS, Context
from kiln.process import end_group, raise_if_disk_full, telling
from kiln.records import Built, components_of, read_record, record_file, write_record
from kiln.render import LABEL, Rendered, write_rendered
from kiln.restored import NOTHING_GIVEN, Given
from kiln.rootfs import make_rootfs, place_file
from kiln.store import Store, content_time, disk_full_is_an_error
from kiln.untar import unpack
from kiln.wheels import requirements_text
from kiln.workspace import Workspace

BUILD_SECONDS = 6 * 3600
_STEP = re.compile(r"#(?P<number>\d+) (?P<text>.*)")


def reference_of(rendered: Rendered) -> str:
    """The name of the image in the engine: its tag is its build key, so one name never means two images. What was built of stand-ins is
    called so."""
    rehearsed = "rehearsal-" if f"{LABEL}.rehearsal" in dict(rendered.labels) else ""
    return f"kiln/{rehearsed}{rendered.image.name}:{rendered.key[:16]}"


def known_build(workspace: Workspace, rendered: Rendered, engine: Engine) -> Built | None:
    """The image if this very key was built and the engine holds that very digest; else None."""
    built = read_record(record_file(workspace, rendered.image.name, rendered.key))
    if built is None or built.key != rendered.key:
        return None
    return built if image_digest(engine, built.reference) == built.digest else None


def build(
    workspace: Workspace,
    pins: Pins,
    lock: Lock,
    rendered: Rendered,
    store: Store,
    engine: Engine,
    console: Console,
    more_files: Sequence[str] = (),
    given: Given = NOTHING_GIVEN,
    parents: Sequence[Rendered] = (),
    builder: Builder = ENGINE,
) -> Built:
    """Build one image into the engine; ``more_files`` are bake files laid over the rendered ones (relative to the state folder).

    ``given`` is what need not be built, ``parents`` the images whose stages it takes and which were not built here, ``builder`` who builds.
    Raises CacheEntryError where a given component became another layer than it is said to be; nothing is recorded then. Raises StoreDamagedError where an input is not what the lock says, BuildError with the failing step's last lines and
    where the whole log lies, BuilderLostError, BuildersDifferError, DiskFullError, EngineError where the engine holds another digest than BuildKit reported.
    """
    began = time.monotonic()
    name = rendered.image.name
    lock.require_resolved()
    # A stack on a base image makes no root file system of its own.
    rootfs = "" if pins.base else make_rootfs(workspace, pins, lock, store, console)
    for image in (*parents, rendered):
        for context in image.contexts:
            if (image.image.name, context.name) not in given.unneeded:
                lay_out(workspace, context, store, rootfs)
    write_rendered((*parents, rendered), workspace.state / "renders")
    (workspace.state / "images").mkdir(parents=True, exist_ok=True)
    record, reference = record_file(workspace, name, rendered.key), reference_of(rendered)
    with store.scratch() as scratch:
        archive = scratch / "image.tar"
        output = builder.output(pins, archive) if builder.name else ""
        metadata = _bake(workspace, rendered, engine, console, more_files, builder, output)
        digest = str(metadata[name]["containerimage.digest"])
        require_same(builder, read_record(record), rendered.key, digest, workspace.shown(record))
        if builder.name:
            console.step(
                f"loading {name} from {builder.described}: {digest[:19]}…, {megabytes(archive.stat().st_size)}"
            )
            load_archive(engine, builder, archive)
    if (found := image_digest(engine, reference)) != digest:
        raise EngineError(
            "the engine holds another image than BuildKit built",
            why=f"built    {digest}\nin store {found}",
            fix="the engine must use the containerd image store: kiln engine status",
        )
    layered = read_layers(engine, reference, digest, rendered.layers, on_base=bool(pins.base))
    given.require_layers(name, layered.layers)
    seconds = round(time.monotonic() - began, 1)
    made, restored = components_of(rendered, pins), tuple(stage for _, stage in given.entries)
    built = Built(
        name,
        rendered.key,
        digest,
        reference,
        seconds,
        layered.layers,
        made,
        layered.described,
        restored,
        builder=builder.name,
    )
    write_record(workspace, built)
    return built


def lay_out(workspace: Workspace, context: Context, store: Store, rootfs: str) -> Path:
    """Make the folder of a build context out of the store (hard links) or the project (copies with one time).

    The folder is named after its contents and renamed into place whole, so one that is there is right; the blobs that it
    links to are compared with their names all the same, for a disk may have changed them since.
    """
    folder = workspace.state / context.folder
    if context.target:
        return folder
    blobs = _blobs(context, store, rootfs)
    if folder.is_dir() and all(_same_file(path, folder / name) for path, name in blobs):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    with store.scratch() as scratch, disk_full_is_an_error(folder):
        made = scratch / "context"
        made.mkdir()
        placed = {made / name: path.name for path, name in blobs}
        for path, name in blobs:
            place_file(path, made / name)
        if context.wheels:
            (made / "requirements.txt").write_text(requirements_text(context.wheels), encoding="utf-8")
        _write_sources(workspace, context, made, store)
        for path in (made, *made.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
            # One time within a context, for make compares them; another where the contents are others, for BuildKit does.
            time_of = content_time(placed.get(path, context.digest))
            os.utime(path, (time_of, time_of), follow_symlinks=False)
        folder.parent.mkdir(parents=True, exist_ok=True)
        made.rename(folder)
    return folder


def _write_sources(workspace: Workspace, context: Context, made: Path, store: Store) -> None:
    """What of a context is not one file of the store each: rendered texts, the project's own files, a source out of its tar."""
    for name, text in context.files:
        (made / name).write_text(text, encoding="utf-8")
    for script in context.scripts:
        shutil.copyfile(workspace.root / script, made / Path(script).name)
    if context.git:
        _unpack(context.git, made, store)
    ignored = shutil.ignore_patterns("__pycache__", "tests", "dist", ".*_cache", "*.pyc")
    for source in context.sources:
        shutil.copytree(workspace.root / source, made / Path(source).name, ignore=ignored)


def _blobs(context: Context, store: Store, rootfs: str) -> list[tuple[Path, str]]:
    """The store's files that go into a context, each compared with its name just now, and what they are called there."""
    files: tuple[Wheel | Deb, ...] = (*context.wheels, *context.debs)
    blobs = [(store.check(item.sha256, item.label), item.file) for item in files]
    blobs += [(store.check(archive.sha256, archive.label), archive.name) for archive in context.archives]
    if context.name == ROOTFS:
        blobs.append((store.check(rootfs, "the root file system"), "rootfs.tar"))
    return blobs


def _unpack(git: Git, folder: Path, store: Store) -> None:
    """A source's files out of its tar in the store. Raises SourceError where it was never fetched."""
    sha256 = store.made(source_key(git))
    if sha256 is None:
        raise SourceError(f"the source of {git.label} was not fetched", fix="fetch it first: kiln fetch STACK")
    # Sources hold what they hold (links out of the tree among it); nothing of it is followed here, and the builder sees the folder alone.
    unpack(store.check(sha256, git.label), folder)


def _same_file(blob: Path, placed: Path) -> bool:
    try:
        return blob.samefile(placed) or (
            blob.stat().st_size == placed.stat().st_size and blob.stat().st_dev != placed.stat().st_dev
        )
    except OSError:
        return False


def bake_argv(
    rendered: Rendered, more_files: Sequence[str] = (), builder: Builder = ENGINE, output: str = ""
) -> list[str]:
    """The command that builds an image; run in the state folder. ``more_files`` are bake files that are laid over the rendered ones, ``output`` is
    what the image is put out as, where that is not what they say."""
    name = rendered.image.name
    files = [f"renders/{one}/docker-bake.json" for one in (*rendered.parents, name)]
    words = [
        "--progress=plain",
        f"--metadata-file=images/{name}.metadata.json",
        f"--set={name}.tags={reference_of(rendered)}",
        *([f"--set={name}.output={output}"] if output else []),
        *(f"--file={file}" for file in (*files, *more_files)),
        name,
    ]
    return [*builder.docker, "buildx", "bake", f"--builder={builder.name or 'default'}", *words]


def _bake(
    workspace: Workspace,
    rendered: Rendered,
    engine: Engine,
    console: Console,
    more_files: Sequence[str],
    builder: Builder,
    output: str,
) -> dict[str, Any]:
    name = rendered.image.name
    log = workspace.state / "logs" / f"build-{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    where = f" on {builder.described}" if builder.name else ""
    console.step(f"building {name}{where}: {len(rendered.units)} components, no step has a network")
    console.note(f"whole log: {workspace.shown(log)}")
    metadata = workspace.state / "images" / f"{name}.metadata.json"
    metadata.unlink(missing_ok=True)
    watcher = BuildWatcher(console)
    argv = bake_argv(rendered, more_files, builder, output)
    with (
        # By the line: somebody may be reading it, and what is killed leaves what it knew.
        log.open("w", encoding="utf-8", buffering=1) as stream,
        disk_full_is_an_error(workspace.state),
        watcher,
        telling(argv) as ended,
    ):
        process = subprocess.Popen(
            argv,
            cwd=workspace.state,
            env={**os.environ, **builder.environment(engine), "NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                stream.write(line)
                watcher.line(line.rstrip("\n"))
            code = process.wait(timeout=60)
            ended(code)
        except BaseException:
            end_group(process)
            raise
    if code != 0:
        said = log.read_text(encoding="utf-8", errors="replace")
        raise_if_disk_full(said)
        if builder.is_lost(said):
            raise BuilderLostError(
                f"{builder.described} went away while it built {name}",
                why="".join(said.strip().splitlines()[-1:]),
            )
        raise BuildError(
            watcher.failure or f"buildx could not build {name}",
            why=watcher.tail(),
            fix=f"the whole log: {workspace.shown(log)}",
        )
    try:
        return dict(json.loads(metadata.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise BuildError(
            f"BuildKit left no metadata of {name}", why=str(error), fix=f"the whole log: {workspace.shown(log)}"
        ) from error


class BuildWatcher:
    """Reads BuildKit's plain progress: says what is being done and how long it took, keeps each step's last lines for the message on failure.

    BuildKit names a step before it says whether it has it in its cache, so a step is spoken of once it did not end within a second, or
    when it has ended; one from the cache is only counted.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._names: dict[str, str] = {}
        self._began: dict[str, float] = {}
        self._lines: dict[str, deque[str]] = {}
        self._last: deque[str] = deque(maxlen=15)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self.cached = 0
        self.failure = ""
        self._failed = ""

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(1):
            self.tick(time.monotonic())

    def tick(self, now: float) -> None:
        """Speak of the steps that have been running for a second."""
        with self._lock:
            for number in [number for number, began in self._began.items() if now - began >= 1]:
                del self._began[number]
                self._console.note(short_step(self._names[number]))

    def line(self, line: str) -> None:
        """One line of BuildKit's output."""
        with self._lock:
            self._line(line)

    def _line(self, line: str) -> None:
        self._last.append(line)
        match = _STEP.match(line)
        if not match:
            return
        number, text = match["number"], match["text"]
        if text == "..." or text == self._names.get(number):
            # BuildKit returns to a step that it had spoken of before.
            return
        if text.startswith("[") and number not in self._names:
            self._names[number] = text
            if "RUN" in text or "ADD" in text:
                self._began[number] = time.monotonic()
        elif text.startswith(("DONE", "CACHED", "CANCELED")):
            self._began.pop(number, None)
            self.cached += text == "CACHED"
            if text.startswith("DONE") and "RUN" in self._names.get(number, ""):
                self._console.note(f"{short_step(self._names[number]).split(':')[0]}: {text.lower()}")
        elif text.startswith("ERROR"):
            self._began.pop(number, None)
            self.failure = f"the build step {short_step(self._names.get(number, ''))} failed"
            self._failed = number
        elif text.startswith("exporting") and number not in self._names:
            self._names[number] = text
            self._console.note("packing the layers")
        else:
            self._lines.setdefault(number, deque(maxlen=20)).append(re.sub(r"^\d+\.\d+ ", "", text))

    def tail(self) -> str:
        """The last lines of the step that failed, or of the whole output."""
        return "\n".join(self._lines.get(self._failed) or self._last)


def short_step(text: str) -> str:
    """A step as a person calls it: ``torch: RUN …`` without mounts and options, cut to a line."""
    match = re.match(r"\[(?:\S+ )?(?P<stage>[\w.-]+) +\d+/\d+\] (?P<what>.*)", text)
    if not match:
        return text[:80]
    what = re.sub(r"--(network|mount|link)(=\S+)? *", "", match["what"])
    return f"{match['stage']}: {' '.join(what.split())}"[:88]
