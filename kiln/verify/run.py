"""Verifying one built image: all its checks, then the report."""

from __future__ import annotations

import tomllib
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from kiln.build import Built
from kiln.console import Console
from kiln.containers import connect, remove_left_over
from kiln.engine import Engine
from kiln.levels import LEVELS, Level
from kiln.lockfile import Lock
from kiln.model import given_model, tiny_model
from kiln.pins import Pins
from kiln.render import Rendered
from kiln.store import Store
from kiln.verify.checks import Subject, run_checks
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
    model: str = TINY,
    level: Level = LEVELS[-1],
) -> Verified:
    """Look at a built image with every check it has, and write the report. ``stack`` are all images of the stack: some stand on others.

    ``model`` is ``tiny``, ``tiny-wrong`` (trained on other answers: the check must fail) or a folder. Only the checks up to ``level`` are made.
    Raises ModelError or EngineError where nothing can be looked at; what the checks found is for ``report.judge``.
    """
    began = datetime.now(UTC)
    console.step(f"verifying {built.image} {built.digest[:19]}…")
    with connect(engine) as client, ExitStack() as opened:
        if left := remove_left_over(client):
            console.note(f"removed {left} containers of a run that was killed")
        chain = [one for one in stack if one.image.name in rendered.parents] + [rendered]
        subject = Subject(
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
        )
        lacking = lacking_here(rendered.image.needs)
        checks = static_checks(subject)
        identity = ""
        if level != "static":
            checks += ops_checks(subject, lacking)
        if level == "generate" and lacking:
            checks += unserved_checks(rendered.image, lacking)
        elif level == "generate" and rendered.image.settings:
            if model in (TINY, TINY_WRONG):
                checkpoint = opened.enter_context(
                    tiny_model(workspace, client, built.reference, store, console, wrong_answers=model == TINY_WRONG)
                )
            else:
                checkpoint = given_model(Path(model))
            checks += generate_checks(subject, checkpoint)
            identity = checkpoint.identity
        results = run_checks(checks, console)
    versions = {unit.name: unit.version for one in chain for unit in one.units}
    report = make_report(subject, results, versions, identity, began)
    other_model = bool(identity) and model != TINY
    return Verified(report, write_report(workspace, report, other_model=other_model, level=level))


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
