"""Measuring for the gates: servers of both settings, started in turn in one job, and what lm-eval and ``vllm bench serve`` saw of them.

Nothing is judged here. What could not be measured is kept with the reason.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kiln.canonical import digest_of, sha256_file
from kiln.console import Console
from kiln.errors import KilnError
from kiln.gates import Accuracy, Cell, Gates, Sweep
from kiln.image import Setting
from kiln.pins import Pins
from kiln.store import disk_full_is_an_error
from kiln.uv import install_locked
from kiln.verify.checks import Subject
from kiln.verify.serve import PORT, Executed, Served, Server, serving, tail
from kiln.workspace import Workspace

REQUIREMENTS = "requirements/gates.txt"
# Given to the tool beyond its own limit, so that it can still say what it was doing.
SPARE_SECONDS = 60


@dataclass(frozen=True)
class Measured:
    """One run of a tool: its result, or why there is none. ``dead`` says that the server was at fault, and not the tool."""

    result: dict[str, Any] | None
    trouble: str = ""
    dead: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class LoadRun:
    """One load put on one server."""

    block: int
    setting: str
    cell: Cell
    measured: Measured


@dataclass
class Measurements:
    """All that one job measured: the order of its servers (block, setting), the questions of each setting, every load, every server's log."""

    order: tuple[tuple[int, str], ...]
    questions: dict[str, Measured] = field(default_factory=dict)
    loads: list[LoadRun] = field(default_factory=list)
    ready_seconds: list[float] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)
    vllm: str = ""


def balanced(settings: Sequence[str], blocks: int) -> tuple[tuple[int, str], ...]:
    """Each setting once a block, the order turned round from block to block (AB BA AB …): a drift over the job favours neither."""
    return tuple(
        (block, name) for block in range(blocks) for name in (settings if block % 2 == 0 else reversed(settings))
    )


def measure(
    subject: Subject, folder: Path, gates: Gates, data: Path | None, console: Console | None = None
) -> Measurements:
    """Serve the checkpoint in ``folder`` with each setting in turn, ``repeats`` times, and measure. Raises EngineError.

    ``data`` is the folder with the task's data, where the task needs one. A setting whose server died is not served again. Where there is one
    setting alone, it is asked questions and nothing is compared.
    """
    note: Callable[[str], None] = console.note if console else lambda _: None
    by_name = {setting.name: setting for setting in subject.image.settings}
    compared = len(by_name) > 1
    cells = gates.sweep.cells if compared else ()
    found = Measurements(balanced(list(by_name), gates.sweep.repeats if compared else 1))
    lm_eval = _lm_eval(subject.workspace, subject.pins, gates.accuracy, data)
    died: dict[str, Measured] = {}
    for place, (block, name) in enumerate(found.order, 1):
        note(f"gates: server {place} of {len(found.order)}, {name}")
        before = len(found.loads)
        if name not in died:
            dead = _one_server(subject, folder, gates, cells, by_name[name], block, lm_eval, data, found)
            if dead:
                died[name] = dead
        for cell in cells[len(found.loads) - before :]:
            found.loads.append(LoadRun(block, name, cell, died[name]))
        found.questions.setdefault(name, died.get(name) or Measured(None, "not asked"))
    return found


def _one_server(
    subject: Subject,
    folder: Path,
    gates: Gates,
    cells: Sequence[Cell],
    setting: Setting,
    block: int,
    lm_eval: Path | Measured,
    data: Path | None,
    found: Measurements,
) -> Measured | None:
    """All that is measured on one server, added to ``found``; returns how it died, if it did."""
    mounts = {lm_eval: "/kiln/lm-eval"} if isinstance(lm_eval, Path) else {}
    if data and isinstance(lm_eval, Path):
        mounts[data.resolve()] = "/kiln/data"
    with serving(subject, folder, setting, arguments=gates.serve, memory=gates.memory, mounts=mounts) as server:
        dead = _asked(server, gates, cells, setting, block, lm_eval, found)
        found.served.append(Served(setting, {}, server.log(), dead.trouble if dead else "", 0.0))
    return dead


