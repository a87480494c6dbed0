"""The gates: how often the image is right, and whether its default is slower than the opt-in. What each verdict means: docs/gates.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kiln.console import Console
from kiln.gates import Accuracy, Gates
from kiln.image import Setting
from kiln.model import Model
from kiln.verify.checks import Check, Outcome, Status, Subject, errored, failed
from kiln.verify.generate import proven_path
from kiln.verify.measure import Measured, Measurements, measure
from kiln.verify.statistics import (
    ALPHA,
    POWER,
    Verdict,
    judge_paired,
    judge_share,
    mcnemar,
    questions_to_separate,
    share_interval,
    standard_error,
)
from kiln.verify.throughput import judge_sweep

# "Cannot tell" is a check that could not look: no pass.
STATUS: dict[Verdict, Status] = {Verdict.PASS: "pass", Verdict.FAIL: "fail", Verdict.CANNOT_TELL: "error"}


def gate_checks(
    subject: Subject,
    checkpoint: Model | None,
    gates: Gates,
    *,
    lacking: str = "",
    unserved: Mapping[str, str] = MappingProxyType({}),
    data: Path | None = None,
    console: Console | None = None,
) -> list[Check]:
    """The gates of an image, for the settings that ``subject.image`` has.

    ``lacking`` is what serving needs and this machine has not, ``unserved`` are settings that must not be served here, each with the reason,
    ``data`` is the folder with the task's data. All settings are served in one job, which the first check that looks starts.
    """
    job = _Job(subject, checkpoint, gates, data, console)
    cannot = Outcome("skip", lacking) if lacking else None
    names = [setting.name for setting in subject.image.settings]
    task = gates.accuracy.task
    checks = [
        _check(
            f"{task}.{name}",
            f"more than {gates.accuracy.bound:g} of {task} are right with the setting {name}",
            cannot,
            lambda name=name: accuracy(job.found.questions[name], gates.accuracy),  # type: ignore[misc]
        )
        for name in names
    ]
    checks += [
        _check(
            f"path.{setting.name}",
            f"every server that was measured with the setting {setting.name} took the {setting.path} path",
            cannot,
            lambda setting=setting: measured_path(subject, job.found, setting),  # type: ignore[misc]
        )
        for setting in subject.image.settings
    ]
    checks += [
        Check(f"gates.{task}.{name}", "gates", reason, lambda reason=reason: Outcome("skip", reason))  # type: ignore[misc]
        for name, reason in unserved.items()
    ]
    if len(names) != 2:
        cannot = cannot or Outcome("skip", f"compares two settings, and {' and '.join(names) or 'none'} is served")
        names = ["the default", "the opt-in"]
    default, other = names
    return [
        *checks,
        _check(
            f"{task}.paired",
            f"question by question, {default} is right no less often than {other}",
            cannot,
            lambda: paired(job.found.questions, gates.accuracy, default, other),
        ),
        _check(
            "throughput",
            f"{default} is not slower than {other} under any load",
            cannot,
            lambda: judge_sweep(gates.sweep, job.found, default, other, subject.pins.target),
        ),
    ]


def _check(name: str, about: str, known: Outcome | None, look: Callable[[], Outcome]) -> Check:
    """A check that looks only where its outcome is not known already."""
    return Check(f"gates.{name}", "gates", about, lambda: known or look())


class _Job:
    """The measurements, made once."""

    def __init__(
        self, subject: Subject, checkpoint: Model | None, gates: Gates, data: Path | None, console: Console | None
    ) -> None:
        self._arguments = subject, checkpoint, gates, data, console
        self._found: Measurements | None = None
        self._trouble: Exception | None = None

    @property
    def found(self) -> Measurements:
        subject, checkpoint, gates, data, console = self._arguments
        if self._trouble:
            raise self._trouble
        if self._found is None:
            try:
                if checkpoint is None:
                    raise ValueError("no checkpoint to serve")
                self._found = measure(subject, checkpoint.folder, gates, data, console)
            except Exception as error:
                # What went wrong for the first check is wrong for all: nothing is served again.
                self._trouble = error
                raise
        return self._found


def measured_path(subject: Subject, found: Measurements, setting: Setting) -> Outcome:
    """The path that the logs of one setting's servers prove: what was measured on another path says nothing of this one."""
    outcomes = [proven_path(subject, served) for served in found.served if served.setting == setting]
    if not outcomes:
        return errored(f"no server was started with the setting {setting.name}")
    bad = [outcome for outcome in outcomes if outcome.status != "pass"]
    if bad:
        return replace(bad[0], summary=f"{len(bad)} of {len(outcomes)} servers: {bad[0].summary}")
    return replace(outcomes[0], summary=f"{len(outcomes)} servers, {outcomes[0].summary}")


