"""Whether a document is a report: against ``report.schema.json``, and whether it agrees with itself."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from kiln.verify.render.common import SIGNS

# The part of JSON Schema that the schema uses and this module knows; a test compares the two. The rest are words for people.
KEYWORDS = frozenset({"type", "required", "properties", "additionalProperties", "items", "enum", "pattern", "const"})
NOTES = frozenset({"$schema", "title", "description"})
MOST = 50


@cache
def schema() -> dict[str, Any]:
    """The JSON schema of a report, as it is shipped."""
    text = (files("kiln.verify") / "report.schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def validate(document: object) -> list[str]:
    """What is wrong with a report, a line each; nothing if it is one.

    A report is written by Kiln alone, so one that disagrees with itself was edited by hand and is not to be believed.
    """
    problems = list(_against(schema(), document, "report"))
    if not problems and isinstance(document, Mapping):
        problems = list(_within(document))
    left = len(problems) - MOST
    return problems if left <= 0 else [*problems[:MOST], f"{left} more"]


def _within(report: Mapping[str, Any]) -> Iterator[str]:
    """What the shape cannot say: counts, names, times and labels fit each other."""
    yield from _checks(report["checks"], report["summary"])
    yield from _timing(report["timing"], {check["id"] for check in report["checks"]})
    for check in report["checks"]:
        said = check["evidence"].get("labels")
        locked = said.get("io.kiln.lock.sha256") if isinstance(said, Mapping) else None
        if check["status"] == "pass" and locked is not None and locked != report["lock"]["sha256"]:
            yield f"report.lock.sha256: {report['lock']['sha256']}, but {check['id']} saw {_shown(locked)} in the image"


def _checks(checks: list[Mapping[str, Any]], summary: Mapping[str, int]) -> Iterator[str]:
    if not checks:
        yield "report.checks: there is none, and an image that nobody looked at is not verified"
    for name, count in Counter(check["id"] for check in checks).items():
        if count > 1:
            yield f"report.checks: {name} is there {count} times"
    counted = Counter(check["status"] for check in checks)
    for key, number in {**{status: counted[status] for status in SIGNS}, "total": len(checks)}.items():
        if summary[key] != number:
            yield f"report.summary.{key}: {summary[key]}, but the checks make {number}"


def _timing(timing: Mapping[str, Any], names: set[str]) -> Iterator[str]:
    for name in sorted(names - timing["seconds"].keys()):
        yield f"report.timing.seconds: {name} is missing"
    for block in ("seconds", "detail"):
        for name in sorted(timing[block].keys() - names):
            yield f"report.timing.{block}: there is no check {_shown(name)}"
    for name, seconds in timing["seconds"].items():
        if seconds < 0:
            yield f"report.timing.seconds.{name}: {seconds} is less than nothing"


def _against(rule: Mapping[str, Any], value: object, where: str) -> Iterator[str]:
    """The problems of a value against one schema."""
    types = rule.get("type", [])
    types = [types] if isinstance(types, str) else types
    if types and not any(_is(name, value) for name in types):
        yield f"{where}: {_shown(value)} is not {' or '.join(types)}"
        return
    if "const" in rule and not _same(value, rule["const"]):
        yield f"{where}: {_shown(value)} is not {_shown(rule['const'])}"
    if "enum" in rule and not any(_same(value, one) for one in rule["enum"]):
        yield f"{where}: {_shown(value)} is none of {', '.join(map(str, rule['enum']))}"
    if "pattern" in rule and isinstance(value, str) and not re.search(_anchored(rule["pattern"]), value):
        yield f"{where}: {_shown(value)} does not match {rule['pattern']}"
    if isinstance(value, Mapping):
        yield from _object(rule, value, where)
    elif isinstance(value, list) and "items" in rule:
        for number, item in enumerate(value):
            yield from _against(rule["items"], item, f"{where}[{number}]")


def _object(rule: Mapping[str, Any], value: Mapping[Any, Any], where: str) -> Iterator[str]:
    for name in rule.get("required", []):
        if name not in value:
            yield f"{where}: {name} is missing"
    known = rule.get("properties", {})
    others = rule.get("additionalProperties", True)
    for name, inner in value.items():
        if not isinstance(name, str):
            yield f"{where}: {_shown(name)} is no name"
        elif name in known:
            yield from _against(known[name], inner, f"{where}.{name}")
        elif others is False:
            yield f"{where}: nobody knows {_shown(name)}"
        elif isinstance(others, Mapping):
            yield from _against(others, inner, f"{where}.{name}")


def _anchored(pattern: str) -> str:
    """The pattern with Python's meaning of ``$`` made JSON Schema's: not before a line break at the end."""
    return pattern[:-1] + r"\Z" if pattern.endswith("$") else pattern


def _is(name: str, value: object) -> bool:
    """Whether a value has a JSON type. A truth value is no number, and what JSON cannot say (NaN, infinities) is none either."""
    if name in ("number", "integer"):
        if isinstance(value, float):
            return value.is_integer() if name == "integer" else math.isfinite(value)
        return isinstance(value, int) and not isinstance(value, bool)
    return {
        "object": isinstance(value, Mapping),
        "array": isinstance(value, list),
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "null": value is None,
    }[name]


def _same(one: object, other: object) -> bool:
    """Equality as JSON has it: 1 and true are not the same, although Python says so."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _shown(value: object) -> str:
    """A value in a message: short, on one line."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:79] + "…"
