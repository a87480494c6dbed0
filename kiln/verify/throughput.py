"""The sweep's verdict: the default against the opt-in, pair by pair of servers that ran side by side under the same load."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from kiln.gates import Cell, Sweep
from kiln.verify.checks import Outcome, Status, errored, failed
from kiln.verify.measure import LoadRun, Measurements
from kiln.verify.statistics import ALPHA, Change, Verdict, change

BASELINES = Path(__file__).with_name("baselines.toml")
# What is compared, and whether more of it is better.
THROUGHPUT, TPOT = "output_throughput", "median_tpot_ms"
METHOD = (
    "change of the default against the opt-in: mean of the logarithms of the ratios within each block, Student's t; "
    "the values of a setting are medians of its runs"
)


def judge_sweep(sweep: Sweep, found: Measurements, default: str, other: str, target: str) -> Outcome:
    """The outcome of all loads together: the worst cell's."""
    if bad := _unusable(found.loads):
        return bad
    try:
        cells = [_cell(sweep, cell, found.loads, default, other) for cell in sweep.cells]
    except (KeyError, TypeError, ValueError) as error:
        return errored(f"vllm bench serve's figures cannot be used: {error!r}"[:400])
    verdicts = [cell["verdict"] for cell in cells]
    order = (Verdict.FAIL, Verdict.CANNOT_TELL, Verdict.PASS)
    verdict = next(one for one in order if one.value in verdicts)
    known = baselines(target)
    for cell, described in zip(sweep.cells, cells, strict=True):
        if published := [one for entry in known for one in _published(entry, cell)]:
            described["published"] = published
    gains = "; ".join(
        f"{cell['cell']}: {_percent(cell['throughput_change'])} output, {_percent(cell['tpot_change'])} TPOT"
        for cell in cells
    )
    evidence: dict[str, Any] = {
        "verdict": verdict.value,
        "vllm": found.vllm,
        "order": [f"{name} (block {block + 1})" for block, name in found.order],
        "load": _load(sweep),
        "method": METHOD,
        "cells": cells,
        "plots": [one for tokens in _workloads(sweep) for one in _plots(tokens, sweep, cells, default, other)],
    }
    if known:
        evidence["published"] = [{key: entry[key] for key in ("source", "setup", "caveats")} for entry in known]
    status: dict[Verdict, Status] = {Verdict.PASS: "pass", Verdict.FAIL: "fail", Verdict.CANNOT_TELL: "error"}
    seconds = {"load": round(sum(run.measured.seconds for run in found.loads), 1)}
    return Outcome(status[verdict], f"{verdict.value}: {default} against {other}, {gains}", evidence, seconds)


def judge_changes(throughput: Sequence[Change], tpot: Sequence[Change], sweep: Sweep) -> Verdict:
    """The verdict on one cell: ``throughput`` and ``tpot`` each as (for failing, for passing), with bounds of different confidence.

    Slower beyond noise and tolerance fails. Passing takes both to be shown: less slow than the margin.
    """
    failing = throughput[0].interval.high < -sweep.tolerance or tpot[0].interval.low > sweep.tolerance
    shown = throughput[1].interval.low > -sweep.margin and tpot[1].interval.high < sweep.margin
    return Verdict.FAIL if failing else Verdict.PASS if shown else Verdict.CANNOT_TELL


def _cell(sweep: Sweep, cell: Cell, loads: Sequence[LoadRun], default: str, other: str) -> dict[str, Any]:
    """One cell's figures, changes and verdict."""
    runs = {
        name: sorted((run for run in loads if run.cell == cell and run.setting == name), key=lambda run: run.block)
        for name in (default, other)
    }
    if any(len(one) != sweep.repeats for one in runs.values()):
        raise ValueError(f"{cell.name}: {[len(one) for one in runs.values()]} runs, and {sweep.repeats} must be")
    values = {
        name: {key: [_positive(run, key) for run in one] for key in (THROUGHPUT, TPOT)} for name, one in runs.items()
    }
    # Every cell and both figures can fail the image: the chance that any does by noise alone stays below ALPHA (Bonferroni). Passing needs no
    # such care: all of them must pass.
    strict = ALPHA / (2 * len(sweep.cells))
    changes = {
        key: [
            change(list(zip(values[default][key], values[other][key], strict=True)), alpha) for alpha in (strict, ALPHA)
        ]
        for key in (THROUGHPUT, TPOT)
    }
    verdict = judge_changes(changes[THROUGHPUT], changes[TPOT], sweep)
    return {
        "cell": cell.name,
        "verdict": verdict.value,
        **{
            name: {
                "output_tokens_per_second": round(median(values[name][THROUGHPUT]), 3),
                "tpot_ms": round(median(values[name][TPOT]), 3),
                "runs": [[round(a, 3), round(b, 3)] for a, b in zip(*values[name].values(), strict=True)],
            }
            for name in runs
        },
        "throughput_change": _described(changes[THROUGHPUT], strict),
        "tpot_change": _described(changes[TPOT], strict),
        "drawn": {
            key: [min(low for low, _ in drawn), max(high for _, high in drawn)]
            for key in ("input_lens", "output_lens")
            if (drawn := [run.measured.result[key] for one in runs.values() for run in one if run.measured.result])
        },
    }