def _asked(
    server: Server,
    gates: Gates,
    cells: Sequence[Cell],
    setting: Setting,
    block: int,
    lm_eval: Path | Measured,
    found: Measurements,
) -> Measured | None:
    ready = _run(server, "ready", gates.start_seconds)
    if ready.result is None:
        # Not ready in time: the server's fault, whatever kept it.
        return Measured(None, f"{ready.trouble}; its last lines:\n{tail(server.log())}", dead=True)
    found.ready_seconds.append(float(ready.result["ready_seconds"]))
    found.vllm = str(ready.result["vllm_version"])
    if setting.name not in found.questions:
        asked = (
            _run(server, "questions", gates.accuracy.seconds, _questions(gates.accuracy))
            if isinstance(lm_eval, Path)
            else lm_eval
        )
        found.questions[setting.name] = asked
        if asked.dead:
            return asked
    for number, cell in enumerate(cells):
        words = _load(gates.sweep, cell, seed_of(block, number))
        run = _run(server, "load", gates.sweep.seconds, words)
        found.loads.append(LoadRun(block, setting.name, cell, run))
        if run.dead:
            return run
    return None


def seed_of(block: int, cell: int) -> int:
    """Both settings of a block get the same load, no other block or cell does: nothing is answered from a cache of prompts."""
    return 1000 * (block + 1) + cell


def _questions(accuracy: Accuracy) -> list[str]:
    source = ["--answers=/model/answers.json"] if accuracy.task == "answers" else ["--data=/kiln/data"]
    return [
        f"--task={accuracy.task}",
        *source,
        "--lm-eval=/kiln/lm-eval",
        f"--few-shot={accuracy.few_shot}",
        f"--concurrent={accuracy.concurrent}",
        f"--max-tokens={accuracy.max_tokens}",
    ]


def _load(sweep: Sweep, cell: Cell, seed: int) -> list[str]:
    return [
        "--model=/model",
        f"--input={cell.input}",
        f"--output={cell.output}",
        f"--range-ratio={sweep.range_ratio:g}",
        f"--concurrency={cell.concurrency}",
        f"--prompts={cell.concurrency * sweep.prompts_each}",
        f"--warmups={cell.concurrency * sweep.warmups_each}",
        f"--seed={seed}",
        "--",
        *sweep.arguments,
    ]


def _run(server: Server, what: str, seconds: int, words: Sequence[str] = ()) -> Measured:
    """Run scripts/run_gate.py beside the server."""
    command = ["python3", "/kiln/scripts/run_gate.py", what, f"--port={PORT}", f"--seconds={seconds}", *words]
    done = server.execute(command, seconds + SPARE_SECONDS)
    return read_run(done, server.ending(), what, seconds, lambda: tail(server.log()))


def read_run(done: Executed, ending: str, what: str, seconds: int, last: Callable[[], str]) -> Measured:
    """What scripts/run_gate.py left, as a measurement. ``ending`` says how the server ended, if it did."""
    document = done.document()
    result, error = document.get("result"), document.get("error")
    took = document.get("seconds")
    spent = float(took) if isinstance(took, (int, float)) else 0.0
    if ending:
        return Measured(None, f"the server {ending}; its last lines:\n{last()}", dead=True, seconds=spent)
    if done.code is None:
        return Measured(None, f"{what} did not end within {seconds + SPARE_SECONDS} s", seconds=spent)
    if done.code != 0 or not isinstance(result, Mapping):
        words = error or done.stderr.strip()[-400:] or f"run_gate.py ended with {done.code} and no result"
        return Measured(None, f"{what}: {words}", seconds=spent)
    return Measured(dict(result), seconds=spent)


def _lm_eval(workspace: Workspace, pins: Pins, accuracy: Accuracy, data: Path | None) -> Path | Measured:
    """The folder with lm-eval, or why no question can be asked."""
    if accuracy.task == "gsm8k" and data is None:
        return Measured(None, "no data: give a folder with gsm8k's train.jsonl and test.jsonl (--data DIR)")
    try:
        return lm_eval_folder(workspace, pins)
    except (KilnError, OSError) as error:
        return Measured(None, f"lm-eval could not be installed: {error}")


def lm_eval_folder(workspace: Workspace, pins: Pins) -> Path:
    """lm-eval for the image's Python, installed once below the state folder from hash-locked wheels. Raises ResolveError, HostError."""
    requirements = workspace.root / REQUIREMENTS
    key = digest_of([sha256_file(requirements), pins.python, pins.glibc])[:16]
    folder = workspace.state / "tools" / f"lm-eval-{key}"
    if not folder.is_dir():
        beside = folder.with_name(f".{folder.name}")
        shutil.rmtree(beside, ignore_errors=True)
        with disk_full_is_an_error(workspace.state):
            beside.mkdir(parents=True)
            install_locked(requirements, beside, python=pins.python, glibc=pins.glibc)
            beside.replace(folder)
    return folder
