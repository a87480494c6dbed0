"""`kiln pins derive` from end to end: a revision's files, the pins that they make, the advisories on these, and all of it in words."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiln.derive import Asked, asking, derive
from kiln.derivedtext import Derived, differences, text_of
from kiln.errors import UsageError
from kiln.pins import Pins, bad_name, read_pins
from kiln.session import Session
from kiln.store import write_whole
from kiln.vllmfiles import given_revision, revision_of
from kiln.vllmpins import read_said

if TYPE_CHECKING:
    from kiln.advisories import Finding

UNNAMED = "derived"


def derive_pins(
    session: Session, ref: str, source: Path | None, name: str, against: str, asked: Asked | None = None
) -> tuple[str, dict[str, Any]]:
    """The pins of a revision (``ref``, or the files in ``source``) on the pattern of the stack ``against``, in words and as data.

    With ``name`` they are written into pins/<name>.toml. ``asked`` stands in for the upstreams. Raises UsageError where that is there already or
    no name, UnknownLayoutError where the revision's files are not as they are known, and what fetching them raises.
    """
    pattern = read_pins(session.workspace, against)
    target = session.workspace.pins_file(name or UNNAMED)
    if name and (wrong := bad_name(name)):
        raise UsageError(f"--as {name}: {wrong}", fix="name the stack in another way")
    if name and target.exists():
        raise UsageError(
            f"{session.workspace.shown(target)} is there already",
            fix="give the stack another name, or remove the file if it may be written anew",
        )
    session.console.step("reading vLLM's own files")
    revision = given_revision(source, ref) if source else revision_of(ref, session.git, session.store)
    session.console.note(revision.origin)
    said = read_said(revision.read)
    session.console.step("asking for what they name")
    raw = tomllib.loads(session.workspace.pins_file(against).read_text(encoding="utf-8"))
    derived = derive(name or UNNAMED, against, raw, revision, said, asked or asking(session.git, session.config))
    findings = session.findings(_as_pins(pattern, derived), None, ())
    words = ["kiln pins derive", *([f"--vllm {ref}"] if ref else []), *([f"--source {source.name}"] if source else [])]
    text = text_of(derived, " ".join([*words, f"--against {against}"]))
    report = _report(derived, findings)
    if name:
        write_whole(target, text)
        needed = derived.needed()
        shown = f"{session.workspace.shown(target)} is written" + (
            f"; `kiln lock {name}` refuses it until there is a value for {', '.join(needed)}" if needed else ""
        )
        return "\n".join([shown, *report]), _data(derived, findings, session.workspace.shown(target))
    comments = "\n".join(f"# {line}".rstrip() for line in "\n".join(report).splitlines())
    return f"{text}\n{comments}", _data(derived, findings, "")


def _as_pins(pattern: Pins, derived: Derived) -> Pins:
    """The pattern's pins with the derived refs, for the advisories: pins with open values cannot be read."""
    value = derived.value
    components = tuple(
        replace(item, git=value(f"components.{item.name}.git"), ref=value(f"components.{item.name}.ref") or "")
        if item.git
        else item
        for item in pattern.components
    )
    assert pattern.base is not None, "a pattern has a base image"
    base = replace(
        pattern.base,
        image=value("base.image"),
        tag=value("base.tag") or "",
        digest=value("base.digest") or "",
        rocm=value("base.rocm") or "",
    )
    return replace(pattern, stack=derived.stack, base=base, archs=tuple(value("stack.archs")), components=components)


def _report(derived: Derived, findings: Sequence[Finding]) -> list[str]:
    revision = derived.revision
    lines = [
        f"vLLM {revision.ref}: read from {revision.origin}" + (f"; {revision.instead}" if revision.instead else "")
    ]

    def part(head: str, items: Sequence[str], none: str) -> None:
        lines.extend(["", f"{head}:" if items else none, *(f"  {item}" for item in items)])

    opened = [f"{item.path}: {item.what}; {item.how}" for item in derived.open.values()]
    part(f"open, and commented out in the pins ({len(opened)})", opened, "no value is open")
    waiting = [f"{item.path}: {item.ref} ({item.why})" for item in derived.unresolved.values()]
    part(
        f"not resolved to a commit ({len(waiting)}; `kiln lock` does it where the repositories are reached or mirrored: docs/mirrors.md)",
        waiting,
        "every ref is resolved to a commit",
    )
    part("resolved now", [f"{name}: {commit}" for name, commit in derived.commits.items()], "no ref was resolved now")
    found = [f"{path}: {said}" for path, said in differences(derived).items()]
    part(f"different from {derived.pattern} ({len(found)})", found, f"nothing differs from {derived.pattern}")
    part("beside the pins", derived.beside, "nothing is beside the pins")
    judged = [f"{one.effect} {one.advisory.id} (decided by {one.decided_by}): {one.because}" for one in findings]
    part("advisories that apply; recipes are judged once it is rendered", judged, "no advisory applies to these refs")
    return lines


def _data(derived: Derived, findings: Sequence[Finding], file: str) -> dict[str, Any]:
    revision = derived.revision
    return {
        "stack": derived.stack,
        "file": file,
        "vllm": {
            "git": revision.git,
            "ref": revision.ref,
            "version": revision.version,
            "commit": revision.commit,
            "read_from": revision.origin,
            "instead_because": revision.instead,
        },
        "pins": {
            path: {"value": value, "from": derived.origins.get(path, "")} for path, value in derived.values.items()
        },
        "open": [asdict(item) for item in derived.open.values()],
        "unresolved": [asdict(item) for item in derived.unresolved.values()],
        "commits": derived.commits,
        "against": derived.pattern,
        "differences": differences(derived),
        "beside": derived.beside,
        "advisories": [
            {"id": one.advisory.id, "effect": one.effect, "because": one.because, "decided_by": one.decided_by}
            for one in findings
        ],
    }
