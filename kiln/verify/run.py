"""Verifying one built image: all its checks, then the report."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from packaging.utils import canonicalize_name

from kiln.console import Console
from kiln.containers import Client, connect, remove_left_over
from kiln.engine import Engine
from kiln.errors import DiskFullError
from kiln.gpu import devices, gpus
from kiln.image import Image
from kiln.levels import LEVELS, SETTING_OF, Backend, Scope
from kiln.lockfile import Lock
from kiln.model import Model, given_model, tiny_model
from kiln.pins import Pins
from kiln.records import Built
from kiln.render import Rendered
from kiln.room import data_root, hardly_any
from kiln.store import Store, write_whole
from kiln.verify.checks import Result, Subject, run_checks
from kiln.verify.gates import gate_checks
from kiln.verify.generate import generate_checks, unserved_checks
from kiln.verify.machine import lacking_here
from kiln.verify.ops import ops_checks
from kiln.verify.report import make_report, write_report
from kiln.verify.static import static_checks
from kiln.workspace import Workspace

TINY, TINY_WRONG = "tiny", "tiny-wrong"


@dataclass(frozen=True)
class Verified:
    """A report and the file it was written to."""

    report: dict[str, Any]
    path: Path


def verify(
    workspace: Workspace,
    pins: Pins,
    lock: Lock,
    rendered: Rendered,
    stack: tuple[Rendered, ...],
    built: Built,
    engine: Engine,
    store: Store,
    console: Console,
    scope: Scope = Scope(),  # noqa: B008 - frozen
    unsafe: Mapping[str, str] = MappingProxyType({}),
    data: Path | None = None,
) -> Verified:
    """Look at a built image with every check that is in ``scope``, and write the report. ``stack`` are all images of the stack: some stand on others.

    ``unsafe`` are the mHC backends that are known to be wrong on this machine's GPU, with the reason: they are not served, and the checks say why.
    ``data`` is the folder with the data of the gates' task.
    Raises ModelError or EngineError where nothing can be looked at; what the checks found is for ``report.judge``.
    """
    began = datetime.now(UTC)
    console.step(f"verifying {built.image} {built.digest[:19]}…")
    found = gpus() if rendered.image.needs == "gpu" else ()
    image = narrowed(rendered.image, scope.backend)
    with connect(engine, workspace.identity) as client, ExitStack() as opened:
        if left := remove_left_over(client):
            console.note(f"removed {left} containers of a run that was killed")
        subject = replace(
            subject_of(workspace, pins, lock, rendered, stack, built, engine, client),
            image=image,
            caches=bytecode(workspace, built),
        )
        lacking = lacking_here(image.needs, pins.archs)
        if found and not lacking:
            subject = replace(subject, gpus=devices(found))
        checks = static_checks(subject)
        identity = ""
        if LEVELS.index(scope.level) >= LEVELS.index("ops"):
            checks += ops_checks(subject, lacking, unsafe)
        if LEVELS.index(scope.level) >= LEVELS.index("generate") and image.settings:
            # Where nothing can be served, that is the one reason for every setting.
            served, unserved = parted(image, {} if lacking else unsafe)
            checkpoint: Model | None = None
            if lacking:
                checks += unserved_checks(image, lacking)
            elif served.settings:
                checkpoint = opened.enter_context(_checkpoint(subject, store, console, scope.model))
                # A server's start is single-threaded for most of its time, and so are the checks before it. A GPU is not shared with them.
                ahead = opened.enter_context(_ahead(client)) if image.needs != "gpu" else None
                checks += generate_checks(replace(subject, image=served), checkpoint, ahead)
                identity = checkpoint.identity
            checks += [check for reason, one in unserved.items() for check in unserved_checks(one, reason)]
            if scope.level == "gates" and image.gates:
                forbidden = {one.name: reason for reason, apart in unserved.items() for one in apart.settings}
                served_only = replace(subject, image=served)
                checks += gate_checks(
                    served_only,
                    checkpoint,
                    image.gates,
                    lacking=lacking,
                    unserved=forbidden,
                    data=data,
                    console=console,
                )
        results = run_checks(checks, console)
    _require_room_was_there(workspace, engine, built, results)
    versions = {unit.name: unit.version for one in [*below(rendered, stack), rendered] for unit in one.units}
    report = make_report(subject, results, versions, identity, began, scope, found)
    return Verified(report, write_report(workspace, report))


def _require_room_was_there(workspace: Workspace, engine: Engine, built: Built, results: Sequence[Result]) -> None:
    """Raise DiskFullError where checks failed on a disk that is full: what they say is not of the image. Python (3.11) takes a file of bytecode that it
    could write half of for a whole one, from then on: what was written so is not kept."""
    full = hardly_any([workspace.state, data_root(engine)])
    wrong = [result.id for result in results if result.outcome.status in ("fail", "error")]
    if full or wrong:
        shutil.rmtree(workspace.state / "bytecode" / built.image, ignore_errors=True)
    if full and wrong:
        raise DiskFullError(
            f"the disk that holds {full[0]} is full, so it is not known whether {built.image} is right",
            why=f"Not passed: {', '.join(wrong)}. No report was written.",
        )


def bytecode(workspace: Workspace, built: Built) -> Path:
    """The folder where Python keeps what it compiled of this image's modules, from one verification of it to the next.

    Python knows a module by its time and size, and every file of an image has one time: another digest begins anew.
    """
    folder = workspace.state / "bytecode" / built.image
    note = folder / "digest"
    if not note.is_file() or note.read_text(encoding="utf-8") != built.digest:
        shutil.rmtree(folder, ignore_errors=True)
        write_whole(note, built.digest)
    return folder


@contextmanager
def _ahead(client: Client) -> Iterator[Executor]:
    """Something that serves while other checks look, two servers at a time. What was begun and is not wanted any more is ended, not waited for."""
    with ThreadPoolExecutor(2, thread_name_prefix="kiln-serve") as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            remove_left_over(client)
            raise


def below(rendered: Rendered, stack: Iterable[Rendered]) -> list[Rendered]:
    """The images of the stack that an image stands on, the lowest first."""
    return [one for one in stack if one.image.name in rendered.parents]


def subject_of(
    workspace: Workspace,
    pins: Pins,
    lock: Lock,
    rendered: Rendered,
    stack: tuple[Rendered, ...],
    built: Built,
    engine: Engine,
    client: Client,
) -> Subject:
    """What is looked at: a built image, with what it and those it stands on are meant to hold."""
    chain = [*below(rendered, stack), rendered]
    return Subject(
        workspace,
        pins,
        lock,
        rendered.image,
        rendered.labels,
        tuple(name for one in chain for name in source_wheels(workspace, pins, one)),
        built,
        engine,
        client,
        tuple(name for one in chain for name in one.image.components),
        sbom=rendered.sbom,
    )


def narrowed(image: Image, backend: Backend) -> Image:
    """The image with the settings and the operators of one mHC backend alone (``both``: of all)."""
    if backend == "both":
        return image
    other = "tilelang" if backend == "aiter" else "aiter"
    return replace(
        image,
        settings=tuple(setting for setting in image.settings if setting.name == SETTING_OF[backend]),
        backends=tuple(name for name in image.backends if name != other),
    )


def parted(image: Image, unsafe: Mapping[str, str]) -> tuple[Image, dict[str, Image]]:
    """The image with the settings that may be served, and for each reason the image with those that may not."""
    bad = {SETTING_OF[backend]: reason for backend, reason in unsafe.items()}
    served = replace(image, settings=tuple(setting for setting in image.settings if setting.name not in bad))
    unserved = {
        reason: replace(image, settings=tuple(one for one in image.settings if one.name == name))
        for name, reason in bad.items()
    }
    return served, {reason: one for reason, one in unserved.items() if one.settings}


@contextmanager
def _checkpoint(subject: Subject, store: Store, console: Console, model: str) -> Iterator[Model]:
    if model in (TINY, TINY_WRONG):
        reference, wrong = subject.built.reference, model == TINY_WRONG
        with tiny_model(subject.workspace, subject.client, reference, store, console, wrong_answers=wrong) as made:
            yield made
    else:
        yield given_model(Path(model))


def source_wheels(workspace: Workspace, pins: Pins, rendered: Rendered) -> tuple[str, ...]:
    """The distributions that the image's components build from the project's own sources, by canonical name."""
    components = [pins.by_name[name] for name in rendered.image.components]
    sources = [source for component in components for source in component.sources]
    provided = [name for component in components for name in component.provides]
    return *provided, *(
        str(
            canonicalize_name(
                tomllib.loads((workspace.root / source / "pyproject.toml").read_text(encoding="utf-8"))["project"][
                    "name"
                ]
            )
        )
        for source in sources
    )
