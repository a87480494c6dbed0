"""Judging the calls on vLLM's way to mHC that ``scripts/inspect_image.py`` saw, against the signatures of what is installed.

vLLM and AITER are pinned apart, and AITER's functions gain arguments from tag to tag: what does not fit dies at the first request,
on a GPU. Read from source, it shows here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from kiln.verify.checks import Outcome, errored, failed, passed, skipped
from kiln.verify.inspect import Document, is_rehearsal, listed, section


def signatures(doc: Document, allowed: Mapping[str, str] | None = None) -> Outcome:
    """Every call of vLLM's to AITER's mHC, to TileLang, and between its own mHC operators fits the function that it calls.

    ``allowed`` are the callees (patterns) that need not fit, each with the reason: vLLM may ask first what an AITER can do.
    """
    found = section(doc, "calls")
    if isinstance(found, Outcome):
        return found
    calls = found["calls"]
    counts = Counter((one["callee"].partition(".")[0], one["verdict"]) for one in calls)
    evidence: dict[str, Any] = {
        "installed": found["installed"],
        "verdicts": {f"{package} {verdict}": number for (package, verdict), number in sorted(counts.items())},
        "aiter": [_told(one) for one in calls if one["callee"].startswith("aiter.")],
        "guarded": [_told(one) for one in calls if one["verdict"] == "guarded"],
    }
    reasons = {one["callee"]: _reason(one["callee"], allowed or {}) for one in calls}
    misfits = [one for one in calls if one["verdict"] == "misfit"]
    wrong = [_told(one) for one in misfits if not reasons[one["callee"]]]
    evidence["allowed"] = [f"{_told(one)} ({reason})" for one in misfits if (reason := reasons[one["callee"]])]
    if wrong:
        fix = (
            "The pinned vLLM and AITER or tilelang do not belong together: pin the one that the other was written for."
        )
        return failed(listed(wrong, fix), misfits=wrong, **evidence)
    if not found["installed"]["aiter"]:
        fit = counts["vllm", "fits"]
        return skipped(f"AITER is not in the image; {fit} calls between vLLM's own mHC operators fit", **evidence)
    ours = [one for one in calls if one["callee"].startswith("aiter.")]
    if not ours:
        if is_rehearsal(doc):
            return skipped("a rehearsal: the stand-in for vLLM calls nothing of AITER's", **evidence)
        return errored(
            "no call of vLLM's to AITER's mHC was found: it has none, or makes them where scripts/inspect_image.py does not look",
            **evidence,
        )
    # A call into TileLang that only running it resolves is common (its language is made at run time); one into AITER is not.
    unknown = [_told(one) for one in ours if one["verdict"] == "unknown"]
    if unknown:
        return errored(listed(unknown, "Whether these fit must be looked at by hand."), **evidence)
    lacking = "" if found["installed"]["tilelang"] else "; tilelang is not in the image"
    open_ones = counts["tilelang", "unknown"]
    return passed(
        f"{counts['aiter', 'fits']} calls to AITER's mHC, {counts['vllm', 'fits']} between vLLM's own operators and"
        f" {counts['tilelang', 'fits']} to TileLang fit ({open_ones} of TileLang's are known only when they run){lacking}",
        **evidence,
    )


def _reason(callee: str, allowed: Mapping[str, str]) -> str:
    return next((reason for pattern, reason in allowed.items() if fnmatchcase(callee, pattern)), "")


def _told(one: dict[str, Any]) -> str:
    inside = f" in {one['in']}" if one["in"] else ""
    why = f": {one['why']}" if one["why"] else ""
    return f"{one['file']}:{one['line']}{inside}: {one['callee']}: {one['verdict']}{why}"
