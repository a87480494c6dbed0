"""What the gates of an image are: ``[verify.gates]`` in its image.toml. What comes of them is judged in ``kiln.verify.gates``."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kiln.tomlread import Problems, Table

# gsm8k asks lm-eval's questions of a real model; answers asks the checkpoint's own answers.json.
TASKS = ("answers", "gsm8k")
# With fewer there is no interval worth the name.
FEWEST_REPEATS = 3


@dataclass(frozen=True)
class Accuracy:
    """Questions put through lm-eval. The gate is the share ``target - half_width`` of right answers: better than the target is never wrong.

    ``questions`` is how many the task must have (0: as many as the checkpoint brings), ``answer_filter`` which of lm-eval's readings is judged.
    """

    task: str
    answer_filter: str
    few_shot: int
    questions: int
    concurrent: int
    max_tokens: int
    target: float
    half_width: float
    seconds: int

    @property
    def bound(self) -> float:
        """The share that the image must be above."""
        return round(self.target - self.half_width, 6)


@dataclass(frozen=True)
class Cell:
    """One load: tokens in and out of a request on average, and how many requests at a time."""

    input: int
    output: int
    concurrency: int

    @property
    def name(self) -> str:
        """As people write it."""
        return f"{self.input}/{self.output} C{self.concurrency}"


@dataclass(frozen=True)
class Sweep:
    """Loads put on the server by ``vllm bench serve``, each ``repeats`` times with either setting.

    The default may be slower by ``tolerance`` (a share) and no failure; that it is not slower by ``margin`` or more must be shown.
    """

    cells: tuple[Cell, ...]
    prompts_each: int
    warmups_each: int
    range_ratio: float
    repeats: int
    tolerance: float
    margin: float
    seconds: int
    arguments: tuple[str, ...]

    def lengths(self, average: int) -> tuple[int, int]:
        """The token counts between which ``vllm bench serve`` draws: the ratio reaches to both sides, [L(1 - r), L(1 + r)]."""
        return (
            max(1, math.floor(average * (1 - self.range_ratio))),
            max(1, math.ceil(average * (1 + self.range_ratio))),
        )


@dataclass(frozen=True)
class Gates:
    """The gates of one image, and how its server is started for them: ``serve`` stands in the place of ``verify.serve``."""

    serve: tuple[str, ...]
    memory: int
    start_seconds: int
    accuracy: Accuracy
    sweep: Sweep


def read_gates(table: Table, problems: Problems) -> Gates:
    """The table ``[verify.gates]``; what is wrong with it is added to ``problems``."""
    accuracy, sweep = table.table("accuracy"), table.table("sweep")
    gates = Gates(
        table.texts("serve"),
        table.number("memory-gib") << 30,
        table.number("start-seconds"),
        Accuracy(
            accuracy.text(
                "task", check=lambda text: None if text in TASKS else f"is {text!r}; known: {', '.join(TASKS)}"
            ),
            accuracy.text("filter"),
            accuracy.number("few-shot"),
            accuracy.number("questions"),
            accuracy.number("concurrent"),
            accuracy.number("max-tokens"),
            accuracy.fraction("target"),
            accuracy.fraction("half-width"),
            accuracy.number("seconds"),
        ),
        Sweep(
            tuple(
                Cell(*tokens, concurrency)
                for tokens in (_tokens(sweep, text) for text in sweep.texts("workloads"))
                for concurrency in sweep.numbers("concurrency")
            ),
            sweep.number("prompts-each"),
            sweep.number("warmups-each"),
            sweep.fraction("range-ratio"),
            sweep.number("repeats"),
            sweep.fraction("tolerance"),
            sweep.fraction("margin"),
            sweep.number("seconds"),
            sweep.texts("arguments", ()),
        ),
    )
    _sane(gates, table.where, problems)
    for part in (accuracy, sweep, table):
        part.done()
    return gates


def _tokens(table: Table, text: str) -> tuple[int, int]:
    """``1024/1024``: tokens in, tokens out."""
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal() and int(first) and int(second)):
        table.problems.add(f"{table.where}.workloads", f"{text!r} is not IN/OUT, two numbers of tokens")
        return 1, 1
    return int(first), int(second)


def _sane(gates: Gates, where: str, problems: Problems) -> None:
    accuracy, sweep = gates.accuracy, gates.sweep
    if not 0 < accuracy.bound < 1:
        problems.add(f"{where}.accuracy", f"target less half-width is {accuracy.bound}; nothing can be above or below")
    if sweep.repeats < FEWEST_REPEATS:
        problems.add(f"{where}.sweep.repeats", f"is {sweep.repeats}; fewer than {FEWEST_REPEATS} show no spread")
    if not sweep.cells:
        problems.add(f"{where}.sweep", "give a workload and a concurrency")
    if sweep.margin <= 0:
        problems.add(f"{where}.sweep.margin", "is 0; that nothing is slower at all cannot be shown")
    if sweep.range_ratio >= 1:
        problems.add(f"{where}.sweep.range-ratio", "must be below 1")
    positive = {
        "accuracy.concurrent": accuracy.concurrent,
        "accuracy.max-tokens": accuracy.max_tokens,
        "accuracy.seconds": accuracy.seconds,
        "sweep.prompts-each": sweep.prompts_each,
        "sweep.seconds": sweep.seconds,
    }
    for key, value in positive.items():
        if value < 1:
            problems.add(f"{where}.{key}", f"is {value}; give a number above 0")
