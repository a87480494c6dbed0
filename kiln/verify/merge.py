"""One report of an image out of the reports of its cells. In: files that may be reports, and the cells that are required; out: one report.

A cell that nobody reported is in it as an *error*, and so is one whose report cannot be read, speaks of another digest, or skipped what the cell asks
for: a merged report never passes for what is missing. What a report is of is read from the report, not from where it lies; where it lies says only
whose report is broken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kiln import __version__
from kiln.canonical import digest_of, sha256_file
from kiln.ci import Cell
from kiln.errors import ReportInvalidError, UsageError
from kiln.levels import LEVELS, SETTING_OF
from kiln.verify.render.common import SIGNS, Report, first_line, verdict
from kiln.verify.render.shape import CELL, CELLS, read_report
from kiln.verify.report import skipped

READABLE = "reports.readable"
# A skip is the weakest of all: what one cell skipped, another has looked at.
_STRONGEST = ("fail", "error", "pass", "skip")


@dataclass(frozen=True)
class Handed:
    """A file that was handed in: its name for people, the folder that it lies in, and its report with its sha256, or what is wrong with it."""

    name: str
    folder: str
    report: Report | None
    sha256: str = ""
    problem: str = ""

    @property
    def image(self) -> str:
        """The name of the image that it speaks of."""
        return str(self.report["subject"]["image"]) if self.report else ""

    @property
    def digest(self) -> str:
        """The digest of the image that it speaks of."""
        return str(self.report["subject"]["manifest_digest"]) if self.report else ""

    @property
    def age(self) -> tuple[datetime, str]:
        """What the newest of several has most of."""
        assert self.report is not None, "only reports that were read are compared"
        return _time(self.report["timing"]["finished_at"]), self.sha256


def hand_in(file: Path) -> Handed:
    """A file as it was handed in. Raises nothing: what is wrong with it is for the merged report to say."""
    name, folder = "/".join(file.absolute().parts[-2:]), file.absolute().parent.name
    try:
        report = read_report(file)
        for key in ("started_at", "finished_at"):
            _time(report["timing"][key])
        if "cells" in report:
            return Handed(
                name, folder, None, problem=f"{name} is a merged report, and what is merged are those of cells"
            )
        return Handed(name, folder, report, sha256_file(file))
    except ReportInvalidError as error:
        return Handed(name, folder, None, problem=f"{name} is no report: {first_line(error.why or error.what, 200)}")
    except ValueError as error:
        return Handed(name, folder, None, problem=f"{name} is no report: its times cannot be read ({error})")


def chosen(handed: Sequence[Handed], image: str = "", digest: str = "") -> tuple[str, str]:
    """The image and the digest that the merged report is of: what was asked for, or what all reports say.

    Raises UsageError where they speak of several images or digests and nobody said which, ReportInvalidError where none can be read.
    """
    read = [one for one in handed if one.report]
    if not read:
        problems = "\n".join(one.problem for one in handed)
        raise ReportInvalidError("there is no report to merge", why=problems, fix="give at least one that is whole")
    images = sorted({one.image for one in read})
    if not image and len(images) > 1:
        raise UsageError(
            f"these are reports of {len(images)} images: {', '.join(images)}", fix="say which: --image NAME"
        )
    image = image or images[0]
    digests = sorted({one.digest for one in read if one.image == image})
    if not digests or (digest and digest not in digests):
        raise ReportInvalidError(
            f"no report speaks of {digest or image}",
            why="\n".join(sorted(f"{one.image}@{one.digest}  {one.name}" for one in read)),
            fix="verify that image, or name another",
        )
    if not digest and len(digests) > 1:
        raise UsageError(
            f"these reports speak of {len(digests)} digests of {image}",
            why="\n".join(sorted(f"{one.digest}  {one.name}" for one in read if one.image == image)),
            fix="say which is meant: --digest sha256:…; the others are named in the merged report and not counted",
        )
    return image, digest or digests[0]


@dataclass
class _Found:
    """What there is of a cell: reports that count, the newest first, and lines about what does not count."""

    cell: Cell
    required: bool
    reports: list[Handed] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)

    def judged(self) -> tuple[str, str]:
        """The cell's status, and why."""
        if not self.reports:
            return "error", "; ".join(["no report of this cell", *self.wrong, *self.beside])
        newest, *older = self.reports
        assert newest.report is not None, "what counts was read"
        end = verdict(newest.report)
        status, said = end.status, end.sentence
        if status == "pass" and self.required and (left := skipped(newest.report, self.cell.require)):
            status, said = "error", f"{len(left)} checks were skipped, and the cell asks for them: {', '.join(left)}"
        lines = [f"{said}; {newest.name}, {newest.report['timing']['finished_at']}"]
        for one in older:
            assert one.report is not None, "what counts was read"
            lines.append(
                f"older and not counted: {one.name}, {one.report['timing']['finished_at']} ({verdict(one.report).word})"
            )
        if self.wrong:
            # Which of the two is the newer one cannot be known, so the good one does not speak for the cell.
            status = status if status == "fail" else "error"
        return status, "; ".join([*self.wrong, *lines, *self.beside])


