"""The report: all checks of one image digest as one JSON file; every other form is rendered from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiln import __version__
from kiln.errors import VerifyFailedError, VerifyIncompleteError
from kiln.levels import LEVELS, Level, Scope
from kiln.store import write_whole
from kiln.verify.render.common import clean, first_line
from kiln.workspace import Workspace

# The no-op shows a report too, and must be fast: a check's own module loads the engine's SDK.
if TYPE_CHECKING:
    from kiln.gpu import Gpu
    from kiln.verify.checks import Result, Subject

SCHEMA_VERSION = 1


def make_report(
    subject: Subject,
    results: Sequence[Result],
    versions: dict[str, str],
    model: str,
    began: datetime,
    scope: Scope = Scope(),  # noqa: B008 - frozen
    gpus: Sequence[Gpu] = (),
) -> dict[str, Any]:
    """The report as data. All of it is the same for the same image and checkpoint, except for the block ``timing``."""
    counts = {
        status: sum(result.outcome.status == status for result in results)
        for status in ("pass", "fail", "error", "skip")
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "kiln", "version": __version__},
        "subject": {
            "image": subject.image.name,
            "manifest_digest": subject.built.digest,
            "platform": subject.pins.platform,
            "components": versions,
        },
        "stack": subject.pins.stack,
        "scope": _said(scope),
        "chosen": {
            "overrides": dict(subject.pins.overrides),
            "allowed_advisories": list(subject.pins.allowed),
            "rehearsal": subject.workspace.rehearsal,
        },
        "pins": {"sha256": subject.pins.sha256},
        "lock": {"sha256": subject.lock.sha256},
        "model": model,
        "environment": {
            "engine": "docker",
            "engine_version": subject.engine.version,
            "gpu": [gpu.arch for gpu in gpus] or None,
        },
        "checks": [
            {
                "id": r.id,
                "level": r.level,
                "about": r.about,
                "status": r.outcome.status,
                "summary": r.outcome.summary,
                "evidence": r.outcome.evidence,
            }
            for r in results
        ],
        "summary": {**counts, "total": len(results)},
        "timing": {
            "started_at": began.isoformat(timespec="seconds"),
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": {result.id: result.seconds for result in results},
            "detail": {result.id: result.outcome.timing for result in results if result.outcome.timing},
        },
    }


def _said(scope: Scope) -> dict[str, Any]:
    return {"level": scope.level, "backend": scope.backend, "own_model": scope.model != Scope().model}


def report_file(workspace: Workspace, digest: str, *more: str) -> Path:
    """Where the report of a digest lies; ``more`` tells one that does not speak for the whole image from the one that does.

    The colon becomes a hyphen: artefact stores and Windows refuse it in names.
    """
    name = "-".join([digest, *filter(None, more)]).replace(":", "-")
    return workspace.state / "reports" / f"{name}.json"


def write_report(workspace: Workspace, report: dict[str, Any]) -> Path:
    """Write the report to its place and return it. One made with another checkpoint than the tiny one, of fewer levels or of one setting lies beside."""
    scope, whole = report["scope"], Scope()
    own_model = report["model"][:32] if scope["own_model"] else ""
    more = [scope[name] for name in ("level", "backend") if scope[name] != getattr(whole, name)]
    path = report_file(workspace, report["subject"]["manifest_digest"], own_model, *more)
    write_whole(path, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return path


def good_report(workspace: Workspace, digest: str, lock_sha256: str, check_ids: Sequence[str]) -> dict[str, Any] | None:
    """The report of this digest and lock if all of these checks passed in it and no other failed or could not look; else None."""
    try:
        report: dict[str, Any] = json.loads(report_file(workspace, digest).read_text(encoding="utf-8"))
        said = (
            report["schema_version"],
            report["subject"]["manifest_digest"],
            report["lock"]["sha256"],
            report["scope"],
        )
        same = said == (SCHEMA_VERSION, digest, lock_sha256, _said(Scope()))
        statuses = {check["id"]: check["status"] for check in report["checks"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    sound = all(statuses.get(check) == "pass" for check in check_ids) and not {"fail", "error"} & set(statuses.values())
    return report if same and check_ids and sound else None


def table(report: dict[str, Any]) -> str:
    """The checks as a short table for a terminal: status, id, summary (first line), seconds."""
    seconds = report["timing"]["seconds"]
    width = max((len(check["id"]) for check in report["checks"]), default=0)
    rows = [
        f"  {check['status']:5}  {check['id']:{width}}  {seconds.get(check['id'], 0):6.1f} s  {first_line(check['summary'], 110)}"
        for check in report["checks"]
    ]
    return "\n".join(rows)


def skipped(report: Mapping[str, Any], level: Level) -> list[str]:
    """The checks up to ``level`` that were skipped, with the reasons.

    That nothing is known of the margins of a checkpoint of the user's own is so on every machine, and no lack of this one.
    """
    levels = LEVELS[: LEVELS.index(level) + 1]
    of_course = {"model.known"} if report["scope"]["own_model"] else set()
    return [
        clean(f"{check['id']}: {check['summary']}")
        for check in report["checks"]
        if check["level"] in levels and check["status"] == "skip" and check["id"] not in of_course
    ]


def judge(report: dict[str, Any], shown: str, require: Level | None = None) -> None:
    """Raise VerifyFailedError where a check failed, VerifyIncompleteError where one could not look or none ran.

    With ``require``, a check up to that level that was skipped counts as failed.
    """
    summary = report["summary"]
    # What a log holds reaches a terminal here: no escape sequence of its own.
    bad = [
        clean(f"{check['id']}: {check['summary']}")
        for check in report["checks"]
        if check["status"] in ("fail", "error")
    ]
    if summary["fail"]:
        raise VerifyFailedError(
            f"{summary['fail']} of {summary['total']} checks failed",
            why="\n".join(bad),
            fix=f"the evidence is in {shown}; this image must not be used",
        )
    if summary["error"]:
        raise VerifyIncompleteError(
            f"{summary['error']} of {summary['total']} checks could not look",
            why="\n".join(bad),
            fix=f"see {shown}; mend what is in the way and verify again",
        )
    if require and (missing := skipped(report, require)):
        raise VerifyFailedError(
            f"{len(missing)} of {summary['total']} checks were skipped, and --require {require} asks for them",
            why="\n".join(missing),
            fix="verify on a machine that has what they need, or require less",
        )
    if not summary["pass"]:
        raise VerifyIncompleteError(
            "no check ran",
            why="An image that nobody looked at is not verified.",
            fix="see [verify] in the image's image.toml",
        )
