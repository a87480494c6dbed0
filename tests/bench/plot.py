"""The figures as one SVG: a pair of bars each, Kiln's and what was done by hand, on one logarithmic axis, with a mark for every run."""

from __future__ import annotations

import math
from collections.abc import Iterator

from kiln.verify.render.markup import Html, join, tag
from tests.bench.results import Figure, Runs, amount

WIDTH, LEFT, RIGHT, ROW, TOP = 860, 230, 100, 46, 48
_STYLE = """text{font:12px sans-serif;fill:#1f2328}.bar0{fill:#1f6feb}.bar1{fill:#8c959f}.run{stroke:#1f2328;stroke-width:1}.grid{stroke:#d0d7de}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.run{stroke:#e6edf3}.grid{stroke:#30363d}}"""


def draw(figures: list[Figure], title: str) -> str:
    """The SVG's text: the same figures, the same bytes. Figures in seconds only; the others are in the table."""
    shown = [one for one in figures if one.unit == "seconds" and min(one.kiln.values) > 0]
    if not shown:
        raise ValueError("no figure in seconds to draw")
    values = [value for one in shown for runs in (one.kiln, one.other) if runs for value in runs.values if value > 0]
    low = 10 ** math.floor(math.log10(min(values)))
    high = 10 ** math.ceil(math.log10(max(values) * 1.0001))
    height = TOP + ROW * len(shown) + 24

    def across(value: float) -> float:
        part = math.log10(value / low) / math.log10(high / low)
        return round(LEFT + part * (WIDTH - LEFT - RIGHT), 1)

    def row(number: int, figure: Figure) -> Iterator[Html]:
        y = TOP + ROW * number
        yield tag("text", figure.name, x=LEFT - 10, y=y + 22, text_anchor="end")
        for which, runs in enumerate(filter(None, (figure.kiln, figure.other))):
            yield from _bar(runs, which, y + 4 + 18 * which, across)

    grid = [
        (
            tag("path", d=f"M{across(10.0**power)} {TOP - 6}V{height - 24}", class_="grid"),
            tag("text", f"{10.0**power:g} s", x=across(10.0**power), y=height - 6, text_anchor="middle"),
        )
        for power in range(round(math.log10(low)), round(math.log10(high)) + 1)
    ]
    legend = [
        (
            tag("rect", x=LEFT + 110 * n, y=26, width=12, height=12, class_=f"bar{n}"),
            tag("text", name, x=LEFT + 18 + 110 * n, y=36),
        )
        for n, name in enumerate(("kiln", "compared with"))
    ]
    return tag(
        "svg",
        tag("title", title),
        tag("style", Html(_STYLE)),
        tag("text", title, x=10, y=16),
        join(*legend),
        join(*grid),
        [tag("g", *row(number, figure)) for number, figure in enumerate(shown)],
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {height}",
        role="img",
    )


def _bar(runs: Runs, which: int, y: float, across) -> Iterator[Html]:
    end = across(runs.median)
    yield tag("rect", x=LEFT, y=y, width=round(end - LEFT, 1), height=15, class_=f"bar{which}")
    for value in runs.values:
        yield tag("path", d=f"M{across(value)} {y - 1}v17", class_="run")
    last = max(end, *map(across, runs.values))
    yield tag("text", amount(runs.median, "seconds"), x=round(last + 6, 1), y=y + 12)
