"""The plots of the operators' errors: recorded documents of scripts/check_mhc.py, and what cannot be drawn."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from kiln.verify.ops import judge_operators
from kiln.verify.plots import error_plots
from kiln.verify.render.plot import read_plot

OPERATORS = Path(__file__).parents[1] / "corpus" / "measured"
QUANTITIES = ["post_mix", "comb_mix", "layer_input", "post"]


def recorded(name: str) -> dict[str, Any]:
    """What scripts/check_mhc.py said in the CPU image, on a processor with AVX2."""
    document: dict[str, Any] = json.loads((OPERATORS / f"{name}.json").read_text(encoding="utf-8"))
    return document


def test_a_recorded_document_is_drawn_with_a_line_for_what_is_allowed() -> None:
    document = recorded("torch-cpu")
    evidence = error_plots(document)
    plot = read_plot(evidence["plot"])
    assert plot is not None
    assert (plot.x.log, plot.y.log, plot.left_out) == (True, True, 0)
    assert [one.name for one in plot.series] == [*QUANTITIES, "tolerance"]
    assert [point.x for point in plot.series[0].points] == [1, 16, 17, 63, 64, 65, 129]
    assert [(point.x, point.y) for point in plot.series[-1].points] == [(1, 1), (129, 1)]
    # The worst of both kinds of rows, as a part of its tolerance.
    worst = max(case["worst"]["post"] for case in document["cases"] if case["case"]["tokens"] == 65)
    shown = next(point.y for point in plot.series[3].points if point.x == 65)
    assert shown == pytest.approx(worst / document["tolerance"]["post"], rel=5e-3)
    assert all(point.y < 1 for one in plot.series[:-1] for point in one.points)


def test_several_backends_or_sizes_are_several_plots() -> None:
    errors = error_plots(recorded("race-cpu"))["errors"]
    assert list(errors) == ["race, hidden 1280", "race-one-row, hidden 1280"]
    # The emulated race is far above what is allowed: that is what the check is there to see.
    for one in errors.values():
        plot = read_plot(one["plot"])
        assert plot is not None
        assert max(point.y for point in plot.series[0].points) > 10
    document = recorded("torch-cpu")
    document["cases"] += [{**case, "case": {**case["case"], "hidden": 7168}} for case in document["cases"]]
    assert list(error_plots(document)["errors"]) == ["torch, hidden 1280", "torch, hidden 7168"]


@pytest.mark.parametrize("error", [math.inf, math.nan, 0.0])
def test_what_has_no_place_on_the_axes_is_counted_and_never_hides_what_is_worse(error: float) -> None:
    document = recorded("torch-cpu")
    document["cases"][0]["worst"]["post"] = error
    plot = error_plots(document)["plot"]
    json.dumps(plot, allow_nan=False)
    drawn = read_plot(plot)
    assert drawn is not None
    # Of two kinds of rows at one number of tokens the worse is shown: zero is not, what is no number is.
    assert drawn.left_out == (0 if error == 0 else 1)


def test_a_document_of_no_case_has_no_plot() -> None:
    assert error_plots({"cases": [], "tolerance": {}}) == {}


@pytest.mark.parametrize(("name", "key"), [("torch-cpu", "plot"), ("race-cpu", "errors")])
def test_the_evidence_of_the_check_holds_them(name: str, key: str) -> None:
    outcome = judge_operators(recorded(name), 0)
    assert outcome.status == "pass"
    assert outcome.evidence[key] == error_plots(recorded(name))[key]