def _described(changes: Sequence[Change], strict: float) -> dict[str, Any]:
    failing, passing = changes
    return {
        "value": round(passing.value, 5),
        "interval": [round(passing.interval.low, 5), round(passing.interval.high, 5)],
        "confidence": round(1 - 2 * ALPHA, 4),
        "interval_for_failing": [round(failing.interval.low, 5), round(failing.interval.high, 5)],
        "confidence_for_failing": round(1 - 2 * strict, 5),
    }


def _positive(run: LoadRun, key: str) -> float:
    """A figure of a run. Raises ValueError where it is no number above zero."""
    value = (run.measured.result or {})[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{run.cell.name}, {run.setting}: {key} is {value!r}")
    return float(value)


def _unusable(loads: Sequence[LoadRun]) -> Outcome | None:
    """Why the loads say nothing, if they do not: a server that died or refused requests is the image's fault, a tool's trouble is not."""
    worse: Outcome | None = None
    for run in loads:
        where = f"{run.setting}, {run.cell.name}, run {run.block + 1}"
        result = run.measured.result
        if result is None:
            if run.measured.dead:
                return failed(f"{where}: {run.measured.trouble}")
            worse = worse or errored(f"{where}: {run.measured.trouble}")
            continue
        refused = result.get("failed")
        if isinstance(refused, int) and refused > 0:
            return failed(f"{where}: {refused} requests failed\n{result.get('first_error', '')}")
        if result.get("completed") != result.get("num_prompts") or not result.get("completed"):
            worse = worse or errored(
                f"{where}: {result.get('completed')} of {result.get('num_prompts')} requests are counted"
            )
    return worse if loads else errored("no load was put on a server")


def _load(sweep: Sweep) -> dict[str, Any]:
    """What the client was told, and what that means."""
    tokens = sorted({length for cell in sweep.cells for length in (cell.input, cell.output)})
    return {
        "client": "vllm bench serve, random tokens, end token ignored, greedy",
        "prompts": f"concurrency x {sweep.prompts_each}",
        "warm_ups": f"concurrency x {sweep.warmups_each}",
        "random_range_ratio": sweep.range_ratio,
        "lengths_drawn_from": {
            str(length): "[{}, {}] tokens, less a tokenizer's special tokens".format(*sweep.lengths(length))
            for length in tokens
        },
        "repeats": sweep.repeats,
        "tolerance": sweep.tolerance,
        "margin": sweep.margin,
    }


def _workloads(sweep: Sweep) -> list[tuple[int, int]]:
    return list(dict.fromkeys((cell.input, cell.output) for cell in sweep.cells))


def _plots(
    tokens: tuple[int, int], sweep: Sweep, cells: Sequence[Mapping[str, Any]], default: str, other: str
) -> list[dict[str, Any]]:
    """Throughput and TPOT of one workload over the concurrency (docs/reports.md); the bars reach from the worst run to the best."""
    chosen = [
        (cell.concurrency, described)
        for cell, described in zip(sweep.cells, cells, strict=True)
        if (cell.input, cell.output) == tokens
    ]

    def series(name: str, place: int) -> list[list[float]]:
        points = []
        for concurrency, described in chosen:
            seen = [run[place] for run in described[name]["runs"]]
            points.append([float(concurrency), round(median(seen), 3), min(seen), max(seen)])
        return points

    return [
        {
            "plot": {
                "title": f"{title}, {tokens[0]} tokens in, {tokens[1]} out (median of {sweep.repeats}, worst to best)",
                "x": {"label": "requests at a time", "log": False},
                "y": {"label": unit, "log": False},
                "series": [{"name": name, "points": series(name, place)} for name in (default, other)],
            }
        }
        for title, unit, place in (("Output", "tokens/s", 0), ("Time per output token", "ms", 1))
    ]


def _percent(described: Mapping[str, Any]) -> str:
    low, high = described["interval"]
    return f"{described['value']:+.1%} ({low:+.1%} to {high:+.1%})"


def baselines(target: str) -> list[dict[str, Any]]:
    """Published figures for a target, to be shown beside one's own. Nothing is judged by them."""
    entries: list[dict[str, Any]] = tomllib.loads(BASELINES.read_text(encoding="utf-8"))["baseline"]
    return [entry for entry in entries if entry["target"] == target]


def _published(entry: Mapping[str, Any], cell: Cell) -> list[dict[str, Any]]:
    return [
        {"source": entry["source"], **{key: value for key, value in one.items() if key not in ("input", "output")}}
        for one in entry["cells"]
        if (one["input"], one["output"], one["concurrency"]) == (cell.input, cell.output, cell.concurrency)
    ]
