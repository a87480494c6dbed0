"""Whether a document is a report: against ``report.schema.json``, and whether it agrees with itself."""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from kiln.errors import ReportInvalidError
from kiln.verify.render.common import SIGNS

MOST = 50
# In a merged report (kiln.verify.merge) every cell is a check of this level too, so that every form shows it and every count has it.
CELL, CELLS = "cell.", "cells"
# Far beyond any report (one with all its logs has some hundred kilobytes), and little enough for any machine to look at.
LARGEST, DEEPEST = 8 << 20, 100
_SPELLED = reprlib.Repr()
_SPELLED.maxstring = _SPELLED.maxlong = _SPELLED.maxother = 90


def read_report(file: Path) -> dict[str, Any]:
    """The report in a file. Raises ReportInvalidError where it is none, or no longer what Kiln wrote."""
    try:
        with file.open("rb") as stream:
            data = stream.read(LARGEST + 1)
    except OSError as error:
        raise ReportInvalidError(f"{file} cannot be read", why=str(error)) from error
    if len(data) > LARGEST:
        raise ReportInvalidError(f"{file} is too large for a report", why=f"It has more than {LARGEST >> 20} MiB.")
    try:
        document: dict[str, Any] = json.loads(data.decode(), object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
        raise ReportInvalidError(f"{file} is no JSON document", why=str(error)) from error
    if problems := validate(document):
        raise ReportInvalidError(f"{file} is not a report as kiln writes it", why="\n".join(problems))
    return document


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Of two values under one key programs see one, and not all the same one: that is no report."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {_shown(twice)} is there more than once in one object")
    return found


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
    if _too_deep(document):
        return [f"report: something in it lies deeper than {DEEPEST} levels"]
    problems = [line for error in _validator().iter_errors(document) for line in _lines(error)]
    if not problems and isinstance(document, Mapping):
        problems = list(_within(document))
    left = len(problems) - MOST
    return problems if left <= 0 else [*problems[:MOST], f"{left} more"]


def _within(report: Mapping[str, Any]) -> Iterator[str]:
    """What the shape cannot say: counts, names, times and labels fit each other."""
    yield from _checks(report["checks"], report["summary"])
    yield from _timing(report["timing"], {check["id"] for check in report["checks"]})
    shown = {check["id"]: check["status"] for check in report["checks"] if check["id"].startswith(CELL)}
    listed = {f"{CELL}{name}": cell["status"] for name, cell in report.get("cells", {}).items()}
    for name in sorted(shown.keys() | listed.keys()):
        if shown.get(name) != listed.get(name):
            yield f"report.cells: {_shown(name)} is {listed.get(name, 'not there')}, and {shown.get(name, 'not there')} among the checks"
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


@cache
def _validator() -> Any:
    """JSON Schema's rules, with what Python has and JSON has not: a number is finite, and ``$`` is not before a line break at the end.

    The library takes longer to load than most commands to run, and only those that read a report need it.
    """
    from jsonschema import Draft202012Validator, ValidationError
    from jsonschema.validators import extend

    def pattern(_: Any, wanted: str, value: object, __: Any) -> Iterator[Any]:
        if isinstance(value, str) and not re.search(re.sub(r"\$$", r"\\Z", wanted), value):
            yield ValidationError("does not match")

    def number(_: Any, value: object) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

    types = Draft202012Validator.TYPE_CHECKER.redefine("number", number)
    return extend(Draft202012Validator, {"pattern": pattern}, type_checker=types)(schema())


def _lines(error: Any) -> Iterator[str]:
    """What is wrong at one place, as a person would say it; the library's own words hold the whole value, however long it is."""
    where = "report" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path)
    rule, value = error.validator_value, _shown(error.instance)
    match error.validator:
        case "type":
            yield f"{where}: {value} is not {' or '.join([rule] if isinstance(rule, str) else rule)}"
        case "const":
            yield f"{where}: {value} is not {_shown(rule)}"
        case "enum":
            yield f"{where}: {value} is none of {', '.join(map(str, rule))}"
        case "pattern":
            yield f"{where}: {value} does not match {rule}"
        case "required":
            # One error a name, which the message alone has.
            yield f"{where}: {error.message.removesuffix(' is a required property').strip(chr(39))} is missing"
        case "additionalProperties":
            for name in error.instance.keys() - error.schema["properties"].keys():
                yield f"{where}: nobody knows {_shown(name)}"
        case _:
            yield f"{where}: {_shown(error.message)}"


def _too_deep(document: object) -> bool:
    """Whether values lie in values further than any report of ours. Goes on without calling itself: that is what must not happen."""
    way: list[Iterator[object]] = [iter((document,))]
    while way:
        if len(way) > DEEPEST:
            return True
        for value in way[-1]:
            if isinstance(value, (dict, list)):
                way.append(iter(value.values() if isinstance(value, dict) else value))
                break
        else:
            way.pop()
    return False


def _shown(value: object) -> str:
    """A value in a message: short, on one line. Only as much of it is spelled out as is shown."""
    text = _SPELLED.repr(value).encode("ascii", "backslashreplace").decode()
    return text if len(text) <= 80 else text[:79] + "…"
