"""What a shell offers for a word that was begun: names out of the project's own files, read as they are, and nothing where they cannot be read.

A person waits for it at every press of a key, so nothing is rendered, asked or loaded for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from kiln.errors import KilnError
from kiln.workspace import Workspace

# Every command names its completers, and only a shell that asks needs what they need.
if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Completer: TypeAlias = "Callable[[click.Context, click.Parameter, str], list[CompletionItem]]"
# What --set takes beside the names of components (kiln/overrides.py).
_ALSO_CHOSEN = ("archs", "base")


def _item(value: str, kind: str = "plain") -> CompletionItem:
    from click.shell_completion import CompletionItem

    return CompletionItem(value, type=kind)


def _of(names: Callable[[Workspace, click.Context], Iterable[str]]) -> Completer:
    """A completer that offers those of ``names`` that begin with what was typed."""

    def complete(context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
        # In the middle of typing, no mistake is worth a message.
        try:
            given = context.find_root().params
            found = sorted(set(names(Workspace.find(given.get("root"), given.get("state")), context)))
        except (KilnError, OSError, ValueError, TypeError, KeyError, AttributeError):
            return []
        return [_item(name) for name in found if name.startswith(begun)]

    return complete


def _tables(workspace: Workspace, context: click.Context) -> list[dict[str, Any]]:
    """The pins of the stack that was typed already, else of all of them."""
    import tomllib

    known = workspace.stacks()
    # Behind an option that still lacks its value, click has read no argument: what was typed lies in what is left.
    typed = [word for word in (*context.params.values(), *context.args) if word in known]
    wanted = typed[:1] or known
    return [tomllib.loads(workspace.pins_file(name).read_text(encoding="utf-8")) for name in wanted]


def _components(workspace: Workspace, context: click.Context) -> Iterable[str]:
    return (name for table in _tables(workspace, context) for name in table["components"])


def _records(workspace: Workspace) -> Iterable[str]:
    for path in (workspace.state / "builds").glob("*.json"):
        yield json.loads(path.read_text(encoding="utf-8"))["reference"]


def _advisories(workspace: Workspace) -> Iterable[str]:
    import tomllib

    text = (workspace.root / "pins" / "advisories.toml").read_text(encoding="utf-8")
    return (one["id"] for one in tomllib.loads(text)["advisories"])


def _purposes(_workspace: Workspace, _context: click.Context) -> Iterable[str]:
    from kiln.doctor import COMMANDS

    return COMMANDS


def _cells(workspace: Workspace, _context: click.Context) -> Iterable[str]:
    # The job files have a name for each, and reading the pins and the advisories for it would take too long.
    return (
        path.stem
        for path in (workspace.root / "ci" / "jobs" / "kubernetes").glob("*/*.yaml")
        if path.stem != "kustomization"
    )


def reports(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """The reports of the state folder, as they would be typed here; and files, for a report may lie anywhere."""
    shown = _of(lambda workspace, _: (workspace.shown(path) for path in (workspace.state / "reports").glob("*.json")))
    return [_item(begun, "file"), *shown(context, parameter, begun)]


def built(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Images that were built here; and files, for an image may be an archive."""
    return [
        _item(begun, "file"),
        *_of(lambda workspace, _: _records(workspace))(context, parameter, begun),
    ]


def folders(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Folders."""
    return [_item(begun, "dir")]


stacks = _of(lambda workspace, _: workspace.stacks())
targets = _of(lambda workspace, _: [*workspace.stacks(), *_records(workspace)])
images = _of(
    lambda workspace, context: (name for one in _tables(workspace, context) for name in one["stack"]["images"])
)
stack_images = _of(
    lambda workspace, context: (
        f"{one['stack']['name']}/{name}" for one in _tables(workspace, context) for name in one["stack"]["images"]
    )
)
components = _of(_components)
choices = _of(lambda workspace, context: (f"{name}=" for name in (*_components(workspace, context), *_ALSO_CHOSEN)))
advisories = _of(lambda workspace, _: _advisories(workspace))
purposes = _of(_purposes)
cells = _of(_cells)