def merge(handed: Sequence[Handed], cells: Sequence[Cell], image: str, digest: str) -> dict[str, Any]:
    """The merged report of ``digest``. ``cells`` are the required ones (those of other images are left aside); reports of other cells are taken too.

    The same files give the same report in any order. ``digest`` is one that a report speaks of (see ``chosen``).
    """
    order = sorted(handed, key=lambda one: (one.name, one.sha256))
    found = {cell.id: _Found(cell, required=True) for cell in cells if cell.image == image}
    unknown: list[str] = []
    agreed = _agreed([one for one in order if one.digest == digest and one.image == image])
    for one in order:
        own = found.get(one.folder)
        if one.report is None:
            (own.wrong if own else unknown).append(one.problem)
            continue
        if one.image != image:
            continue
        name, cell = _cell_of(one.report, found)
        place = found.setdefault(name, _Found(cell, required=False))
        if own and own is not place:
            own.beside.append(f"{one.name}, which lies in its folder, is of {name}")
        if one.digest != digest:
            place.beside.append(f"not counted: {one.name} is of {one.digest}, and this is the report of {digest}")
        elif _identity(one.report) != agreed:
            place.wrong.append(f"{one.name} says that this digest was made from something else than the others say")
        elif one.sha256 not in [other.sha256 for other in place.reports]:
            place.reports.append(one)
    for place in found.values():
        place.reports.sort(key=lambda one: one.age, reverse=True)
    shown = {name: one for name, one in found.items() if one.required or one.reports or one.wrong}
    # A cell that is not required and has nothing but another digest's report is none of this digest.
    aside = [line for name, one in found.items() if name not in shown for line in one.beside]
    return _report(shown, unknown, aside)


def name_of(report: Report) -> str:
    """The name of the cell that a report is of, as it says itself."""
    return _cell_of(report, {})[0]


def _cell_of(report: Report, found: Mapping[str, _Found]) -> tuple[str, Cell]:
    """The cell that a report is of, as it says itself; one that lacks what the required cell of that name asks for is a cell of its own."""
    scope, subject = report["scope"], report["subject"]
    archs = sorted(set(_archs(report))) if scope["level"] != "static" else []
    arch = "-".join(archs) or subject["platform"].split("/")[1]
    setting = SETTING_OF.get(scope["backend"], "both")
    cell = Cell(report["stack"], subject["image"], arch, setting, scope["level"], gpu=bool(archs), seconds=0)
    known = found.get(cell.id)
    if known and known.cell.stack != cell.stack:
        return f"{cell.id}-of-{cell.stack}", cell
    if known and known.cell.own_model and not scope["own_model"]:
        return f"{cell.id}-tiny", cell
    return cell.id, cell


def _archs(report: Report) -> list[str]:
    gpu = report["environment"]["gpu"]
    return [str(arch) for arch in gpu] if isinstance(gpu, list) else []