def accuracy(asked: Measured, wanted: Accuracy) -> Outcome:
    """One setting's share of right answers against the gate."""
    counted = _counted(asked, wanted)
    if isinstance(counted, Outcome):
        return counted
    right, asked_of = sum(counted.values()), len(counted)
    verdict = judge_share(right, asked_of, wanted.bound)
    share, error = right / asked_of, standard_error(right, asked_of)
    interval = share_interval(right, asked_of)
    summary = (
        f"{verdict.value}: {right} of {asked_of} right, {share:.4f} ± {error:.4f} (standard error); "
        f"the share is {interval.low:.4f} to {interval.high:.4f} ({1 - 2 * ALPHA:.0%}), the gate {wanted.bound:g}"
    )
    needed = questions_to_separate(wanted.bound, wanted.target) if wanted.target < 1 else None
    if verdict is Verdict.CANNOT_TELL and needed:
        summary += (
            f"\nIt takes {needed} questions to tell {wanted.target:g} from {wanted.bound:g} in {POWER:.0%} of runs"
        )
    result = asked.result or {}
    evidence = {
        "right": right,
        "questions": asked_of,
        "share": round(share, 6),
        "standard_error": round(error, 6),
        "interval": [round(interval.low, 6), round(interval.high, 6)],
        "confidence": f"each bound {1 - ALPHA:.0%}, exact (Clopper and Pearson)",
        "gate": wanted.bound,
        "target": wanted.target,
        "verdict": verdict.value,
        "questions_to_separate": needed,
        "filter": wanted.answer_filter,
        "all_filters": result.get("figures"),
        **{key: result.get(key) for key in ("few_shot", "lm_eval_version", "task_version", "data_sha256")},
    }
    return Outcome(STATUS[verdict], summary, evidence, {"questions": asked.seconds})


def paired(asked: Mapping[str, Measured], wanted: Accuracy, default: str, other: str) -> Outcome:
    """The same questions with both settings: what one answers and the other does not."""
    tables = {}
    for name in (default, other):
        counted = _counted(asked[name], wanted)
        if isinstance(counted, Outcome):
            return errored(f"{name}: {counted.summary}", **counted.evidence)
        tables[name] = counted
    first, second = tables[default], tables[other]
    same_data = len({(asked[name].result or {}).get("data_sha256") for name in tables}) == 1
    if first.keys() != second.keys() or not same_data:
        return errored("the settings were not asked the same questions")
    only_first = sum(first[key] and not second[key] for key in first)
    only_second = sum(second[key] and not first[key] for key in first)
    margin = wanted.half_width
    verdict = judge_paired(only_first, only_second, len(first), margin)
    chance = mcnemar(only_first, only_second)
    summary = (
        f"{verdict.value}: of {len(first)} questions, {only_first} only {default} answers and {only_second} only {other}; "
        f"as bad or worse by chance: {chance:.3g}"
    )
    if verdict is Verdict.CANNOT_TELL:
        summary += f"\nneither shown to be worse, nor shown not to be worse by {margin:g}"
    return Outcome(
        STATUS[verdict],
        summary,
        {
            "questions": len(first),
            "both_right": sum(first[key] and second[key] for key in first),
            f"only_{default}": only_first,
            f"only_{other}": only_second,
            "difference": round((only_first - only_second) / len(first), 6),
            "mcnemar_exact": float(f"{chance:.4g}"),
            "margin": margin,
            "verdict": verdict.value,
        },
    )


def _counted(asked: Measured, wanted: Accuracy) -> dict[str, bool] | Outcome:
    """Which questions were right, or why that is not known."""
    if asked.result is None:
        return (failed if asked.dead else errored)(f"no answers: {asked.trouble}")
    table = (asked.result.get("right") or {}).get(wanted.answer_filter)
    if not isinstance(table, Mapping) or not table:
        return errored(
            f"lm-eval gave no answers as read by {wanted.answer_filter}", figures=asked.result.get("figures")
        )
    wrong = [value for value in table.values() if value not in (0, 1)]
    if wrong or any(isinstance(value, float) and math.isnan(value) for value in table.values()):
        return errored(f"lm-eval's score of a question is neither 0 nor 1 but {wrong[0]!r}")
    count: Any = (asked.result.get("questions") or {}).get("effective")
    expected = wanted.questions or count
    if len(table) != expected or count != expected:
        return errored(f"{len(table)} questions were scored, and {expected} must be")
    return {str(key): value == 1 for key, value in table.items()}
