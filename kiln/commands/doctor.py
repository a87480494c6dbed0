"""The command that says what this machine has and lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from kiln.commands import complete
from kiln.commands.context import Context
from kiln.errors import LackingError, UsageError

if TYPE_CHECKING:
    from kiln.doctor import Asked, Finding, Status


@click.command()
@click.argument("stacks", metavar="[STACK]...", nargs=-1, shell_complete=complete.stacks)
@click.option(
    "--for",
    "commands",
    metavar="COMMAND",
    shell_complete=complete.purposes,
    multiple=True,
    help="Look at what this command needs: plan, lock, fetch, build, verify-static, verify-ops, verify-generate, publish, pull. Repeatable; default: all.",
)
@click.option(
    "--network",
    is_flag=True,
    help="Ask every index, source, host and mirror whether it answers (5 seconds each, all at once).",
)
@click.pass_obj
def doctor(context: Context, stacks: tuple[str, ...], commands: tuple[str, ...], network: bool) -> None:
    """Say what this machine has and lacks, for which command of which STACK (default: all), and how to mend it. Changes nothing.

    Ends with 0 where nothing is missing for what was asked, else with 42. What Kiln would install or start by itself is not missing.

    \b
    Example: kiln doctor
             kiln doctor cpu --for build --for verify-generate
             kiln doctor dsv4-mhc --for lock --network
    """
    from kiln.doctor import COMMANDS, asked, examine, verdicts

    if unknown := sorted(set(commands) - set(COMMANDS)):
        raise UsageError(f"--for does not know {', '.join(unknown)}", why=f"It knows {', '.join(COMMANDS)}.")
    question = asked(context.workspace, stacks, commands)
    found = examine(question, network=network)
    names = [stack.name for stack in question.stacks]
    table = verdicts(question, found)
    lines = [line for finding in found for line in _lines(finding, question)] + ["", *_table(table, names)]
    context.result(
        "\n".join(lines),
        {
            "network_asked": network,
            "commands": table,
            "findings": [finding.data(names) for finding in found],
        },
    )
    if lacking := [finding for finding in found if finding.status == "missing"]:
        raise LackingError(
            f"missing here: {', '.join(dict.fromkeys(finding.name for finding in lacking))}",
            why="\n".join(f"{finding.name}: {finding.found} ({_needed(finding, question)})" for finding in lacking),
        )


def _lines(finding: Finding, question: Asked) -> list[str]:
    lines = [f"{finding.status:7}  {finding.name:18}  {finding.found}"]
    if finding.means:
        lines.append(f"{'':29}{finding.means}")
    if finding.status != "ok":
        lines.append(f"{'':29}needed by: {_needed(finding, question)}")
    if finding.fix:
        lines.append(f"{'':29}{'fix' if finding.status != 'ok' else 'now'}: {finding.fix}")
    return lines


def _needed(finding: Finding, question: Asked) -> str:
    """The commands; with the stacks where it is not all of them."""
    names = [stack.name for stack in question.stacks]
    rows = finding.data(names)["needed_by"]
    return ", ".join(
        row["command"] + ("" if row["stacks"] == names else f" ({', '.join(row['stacks'])})") for row in rows
    )


def _table(table: dict[str, dict[str, Status]], names: Sequence[str]) -> list[str]:
    widths = [max(len(name), 7) for name in names]
    head = [f"{'command':16}", *(name.ljust(width) for name, width in zip(names, widths, strict=True))]
    rows = [
        [f"{command:16}", *(row[name].ljust(width) for name, width in zip(names, widths, strict=True))]
        for command, row in table.items()
    ]
    return ["  ".join(words).rstrip() for words in [head, *rows]]


COMMANDS = (doctor,)
