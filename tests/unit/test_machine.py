"""What a machine can do for a check, and what becomes of the checks that it cannot do."""

from __future__ import annotations

from dataclasses import replace

import pytest

import kiln.verify.machine
from kiln.console import Console
from kiln.image import read_images
from kiln.pins import read_pins
from kiln.verify.checks import run_checks
from kiln.verify.generate import unserved_checks
from kiln.verify.machine import lacking_here
from kiln.workspace import Workspace


@pytest.mark.parametrize(("needs", "word"), [("", ""), ("gpu", "is gfx90a")])
def test_what_is_lacking_is_said(monkeypatch: pytest.MonkeyPatch, needs: str, word: str) -> None:
    monkeypatch.setattr(kiln.verify.machine, "unfit", lambda found, archs: f"{found[0]} is gfx90a, not {archs[0]}")
    monkeypatch.setattr(kiln.verify.machine, "gpus", lambda: ("a GPU",))
    assert word in lacking_here(needs, ("gfx942",))
    assert bool(lacking_here(needs, ("gfx942",))) == bool(word)


def test_a_check_that_could_not_be_done_is_not_passed(real: Workspace) -> None:
    (image,) = read_images(real, read_pins(real, "cpu"))
    results = run_checks(unserved_checks(replace(image, needs="gpu"), "it lacks something"), Console(quiet=True))
    assert [result.id for result in results] == [
        "serve.default.answers",
        "serve.default.path",
        "serve.tilelang.answers",
        "serve.tilelang.path",
    ]
    assert {(result.outcome.status, result.outcome.summary) for result in results} == {("skip", "it lacks something")}
