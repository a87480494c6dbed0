"""What a check is. A check looks at an image and says pass, fail, error (could not look) or skip (with the reason)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kiln.console import Console
from kiln.containers import Client
from kiln.engine import Engine
from kiln.gpu import Devices
from kiln.image import Image
from kiln.levels import Level
from kiln.lockfile import Lock
from kiln.pins import Pins
from kiln.records import Built
from kiln.workspace import Workspace

Status = Literal["pass", "fail", "error", "skip"]


@dataclass(frozen=True)
class Outcome:
    """What a check found: its judgement in a sentence, and the evidence it rests on (the same on every run of one image)."""

    status: Status
    summary: str
    evidence: dict[str, Any] = field(default_factory=dict)
    timing: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """What is looked at: the image in its engine, and what it is meant to be. ``components`` are those of the images below it too, ``sbom`` the
    one that was rendered."""

    workspace: Workspace
    pins: Pins
    lock: Lock
    image: Image
    labels: tuple[tuple[str, str], ...]
    source_wheels: tuple[str, ...]
    built: Built
    engine: Engine
    client: Client
    components: tuple[str, ...] = ()
    gpus: Devices | None = None
    sbom: str = ""
    caches: Path | None = None

    def shared(self) -> tuple[dict[Path, str], dict[str, str]]:
        """What a container shares with the others: writable folders by their places, and the variables that say so.

        Python's bytecode, which the image has not (its four processes take 26 s to compile it, on 2 cores), and on a CPU what vLLM found out about
        its model classes: it starts a process for that. Both are kept for this digest alone (see ``run.bytecode``). No compiled kernel and no graph: those are evidence of the path that a server took.
        """
        if not self.caches:
            return {}, {}
        folders, variables = {self.caches / "python": "/kiln/python"}, {"PYTHONPYCACHEPREFIX": "/kiln/python"}
        if self.pins.target == "cpu":
            folders[self.caches / "vllm"] = "/kiln/vllm"
            variables["VLLM_CACHE_ROOT"] = "/kiln/vllm"
        for folder in folders:
            folder.mkdir(exist_ok=True)
            # The container's user may be another than ours, and root in it has no power over others' files.
            folder.chmod(0o777)
        return folders, variables


@dataclass(frozen=True)
class Check:
    """One check: ``look`` returns its outcome. ``about`` says what holds when it passes, ``url`` where that is explained."""

    id: str
    level: Level
    about: str
    look: Callable[[], Outcome]


@dataclass(frozen=True)
class Result:
    """A check and what came of it, with the seconds it took."""

    id: str
    level: Level
    about: str
    outcome: Outcome
    seconds: float


def passed(summary: str, **evidence: Any) -> Outcome:
    """The check holds."""
    return Outcome("pass", summary, evidence)


def failed(summary: str, **evidence: Any) -> Outcome:
    """The image is wrong."""
    return Outcome("fail", summary, evidence)


def errored(summary: str, **evidence: Any) -> Outcome:
    """The check could not look; that says nothing about the image, and is no pass."""
    return Outcome("error", summary, evidence)


def skipped(summary: str, **evidence: Any) -> Outcome:
    """There is nothing to look at, or nothing to look with; the summary says why."""
    return Outcome("skip", summary, evidence)


def run_checks(checks: list[Check], console: Console) -> list[Result]:
    """Run the checks in order. What a check raises is an error of that check, and the others run all the same."""
    results = []
    for check in checks:
        began = time.monotonic()
        try:
            outcome = check.look()
        except Exception as error:  # noqa: BLE001 - whatever went wrong while looking, the report must say so
            outcome = errored(f"could not look: {type(error).__name__}: {error}"[:2000])
        results.append(Result(check.id, check.level, check.about, outcome, round(time.monotonic() - began, 3)))
        console.note(f"{outcome.status:5}  {check.id}: {outcome.summary.splitlines()[0][:160]}")
    return results


def differing(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What differs between two mappings, a line each, sorted."""
    lines = []
    for key in sorted(expected.keys() | found.keys()):
        if key not in found:
            lines.append(f"{key}: {expected[key]!r} is missing")
        elif key not in expected:
            lines.append(f"{key}: {found[key]!r} is not expected")
        elif expected[key] != found[key]:
            lines.append(f"{key}: expected {expected[key]!r}, found {found[key]!r}")
    return lines
