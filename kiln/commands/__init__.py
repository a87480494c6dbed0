"""The commands. They know all stages and print results; no stage knows them. What they raise is for ``kiln.cli``."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import click

from kiln import __version__, process
from kiln.commands.context import Context
from kiln.console import Console

# Which module has which commands: one is loaded when a command of it runs, for the no-op must be fast.
MODULES = {
    "inputs": ("lock", "fetch", "advisories"),
    "pins": ("pins",),
    "images": ("render", "sbom", "plan", "build", "image", "rehearse"),
    "verify": ("verify",),
    "reports": ("report",),
    "housekeeping": ("gc",),
    "bundle": ("bundle", "unbundle"),
    "diff": ("diff",),
    "repro": ("repro",),
    "cache": ("cache",),
    "release": ("publish", "pull"),
    "host": ("engine", "exit-codes", "completion"),
    "doctor": ("doctor",),
    "ci": ("ci",),
}


def _as_json(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and context.obj:
        context.obj = replace(context.obj, as_json=True)


# People write it behind the command as well as before.
JSON = click.Option(
    ["--json"],
    is_flag=True,
    expose_value=False,
    callback=_as_json,
    help="The result as JSON on standard output (docs/json.md).",
)


def _with_json(command: click.Command) -> click.Command:
    """The command, or all of a group, with ``--json`` of its own; one that has it keeps it."""
    if isinstance(command, click.Group):
        for one in command.commands.values():
            _with_json(one)
    elif not any("--json" in parameter.opts for parameter in command.params):
        command.params.append(JSON)
    return command


class Commands(click.Group):
    """The commands, each loaded when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's own signature
        """The names, as the help shows them."""
        return sorted(name for names in MODULES.values() for name in names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command of that name."""
        module = next((module for module, names in MODULES.items() if cmd_name in names), None)
        if module is None:
            return None
        found: tuple[click.Command, ...] = import_module(f"kiln.commands.{module}").COMMANDS
        return _with_json(next(command for command in found if command.name == cmd_name))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="kiln")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    help="The project folder (default: the one around the current folder, or KILN_ROOT).",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    help="Where Kiln keeps its files (default: .kiln in the project, or KILN_STATE).",
)
@click.option("-v", "--verbose", is_flag=True, help="Say which programs are run, how they end, and how long they take.")
@click.option("-q", "--quiet", is_flag=True, help="No progress; results and errors only.")
@click.option("--json", "as_json", is_flag=True, help="Results as JSON on standard output.")
@click.pass_context
def cli(
    click_context: click.Context, root: Path | None, state: Path | None, verbose: bool, quiet: bool, as_json: bool
) -> None:
    """Build and verify reproducible container images that serve DeepSeek V4 with vLLM.

    \b
    Example: kiln image cpu        fetch, build and verify the images of the stack `cpu`
             kiln lock cpu --check is the lock current?
    """
    console = Console(quiet=quiet)
    process.told[:] = [console.note] if verbose else []
    click_context.obj = Context(root, state, console, as_json)
