"""A comparison as text for people: the fields, the files of every layer, and what each kind usually comes of."""

from __future__ import annotations

from collections.abc import Iterator

from kiln.diff import Diff, LayerDifference
from kiln.diffkinds import ABOUT, Finding, Kind

# A person reads no more; --json has them all.
FILES, FIELDS, WIDTH = 200, 60, 160


def report(diff: Diff, files: int = FILES) -> str:
    """The whole comparison; at most ``files`` files are named, and all are counted."""
    return "\n".join(_lines(diff, files))


def summary(diff: Diff) -> str:
    """What differs, in one line."""
    parts = [
        _counted(len(diff.fields), "field", "fields") if diff.fields else "",
        f"{_counted(diff.files, 'file', 'files')} in {_counted(len(diff.layers), 'layer', 'layers')}"
        if diff.layers
        else "",
    ]
    return " and ".join(part for part in parts if part)


def but_for(diff: Diff) -> str:
    """What was left out, in one line."""
    return ", ".join(f"{name} ({count})" for name, count in diff.ignored)


def _lines(diff: Diff, files: int) -> Iterator[str]:
    yield f"a  {diff.a.digest}  {diff.a.name}"
    yield f"b  {diff.b.digest}  {diff.b.name}"
    if diff.fields:
        yield f"\nconfiguration and manifest: {_counted(len(diff.fields), 'field differs', 'fields differ')}"
        width = max(len(field.field) for field in diff.fields[:FIELDS])
        for field in diff.fields[:FIELDS]:
            yield f"  {field.field:{width}}  {_value(field.a)} / {_value(field.b)}"
        if len(diff.fields) > FIELDS:
            yield f"  and {len(diff.fields) - FIELDS} more (--json has them)"
    for layer in diff.layers:
        yield f"\n{layer.name}: {_what(layer)}"
        yield f"  {layer.digest_a or 'not in a'}\n  {layer.digest_b or 'not in b'}"
        yield from (f"  {_finding(one)}" for one in layer.findings)
        for file in layer.files[: max(files, 0)]:
            yield f"  {file.change:8} {file.path}"
            yield from (
                f"           {_finding(one)}" for one in file.findings if one.kind not in (Kind.ADDED, Kind.REMOVED)
            )
            yield from (f"           | {line}" for line in file.inside.splitlines())
        named = min(len(layer.files), max(files, 0))
        files -= named
        if layer.differing > named:
            yield f"  and {layer.differing - named} more files (--json has up to 10,000)"
    if diff.kinds:
        yield "\nkinds, what each usually comes of, and what to do"
        for kind, count in diff.kinds:
            about = ABOUT[kind]
            yield f"  {kind:15} {count:6}  {about.cause}\n{'':26}{about.fix}"
    if diff.ignored:
        yield f"\nnot counted: {but_for(diff)}"


def _what(layer: LayerDifference) -> str:
    if not layer.differing:
        return "no file differs" if layer.members else "differs as a whole"
    return f"{layer.differing} of {_counted(layer.members, 'file differs', 'files differ')}"


def _finding(finding: Finding) -> str:
    return f"{finding.kind}: {_cut(finding.detail)}" if finding.detail else str(finding.kind)


def _value(value: str | None) -> str:
    return "none" if value is None else _cut(value)


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
