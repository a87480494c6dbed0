"""The table and plot in docs/benchmarks.md, written from a results document: what is published is what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from kiln.store import write_whole
from tests.bench.plot import draw
from tests.bench.results import read_figure, table

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE, RESULTS, PLOT = (
    DOCS / "benchmarks.md",
    DOCS / "evidence" / "benchmarks.json",
    DOCS / "evidence" / "benchmarks.svg",
)
_MEASURED = re.compile(r"(<!-- measured -->\n).*?(<!-- end -->)", re.DOTALL)


def section(data: dict[str, Any]) -> str:
    """What of the page is measured."""
    machine, figures = data["machine"], [read_figure(figure) for figure in data["figures"]]
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory'] / 2**30:.0f} GiB; load {machine['load']} before it began"
    with_what = f"Linux {machine['kernel']}, Python {machine['python']}, Docker {machine['engine'] or 'not used'}, buildx {machine['buildx']}"
    done = "\n".join(
        f"- `{one.name}`: {one.kiln.about}"
        + (f"; compared with: {one.other.about}" if one.other else "")
        + _facts(one.facts)
        for one in figures
    )
    return f"Measured {data['when']} at {data['commit']} on {where}. {with_what}.\n\n{table(figures)}\n![seconds](evidence/benchmarks.svg)\n\n{done}\n"


def _facts(facts: dict[str, Any]) -> str:
    return "".join(
        f"; {name}: {', '.join(value) if isinstance(value, list) else value}" for name, value in facts.items()
    )


def page(text: str, data: dict[str, Any]) -> str:
    """The page with that section exchanged."""
    return _MEASURED.sub(lambda match: match[1] + section(data) + match[2], text)


def drawn(data: dict[str, Any]) -> str:
    """The plot beside the page."""
    machine = data["machine"]
    return draw([read_figure(figure) for figure in data["figures"]], f"{machine['cpu']}, {machine['cores']} cores")


def write_docs(data: dict[str, Any]) -> None:
    """Write results, plot and page."""
    write_whole(RESULTS, json.dumps(data, indent=2) + "\n")
    write_whole(PLOT, drawn(data))
    write_whole(PAGE, page(PAGE.read_text(encoding="utf-8"), data))
