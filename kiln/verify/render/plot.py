"""Plots that a check's evidence holds, drawn as SVG: axes (linear or logarithmic), ticks, a legend, error bars."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kiln.verify.render.common import clean, shortened
from kiln.verify.render.markup import Html, join, tag

# More than this is no plot that a person can read, and a page that no phone can.
MOST_SERIES = 12
MOST_POINTS = 2_000
# Beyond these a number is no measurement, and arithmetic with it overflows.
_LARGEST, _SMALLEST = 1e100, 1e-100
# Twice, for wide and for narrow windows: a drawing that is scaled down takes its letters with it.
_SIZES = (("wide", 720, 380), ("narrow", 330, 300))
_STYLES = 6


@dataclass(frozen=True)
class Axis:
    """What an axis shows, and whether it is logarithmic."""

    label: str
    log: bool


@dataclass(frozen=True)
class Point:
    """A value, and the bounds between which it is known to lie (absolute, both or none)."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """Points that belong together, in the order in which they are joined."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Plot:
    """What is drawn. ``left_out`` counts the points that cannot be: no number, or not above zero on a logarithmic axis."""

    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    left_out: int


def read_plot(value: object) -> Plot | None:
    """A plot as evidence holds it; None where the value has another shape, or nothing in it can be drawn."""
    if not isinstance(value, Mapping) or not isinstance(value.get("series"), list):
        return None
    x, y = _axis(value.get("x")), _axis(value.get("y"))
    if x is None or y is None or not isinstance(value.get("title"), str):
        return None
    series: list[Series] = []
    left_out = 0
    for entry in value["series"][:MOST_SERIES]:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("points"), list):
            return None
        points = [_point(given, x, y) for given in entry["points"]]
        good = [point for point in points if point][:MOST_POINTS]
        left_out += len(points) - len(good)
        series.append(Series(shortened(clean(entry.get("name", "")), 80), tuple(good)))
    left_out += sum(len(entry["points"]) for entry in value["series"][MOST_SERIES:] if _has_points(entry))
    if not any(one.points for one in series):
        return None
    return Plot(shortened(clean(value["title"]), 200), x, y, tuple(series), left_out)


def draw(plot: Plot, name: str) -> Html:
    """The plot as a figure; ``name`` begins the ids in it."""
    spoken = f"{plot.title}: {plot.y.label} over {plot.x.label}; {', '.join(one.name for one in plot.series)}"
    pictures = [_picture(plot, f"{name}-{size}", size, spoken, width, height) for size, width, height in _SIZES]
    legend = [
        tag(
            "li",
            tag("svg", _line_sample(n), class_=f"key s{n % _STYLES}", viewBox="0 0 30 12", aria_hidden="true"),
            one.name,
        )
        for n, one in enumerate(plot.series)
    ]
    note = f"{plot.left_out} points cannot be drawn: no numbers, too many, or not above zero on a logarithmic axis."
    return tag(
        "figure",
        tag("figcaption", plot.title),
        pictures,
        tag("ul", legend, class_="legend"),
        tag("p", note, class_="note") if plot.left_out else None,
        _numbers(plot),
        class_="plot",
    )


