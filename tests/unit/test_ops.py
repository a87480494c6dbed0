"""Operator checks: what the judge makes of scripts/check_mhc.py's document, and what is asked of which machine."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest

import kiln.verify.ops
from kiln.containers import Ended
from kiln.verify.checks import Subject
from kiln.verify.ops import EMULATED, ON_GPU, ON_PROCESSOR, judge_operators, ops_checks

if TYPE_CHECKING:
    from collections.abc import Iterator

QUANTITIES = ("post_mix", "comb_mix", "layer_input", "post")


def case(backend: str, *, error: float = 1e-6, alarms: int = 0, runs: int = 2, tokens: int = 65) -> dict[str, Any]:
    where = {"backend": backend, "kind": "scaled", "hidden": 1280, "tokens": tokens, "seed": 42}
    worst = dict.fromkeys(QUANTITIES, error)
    return {
        "case": where,
        "worst": worst,
        "row": dict.fromkeys(QUANTITIES, 7),
        "runs": runs,
        "alarms": alarms,
        "seconds": 0.5,
    }


def document(*cases: dict[str, Any], wrong: tuple[str, ...] = (), could_not: tuple[str, ...] = ()) -> dict[str, Any]:
    tolerance = dict.fromkeys(QUANTITIES, 1e-3)
    return {
        "device": "cpu",
        "tolerance": tolerance,
        "cases": list(cases),
        "wrong": list(wrong),
        "could_not_look": list(could_not),
    }


def test_the_worst_error_is_shown_with_its_place_and_tolerance() -> None:
    outcome = judge_operators(document(case("torch"), case("torch", error=0.00012345, tokens=17)), 0)
    assert outcome.status == "pass"
    assert "4 runs, worst errors: post_mix 0.000123 of 0.001" in outcome.summary
    assert outcome.evidence["worst"]["post"] == {
        "error": 0.000123,
        "tolerance": 1e-3,
        "at": "torch, scaled rows, hidden 1280, 17 tokens, row 7",
    }
    assert outcome.evidence["alarms"] == 0
    assert outcome.timing == {"operators": 1.0}


@pytest.mark.parametrize(
    ("given", "code", "status", "words"),
    [
        (
            document(case("aiter", alarms=1), wrong=("aiter, row 16",)),
            1,
            "fail",
            "1 of 1 cases are wrong\naiter, row 16",
        ),
        (document(case("aiter"), wrong=("aiter, row 16",)), 0, "fail", "aiter, row 16"),
        (document(case("aiter")), 1, "fail", "without a word"),
        (document(case("torch"), wrong=("torch, row 1",), could_not=("no aiter",)), 1, "fail", "torch, row 1"),
        (document(could_not=("aiter could not be loaded",)), 2, "error", "aiter could not be loaded"),
        (document(case("torch"), could_not=("one case died",)), 2, "error", "one case died"),
        (document(case("torch"), could_not=("one case died",)), 0, "error", "one case died"),
        (document(), 0, "error", "after 0 cases"),
        (document(case("torch")), 137, "error", "ended with 137"),
        (document(case("race", alarms=2), case("race-one-row", alarms=2)), 0, "pass", "4 of 4 runs alarmed"),
    ],
)
def test_wrong_and_unseen_are_told_apart(given: dict[str, Any], code: int, status: str, words: str) -> None:
    outcome = judge_operators(given, code)
    assert outcome.status == status
    assert words in outcome.summary


@pytest.fixture
def offering(subject: Subject) -> Subject:
    return replace(subject, image=replace(subject.image, backends=("aiter", "torch")))


def test_an_image_without_operators_has_no_operator_checks(subject: Subject) -> None:
    assert ops_checks(subject, "") == []


def test_an_image_for_gpus_is_skipped_without_one_and_says_why(offering: Subject) -> None:
    image = replace(offering.image, needs="gpu")
    checks = ops_checks(replace(offering, image=image), "no /dev/kfd")
    assert [check.id for check in checks] == ["ops.aiter", "ops.torch", "ops.race"]
    assert {(check.level, check.look().status, check.look().summary) for check in checks} == {
        ("ops", "skip", "no /dev/kfd")
    }


@pytest.mark.parametrize(("needs", "sizes"), [("", ON_PROCESSOR), ("gpu", ON_GPU)], ids=["any", "gpu"])
def test_the_script_is_run_for_each_backend(
    offering: Subject, monkeypatch: pytest.MonkeyPatch, needs: str, sizes: tuple[str, ...]
) -> None:
    commands: list[list[str]] = []

    @contextmanager
    def container(*_: Any, **options: Any) -> Iterator[None]:
        assert options["read_only"]
        commands.append(options["command"])
        yield cast("Any", None)

    monkeypatch.setattr(kiln.verify.ops, "container", container)
    monkeypatch.setattr(kiln.verify.ops, "wait", lambda *_: Ended(0, "no document", "it broke"))
    checks = ops_checks(replace(offering, image=replace(offering.image, needs=needs)), "")
    outcomes = [check.look() for check in checks]
    script = "/kiln/scripts/check_mhc.py"
    assert commands == [
        [script, "--backend", "aiter", *sizes],
        [script, "--backend", "torch", *sizes],
        [script, "--backend", "race", "--backend", "race-one-row", *EMULATED],
    ]
    assert {outcome.status for outcome in outcomes} == {"error"}
    assert "without a document" in outcomes[0].summary
    assert outcomes[0].evidence == {"last": "it broke"}


def test_operators_that_never_end_are_an_error(offering: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def container(*_: Any, **__: Any) -> Iterator[None]:
        yield cast("Any", None)

    monkeypatch.setattr(kiln.verify.ops, "container", container)
    monkeypatch.setattr(kiln.verify.ops, "wait", lambda *_: Ended(None, "", ""))
    outcome = ops_checks(offering, "")[0].look()
    assert (outcome.status, outcome.summary) == ("error", "the operators did not end in time")
