"""Reading somebody else's Dockerfile: its ARGs with their defaults, its stages with what they inherit, and the text of their RUNs.

As much of the language as that needs, as BuildKit reads it: comments, continued lines, here-documents, quotes, and variables with defaults.
Nothing is run. What the language does not have is an error that names file and line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from kiln.errors import UnknownLayoutError

_KEYWORDS = re.compile(
    "ADD|ARG|CMD|COPY|ENTRYPOINT|ENV|EXPOSE|FROM|HEALTHCHECK|LABEL|MAINTAINER|ONBUILD|RUN|SHELL|STOPSIGNAL|USER|VOLUME|WORKDIR"
)
_CONTINUED = re.compile(r"(?<!\\)\\[ \t]*$")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORD = re.compile(r"""(?:[^\s"'\\]|\\.|"(?:[^"\\]|\\.)*"|'[^']*')+""", re.DOTALL)
_HEREDOC = re.compile(r"""(?:^|\s)\d*<<(-?)(["']?)([A-Za-z_]\w*)\2(?=\s|$)""")
_DEEPEST = 50
_OPERATOR = re.compile(r":?[-+?]")


@dataclass(frozen=True)
class Instruction:
    """One instruction: its keyword, what stands behind it with continued lines joined, the line it begins at, the comments right above it."""

    keyword: str
    text: str
    line: int
    comments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Value:
    """What a variable is set to, in which line, and the comment behind it."""

    text: str
    line: int
    note: str = ""


@dataclass(frozen=True)
class Stage:
    """One stage: what it is made from, its variables (those of the stage below too) and its own instructions."""

    name: str
    base: str
    line: int
    args: Mapping[str, Value]
    env: Mapping[str, Value]
    instructions: tuple[Instruction, ...] = ()

    def variables(self) -> dict[str, Value]:
        """ARGs and ENVs by name; an ENV hides the ARG of its name."""
        return {**self.args, **self.env}


@dataclass(frozen=True)
class Dockerfile:
    """A Dockerfile: the ARGs above the first FROM, and the stages in order."""

    file: str
    args: Mapping[str, Value]
    stages: tuple[Stage, ...]

    def stage(self, name: str) -> Stage:
        """The stage of that name. Raises UnknownLayoutError."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise UnknownLayoutError(
            f"{self.file} has no stage {name!r}",
            why=f"It has {', '.join(stage.name for stage in self.stages) or 'none'}.",
        )


@dataclass
class _Building:
    """A stage while it is read."""

    name: str
    base: str
    line: int
    args: dict[str, Value] = field(default_factory=dict)
    env: dict[str, Value] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)

    def texts(self) -> dict[str, str]:
        return {name: value.text for name, value in {**self.args, **self.env}.items()}

    def done(self) -> Stage:
        return Stage(self.name, self.base, self.line, self.args, self.env, tuple(self.instructions))


def parse_dockerfile(text: str, file: str) -> Dockerfile:
    """Read a Dockerfile; ``file`` is what messages call it. Raises UnknownLayoutError, with the line, for what is no Dockerfile."""
    outside: dict[str, Value] = {}
    stages: list[_Building] = []
    line = 0
    try:
        for instruction in instructions(text):
            line = instruction.line
            if instruction.keyword == "FROM":
                stages.append(_from(instruction, {name: value.text for name, value in outside.items()}, stages))
            elif not stages:
                if instruction.keyword != "ARG":
                    raise ValueError(f"{instruction.keyword} stands above the first FROM")
                _declare(instruction, outside, {}, {name: value.text for name, value in outside.items()})
            else:
                _add(instruction, stages[-1], outside)
    except ValueError as error:
        raise UnknownLayoutError(
            f"{file}, line {getattr(error, 'line', line)}, cannot be read", why=str(error)
        ) from error
    return Dockerfile(file, outside, tuple(stage.done() for stage in stages))


def _add(instruction: Instruction, stage: _Building, outside: Mapping[str, Value]) -> None:
    stage.instructions.append(instruction)
    if instruction.keyword == "ARG":
        _declare(instruction, stage.args, outside, stage.texts())
    elif instruction.keyword == "ENV":
        _set_env(instruction, stage)


def _from(instruction: Instruction, outside: Mapping[str, str], stages: list[_Building]) -> _Building:
    found = [evaluated(word, outside) for word in words(instruction.text) if not word.startswith("--")]
    if len(found) not in (1, 3) or (len(found) == 3 and found[1].upper() != "AS") or not found[0]:
        raise ValueError(f"FROM {instruction.text} is not FROM image AS name")
    stage = _Building(found[2] if len(found) == 3 else str(len(stages)), found[0], instruction.line)
    for below in reversed(stages):
        if below.name.lower() == stage.base.lower():
            stage.args, stage.env = dict(below.args), dict(below.env)
            break
    return stage


def _declare(
    instruction: Instruction, into: dict[str, Value], outside: Mapping[str, Value], known: Mapping[str, str]
) -> None:
    """Put the variables of an ARG into ``into``. One without a default has that of ``outside``, where there is one."""
    known = dict(known)
    declared, note = _commented(instruction.text)
    for word in declared:
        name, has_default, default = word.partition("=")
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of an ARG")
        if has_default:
            into[name] = Value(evaluated(default, known), instruction.line, note)
        elif name in outside:
            into[name] = outside[name]
        if name in into:
            known[name] = into[name].text


def _commented(text: str) -> tuple[list[str], str]:
    """The words before a ``#``, and what stands behind it. BuildKit takes the comment for more ARGs, without a default, which is as good as none."""
    found: list[str] = []
    place = 0
    for match in _WORD.finditer(text):
        if match[0].startswith("#"):
            return found, text[match.start() :].lstrip("# ").rstrip()
        if text[place : match.start()].strip():
            break
        found.append(match[0])
        place = match.end()
    return list(words(text)), ""


def _set_env(instruction: Instruction, stage: _Building) -> None:
    known = stage.texts()
    found = list(words(instruction.text))
    if "=" not in found[0]:
        # The old form: one variable, and all the rest is its value.
        found = [f"{found[0]}={' '.join(found[1:])}"]
    for word in found:
        name, equals, value = word.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise ValueError(f"ENV {word!r} is not NAME=value")
        stage.env[name] = Value(evaluated(value, known), instruction.line)


def instructions(text: str) -> Iterator[Instruction]:
    """The instructions of a Dockerfile, one by one. Raises ValueError, with the line as its ``line``."""
    lines = text.replace("\r\n", "\n").split("\n")
    if lines and re.match(r"#\s*escape\s*=\s*[^\\\s]", lines[0], re.IGNORECASE):
        raise _at(1, "only the backslash is known as the escape character")
    comments: list[str] = []
    number = 0
    while number < len(lines):
        stripped = lines[number].strip()
        if not stripped or stripped.startswith("#"):
            # A blank line ends a comment: what stands above it speaks of something else.
            comments = [*comments, stripped.lstrip("#").strip()] if stripped else []
            number += 1
            continue
        start = number + 1
        joined, number = _joined(lines, number)
        keyword, _, rest = joined.strip().partition(" ")
        if "\t" in keyword:
            keyword, _, rest = joined.strip().partition("\t")
        if not _KEYWORDS.fullmatch(keyword.upper()):
            raise _at(start, f"{keyword!r} is no instruction")
        if not rest.strip():
            raise _at(start, f"nothing stands behind {keyword}")
        if keyword.upper() in ("RUN", "COPY", "ADD"):
            rest, number = _with_documents(rest, lines, number, start)
        yield Instruction(keyword.upper(), rest.strip(), start, tuple(comments))
        comments = []


def _joined(lines: list[str], number: int) -> tuple[str, int]:
    """An instruction's lines as one, and the number of the line behind it. Comments and blank lines within are passed over."""
    parts: list[str] = []
    while number < len(lines):
        line = lines[number]
        number += 1
        if parts and (not line.strip() or line.lstrip().startswith("#")):
            continue
        parts.append(_CONTINUED.sub("", line))
        if not _CONTINUED.search(line):
            break
    return "".join(parts), number


def _with_documents(text: str, lines: list[str], number: int, start: int) -> tuple[str, int]:
    """An instruction with its here-documents below it, and the number of the line behind them."""
    for dash, _, end in _HEREDOC.findall(text):
        body: list[str] = []
        while number < len(lines) and (lines[number].lstrip("\t") if dash else lines[number]) != end:
            body.append(lines[number])
            number += 1
        if number == len(lines):
            raise _at(start, f"the here-document {end} has no end")
        number += 1
        text = "\n".join([text, *body])
    return text, number


def _at(line: int, why: str) -> ValueError:
    error = ValueError(why)
    error.line = line  # type: ignore[attr-defined]
    return error


def words(text: str) -> Iterator[str]:
    """The words of an instruction, quotes kept. Raises ValueError where a quote is not closed."""
    place = 0
    for match in _WORD.finditer(text):
        if text[place : match.start()].strip():
            break
        yield match[0]
        place = match.end()
    if text[place:].strip():
        raise ValueError(f"a quote is not closed: {text[place:].strip()[:60]}")


def evaluated(word: str, variables: Mapping[str, str]) -> str:
    """A word without its quotes, with its variables' values; one that is not set is empty, as it is to BuildKit. Raises ValueError."""
    out: list[str] = []
    quote = ""
    place = 0
    while place < len(word):
        sign = word[place]
        if sign == quote or (sign in "\"'" and not quote):
            quote = "" if quote else sign
            place += 1
        elif quote == "'":
            out.append(sign)
            place += 1
        elif sign == "\\" and place + 1 < len(word):
            escaped = word[place + 1]
            out.append(escaped if not quote or escaped in '"$\\' else sign + escaped)
            place += 2
        elif sign == "$":
            value, place = _variable(word, place, variables)
            out.append(value)
        else:
            out.append(sign)
            place += 1
    if quote:
        raise ValueError(f"a quote is not closed: {word[:60]}")
    return "".join(out)


def _variable(word: str, place: int, variables: Mapping[str, str]) -> tuple[str, int]:
    """The value of the variable at ``place``, where the dollar sign is, and the place behind it."""
    if plain := _NAME.match(word, place + 1):
        return variables.get(plain[0], ""), plain.end()
    if not word.startswith("${", place):
        return "$", place + 1
    name = _NAME.match(word, place + 2)
    if not name:
        raise ValueError(f"{word[place:][:60]!r} names no variable")
    end = _closing(word, name.end())
    value, rest = variables.get(name[0]), word[name.end() : end]
    if not rest:
        return value or "", end + 1
    operator = _OPERATOR.match(rest)
    if not operator:
        raise ValueError(f"what ${{{name[0]}{rest}}} means is not known")
    there = bool(value) if operator[0].startswith(":") else value is not None
    # Only the words that are needed are looked at.
    if operator[0].endswith("+"):
        return evaluated(rest[operator.end() :], variables) if there else "", end + 1
    if there:
        return value or "", end + 1
    if operator[0].endswith("?"):
        raise ValueError(f"{name[0]} must be given: {rest[operator.end() :]}")
    return evaluated(rest[operator.end() :], variables), end + 1


def _closing(word: str, place: int) -> int:
    """The place of the brace that closes the one before ``place``."""
    depth = 1
    while place < len(word):
        if word[place] == "\\":
            place += 1
        elif word.startswith("${", place):
            depth += 1
            place += 1
            if depth > _DEEPEST:
                raise ValueError("it is nested too deep")
        elif word[place] == "}":
            depth -= 1
            if not depth:
                return place
        place += 1
    raise ValueError(f"a brace is not closed: {word[:60]}")
