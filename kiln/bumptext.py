"""What a bump changes, said: for a terminal, for the message of its commit, and for programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from kiln.advisories import Finding
from kiln.bump import Bump, Unmoved
from kiln.gitcompare import SourceChange

# Of a list that can be long, so many lines; JSON has all of it.
SHOWN = 40
_OPEN = "open from here on (nothing is built while it is)"


def text(bump: Bump) -> str:
    """For people, before anything is written."""
    lines = [f"{bump.component} {bump.was} -> {bump.now} ({bump.stack})", *_indented(_from_to(bump))]
    lines += _passed_over(bump.passed_over)
    if bump.source:
        lines += _commits(bump, bump.source)
        lines += _section("newest of them", bump.source.commits.subjects)
    elif bump.unknown:
        lines.append(f"the sources are not compared: {bump.unknown}")
    lines += [*_pulled_in(bump), *_section(_OPEN, _open(bump))]
    lines += _section(
        "to rebuild", [f"{image}: {name} ({'; '.join(why)})" for image, name, why in bump.rebuild], "nothing"
    )
    if bump.pull:
        lines += ["to pull:", *_indented(bump.pull.text().splitlines())]
    else:
        lines.append(f"to pull: unknown: {bump.pull_unknown}")
    return "\n".join(lines)


def unmoved(stays: Unmoved) -> str:
    """Why a component stays where it is."""
    return "\n".join([f"{stays.component} stays at {stays.ref}: {stays.why}", *_passed_over(stays.passed_over)])


def message(bump: Bump) -> str:
    """The message of the commit: what moved, from which commit to which, what it pulls in, and what the advisories say of it."""
    lines = [f"{bump.stack}: {bump.component} {_short(bump.was)} -> {_short(bump.now)}", "", *_from_to(bump)]
    if bump.source:
        lines += _commits(bump, bump.source)
    elif bump.unknown:
        lines.append(f"the sources were not compared: {bump.unknown}")
    # Who did not answer, and by which mirror, is this machine's affair.
    lines += [*_pulled_in(bump), *_section(_OPEN, [" ".join(entry.label.split()) for entry in bump.opened])]
    if bump.allowed:
        lines.append(f"allowed by whoever made this bump: {', '.join(bump.allowed)}")
    return "\n".join(lines) + "\n"


def data(bump: Bump) -> dict[str, Any]:
    """For programs."""
    return {
        "component": bump.component,
        "url": bump.url or None,
        "from": {"ref": bump.was, "commit": bump.commits[0] or None},
        "to": {"ref": bump.now, "commit": bump.commits[1] or None},
        "passed_over": [{"ref": ref, "why": why} for ref, why in bump.passed_over],
        "source": asdict(bump.source) if bump.source else None,
        "source_unknown": bump.unknown or None,
        "advisories": {"entered": _advisories(bump.entered), "left": _advisories(bump.left), "allowed": bump.allowed},
        "opened": [asdict(entry) for entry in bump.opened],
        "lock": list(bump.locked),
        "rebuild": [{"image": image, "component": name, "why": list(why)} for image, name, why in bump.rebuild],
        "pull": bump.pull.data() if bump.pull else None,
        "pull_unknown": bump.pull_unknown or None,
    }


def _advisories(findings: Iterable[Finding]) -> list[dict[str, str]]:
    return [
        {"id": one.advisory.id, "effect": one.effect, "because": one.because, "decided_by": one.decided_by}
        for one in findings
    ]


def _from_to(bump: Bump) -> list[str]:
    if not bump.url:
        return []
    was, now = bump.commits
    return [
        bump.url,
        f"from {_named(bump.was, was) if was else f'{bump.was}, not resolved'}",
        f"to   {_named(bump.now, now)}",
    ]


def _named(ref: str, commit: str) -> str:
    return commit if ref == commit else f"{ref} {commit}"


def _short(ref: str) -> str:
    return ref if len(ref) < 40 else ref[:12]


def _passed_over(passed: Iterable[tuple[str, str]]) -> list[str]:
    return _section("passed over", [f"{ref}: {why}" for ref, why in passed])


def _commits(bump: Bump, source: SourceChange) -> list[str]:
    commits = source.commits
    if commits.unknown:
        return [f"commits between: unknown: {commits.unknown}"]
    line = f"{commits.between} commit{'s' if commits.between != 1 else ''} between"
    if commits.left:
        are = "is" if commits.left == 1 else "are"
        line += f"; {commits.left} of those of {_short(bump.was)} {are} not in {_short(bump.now)}"
    return [line]


def _pulled_in(bump: Bump) -> Iterator[str]:
    """What comes with it: of the source, of the advisories, of the lock."""
    if source := bump.source:
        told = [f"{one.path} ({_count(one.added, one.removed)})" for one in source.files]
        yield from _section("build files that differ", told, "none")
        yield from _section(
            "requirements that differ",
            [
                f"{one.path}: {sign} {line}"
                for one in source.files
                for sign, lines in (("-", one.went), ("+", one.came))
                for line in lines
            ],
        )
        links = [f"{one.path} {one.was or 'not there'} -> {one.now or 'gone'}" for one in source.submodules]
        yield from _section("submodules that differ", links)
    yield from _section("advisories entered", [_advisory(one) for one in bump.entered], "none")
    yield from _section("advisories left", [_advisory(one) for one in bump.left], "none")
    yield from _section("also in the lock" if bump.url else "in the lock", bump.locked)


def _open(bump: Bump) -> Iterator[str]:
    for entry in bump.opened:
        yield f"{' '.join(entry.label.split())}: {entry.reason}"
        if entry.kind == "wheel" and (way := _way(bump, entry.ref)):
            yield f"  {way}"


def _way(bump: Bump, wanted: str) -> str:
    """The bump that meets a requirement of the source, where it asks for one version and a component is pinned to that wheel."""
    try:
        requirement = Requirement(wanted)
        exact = [one.version for one in requirement.specifier if one.operator == "=="]
        held = {
            str(canonicalize_name(Requirement(one.wheels[0]).name)): one.name
            for one in bump.pins.components
            if one.wheels
        }
    except InvalidRequirement:
        return ""
    name = held.get(str(canonicalize_name(requirement.name)))
    return f"kiln pins bump {name} --to {exact[0]} --stack {bump.stack}" if name and len(exact) == 1 else ""


def _advisory(finding: Finding) -> str:
    return f"{finding.advisory.id} ({finding.effect}): {finding.because} (decided by: {finding.decided_by})"


def _count(added: int | None, removed: int | None) -> str:
    return "no text" if added is None else f"+{added} -{removed}"


def _section(title: str, lines: Iterable[str], empty: str = "") -> list[str]:
    found = list(lines)
    if not found:
        return [f"{title}: {empty}"] if empty else []
    more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return [f"{title}:", *_indented([*found[:SHOWN], *more])]


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"  {line}" for line in lines]
