"""The record of releases, ``releases/<stack>.toml``: what was published where, of which pins, and what it passed. The oldest first.

It is committed, so that a checkout knows what can be pulled. It proves nothing: whoever pulls compares it with what was signed beside the image.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from kiln.errors import PinsError, ReleaseRecordError
from kiln.store import write_whole
from kiln.tomlread import Problems, Table, read_table
from kiln.workspace import Workspace

SCHEMA_VERSION = 1
_HEAD = """# Releases of the stack `{stack}`, the oldest first. Written by `kiln publish`; `kiln pull` compares every entry with what was signed.
schema = {schema}
stack = {name}
"""
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Checked:
    """What an image's verification report says in short: how many checks had which outcome, up to which level, and on what machine."""

    passed: int
    failed: int
    errors: int
    skipped: int
    level: str
    hardware: str

    @property
    def shown(self) -> str:
        """In a line."""
        total = self.passed + self.failed + self.errors + self.skipped
        rest = ", ".join(
            f"{count} {word}"
            for count, word in ((self.failed, "failed"), (self.errors, "could not look"), (self.skipped, "skipped"))
            if count
        )
        return f"{self.passed} of {total} checks passed up to {self.level}, on {self.hardware}" + (
            f"; {rest}" if rest else ""
        )


@dataclass(frozen=True)
class Release:
    """One published image. ``key`` is its build key, ``lock`` and ``report`` are sha256 of the lock and of the signed report, ``size`` is what a
    node downloads that has nothing, in bytes. ``components`` are versions by name; ``overrides`` and ``allowed`` what was chosen beside the pins."""

    image: str
    digest: str
    repository: str
    tag: str
    date: str
    key: str
    lock: str
    report: str
    size: int
    checked: Checked
    components: Mapping[str, str]
    overrides: Mapping[str, str]
    allowed: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """What to pull: the repository and the digest."""
        return f"{self.repository}@{self.digest}"


def releases_file(workspace: Workspace, stack: str) -> Path:
    """Where the releases of a stack are recorded."""
    return workspace.root / "releases" / f"{stack}.toml"


def read_releases(workspace: Workspace, stack: str) -> tuple[Release, ...]:
    """The releases of a stack, the oldest first; none where none was recorded. Raises ReleaseRecordError."""
    path = releases_file(workspace, stack)
    if not path.exists():
        return ()
    shown = workspace.shown(path)
    problems = Problems(shown)
    try:
        table = read_table(path, shown, problems)
        if table.number("schema") != SCHEMA_VERSION:
            problems.add("schema", f"is not {SCHEMA_VERSION}")
        if table.text("stack") != stack:
            problems.add("stack", f"is not {stack!r}")
        listed = table.raw("release")
        entries = listed if isinstance(listed, list) else []
        found = tuple(
            _release(Table(entry if isinstance(entry, dict) else {}, f"release {number}", problems))
            for number, entry in enumerate(entries, 1)
        )
        table.done()
        problems.raise_if_any()
    except PinsError as error:
        fix = f"restore {shown} from git; it is written by kiln publish alone"
        raise ReleaseRecordError(error.what, why=error.why, fix=fix) from error
    return found


def _release(table: Table) -> Release:
    checked = table.table("checked")
    found = Release(
        table.text("image"),
        table.text("digest", check=_not(_DIGEST, "a digest")),
        table.text("repository"),
        table.text("tag"),
        table.text("date"),
        table.text("key", check=_not(_HEX, "a build key")),
        table.text("lock", check=_not(_HEX, "a sha256")),
        table.text("report", check=_not(_HEX, "a sha256")),
        table.number("size"),
        Checked(
            checked.number("passed"),
            checked.number("failed"),
            checked.number("errors"),
            checked.number("skipped"),
            checked.text("level"),
            checked.text("hardware"),
        ),
        table.strings("components"),
        table.strings("overrides"),
        table.texts("allowed", ()),
    )
    checked.done()
    table.done()
    return found


def _not(form: re.Pattern[str], what: str) -> Any:
    return lambda text: None if form.fullmatch(text) else f"is {text[:80]!r}, and not {what}"


def record(workspace: Workspace, stack: str, new: Release) -> Path:
    """Note a release; the same image in the same repository is noted once, with the date of its first time. Returns the file.

    Raises ReleaseRecordError where the file cannot be read, DiskFullError; the old file is there until the new one is whole.
    """
    known = list(read_releases(workspace, stack))
    path = releases_file(workspace, stack)
    for place, old in enumerate(known):
        if (old.image, old.place) == (new.image, new.place):
            known[place] = Release(**{**_plain(new), "date": old.date})
            break
    else:
        known.append(new)
    write_whole(path, dump(stack, known))
    return path


def _plain(release: Release) -> dict[str, Any]:
    return {field.name: getattr(release, field.name) for field in fields(release)}


def dump(stack: str, releases: Sequence[Release]) -> str:
    """The text of the file."""
    parts = [_HEAD.format(stack=stack, schema=SCHEMA_VERSION, name=_quoted(stack))]
    for one in releases:
        texts = ("image", "digest", "repository", "tag", "date", "key", "lock", "report")
        lines = ["[[release]]", *(f"{name} = {_quoted(getattr(one, name))}" for name in texts), f"size = {one.size}"]
        if one.allowed:
            lines.append(f"allowed = [{', '.join(map(_quoted, one.allowed))}]")
        checked = ", ".join(
            f"{name} = {value if isinstance(value, int) else _quoted(value)}"
            for name, value in vars(one.checked).items()
        )
        lines.append(f"checked = {{ {checked} }}")
        for name in ("components", "overrides"):
            if table := getattr(one, name):
                lines += [f"[release.{name}]", *(f"{_quoted(key)} = {_quoted(value)}" for key, value in table.items())]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _quoted(text: str) -> str:
    # TOML's basic strings are JSON's, but for the delete character, which JSON leaves as it is.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
