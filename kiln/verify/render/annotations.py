"""A report as GitHub's workflow commands, each at the line of the pins that the check contradicts."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from packaging.utils import canonicalize_name

from kiln.verify.render.common import Report, clean, shortened, verdict, worst_first

# GitHub shows ten of a kind for a step.
MOST = 10
MESSAGE = 2_000
# Where a component's version is decided, the best place first.
_DECIDING = ("ref", "wheels", "version", "requires", "dependencies-of", "sources", "git", "recipe")
_HEADER = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(?:#.*)?$")
_KEY = re.compile(r"""\s*("[^"]*"|'[^']*'|[A-Za-z0-9_-]+)\s*=""")
_QUOTED = re.compile(r""""([^"]*)"|'([^']*)\'""")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._+-]*[A-Za-z0-9])?")
_SUBJECT = re.compile(r"(?:io\.kiln\.component\.)?([A-Za-z0-9][A-Za-z0-9._+-]*):? ")
_LISTS = ("wheels", "requires", "packages")
_NAMING = ("component", "components", "distribution", "package")


def annotations(report: Report, pins_text: str, pins_path: str) -> list[str]:
    """One ``::error`` for each of the worst checks that failed or could not look, then how many more there are.

    ``pins_path`` is written as it is: relative to the repository, with forward slashes.
    """
    bad = [check for check in worst_first(report) if check["status"] in ("fail", "error")]
    lines = _Lines(pins_text)
    given = [_command(pins_path, lines.of(check), check["id"], _message(check)) for check in bad[:MOST]]
    if not bad and verdict(report).status != "pass":
        given.append(_command(pins_path, 1, "kiln verify", verdict(report).sentence))
    if len(bad) > MOST:
        rest = ", ".join(check["id"] for check in bad[MOST:])
        # Of another kind: an eleventh error would not be shown.
        given.append(f"::notice title=kiln verify::{_data(shortened(f'{len(bad) - MOST} more: {rest}', MESSAGE))}")
    return given


def _message(check: Mapping[str, Any]) -> str:
    what = "could not look: " if check["status"] == "error" and "could not look" not in check["summary"] else ""
    return f"{what}{check['summary']}"


def _command(path: str, line: int, title: str, message: str) -> str:
    return f"::error file={_property(path)},line={line},title={_property(title)}::{_data(shortened(clean(message), MESSAGE))}"


def _data(text: str) -> str:
    return clean(text).strip().replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


class _Lines:
    """Where the pins speak of what. Read line by line and not as TOML: a TOML document has no line numbers."""

    def __init__(self, text: str) -> None:
        self.components: dict[str, int] = {}
        self.packages: dict[str, int] = {}
        self.verify = 0
        self._read(text)

    def of(self, check: Mapping[str, Any]) -> int:
        """The line of the first component or package that the check names; of ``[verify]`` for what is no static check; else 1."""
        for name in _named(check):
            for table in (self.components, self.packages):
                if line := table.get(canonicalize_name(name)):
                    return line
        return self.verify if self.verify and check["level"] != "static" else 1

    def _read(self, text: str) -> None:
        section: tuple[str, ...] = ()
        key, ranks = "", dict[str, int]()
        for number, line in enumerate(text.splitlines(), 1):
            if line.lstrip().startswith("#"):
                continue
            if header := _HEADER.match(line):
                section, key = tuple(part.strip(" \"'") for part in header[1].split(".")), ""
                if section[0] == "verify":
                    self.verify = self.verify or number
            elif start := _KEY.match(line):
                key = start[1].strip("\"'")
            self._note(section, key, line, number, ranks)

    def _note(self, section: tuple[str, ...], key: str, line: str, number: int, ranks: dict[str, int]) -> None:
        """Take what one line says: the best line of a component, and the packages that a list names."""
        if len(section) == 2 and section[0] == "components":
            name = canonicalize_name(section[1])
            rank = _DECIDING.index(key) if key in _DECIDING else len(_DECIDING)
            if rank < ranks.get(name, len(_DECIDING) + 1):
                ranks[name], self.components[name] = rank, number
        if key in _LISTS:
            for quoted in _QUOTED.finditer(line):
                if found := _NAME.match(quoted[1] or quoted[2] or ""):
                    self.packages.setdefault(canonicalize_name(found[0]), number)


def _named(check: Mapping[str, Any]) -> Iterator[str]:
    """The words of a check that may name a component or a package, the surest first."""
    yield from _declared(check["evidence"])
    summary = clean(check["summary"])
    for line in summary.split("\n"):
        # What ``differing`` writes: "NAME: expected …, found …".
        if start := _SUBJECT.match(line):
            yield start[1].rstrip(":")
    yield from _NAME.findall(summary)
    yield from _keys(check["evidence"])


def _declared(value: Any, depth: int = 0) -> Iterator[str]:
    if isinstance(value, Mapping) and depth < 8:
        for key, inner in value.items():
            if key in _NAMING:
                yield from (item for item in (inner if isinstance(inner, list) else [inner]) if isinstance(item, str))
            else:
                yield from _declared(inner, depth + 1)


def _keys(value: Any, depth: int = 0) -> Iterator[str]:
    if isinstance(value, Mapping) and depth < 8:
        for key, inner in value.items():
            yield str(key)
            yield from _keys(inner, depth + 1)
