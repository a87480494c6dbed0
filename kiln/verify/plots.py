"""Plots for evidence, in the shape that docs/reports.md gives: what ``kiln.verify.render.plot`` draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def error_plots(document: Mapping[str, Any]) -> dict[str, Any]:
    """The worst errors in a document of scripts/check_mhc.py over the number of tokens: evidence, a plot for each backend and hidden size.

    Every quantity has a tolerance of its own, so an error is shown as a part of what it may be: one line, at 1, is the limit of all of them.
    With one backend and one size the plot stands alone, else each under what it is of. Raises KeyError or TypeError as the document's judge does.
    """
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for case in document["cases"]:
        groups.setdefault((case["case"]["backend"], case["case"]["hidden"]), []).append(case)
    plots = {f"{backend}, hidden {hidden}": _plot(document, cases) for (backend, hidden), cases in groups.items()}
    if len(plots) == 1:
        return {"plot": next(iter(plots.values()))}
    return {"errors": {name: {"plot": plot} for name, plot in plots.items()}} if plots else {}


def _plot(document: Mapping[str, Any], cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    where = cases[0]["case"]
    tokens = sorted({case["case"]["tokens"] for case in cases})
    series = []
    for name, tolerance in document["tolerance"].items():
        worst = {
            count: max((case["worst"][name] for case in cases if case["case"]["tokens"] == count), key=_size)
            for count in tokens
        }
        points = [[count, _share(error, tolerance)] for count, error in worst.items()]
        series.append({"name": name, "points": points})
    series.append({"name": "tolerance", "points": [[count, 1.0] for count in dict.fromkeys((tokens[0], tokens[-1]))]})
    return {
        "title": f"Worst errors of {where['backend']} on {document['device']}, hidden size {where['hidden']}",
        "x": {"label": "tokens", "log": True},
        "y": {"label": "worst error / tolerance", "log": True},
        "series": series,
    }


def _size(error: float) -> float:
    """An error that is no number is the worst of all."""
    return math.inf if math.isnan(error) else error


def _share(error: float, tolerance: float) -> float | None:
    """The error as a part of its tolerance, in the three digits that two runs of one machine share; what JSON has no number for is None."""
    share = error / tolerance
    return float(f"{share:.3g}") if math.isfinite(share) else None