def ticks(low: float, high: float, log: bool, most: int) -> list[float]:
    """Round values between two bounds, about ``most`` of them."""
    if log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        apart = max(1, math.ceil((last - first) / most))
        for steps, every in (((1, 2, 5), 1), ((1, 3), 1), ((1,), apart)):
            powers = range(first, last + 1, every)
            found = [step * 10.0**power for power in powers for step in steps]
            found = [value for value in found if low <= value <= high]
            if 2 <= len(found) <= most + 1:
                return found
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(step * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (step * factor) <= most)
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A number for people: five digits that count."""
    text = f"{value:.5g}"
    if "e" in text:
        mantissa, _, power = text.partition("e")
        return f"{mantissa}e{int(power)}"
    return "0" if text == "-0" else text


@dataclass(frozen=True)
class _Scale:
    """From values to places on the page."""

    low: float
    high: float
    log: bool
    start: float
    end: float

    def at(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def _scale(values: list[float], axis: Axis, start: float, end: float) -> _Scale:
    low, high = min(values), max(values)
    if axis.log:
        room = (high / low) ** 0.04 if high > low else 2.0
        return _Scale(low / room, high * room, True, start, end)
    room = (high - low) * 0.04 or abs(high) * 0.5 or 1.0
    # Zero is a bound that people look for: do not go below it by the room alone.
    return _Scale(0.0 if 0 <= low < room else low - room, high + room, False, start, end)


def _picture(plot: Plot, name: str, size: str, spoken: str, width: int, height: int) -> Html:
    left, right, top, bottom = 72, width - 14, 12, height - 46
    points = [point for one in plot.series for point in one.points]
    across = _scale([point.x for point in points], plot.x, left, right)
    bounds = [value for point in points for value in (point.y, point.low, point.high) if value is not None]
    upward = _scale(bounds, plot.y, bottom, top)
    return tag(
        "svg",
        tag("title", spoken, id=f"{name}-title"),
        _grid(plot, across, upward, 8 if size == "wide" else 4),
        tag("path", d=f"M{left} {top}V{bottom}H{right}", class_="axis"),
        tag(
            "text",
            shortened(plot.x.label, (right - left) // 7),
            x=(left + right) / 2,
            y=height - 8,
            text_anchor="middle",
        ),
        tag(
            "text",
            shortened(plot.y.label, (bottom - top) // 7),
            transform=f"translate(13 {(top + bottom) / 2}) rotate(-90)",
            text_anchor="middle",
        ),
        [tag("g", _drawn(one, n, across, upward), class_=f"s{n % _STYLES}") for n, one in enumerate(plot.series)],
        class_=size,
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_labelledby=f"{name}-title",
    )


def _grid(plot: Plot, across: _Scale, upward: _Scale, most: int) -> Iterator[Html]:
    """Lines and numbers at round values."""
    for value in ticks(across.low, across.high, plot.x.log, most):
        place = f"{across.at(value):.1f}"
        yield tag("path", d=f"M{place} {upward.start}V{upward.end}", class_="grid")
        yield tag("text", number(value), x=place, y=upward.start + 17, text_anchor="middle")
    for value in ticks(upward.low, upward.high, plot.y.log, 6):
        place = f"{upward.at(value):.1f}"
        yield tag("path", d=f"M{across.start} {place}H{across.end}", class_="grid")
        yield tag("text", number(value), x=across.start - 6, y=f"{upward.at(value) + 4:.1f}", text_anchor="end")


def _drawn(series: Series, style: int, across: _Scale, upward: _Scale) -> Iterator[Html]:
    """A series: its error bars, its line, its marks. Marks differ in form, for colours are not told apart by everyone."""
    places = [(f"{across.at(point.x):.1f}", f"{upward.at(point.y):.1f}", point) for point in series.points]
    bars = "".join(
        f"M{x} {upward.at(point.low):.1f}m-3 0h6m-3 0V{upward.at(point.high):.1f}m-3 0h6"
        for x, _, point in places
        if point.low is not None and point.high is not None
    )
    if bars:
        yield tag("path", d=bars, class_="bar")
    yield tag("path", d="M" + "L".join(f"{x} {y}" for x, y, _ in places) if places else "", class_="run")
    if len(places) <= MOST_POINTS // 10:
        yield tag("path", d="".join(_mark(style, x, y) for x, y, _ in places), class_="mark")


def _mark(style: int, x: str, y: str) -> str:
    """One mark as a path: circle, square, triangle, diamond, cross, plus."""
    forms = (
        "m-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z",
        "m-3.2-3.2h6.4v6.4h-6.4z",
        "m0-4.2l4 7h-8z",
        "m0-4.4l4.4 4.4l-4.4 4.4l-4.4-4.4z",
        "m-3.4-3.4l6.8 6.8m0-6.8l-6.8 6.8",
        "m-4.2 0h8.4m-4.2-4.2v8.4",
    )
    return f"M{x} {y}{forms[style % _STYLES]}"


def _line_sample(style: int) -> Html:
    return join(tag("path", d="M1 6H29", class_="run"), tag("path", d=_mark(style, "15", "6"), class_="mark"))


def _numbers(plot: Plot) -> Html:
    """What is drawn, as a table: for those who do not see the drawing, or want to copy it."""
    bounded = any(point.low is not None for one in plot.series for point in one.points)
    names = ["series", plot.x.label, plot.y.label, *(["between"] if bounded else [])]
    rows = [
        tag(
            "tr",
            [tag("td", text) for text in (one.name, number(point.x), number(point.y), _bounds(point))[: len(names)]],
        )
        for one in plot.series
        for point in one.points
    ]
    head = tag("tr", [tag("th", text, scope="col") for text in names])
    table = tag("table", tag("thead", head), tag("tbody", rows))
    return tag("details", tag("summary", "The numbers"), tag("div", table, class_="wide-content", tabindex="0"))


def _bounds(point: Point) -> str:
    return "" if point.low is None or point.high is None else f"{number(point.low)} and {number(point.high)}"


def _axis(value: object) -> Axis | None:
    if not isinstance(value, Mapping) or not isinstance(value.get("label"), str):
        return None
    return Axis(shortened(clean(value["label"]), 60), value.get("log") is True)


def _has_points(entry: object) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get("points"), list)


def _point(given: Any, x: Axis, y: Axis) -> Point | None:
    if not isinstance(given, list) or not 2 <= len(given) <= 4:
        return None
    across, upward, low, high = (
        _drawable(v, axis) for v, axis in zip((*given, None, None)[:4], (x, y, y, y), strict=True)
    )
    if across is None or upward is None:
        return None
    return Point(across, upward, low, high) if low is not None and high is not None else Point(across, upward)


def _drawable(value: object, axis: Axis) -> float | None:
    """The value as a number that the axis can show."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < _LARGEST:
        return None
    if abs(value) < _SMALLEST:
        return None if axis.log else 0.0
    return None if axis.log and value < 0 else float(value)
