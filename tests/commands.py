"""The commands, for tests that walk all of them; and the calls of kiln in a piece of shell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click

from kiln.cli import cli


def every_command(group: click.Group = cli, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command that does something, as it is typed."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        if isinstance(command, click.Group):
            yield from every_command(command, (*words, name))
        else:
            yield (*words, name)


def called(text: str) -> Iterator[list[str]]:
    """The words of every call of kiln in a piece of shell."""
    for line in text.replace("\\\n", " ").splitlines():
        code = re.sub(r"\$\{(MODEL|DATA|KILN_MODEL|KILN_DATA):\+(--\w+) \"[^\"]*\"\}", r"\2 x", line.split(" #")[0])
        for match in re.finditer(
            r'(?:^|[ ;(])(?:"?\$kiln"?|\.kiln/venv/bin/kiln|kiln) (?=[a-z-])(?P<words>[^;|>)&]*)', code
        ):
            yield shlex.split(match["words"])


def unknown(words: list[str]) -> list[str]:
    """What kiln does not know of a call of it: its command, or options of it."""
    command: click.Command = cli
    rest, known = list(words), {"--help"}
    while True:
        known |= {option for parameter in command.params for option in parameter.opts}
        if not isinstance(command, click.Group):
            return [word for word in rest if word.startswith("--") and word.split("=")[0] not in known]
        while rest and rest[0] in known:
            rest = rest[1:]
        if not rest:
            return []
        found = command.get_command(click.Context(command), rest[0])
        if found is None:
            return [rest[0]]
        command, rest = found, rest[1:]
