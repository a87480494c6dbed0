"""Operator checks: the mHC operators of the image against the mathematics in float64, and that a wrong operator would be seen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from kiln.containers import container, wait
from kiln.verify.checks import Check, Outcome, Subject, errored
from kiln.verify.plots import error_plots

# A processor computes the float64 reference too, so it gets fewer sizes: one real hidden size, both sides of the edges of a wave's 16 rows and a
# tile's 64, 210 runs in all. A GPU gets every size that DeepSeek V4's configurations have and every edge up to the longest prefill.
ON_PROCESSOR = ("--hidden", "1280", "--tokens", "1", "16", "17", "63", "64", "65", "129", "--runs", "10")
ON_GPU = ("--hidden", "1280", "4096", "7168", "--tokens", "all", "--runs", "20")
# The emulated race wherever it can hit a row, 200 times in all; rows of one magnitude would hide it.
RACES = ("race", "race-one-row")
EMULATED = ("--hidden", "1280", "--tokens", "17", "64", "65", "129", "--kind", "scaled", "--runs", "25")
SECONDS_ON_PROCESSOR, SECONDS_ON_GPU = 180, 1800


def ops_checks(subject: Subject, lacking: str, unsafe: Mapping[str, str] = MappingProxyType({})) -> list[Check]:
    """One check for each backend that the image offers, and one of the checks themselves.

    ``lacking`` is what serving needs and this machine has not: an image for GPUs is then skipped, with that reason. ``unsafe`` are the backends that
    are known to be wrong on this machine's GPU, with the reason.
    """
    on_gpu = subject.image.needs == "gpu"
    sizes = ON_GPU if on_gpu else ON_PROCESSOR
    skipped = Outcome("skip", lacking) if on_gpu and lacking else None
    checks = [
        Check(
            f"ops.{backend}",
            "ops",
            f"the {backend} mHC operators give what the formula gives, in every run",
            partial(_looked_at, subject, backend, sizes, skipped or _unsafe(unsafe.get(backend))),
        )
        for backend in subject.image.backends
    ]
    if checks:
        about = "an operator that takes another row's sum of squares would be seen, in every run and in a single row"
        checks.append(Check("ops.race", "ops", about, lambda: skipped or operators(subject, RACES, EMULATED)))
    return checks


def _unsafe(reason: str | None) -> Outcome | None:
    return Outcome("skip", reason) if reason else None


def _looked_at(subject: Subject, backend: str, sizes: tuple[str, ...], known: Outcome | None) -> Outcome:
    return known or operators(subject, (backend,), sizes)


def operators(subject: Subject, backends: tuple[str, ...], sizes: tuple[str, ...]) -> Outcome:
    """Run scripts/check_mhc.py in the image with these backends and sizes, and judge its document."""
    on_gpu = subject.image.needs == "gpu"
    shared, variables = subject.shared()
    words = [word for backend in backends for word in ("--backend", backend)]
    with container(
        subject.client,
        subject.built.reference,
        entrypoint=["python3"],
        command=["/kiln/scripts/check_mhc.py", *words, *sizes],
        mounts={subject.workspace.root / "scripts": "/kiln/scripts"},
        # Threads that spin between two small operators take the processor from the reference (twice the time), and from a server that starts beside.
        env={**variables, "OMP_WAIT_POLICY": "passive"},
        writable=shared,
        memory=subject.image.memory,
        read_only=True,
        gpus=subject.gpus,
    ) as started:
        ended = wait(started, SECONDS_ON_GPU if on_gpu else SECONDS_ON_PROCESSOR)
    if ended.code is None:
        return errored("the operators did not end in time", last=ended.stderr.strip()[-600:])
    try:
        document = json.loads(ended.stdout)
        return judge_operators(document, ended.code)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return errored(
            f"scripts/check_mhc.py ended with {ended.code} and without a document that can be read ({type(error).__name__})",
            last=ended.stderr.strip()[-600:],
        )


def judge_operators(document: dict[str, Any], code: int) -> Outcome:
    """The outcome of one document of scripts/check_mhc.py and its exit code. Raises KeyError or TypeError where it is no such document."""
    cases: list[dict[str, Any]] = document["cases"]
    tolerance: dict[str, float] = document["tolerance"]
    wrong: list[str] = document["wrong"]
    could_not: list[str] = document["could_not_look"]
    runs, alarms = sum(case["runs"] for case in cases), sum(case["alarms"] for case in cases)
    worst = {}
    for name in tolerance:
        at = max(cases, key=lambda case: case["worst"][name], default=None)
        if at:
            where = at["case"]
            worst[name] = {
                # A value of a run: three digits are what two runs of one machine share.
                "error": float(f"{at['worst'][name]:.3g}"),
                "tolerance": tolerance[name],
                "at": f"{where['backend']}, {where['kind']} rows, hidden {where['hidden']}, {where['tokens']} tokens, row {at['row'][name]}",
            }
    evidence = {"device": document["device"], "cases": len(cases), "runs": runs, "alarms": alarms, "worst": worst}
    evidence |= error_plots(document)
    seconds = {"operators": round(sum(case["seconds"] for case in cases), 3)}
    if wrong or code == 1:
        shown = "\n".join(wrong[:8]) or "the script said so without a word"
        return Outcome(
            "fail", f"{len(wrong)} of {len(cases)} cases are wrong\n{shown}", {**evidence, "wrong": wrong}, seconds
        )
    if could_not or code != 0 or not cases:
        shown = "\n".join(could_not[:8]) or f"the script ended with {code} after {len(cases)} cases"
        return Outcome("error", f"could not look: {shown}", {**evidence, "could_not_look": could_not}, seconds)
    backends = sorted({case["case"]["backend"] for case in cases})
    if set(backends) <= set(RACES):
        return Outcome(
            "pass", f"the emulated race was seen in every run: {alarms} of {runs} runs alarmed", evidence, seconds
        )
    errors = ", ".join(f"{name} {found['error']:.3g} of {found['tolerance']:.3g}" for name, found in worst.items())
    return Outcome("pass", f"{runs} runs, worst errors: {errors}", evidence, seconds)
