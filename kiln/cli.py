"""The command line's entry: runs a command, turns an error into a message and an exit code. Here alone Kiln exits."""

from __future__ import annotations

import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import click

from kiln.commands import cli
from kiln.errors import DiskFullError, InterruptedByUserError, KilnError
from kiln.store import no_room


def main() -> NoReturn:
    """Run the command line: the only place where Kiln exits, and where an error becomes a message."""
    sys.exit(run())


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; messages go to stderr."""
    previous = _on_termination(_interrupted)
    try:
        cli.main(arguments, prog_name="kiln", standalone_mode=False)
    except KilnError as error:
        click.echo(f"\n{error}", err=True)
        return error.exit_code
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        stopped = InterruptedByUserError("stopped")
        click.echo(f"\n{stopped}", err=True)
        return stopped.exit_code
    except BrokenPipeError:
        # Whoever read our output has seen enough (kiln … | head).
        return 0
    except Exception as error:  # noqa: BLE001 - a person gets a message, the details go into a file
        # A lock, a log or a note can be what a disk has no room for, wherever that comes up.
        said = DiskFullError("a disk is full", why=str(error)) if no_room(error) else _unforeseen(error)
        click.echo(f"\n{said}", err=True)
        return said.exit_code
    finally:
        _on_termination(previous)
    return 0


def _unforeseen(error: Exception) -> KilnError:
    """An error that no part of Kiln raised on purpose: a message for the reader, the traceback in a file beside."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", prefix="kiln-crash-", suffix=".txt", delete=False) as crash:
        crash.write("".join(traceback.format_exception(error)))
    return KilnError(
        "kiln met something it did not foresee",
        why=f"{type(error).__name__}: {error}",
        fix=f"this is a defect of kiln: please report it with {crash.name}",
    )


def _on_termination(handler: Callable[[int, Any], Any] | int | None) -> Callable[[int, Any], Any] | int | None:
    """Set what SIGTERM does; returns what it did before."""
    return signal.signal(signal.SIGTERM, handler)


def _interrupted(_number: int, _frame: Any) -> NoReturn:
    """A polite termination is the same as Ctrl-C: what runs below cleans up."""
    raise KeyboardInterrupt
