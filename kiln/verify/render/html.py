"""A report as one page that needs nothing else: no script, no font, no picture from anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kiln.verify.render.common import (
    SIGNS,
    Report,
    choices,
    clean,
    first_line,
    seconds_of,
    shortened,
    verdict,
)
from kiln.verify.render.evidence import evidence_html, log, proofs
from kiln.verify.render.markup import Html, join, tag
from kiln.verify.render.shape import CELLS
from kiln.verify.render.style import style_sheet

# The browser itself is to refuse whatever a hostile log line might still ask it for.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
# In the order of kiln.levels; a test compares the two.
LEVELS = {
    "static": "Looked at, with nothing served",
    "ops": "Its mHC operators, compared with the mathematics",
    "generate": "Served, and asked questions with known answers",
    "gates": "Served for hours: how often it is right, and how fast it is",
}
# What only a merged report has stands before them.
MERGED = {CELLS: "Cells: what each machine and setting came to"}


def html(report: Report, *, others: Sequence[Report] = ()) -> str:
    """The report as an HTML page. ``others`` are reports to show beside it: the stack's other images, other machines, earlier runs."""
    reports = (report, *others)
    name = f"{report['subject']['image']}: {verdict(report).word}"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{name} ({clean(report['subject']['manifest_digest'])[:19]})"),
        # Without it, a browser asks the server for an icon.
        tag("link", rel="icon", href="data:,"),
        tag("style", Html(style_sheet())),
    )
    top = tag("header", tag("h1", name), tag("p", tag("code", report["subject"]["manifest_digest"])), _verdict(report))
    overview = _overview(reports) if others else None
    parts = [_report(one, f"r{number}", alone=not others) for number, one in enumerate(reports, 1)]
    foot = tag(
        "footer",
        f"Rendered from the report by {report['tool']['name']} {report['tool']['version']}; the JSON document is the truth, this page a view of it.",
    )
    return "<!DOCTYPE html>\n" + tag("html", head, tag("body", top, tag("main", overview, parts), foot), lang="en")


def _verdict(report: Report) -> Html:
    end = verdict(report)
    said = choices(report)
    return join(
        tag(
            "div", tag("strong", f"{SIGNS[end.status]} {end.word}"), f" {end.sentence}.", class_=f"verdict {end.status}"
        ),
        tag("ul", [tag("li", one) for one in said], class_="warning") if said else None,
    )


def _overview(reports: Sequence[Report]) -> Html:
    """Which check said what in which report."""
    rows: dict[tuple[str, str], dict[int, str]] = {}
    for column, report in enumerate(reports):
        for check in report["checks"]:
            rows.setdefault((check["level"], check["id"]), {})[column] = check["status"]
    heads = [
        tag(
            "th",
            tag("a", one["subject"]["image"], href=f"#r{number}"),
            " ",
            tag("code", _short_digest(one)),
            scope="col",
        )
        for number, one in enumerate(reports, 1)
    ]
    verdicts = [tag("td", _badge(verdict(one).status, verdict(one).word)) for one in reports]
    body = [tag("tr", tag("th", "verdict", scope="row"), verdicts)]
    # Sorting is stable: within a level the order is that of the reports.
    for (_, name), found in sorted(rows.items(), key=lambda row: _rank(row[0][0])):
        cells = [
            tag("td", _badge(found[column]) if column in found else "not looked at") for column in range(len(reports))
        ]
        body.append(tag("tr", tag("th", tag("span", name, class_="id"), scope="row"), cells))
    table = tag("table", tag("thead", tag("tr", tag("th", "check", scope="col"), heads)), tag("tbody", body))
    return tag("section", tag("h2", "At a glance"), tag("div", table, class_="wide-content", tabindex="0"))


def _report(report: Report, name: str, *, alone: bool) -> Html:
    """Everything that one report says."""
    title = None if alone else tag("h2", f"{report['subject']['image']} ", tag("code", _short_digest(report)))
    heading = "h2" if alone else "h3"
    return tag(
        "section",
        title,
        None if alone or name == "r1" else _verdict(report),
        _tiles(report),
        _proof(report, name, heading),
        tag(heading, "What this image is"),
        _identity(report, name),
        tag(heading, "Checks"),
        _levels(report, name, "h3" if alone else "h4"),
        id=name,
    )


def _tiles(report: Report) -> Html:
    counts = report["summary"]
    tiles = [
        tag("li", tag("b", str(counts[status])), f"{sign} {status}", class_=status if counts[status] else None)
        for status, sign in SIGNS.items()
    ]
    whole = sum(seconds_of(report, check) for check in report["checks"])
    return tag(
        "ul",
        tiles,
        tag("li", tag("b", str(counts["total"])), "checks"),
        tag("li", tag("b", _time(whole)), "in all"),
        class_="tiles",
    )


