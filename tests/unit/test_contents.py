"""The checks of what lies in the image: which there are for which image, and what they do when nothing could be looked at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import pytest

import kiln.verify.contents
from kiln.console import Console
from kiln.containers import Ended
from kiln.verify.checks import Outcome, Result, Subject, failed, passed, run_checks
from kiln.verify.contents import Inspection, content_checks
from kiln.verify.report import good_report, make_report, write_report

COMMON = ["packages.wheels", "packages.requirements", "libraries.resolve", "files.clean", "image.provenance"]


def ids_of(subject: Subject) -> list[str]:
    return [check.id for check in content_checks(subject, Inspection(subject))]


def test_an_image_gets_the_checks_of_what_it_has(subject: Subject) -> None:
    assert ids_of(subject) == [*COMMON, "vllm.switch"]
    served = replace(subject, components=("aiter", "vllm"))
    assert ids_of(served) == [*COMMON, "libraries.mhc", "vllm.switch", "vllm.calls"]
    base = replace(served, image=replace(subject.image, settings=()))
    assert ids_of(base) == [*COMMON, "libraries.mhc"]


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        (Ended(1, "", "no Python here"), "ended with 1: no Python here"),
        (Ended(0, "not JSON", "odd"), "ended with 0: odd"),
        (Ended(0, "[]", "odd"), "ended with 0: odd"),
        (Ended(None, "", ""), "did not end within"),
    ],
)
def test_what_cannot_be_looked_at_is_an_error_of_every_check_and_asked_once(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, ended: Ended, words: str
) -> None:
    asked: list[dict[str, Any]] = []

    @contextmanager
    def container(*_: Any, **options: Any) -> Iterator[None]:
        asked.append(options)
        yield cast("Any", None)

    monkeypatch.setattr(kiln.verify.contents, "container", container)
    monkeypatch.setattr(kiln.verify.contents, "wait", lambda *_: ended)
    results = run_checks(content_checks(subject, Inspection(subject)), Console(quiet=True))
    assert {result.outcome.status for result in results} == {"error"}
    assert all(words in result.outcome.summary for result in results)
    assert len(asked) == 1


def test_a_document_without_sections_proves_nothing(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def container(*_: Any, **__: Any) -> Iterator[None]:
        yield cast("Any", None)

    monkeypatch.setattr(kiln.verify.contents, "container", container)
    monkeypatch.setattr(kiln.verify.contents, "wait", lambda *_: Ended(0, json.dumps({"schema_version": 1}), ""))
    with_aiter = replace(subject, components=("aiter", "vllm"))
    results = run_checks(content_checks(with_aiter, Inspection(with_aiter)), Console(quiet=True))
    assert {result.outcome.status for result in results} == {"error"}


def test_a_report_with_any_failure_is_no_good_report(subject: Subject) -> None:
    def written(other: Outcome) -> object:
        results = [Result("one", "static", "", passed("fine"), 0.1), Result("two", "static", "", other, 0.1)]
        write_report(subject.workspace, make_report(subject, results, {}, "", datetime.now(UTC)))
        return good_report(subject.workspace, subject.built.digest, subject.lock.sha256, ["one"])

    assert written(passed("fine"))
    assert written(Outcome("skip", "no GPU"))
    assert not written(failed("wrong"))
    assert not written(Outcome("error", "could not look"))
