"""Evidence as HTML: tables, lists, logs with the lines marked that prove something, and plots."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from kiln.verify.render.common import clean, scalar, shortened
from kiln.verify.render.markup import Html, join, tag
from kiln.verify.render.plot import draw, read_plot

# The lines that say which path was built, loaded, compiled or run; the group is what they say. plugins/vllm-mhc-switch writes the first
# (and "unproven" where it could not count), AITER and TileLang the others: see kiln/verify/evidence.py.
PROOF = re.compile(
    r"kiln-mhc: (?:ran )?(path=(?!unproven)\S+)"
    r"|(import \[module_mhc\] under \S*module_mhc\.so)"
    r"|((?:start |finish |failed jit )?build \[module_mhc\])"
    r"|TileLang (?:begins|completes) to compile kernel `(mhc_(?:fused|pre|post)\w*|hc_prenorm_gemm\w*)"
)
_DEEPEST = 10
_ROWS = 1_000
_LONG = 100_000
_COLUMNS = 12
_SHORT = 48


def evidence_html(evidence: Mapping[str, Any], name: str) -> Html:
    """All evidence of one check; ``name`` begins the ids in it."""
    return join(_mapping(evidence, name, 0))


def proofs(evidence: Any, depth: int = 0) -> Iterator[str]:
    """The lines in evidence that say which path was built or ran, each once as it stands there."""
    if isinstance(evidence, str):
        yield from (line.strip() for line in clean(evidence).split("\n") if PROOF.search(line))
    elif isinstance(evidence, (Mapping, list)) and depth < _DEEPEST:
        for inner in evidence.values() if isinstance(evidence, Mapping) else evidence:
            yield from proofs(inner, depth + 1)


def log(text: str) -> Html:
    """Text as it was written, with the proving lines marked."""
    lines = shortened(clean(text), _LONG).split("\n")
    return tag("pre", [join(_marked(line), "\n") for line in lines], tabindex="0")


def _marked(line: str) -> Html:
    """A line of a log; where it proves a path, that is marked and not by colour alone."""
    found = PROOF.search(line)
    if not found:
        return join(line)
    start, end = found.span(found.lastindex or 0)
    return tag("mark", line[:start], tag("strong", line[start:end]), line[end:])


def _mapping(value: Mapping[str, Any], name: str, depth: int) -> Iterator[Html]:
    """Short values in one table, then everything longer under a heading of its own."""
    if depth > _DEEPEST:
        yield tag("p", "…")
        return
    short = {key: inner for key, inner in value.items() if _short(inner)}
    if short:
        rows = [tag("tr", tag("th", key, scope="row"), _cell(inner)) for key, inner in list(short.items())[:_ROWS]]
        yield _table(None, rows, len(short))
    for number, (key, inner) in enumerate((pair for pair in value.items() if pair[0] not in short), 1):
        plot = read_plot(inner) if key == "plot" else None
        if plot:
            yield draw(plot, f"{name}-{number}")
        else:
            yield tag("p", tag("strong", key), f" ({len(inner)})" if isinstance(inner, list) else None)
            yield _value(inner, f"{name}-{number}", depth + 1)


def _value(value: Any, name: str, depth: int) -> Html:
    if isinstance(value, Mapping):
        if _alike(value):
            return _records([{"what": key, **inner} for key, inner in value.items()])
        return tag("div", _mapping(value, name, depth), class_="inner")
    if not isinstance(value, list):
        return log(scalar(value))
    if value and all(isinstance(item, Mapping) for item in value) and not any("plot" in item for item in value):
        return _records(value)
    if all(_is_scalar(item) for item in value):
        return _scalars(value)
    shown = [tag("div", _value(item, f"{name}-{number}", depth + 1)) for number, item in enumerate(value[:_ROWS], 1)]
    return tag("div", shown if depth <= _DEEPEST else "…", _left(len(value)), class_="inner")


def _alike(value: Mapping[str, Any]) -> bool:
    """Whether these are things of one kind, each under its name: a table shows them better than as many headings."""
    inner = list(value.values())
    return (
        len(inner) > 1
        and all(isinstance(one, Mapping) and one and one.keys() == inner[0].keys() for one in inner)
        and "what" not in inner[0]
        and all(_short(leaf) for one in inner for leaf in one.values())
    )


def _scalars(values: list[Any]) -> Html:
    """Lines of a log stay lines; names go side by side."""
    texts = [scalar(value) for value in values]
    if any(PROOF.search(text) or "\n" in text or len(text) > _SHORT for text in texts):
        return log("\n".join(texts))
    return join(tag("ul", [tag("li", text) for text in texts[:_ROWS]], class_="values"), _left(len(texts)))


def _records(values: list[Mapping[str, Any]]) -> Html:
    """Things of one kind: a row each, a column for every key that any of them has."""
    columns = list(dict.fromkeys(key for value in values for key in value))[:_COLUMNS]
    head = tag("thead", tag("tr", [tag("th", key, scope="col") for key in columns]))
    rows = [
        tag("tr", [_cell(value[key]) if key in value else tag("td") for key in columns]) for value in values[:_ROWS]
    ]
    return _table(head, rows, len(values))


def _table(head: Html | None, rows: list[Html], total: int) -> Html:
    # A box that scrolls must be reachable by keyboard.
    return tag("div", tag("table", head, tag("tbody", rows)), _left(total), class_="wide-content", tabindex="0")


def _cell(value: Any) -> Html:
    if isinstance(value, list):
        text = ", ".join(scalar(item) for item in value) or "none"
    elif value == {} or value is None:
        text = "none"
    else:
        text = scalar(value)
    text = shortened(text, 2_000)
    return tag("td", text, class_="long" if len(text) > _SHORT else None)


def _short(value: Any) -> bool:
    """Whether a value fits a table's cell."""
    if isinstance(value, list):
        return len(value) <= 8 and all(_short(item) and not isinstance(item, list) for item in value)
    if isinstance(value, str):
        return len(value) <= 200 and "\n" not in value and not PROOF.search(value)
    return value == {} or not isinstance(value, Mapping)


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, (Mapping, list))


def _left(total: int) -> Html | None:
    return tag("p", f"{total - _ROWS} more: the report has them.", class_="note") if total > _ROWS else None
