"""The command reference (docs/commands.md), made from the commands themselves: ``python -m kiln.commands.reference``. A test compares the two."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from kiln.commands import cli
from kiln.errors import (
    AdvisoryError,
    AttestationError,
    BeingPublishedError,
    BuilderLostError,
    BuildError,
    BuildersDifferError,
    BumpsFailedError,
    DifferentError,
    FetchError,
    HashMismatchError,
    ImageDamagedError,
    KilnError,
    LackingError,
    LockMissingError,
    LockStaleError,
    MovedRefError,
    MutableInputError,
    NotPublishedError,
    NotReleasableError,
    RefNotFoundError,
    ReleaseRecordError,
    RenderStaleError,
    ReportInvalidError,
    ResolveError,
    SignatureError,
    StoreDamagedError,
    TagTakenError,
    UncommittedError,
    UnknownLayoutError,
    UnresolvedError,
    UpstreamError,
    VanishedError,
    VerifyFailedError,
    VerifyIncompleteError,
)

_FROM_LOCK = (LockMissingError, LockStaleError)
_BUILT = (
    *_FROM_LOCK,
    UnresolvedError,
    AdvisoryError,
    FetchError,
    HashMismatchError,
    BuildError,
    BuilderLostError,
    BuildersDifferError,
)
_LOOKED = (VerifyFailedError, VerifyIncompleteError)
# What a command is asked for its own sake: the codes that a script around it tells apart. Any stage below can raise others.
VERDICTS: dict[str, tuple[type[KilnError], ...]] = {
    "advisories": (AdvisoryError,),
    "build": _BUILT,
    "ci render": (RenderStaleError,),
    "ci verify": _LOOKED,
    "diff": (ImageDamagedError, DifferentError),
    "doctor": (LackingError,),
    "fetch": (*_FROM_LOCK, UnresolvedError, FetchError, HashMismatchError),
    "image": (*_BUILT, *_LOOKED),
    "lock": (*_FROM_LOCK, ResolveError),
    "pins audit": (*_FROM_LOCK, MutableInputError),
    "pins bump": (
        *_FROM_LOCK,
        ResolveError,
        UpstreamError,
        RefNotFoundError,
        MovedRefError,
        AdvisoryError,
        RenderStaleError,
        UncommittedError,
        BumpsFailedError,
    ),
    "pins derive": (ResolveError, UpstreamError, RefNotFoundError, FetchError, HashMismatchError, UnknownLayoutError),
    "pins verify": (*_FROM_LOCK, UpstreamError, MovedRefError, StoreDamagedError, VanishedError),
    "plan": _FROM_LOCK,
    "publish": (SignatureError, AttestationError, TagTakenError, BeingPublishedError, NotReleasableError),
    "pull": (
        HashMismatchError,
        ImageDamagedError,
        ReleaseRecordError,
        SignatureError,
        AttestationError,
        NotPublishedError,
    ),
    "rehearse": (BuildError, *_LOOKED),
    "render": (*_FROM_LOCK, RenderStaleError),
    "report merge": (*_LOOKED, ReportInvalidError),
    "report show": (*_LOOKED, ReportInvalidError),
    "repro": (DifferentError,),
    "verify": (*_FROM_LOCK, AdvisoryError, *_LOOKED),
}

# What an example needs that the manual's tests cannot give it, in the words of docs/index.md; an example of any other command is run by them.
NEEDS = {
    "build": "time",
    "bundle": "network",
    "cache ls": "registry",
    "cache push": "registry",
    "ci render": "yours",
    "ci verify": "time",
    "completion": "yours",
    "diff": "yours",
    "doctor": "yours",
    "engine down": "engine",
    "engine status": "engine",
    "engine up": "engine",
    "fetch": "network",
    "gc": "engine",
    "image": "time",
    "lock": "network",
    "pins bump": "network",
    "pins derive": "network",
    "pins verify": "network",
    "plan": "yours",
    "publish": "registry",
    "pull": "registry",
    "rehearse": "time",
    "report merge": "yours",
    "report show": "yours",
    "repro": "time",
    "unbundle": "yours",
    "verify": "time",
}

_HEAD = """# Commands

Made by `python -m kiln.commands.reference` from the commands themselves; `pytest tests/golden --update-golden` writes it, and a test compares.

Options of `kiln` itself stand before the command; `--json` may stand behind it as well ([documents](json.md)). Beside the exit codes that are named
here, every command can end with 0 (done), 1 (a defect of Kiln), 2 (the command line) and 130 (stopped), and with what the stages below it raise
([exit codes](exit-codes.md))."""


def reference() -> str:
    """The whole page, as it is committed."""
    root = click.Context(cli, info_name="kiln")
    parts = [_HEAD, "## kiln", _usage(root), _options(root)]
    for context in _commands(root):
        parts += [
            f"## {context.command_path}",
            *_described(context),
            _usage(context),
            _options(context),
            _ends(context),
        ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _commands(context: click.Context) -> Iterator[click.Context]:
    group = context.command
    assert isinstance(group, click.Group), "only groups are walked"
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, "it was listed"
        inner = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group):
            yield from _commands(inner)
        else:
            yield inner


def _described(context: click.Context) -> Iterator[str]:
    """The help's paragraphs; its examples, which click is told not to wrap, as code."""
    needs = NEEDS.get(context.command_path.removeprefix("kiln "))
    fence = f'```sh title="needs: {needs}"' if needs else "```sh"
    for paragraph in inspect.cleandoc(context.command.help or "").split("\n\n"):
        text = paragraph.removeprefix("\b\n")
        if text.startswith("Example: "):
            lines = text.removeprefix("Example: ").splitlines()
            yield "\n".join([fence, *(line.strip() for line in lines), "```"])
        else:
            yield text


def _usage(context: click.Context) -> str:
    pieces = context.command.collect_usage_pieces(context)
    return "Usage: `" + " ".join([context.command_path, *pieces]) + "`"


def _options(context: click.Context) -> str:
    given = [one for one in context.command.params if isinstance(one, click.Option) and "--help" not in one.opts]
    records = [record for one in given if (record := one.get_help_record(context))]
    rows = [f"| `{_cell(name)}` | {_cell(meaning)} |" for name, meaning in records]
    return "\n".join(["| option | meaning |", "| --- | --- |", *rows]) if rows else ""


def _ends(context: click.Context) -> str:
    words = context.command_path.removeprefix("kiln ")
    codes = [f"{one.exit_code} `{one.__name__}`" for one in VERDICTS.get(words, ())]
    return f"Exit codes of its own: {', '.join(codes)}." if codes else ""


def _cell(text: str) -> str:
    """A table's cell: in it, a bar would begin the next one."""
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    click.echo(reference(), nl=False)
