"""Commands about the machine and about Kiln itself: the engine, the exit codes."""

from __future__ import annotations

from dataclasses import asdict

import click

from kiln.commands.context import Context
from kiln.errors import error_classes


@click.group()
def engine() -> None:
    """The container engine: one that is there, or a private one of Kiln's own."""


@engine.command("up")
@click.pass_obj
def engine_up(context: Context) -> None:
    """Find a usable engine, or install and start a private one.

    Example: kiln engine up
    """
    from kiln.engine import ensure_engine

    with context.working():
        found = ensure_engine(context.workspace.state, context.console)
    context.result(found.described, asdict(found))


@engine.command("status")
@click.pass_obj
def engine_status(context: Context) -> None:
    """Say which engine would be used, and why others would not.

    Example: kiln engine status
    """
    from kiln.engine import find_engine, status

    found, unfit = find_engine(context.workspace.state)
    lines = [found.described if found else "no usable engine is up (start one with: kiln engine up)"]
    context.result(
        "\n".join(lines + [f"not used: {other.host}: {other.why}" for other in unfit]), status(context.workspace.state)
    )


@engine.command("down")
@click.pass_obj
def engine_down(context: Context) -> None:
    """Stop the private engine, if Kiln started one. No other daemon is touched; the images stay on disk.

    Example: kiln engine down
    """
    from kiln.engine import PrivateEngine

    stopped = PrivateEngine(context.workspace.state).stop()
    context.result("the private engine is stopped" if stopped else "no private engine runs", {"stopped": stopped})


@click.command("exit-codes")
@click.pass_obj
def exit_codes(context: Context) -> None:
    """The exit codes and what they mean, as docs/exit-codes.md has them.

    Example: kiln exit-codes
    """
    rows = [(cls.exit_code, cls.__name__, (cls.__doc__ or "").splitlines()[0]) for cls in error_classes()]
    lines = [
        "| code | error | meaning |",
        "| --- | --- | --- |",
        "| 0 | | Everything asked for is done. |",
        *(f"| {code} | `{name}` | {about} |" for code, name, about in rows),
    ]
    context.result("\n".join(lines), [{"code": code, "error": name, "meaning": about} for code, name, about in rows])


SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_obj
def completion(context: Context, shell: str) -> None:
    """Print what makes SHELL complete commands, options, and the names of stacks, images, components, advisories and reports.

    \b
    Example: kiln completion bash > ~/.local/share/bash-completion/completions/kiln
             kiln completion zsh > "${fpath[1]}/_kiln"
             kiln completion fish > ~/.config/fish/completions/kiln.fish
    """
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made is not None, "click has one for each of these"
    script = made(click.get_current_context().find_root().command, {}, "kiln", "_KILN_COMPLETE").source()
    context.result(script.strip("\n"), {"shell": shell, "script": script})


COMMANDS = (engine, exit_codes, completion)
