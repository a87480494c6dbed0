"""What all forms of a report share: the verdict, text made harmless, and evidence as plain lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Report: TypeAlias = Mapping[str, Any]

WORST_FIRST = ("fail", "error", "skip", "pass")
# A colour alone says nothing to many readers: every status has a sign and its word.
SIGNS = {"pass": "✓", "fail": "✗", "error": "!", "skip": "○"}

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
# What XML 1.0 cannot hold (control characters, lone surrogates), the C1 controls, and the marks that turn the direction of text:
# with those a log line can look like another one.
_UNSAFE = re.compile(
    "[^\t\n\x20-\x7e\xa0-\u200d\u2010-\u2029\u202f-\u2065\u206a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
)
_DEEPEST = 16
_INLINE = 100


@dataclass(frozen=True)
class Verdict:
    """What a report comes to: a status, its word for people, and a sentence with the counts."""

    status: str
    word: str
    sentence: str


def verdict(report: Report) -> Verdict:
    """What ``kiln.verify.report.judge`` would say of the report. A report without a single pass verifies nothing."""
    counts = report["summary"]
    total = counts["total"]
    if counts["fail"]:
        return Verdict("fail", "failed", f"{counts['fail']} of {total} checks failed: this image must not be used")
    if counts["error"]:
        return Verdict("error", "incomplete", f"{counts['error']} of {total} checks could not look: nothing is proven")
    if not counts["pass"]:
        return Verdict("error", "incomplete", "no check ran: an image that nobody looked at is not verified")
    skipped = f", {counts['skip']} skipped" if counts["skip"] else ""
    return Verdict("pass", "passed", f"{counts['pass']} of {total} checks passed{skipped}")


def worst_first(report: Report) -> list[Mapping[str, Any]]:
    """The checks that did not pass: failures, errors, skips, each in the report's order."""
    return [
        check for status in WORST_FIRST if status != "pass" for check in report["checks"] if check["status"] == status
    ]


def seconds_of(report: Report, check: Mapping[str, Any]) -> float:
    """How long a check took."""
    return float(report["timing"]["seconds"].get(check["id"], 0))


def choices(report: Report) -> list[str]:
    """What makes this image another than the pins alone would: overrides, allowed advisories, a rehearsal; a sentence each."""
    chosen = report["chosen"]
    said = [f"{name} was overridden: {ref}" for name, ref in chosen["overrides"].items()]
    said += [f"the advisory {name} was allowed" for name in chosen["allowed_advisories"]]
    if chosen["rehearsal"]:
        said.append("a rehearsal: made from stand-ins, it says nothing about the real image")
    return [clean(sentence) for sentence in said]


def clean(text: object) -> str:
    """Text that XML, HTML and a terminal can show: no escape sequences, control characters, lone surrogates or direction marks."""
    whole = _ANSI.sub("", str(text)).replace("\r\n", "\n").replace("\r", "\n")
    return _UNSAFE.sub("", whole)


def first_line(text: object, limit: int) -> str:
    """The first line that says anything, at most ``limit`` characters of it."""
    lines = [line for line in clean(text).split("\n") if line.strip()]
    return shortened(lines[0].strip(), limit) if lines else ""


def shortened(text: str, limit: int) -> str:
    """The text, or its beginning and its end with a word about what is left out between them: a log says how it ended."""
    if len(text) <= limit:
        return text
    if limit < 200:
        return text[: max(limit - 1, 0)] + "…"
    note = f"\n[… {len(text) - limit} characters left out here; the report has them …]\n"
    keep = max(limit - len(note), 0)
    head = keep * 2 // 3
    return text[:head] + note + text[len(text) - (keep - head) :]


def evidence_text(evidence: Any, limit: int) -> str:
    """Evidence as indented lines: readable where JSON would put a whole log into one string."""
    return shortened("\n".join(_lines(evidence, "", 0)), limit)


def scalar(value: Any) -> str:
    """A value that holds no others, as text; strings without quotes."""
    return clean(value) if isinstance(value, str) else clean(json.dumps(value, ensure_ascii=False, default=str))


def _lines(value: Any, indent: str, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        yield f"{indent}…"
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _entry(f"{indent}{clean(key)}:", inner, indent, depth)
    elif isinstance(value, list):
        for inner in value:
            yield from _entry(f"{indent}-", inner, indent, depth)
    else:
        yield from (f"{indent}{line}" for line in scalar(value).split("\n"))


def _entry(lead: str, value: Any, indent: str, depth: int) -> Iterator[str]:
    """One key or item: on the line of its lead where it fits, else below and further in."""
    plain = _inline(value)
    if plain is not None:
        yield f"{lead} {plain}"
    else:
        yield lead
        yield from _lines(value, indent + "  ", depth + 1)


def _inline(value: Any) -> str | None:
    if not value and isinstance(value, (Mapping, list)):
        return "none"
    if isinstance(value, list) and all(isinstance(item, (str, int, float)) for item in value):
        text = ", ".join(scalar(item) for item in value)
        return f"[{text}]" if len(text) <= _INLINE and "\n" not in text else None
    if isinstance(value, (Mapping, list)):
        return None
    text = scalar(value)
    return None if "\n" in text else text
