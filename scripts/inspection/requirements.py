"""Whether every requirement of every distribution is met by what is installed."""

from __future__ import annotations

import importlib
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from inspection.distributions import Distribution, canonical, installed
from inspection.image import MOST, Image
from inspection.markers import marker_environment, marker_holds
from inspection.versions import allows

_NAME: Final = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_REQUIREMENT: Final = re.compile(
    rf"\s*(?P<name>{_NAME})\s*(?:\[(?P<extras>[^\]]*)\])?\s*(?:@\s*(?P<url>\S+)|\(?(?P<specs>[^;()]*)\)?)\s*(?:;(?P<marker>.*))?$"
)


@dataclass(frozen=True)
class Need:
    """A requirement that holds here: the distribution, the extras asked of it, and what is wanted of its version."""

    name: str
    extras: tuple[str, ...]
    allows: Callable[[str], bool]


def plain_need(text: str, extra: str) -> Need | None:
    """Read a requirement with this file's own rules; None where its marker does not hold. Raises ValueError."""
    found = _REQUIREMENT.match(text)
    if not found:
        raise ValueError(f"{text!r} is no requirement")
    if found["marker"] and not marker_holds(found["marker"], marker_environment(extra)):
        return None
    specs = [one for one in (found["specs"] or "").split(",") if one.strip()]
    for one in specs:
        allows(one, "0")
    extras = tuple(sorted(canonical(one.strip()) for one in (found["extras"] or "").split(",") if one.strip()))
    return Need(canonical(found["name"]), extras, lambda version: all(allows(one, version) for one in specs))


def packaging_need(text: str, extra: str) -> Need | None:
    """The same with the rules of the ``packaging`` that the image has."""
    requirements = importlib.import_module("packaging.requirements")
    try:
        found = requirements.Requirement(text)
    except requirements.InvalidRequirement as error:
        raise ValueError(f"{text!r} is no requirement") from error
    if found.marker and not found.marker.evaluate({"extra": extra}):
        return None
    extras = tuple(sorted(canonical(one) for one in found.extras))
    return Need(canonical(found.name), extras, lambda version: found.specifier.contains(version, prereleases=True))


def requirements(image: Image) -> dict[str, Any]:
    """Every requirement of every distribution against what is installed: ``pip check``, and the extras that are asked for."""
    try:
        importlib.import_module("packaging.requirements")
        rules, read = "packaging", packaging_need
    except ImportError:
        rules, read = "plain", plain_need
    found = {one.name: one for one in reversed(installed(image))}
    problems, judged = [], 0
    asked: list[tuple[str, str]] = [(name, "") for name in sorted(found)]
    seen = set(asked)
    for name, extra in asked:  # grows while it is gone through: an extra may ask for another
        for text in found[name].said.requires or []:
            try:
                need = read(text, extra)
                if need is None or (extra and read(text, "") is not None):
                    continue
                judged += 1
                problem = _unmet(need, found)
            except ValueError as error:
                need, problem = None, f"could not be judged: {error}"
            if problem:
                problems.append({"distribution": found[name].text, "extra": extra, "needs": text, "problem": problem})
            elif need:
                more = [(need.name, one) for one in need.extras if (need.name, one) not in seen]
                seen.update(more)
                asked += more
    problems += [one for name in sorted(found) if (one := _wrong_python(found[name], read))]
    return {"rules": rules, "judged": judged, "problems": problems[:MOST], "problem_count": len(problems)}


def _unmet(need: Need, found: dict[str, Distribution]) -> str:
    if need.name not in found:
        return "is not installed"
    version = found[need.name].version
    return "" if need.allows(version) else f"{need.name} {version} is installed"


def _wrong_python(one: Distribution, read: Callable[[str, str], Need | None]) -> dict[str, str] | None:
    wanted = one.said.metadata["Requires-Python"]
    try:
        need = read(f"python {wanted}", "") if wanted else None
    except ValueError as error:
        problem = f"could not be judged: {error}"
    else:
        if need is None or need.allows(platform.python_version()):
            return None
        problem = f"this is Python {platform.python_version()}"
    return {"distribution": one.text, "extra": "", "needs": f"Python {wanted}", "problem": problem}
