"""Advisories: known-bad combinations. In: ``pins/advisories.toml`` and facts. Out: findings, and a refusal where one calls for it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from kiln.advisory_rules import (
    SHOWN,
    VLLM_MARKS,
    Catalogue,
    DecidedBy,
    Effect,
    EnvironmentRule,
    Facts,
    Known,
    Mark,
    MhcPath,
    RecipeRule,
    Revision,
    RevisionRule,
    Rule,
    ShapeRule,
    hidden_size_trouble,
    ref_key,
)
from kiln.errors import AdvisoryError, PinsError, UsageError
from kiln.tomlread import Problems, Table, read_table
from kiln.workspace import Workspace

__all__ = [
    "Advisory",
    "Facts",
    "Finding",
    "enforce",
    "hidden_size_trouble",
    "judge",
    "read_advisories",
    "table",
]

SCHEMA = 1
Severity = Literal["wrong-results", "crash", "slow", "irreproducible"]
_KINDS = ("revision", "recipe", "environment", "shape")
_ID = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BEGINNING = re.compile(r"[0-9a-f]{9,40}")
_SETTING = re.compile(r"[A-Z][A-Z0-9_]*=\S+")
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*(=\S*)?")
_ROCM = re.compile(r"\d+\.\d+\.\d+")
_ARCH = re.compile(r"gfx[0-9a-f]+")


@dataclass(frozen=True)
class Advisory:
    """A known-bad combination: what goes wrong, the evidence, what to use instead, and the rule that recognises it."""

    id: str
    title: str
    severity: Severity
    scope: str
    symptom: str
    instead: str
    evidence: tuple[str, ...]
    rule: Rule


@dataclass(frozen=True)
class Finding:
    """An advisory that applies, why, and what said so. ``unknown``: it could not be shown that it does not apply."""

    advisory: Advisory
    effect: Effect
    because: str
    decided_by: DecidedBy


def judge(advisories: Sequence[Advisory], facts: Facts) -> tuple[Finding, ...]:
    """The advisories that apply to ``facts``, in their order."""
    verdicts = [(advisory, advisory.rule.judge(facts)) for advisory in advisories]
    return tuple(
        Finding(advisory, verdict.effect, verdict.because, verdict.decided_by)
        for advisory, verdict in verdicts
        if verdict
    )


def enforce(findings: Sequence[Finding], allowed: Collection[str], known_ids: Collection[str]) -> tuple[str, ...]:
    """The ids that applied and were allowed, sorted.

    Raises UsageError where an allowed id is no advisory's, AdvisoryError where a finding refuses and was not allowed.
    """
    for name in sorted(set(allowed) - set(known_ids)):
        near = difflib.get_close_matches(name, sorted(known_ids), n=3)
        raise UsageError(
            f"there is no advisory {name!r}",
            why=f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(sorted(known_ids)) or 'none'}.",
            fix="`kiln advisories` lists them; allow one with ALLOW_ADVISORY=<id> or --allow-advisory <id>",
        )
    refused = [finding for finding in findings if finding.effect == "refuse" and finding.advisory.id not in allowed]
    if refused:
        ids = [finding.advisory.id for finding in refused]
        raise AdvisoryError(
            f"{len(ids)} {'advisories apply' if len(ids) > 1 else 'advisory applies'}: {', '.join(ids)}",
            why="\n\n".join(_described(finding) for finding in refused),
            fix="\n".join(
                [
                    *(f"{finding.advisory.id}: {finding.advisory.instead}" for finding in refused),
                    f"or, to build it all the same: ALLOW_ADVISORY={','.join(ids)} with make, or "
                    + " ".join(f"--allow-advisory {name}" for name in ids)
                    + "; the image's labels and its report will say so",
                ]
            ),
        )
    return tuple(sorted({finding.advisory.id for finding in findings} & set(allowed)))


def _described(finding: Finding) -> str:
    advisory = finding.advisory
    return "\n".join(
        [
            f"{advisory.id} ({advisory.severity}): {advisory.title}",
            f"because: {finding.because} (decided by: {finding.decided_by})",
            f"symptom: {advisory.symptom}",
            "evidence: " + "; ".join(advisory.evidence),
        ]
    )


def described(advisory: Advisory) -> str:
    """One advisory for a terminal: what it is, how one notices, what to use instead, and what is known of it."""
    parts = (
        ("what", advisory.title),
        ("when", advisory.scope),
        ("symptom", advisory.symptom),
        ("instead", advisory.instead),
    )
    lines = [f"{advisory.id} ({advisory.severity})", *(f"  {name:9}{text}" for name, text in parts)]
    return "\n".join(
        [*lines, *(f"  {'evidence' if number == 0 else '':9}{text}" for number, text in enumerate(advisory.evidence))]
    )


def table(advisories: Sequence[Advisory]) -> str:
    """The advisories as a Markdown table."""
    lines = ["| id | severity | combination | symptom | instead | evidence |", "| --- | --- | --- | --- | --- | --- |"]
    for advisory in advisories:
        cells = (
            f"`{advisory.id}`",
            advisory.severity,
            f"{advisory.title}. {advisory.scope}",
            advisory.symptom,
            advisory.instead,
            "; ".join(advisory.evidence),
        )
        lines.append("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def read_advisories(workspace: Workspace) -> tuple[Advisory, ...]:
    """The advisories of ``pins/advisories.toml``. Raises PinsError listing all that is wrong with the file."""
    path = workspace.root / "pins" / "advisories.toml"
    shown = workspace.shown(path)
    problems = Problems(shown)
    try:
        advisories = _parse(read_table(path, shown, problems), problems)
        problems.raise_if_any()
    except PinsError as error:
        raise PinsError(
            error.what, why=error.why, fix=f"edit {shown}; the format is described in docs/advisories.md"
        ) from error.__cause__
    return advisories


def _parse(top: Table, problems: Problems) -> tuple[Advisory, ...]:
    if top.number("schema") != SCHEMA:
        problems.add("schema", f"must be {SCHEMA}")
    known = {component: _known(component, top.table(component)) for component in SHOWN}
    for name in VLLM_MARKS:
        if name not in known["vllm"].marks:
            problems.add(f"vllm.marks.{name}", "missing; the rules ask for this mark")
    advisories = tuple(_advisory(item, known) for item in _array(top, "advisories", "id"))
    _once(problems, "advisories", [advisory.id for advisory in advisories])
    top.done()
    return advisories


def _array(parent: Table, key: str, name: str) -> list[Table]:
    """The tables of the array at ``key``, each placed by what it is called (``name``) or by its number."""
    where = f"{parent.where}.{key}" if parent.where else key
    items = parent.raw(key)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        parent.problems.add(where, f"missing or no array; write [[{where}]]")
        return []
    return [
        Table(item, f"{where}.{item[name] if isinstance(item.get(name), str) else number}", parent.problems)
        for number, item in enumerate(items, start=1)
    ]


def _once(problems: Problems, where: str, names: list[str]) -> None:
    for name in sorted({name for name in names if name and names.count(name) > 1}):
        problems.add(where, f"{name} is there more than once")


def _known(component: str, top: Table) -> Known:
    group = top.table("marks")
    marks = {name: _mark(name, group.table(name)) for name in group.names()}
    revisions = tuple(_revision(item, marks) for item in _array(top, "revisions", "commit"))
    where = f"{component}.revisions"
    _once(top.problems, where, [line.commit for line in revisions])
    _once(top.problems, where, [ref_key(name) for line in revisions for name in line.names])
    top.done()
    return Known(component, marks, revisions)


def _mark(name: str, item: Table) -> Mark:
    if not _ID.fullmatch(name):
        item.problems.add(item.where, "is no name; use lower-case letters, digits and single hyphens")
    mark = Mark(
        name=name,
        about=_sentence(item, "about"),
        commits=_all(item, "commits", _COMMIT, "is no commit; give all 40 hex digits"),
        file=item.text("file", ""),
        present=item.text("present", "", check=_pattern),
        absent=item.text("absent", "", check=_pattern),
    )
    if bool(mark.file) != bool(mark.present) or (mark.absent and not mark.present):
        item.problems.add(item.where, "file and present belong together, and absent goes with them")
    item.done()
    return mark


def _revision(item: Table, marks: dict[str, Mark]) -> Revision:
    line = Revision(
        names=item.texts("names", ()),
        commit=item.text(
            "commit", "", check=lambda text: _unless(_BEGINNING, text, "is no commit (9 to 40 hex digits)")
        ),
        has=frozenset(_marks(item, "has", marks)),
        unknown=frozenset(_marks(item, "unknown", marks)),
    )
    if not line.names and not line.commit:
        item.problems.add(item.where, "give names, a commit, or both")
    if both := sorted(line.has & line.unknown):
        item.problems.add(item.where, f"{', '.join(both)}: either has or unknown")
    item.done()
    return line


def _advisory(item: Table, known: Catalogue) -> Advisory:
    advisory = Advisory(
        id=item.text(
            "id", check=lambda text: _unless(_ID, text, "is no id; use lower-case letters, digits and hyphens")
        ),
        title=_sentence(item, "title"),
        severity=_choice(item, "severity", get_args(Severity)),  # type: ignore[arg-type]
        scope=_sentence(item, "scope"),
        symptom=_sentence(item, "symptom"),
        instead=_sentence(item, "instead"),
        evidence=item.texts("evidence"),
        rule=_rule(item.table("rule"), known),
    )
    if not any(text.strip() for text in advisory.evidence):
        item.problems.add(f"{item.where}.evidence", "is empty; an advisory without evidence is a rumour")
    item.done()
    return advisory


def _rule(item: Table, known: Catalogue) -> Rule:
    kind = _choice(item, "kind", _KINDS)
    effect: Effect = "warn" if _choice(item, "effect", get_args(Effect), "refuse") == "warn" else "refuse"
    rule: Rule
    match kind:
        case "recipe":
            rule = _recipe_rule(item, known, effect)
        case "environment":
            sets = _all(item, "sets", _VARIABLE, "is no NAME or NAME=VALUE")
            if not sets:
                item.problems.add(f"{item.where}.sets", "name at least one variable")
            rule = EnvironmentRule(known=known, effect=effect, sets=sets)
        case "shape":
            rule = ShapeRule(known=known, effect=effect)
        case _:
            rule = _revision_rule(item, known, effect)
    if kind in _KINDS:
        item.done()
    return rule


def _revision_rule(item: Table, known: Catalogue, effect: Effect) -> RevisionRule:
    component = _choice(item, "component", tuple(SHOWN))
    marks = known[component].marks if component in known else None
    rule = RevisionRule(
        known=known,
        effect=effect,
        component=component,
        has=_marks(item, "has", marks),
        lacks=_marks(item, "lacks", marks),
        rocm=_all(item, "rocm", _ROCM, "is no version of the form 7.2.3"),
        archs=_all(item, "archs", _ARCH, "is no arch such as gfx942"),
        path=_choice(item, "path", get_args(MhcPath)[1:], ""),  # type: ignore[arg-type]
        plugin=item.flag("plugin"),
    )
    if not rule.has and not rule.lacks:
        item.problems.add(item.where, "says of no mark that the revision has or lacks it")
    return rule


def _recipe_rule(item: Table, known: Catalogue, effect: Effect) -> RecipeRule:
    component = _choice(item, "component", tuple(SHOWN), "")
    rule = RecipeRule(
        known=known,
        effect=effect,
        recipes=item.texts("recipes", ()),
        matches=item.text("matches", "", check=_pattern),
        sets=_all(item, "sets", _SETTING, "is no NAME=VALUE"),
        lacks=_all(item, "lacks", _SETTING, "is no NAME=VALUE"),
        unless=item.texts("unless", ()),
        component=component,
        has=_marks(item, "has", known[component].marks if component in known else None),
    )
    if sum(map(bool, (rule.matches, rule.sets, rule.lacks))) != 1:
        item.problems.add(item.where, "give one of matches, sets and lacks")
    if rule.lacks and not rule.recipes:
        item.problems.add(item.where, "name the recipes that should set it")
    if bool(rule.has) != bool(component):
        item.problems.add(item.where, "component and has belong together")
    return rule


def _marks(item: Table, key: str, marks: Mapping[str, Mark] | None) -> tuple[str, ...]:
    """The names of marks at ``key``. A name that is no mark's is a problem, and left out."""
    found = item.texts(key, ())
    if marks is None:
        return ()
    for name in found:
        if name not in marks:
            item.problems.add(
                f"{item.where}.{key}", f"{name!r} is no mark; known: {', '.join(sorted(marks)) or 'none'}"
            )
    return tuple(name for name in found if name in marks)


def _all(item: Table, key: str, pattern: re.Pattern[str], wrong: str) -> tuple[str, ...]:
    found = item.texts(key, ())
    for text in found:
        if not pattern.fullmatch(text):
            item.problems.add(f"{item.where}.{key}", f"{text!r} {wrong}")
    return found


def _choice(item: Table, key: str, known: tuple[str, ...], default: str | None = None) -> str:
    return item.text(
        key, default, check=lambda text: None if text in known else f"{text!r} is none of {', '.join(known)}"
    )


def _sentence(item: Table, key: str) -> str:
    return item.text(key, check=lambda text: None if text.strip() else "is empty")


def _unless(pattern: re.Pattern[str], text: str, wrong: str) -> str | None:
    return None if pattern.fullmatch(text) else f"{text!r} {wrong}"


def _pattern(text: str) -> str | None:
    try:
        re.compile(text)
    except re.error as error:
        return f"is no pattern: {error}"
    return None
