"""What every command starts from, and the options that many of them have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kiln.commands import complete
from kiln.config import no_builders
from kiln.console import Console
from kiln.errors import UsageError
from kiln.store import Store
from kiln.workspace import Workspace

# The no-op must be fast: what only some commands need is loaded by those commands.
if TYPE_CHECKING:
    from kiln.engine import Engine
    from kiln.session import Session


# Of what commands print with --json (docs/json.md). It goes up where a key goes or means something else, not where one is added.
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Context:
    """What every command starts from."""

    root: Path | None
    state: Path | None
    console: Console
    as_json: bool
    given_session: Session | None = None

    @cached_property
    def workspace(self) -> Workspace:
        """The project; looked for when it is needed, so that --help works anywhere."""
        return self.given_session.workspace if self.given_session else Workspace.find(self.root, self.state)

    @property
    def store(self) -> Store:
        """The content store."""
        return Store(self.workspace.state / "store")

    @cached_property
    def session(self) -> Session:
        """The workspace at work."""
        from kiln.session import Session

        return self.given_session or Session(self.workspace, self.store, self.console)

    @property
    def running_engine(self) -> Engine | None:
        """The engine that would be used, where one runs: none is installed or started for it."""
        from kiln.engine import find_engine

        return find_engine(self.workspace.state)[0]

    @contextmanager
    def working(self) -> Iterator[None]:
        """Hold the state folder while writing to it."""
        with self.workspace.exclusive(self.console.step):
            yield

    def result(self, text: str, data: Any) -> None:
        """Print a command's result: for people, or with --json for programs. A table says which shape it has; the rows of a list are such tables or plain."""
        if isinstance(data, dict):
            data = {"schema_version": SCHEMA_VERSION, **data}
        # In ASCII: what a log holds need not be text that any encoding has, and JSON can say all of it.
        click.echo(json.dumps(data, indent=2) if self.as_json else text)


STACK = click.argument("stack", shell_complete=complete.stacks)
SET = click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="NAME=REF",
    shell_complete=complete.choices,
    help="Take another tag, commit or version than the pins do, for this command (aiter=v0.1.14, base=TAG, archs=gfx942). Repeatable.",
)
ALLOW = click.option(
    "--allow-advisory",
    "allow",
    multiple=True,
    metavar="ID",
    envvar="ALLOW_ADVISORY",
    shell_complete=complete.advisories,
    help="Go past this advisory (also: ALLOW_ADVISORY=ID). The image says so for ever. Repeatable.",
)


def _builder(_context: click.Context, _option: click.Parameter, names: str) -> str:
    if names and (wrong := no_builders(names)):
        raise UsageError(f"--builder names {names!r}, which {wrong}", fix="see docs/scale.md")
    return names


BUILDER = click.option(
    "--builder",
    default="",
    metavar="NAME[,NAME]...",
    callback=_builder,
    help="Have this buildx builder or docker context carry out the bake step (also: KILN_BUILDER, [build] builder in kiln.toml); where it is lost, the next one named. `default` is the engine.",
)
MODEL = click.option(
    "--model",
    default="tiny",
    metavar="DIR",
    shell_complete=complete.folders,
    help="Serve this checkpoint (a folder with config.json, weights and answers.json) instead of the tiny one.",
)
