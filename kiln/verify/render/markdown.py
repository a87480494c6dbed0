"""A report as Markdown, for a CI job's summary or a pull request's comment."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from kiln.verify.render.common import (
    SIGNS,
    WORST_FIRST,
    Report,
    choices,
    clean,
    evidence_text,
    first_line,
    seconds_of,
    shortened,
    verdict,
    worst_first,
)

# What GitHub takes for one step, in bytes.
LIMIT = 1 << 20
# A digest, a lock's name, 20 choices and a few sentences fit; rows and details share what is left.
_ROW_SUMMARY = 300
# Characters of evidence for one check: the first of these with which all fits.
_DETAILS = (60_000, 6_000, 600)
_NOTES = 2_000
# Character references instead of backslashes: every Markdown dialect knows them, and a table splits its cells at a bare pipe alone.
_SPECIAL = {ord(sign): f"&#{ord(sign)};" for sign in "&<>|\\`*_[]~$#@"}


def markdown(report: Report, *, limit: int = LIMIT) -> str:
    """The report as Markdown: headline, table, and the evidence of what did not pass, folded; at most ``limit`` bytes."""
    end = verdict(report)
    subject = report["subject"]
    head = [
        f"## {SIGNS[end.status]} {_cell(subject['image'], 200)}: {end.word}",
        "",
        f"{_cell(end.sentence, 300)}.",
        "",
        f"`{subject['manifest_digest']}`, {_cell(subject['platform'], 100)}, lock `{report['lock']['sha256'][:16]}` of the stack {_cell(report['stack'], 100)}",
    ]
    said = choices(report)
    head += ["", *(f"- **{_cell(one, 300)}**" for one in said[:20])] if said else []
    head += [f"- {len(said) - 20} more choices"] if len(said) > 20 else []
    head += ["", "| status | check | seconds | summary |", "| --- | --- | ---: | --- |"]
    room = limit - _size("\n".join(head)) - _NOTES
    rows = {check["id"]: _row(report, check) for check in report["checks"]}
    # The worst first decides what is kept, the report's order how it is shown. A part stays for the evidence.
    kept, used = _fitting({check["id"]: rows[check["id"]] for check in _by_status(report)}, room * 3 // 4)
    parts = ["\n".join([*head, *(row for name, row in rows.items() if name in kept)])]
    parts += [f"{len(rows) - len(kept)} checks left out: too many for this page."] if len(kept) < len(rows) else []
    details: dict[str, str] = {}
    shown: list[str] = []
    for most in _DETAILS:
        details = {check["id"]: _detail(check, most) for check in worst_first(report)}
        shown, _ = _fitting(details, room - used)
        if len(shown) == len(details):
            break
    parts += [details[name] for name in shown]
    cut = [name for name in details if name not in shown]
    if cut:
        names = _cell(", ".join(cut), 1000)
        parts.append(f"Evidence of {len(cut)} checks left out, too long for this page: {names}. The report has it.")
    return "\n\n".join(parts) + "\n"


def _by_status(report: Report) -> list[Mapping[str, Any]]:
    return [check for status in WORST_FIRST for check in report["checks"] if check["status"] == status]


def _row(report: Report, check: Mapping[str, Any]) -> str:
    summary = "<br>".join(
        _cell(line, _ROW_SUMMARY) for line in clean(check["summary"]).strip().split("\n")[:4] if line.strip()
    )
    status = f"{SIGNS[check['status']]} {check['status']}"
    return f"| {status} | {_cell(check['id'], 200)} | {seconds_of(report, check):.1f} | {summary} |"


def _detail(check: Mapping[str, Any], most: int) -> str:
    """A folded block. Inside <pre> nothing is Markdown, so blank lines and fences in a log end nothing."""
    evidence = evidence_text(check["evidence"], most) if check["evidence"] else "no evidence beyond this"
    text = f"{shortened(clean(check['summary']).strip(), most // 2)}\n\n{evidence}"
    about = "" if check["about"] == check["summary"] else f": {_cell(check['about'], 300)}"
    return (
        f"<details><summary>{check['status']}: {_cell(check['id'], 200)}{about}</summary>\n\n"
        f"<pre>{escape(text, quote=False)}</pre>\n\n</details>"
    )


def _cell(text: object, limit: int) -> str:
    """Text on one line of which nothing is markup."""
    return first_line(text, limit).translate(_SPECIAL)


def _fitting(parts: Mapping[str, str], room: int) -> tuple[list[str], int]:
    """The names of the parts that fit into ``room`` bytes, in order, and the bytes that they take."""
    names, used = [], 0
    for name, part in parts.items():
        if used + _size(part) + 2 <= room:
            names.append(name)
            used += _size(part) + 2
    return names, used


def _size(text: str) -> int:
    return len(text.encode("utf-8"))