def _time(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _identity(report: Report) -> str:
    """What every report of one digest must say alike."""
    return digest_of([report[key] for key in ("subject", "stack", "chosen", "pins", "lock")])


def _agreed(handed: Sequence[Handed]) -> str:
    """What most reports of the digest say that it is; the newest decides between as many."""
    said = Counter(_identity(one.report) for one in handed if one.report)
    newest = {_identity(one.report): one.age for one in sorted(handed, key=lambda one: one.age) if one.report}
    return max(said, key=lambda one: (said[one], newest[one]))


def _report(cells: Mapping[str, _Found], unknown: Sequence[str], aside: Sequence[str]) -> dict[str, Any]:
    """The document: the cells as checks of their own, then every check with the worst that a cell says of it."""
    counted = [(name, one.reports[0].report) for name, one in cells.items() if one.reports and one.reports[0].report]
    checks: list[dict[str, Any]] = []
    seconds: dict[str, float] = {}
    listed: dict[str, dict[str, Any]] = {}
    for name, one in cells.items():
        status, said = one.judged()
        sums = [handed.sha256 for handed in one.reports]
        listed[name] = {"status": status, "required": one.required, "report": next(iter(sums), None), "older": sums[1:]}
        about = f"the checks of {name} were made of this digest, and all passed"
        checks.append(_check(f"{CELL}{name}", CELLS, about, status, said, {"reports": sums} if sums else {}))
    # Where nothing of a file can be read, nobody knows which cell it was of.
    said = "; ".join([*unknown, *aside]) or "every file that was given is a report"
    about = "every file that was given is a report, or lies in the folder of the cell that it is of"
    checks.append(_check(READABLE, CELLS, about, "error" if unknown else "pass", said, {}))
    seconds |= {check["id"]: 0.0 for check in checks}
    seconds |= {f"{CELL}{name}": round(sum(report["timing"]["seconds"].values()), 3) for name, report in counted}
    for name in dict.fromkeys(check["id"] for _, report in counted for check in report["checks"]):
        there = [(cell, check) for cell, report in counted for check in report["checks"] if check["id"] == name]
        checks.append(_joined(there))
        seconds[name] = round(sum(report["timing"]["seconds"].get(name, 0) for _, report in counted), 3)
    first, scopes = counted[0][1], [report["scope"] for _, report in counted]
    backends = {scope["backend"] for scope in scopes}
    per_node = [Counter(_archs(report)) for _, report in counted]
    # The cells of one node see the same GPUs, and a report does not name its node: so many as any one of them saw.
    gpus = [arch for arch in sorted(set().union(*per_node)) for _ in range(max(one[arch] for one in per_node))]
    return {
        **{key: first[key] for key in ("schema_version", "subject", "stack", "chosen", "pins", "lock")},
        "tool": {"name": "kiln", "version": __version__},
        "scope": {
            "level": max((scope["level"] for scope in scopes), key=LEVELS.index),
            "backend": backends.pop() if len(backends) == 1 else "both",
            "own_model": any(scope["own_model"] for scope in scopes),
        },
        "model": _all_of(report["model"] for _, report in counted),
        "environment": {
            "engine": _all_of(report["environment"]["engine"] for _, report in counted),
            "engine_version": _all_of(report["environment"]["engine_version"] for _, report in counted),
            "gpu": gpus or None,
        },
        "cells": listed,
        "checks": checks,
        "summary": {
            **{status: sum(check["status"] == status for check in checks) for status in SIGNS},
            "total": len(checks),
        },
        "timing": {
            "started_at": min((report["timing"]["started_at"] for _, report in counted), key=_time),
            "finished_at": max((report["timing"]["finished_at"] for _, report in counted), key=_time),
            "seconds": seconds,
            "detail": {},
        },
    }


def _check(name: str, level: str, about: str, status: str, summary: str, evidence: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": name,
        "level": level,
        "about": about,
        "status": status,
        "summary": summary,
        "evidence": dict(evidence),
    }


def _joined(there: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """One check as the cells found it: the strongest status decides, and what that cell saw is the evidence. The other cells' reports have theirs."""
    cell, deciding = min(there, key=lambda pair: _STRONGEST.index(pair[1]["status"]))
    if len({(check["status"], check["summary"]) for _, check in there}) == 1:
        return dict(deciding)
    lines = {one: first_line(f"{check['status']}: {check['summary']}", 300) for one, check in there}
    evidence = {**deciding["evidence"], "cells": lines}
    return {**deciding, "summary": f"{deciding['summary']} ({cell})", "evidence": evidence}


def _all_of(values: Any) -> str:
    return ", ".join(dict.fromkeys(filter(None, values)))