def _proof(report: Report, name: str, heading: str) -> Html | None:
    """Which path ran: what the checks of it say, and the lines of the log that prove it, where a reader looks first."""
    shown = []
    for number, check in enumerate(report["checks"], 1):
        lines = list(dict.fromkeys(proofs(check["evidence"])))
        if lines or check["id"].endswith(".path"):
            link = tag("a", tag("span", check["id"], class_="id"), href=f"#{name}-{number}")
            shown.append(tag("p", _badge(check["status"]), " ", link, f": {first_line(check['summary'], 300)}"))
            shown.append(log("\n".join(lines[:20])) if lines else Html())
    return tag("section", tag(heading, "Which path ran, by the log"), shown) if shown else None


def _identity(report: Report, name: str) -> Html:
    subject, chosen = report["subject"], report["chosen"]
    gpu = report["environment"]["gpu"]
    facts: dict[str, str | Html] = {
        "image": subject["image"],
        "manifest digest": tag("code", subject["manifest_digest"]),
        "platform": subject["platform"],
        "stack": report["stack"],
        "pins": tag("code", f"sha256:{report['pins']['sha256']}"),
        "lock": tag("code", f"sha256:{report['lock']['sha256']}"),
        "checkpoint": tag("code", report["model"]) if report["model"] else "none was served",
        "overrides": ", ".join(f"{name}={ref}" for name, ref in chosen["overrides"].items()) or "none",
        "allowed advisories": ", ".join(chosen["allowed_advisories"]) or "none",
        "rehearsal": "yes: made from stand-ins" if chosen["rehearsal"] else "no",
        "engine": f"{report['environment']['engine']} {report['environment']['engine_version']}",
        "GPU": evidence_html({"seen": gpu}, f"{name}-gpu") if isinstance(gpu, (dict, list)) else str(gpu or "none"),
        "looked at": f"{report['timing']['started_at']} to {report['timing']['finished_at']}",
    }
    return join(
        tag("dl", [(tag("dt", key), tag("dd", value)) for key, value in facts.items()], class_="facts"),
        _pairs("Components", "component", "version", subject["components"]),
        [
            _pairs("Labels", "label", "value", check["evidence"]["labels"])
            for check in report["checks"]
            if check["id"] == "image.labels" and isinstance(check["evidence"].get("labels"), Mapping)
        ],
    )


def _pairs(title: str, left: str, right: str, values: Mapping[str, Any]) -> Html:
    """A folded table of names and values."""
    head = tag("thead", tag("tr", tag("th", left, scope="col"), tag("th", right, scope="col")))
    rows = [
        tag("tr", tag("th", key, scope="row"), tag("td", shortened(clean(value), 500), class_="long"))
        for key, value in values.items()
    ]
    table = tag("div", tag("table", head, tag("tbody", rows)), class_="wide-content", tabindex="0")
    return tag("details", tag("summary", f"{title} ({len(rows)})"), table, open=left == "component")


def _levels(report: Report, name: str, heading: str) -> Iterator[Html]:
    """The checks, a group a level, each with its evidence folded below it."""
    numbered = list(enumerate(report["checks"], 1))
    for level in sorted({check["level"] for _, check in numbered}, key=_rank):
        inside = [(number, check) for number, check in numbered if check["level"] == level]
        good = sum(check["status"] == "pass" for _, check in inside)
        said = {**MERGED, **LEVELS}.get(level, "")
        yield tag(heading, f"{level} ", tag("span", f"{good} of {len(inside)} passed", class_="muted"))
        if said:
            yield tag("p", f"{said}.", class_="muted")
        for number, check in inside:
            yield _check(report, check, f"{name}-{number}")


def _check(report: Report, check: Mapping[str, Any], name: str) -> Html:
    whole = clean(check["summary"]).strip()
    line = first_line(whole, 300)
    took = report["timing"]["detail"].get(check["id"], {})
    parts = [
        None if check["about"] == check["summary"] else tag("p", f"What should hold: {check['about']}."),
        tag("pre", shortened(whole, 100_000), class_="said-whole", tabindex="0") if whole != line else None,
        evidence_html(check["evidence"], name)
        if check["evidence"]
        else tag("p", "No evidence beyond this.", class_="note"),
        tag("p", "Seconds: " + ", ".join(f"{key} {value:.1f}" for key, value in took.items()), class_="note")
        if took
        else None,
    ]
    summary = tag(
        "summary",
        _badge(check["status"]),
        tag("span", check["id"], class_="id"),
        tag("span", _time(seconds_of(report, check)), class_="time"),
        tag("span", line, class_="said"),
    )
    opened = check["status"] in ("fail", "error")
    return tag(
        "details", summary, tag("div", parts, class_="body"), class_=f"check {check['status']}", id=name, open=opened
    )


def _badge(status: str, word: str = "") -> Html:
    return tag("span", f"{SIGNS[status]} {word or status}", class_=f"badge {status}")


def _rank(level: str) -> tuple[int, str]:
    """Known levels in their order, then any other by name."""
    known = [*MERGED, *LEVELS]
    return (known.index(level) if level in known else len(known), level)


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _short_digest(report: Report) -> str:
    return f"{clean(report['subject']['manifest_digest'])[:19]}…"
