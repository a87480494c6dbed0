"""The command that tidies up."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import click

from kiln.commands.context import Context
from kiln.console import megabytes
from kiln.errors import HostError


@click.command()
@click.option("--dry-run", is_flag=True, help="Only show what would go.")
@click.option("--yes", is_flag=True, help="Remove without asking.")
@click.option(
    "--older-than",
    "days",
    type=click.IntRange(min=0),
    default=0,
    metavar="DAYS",
    help="Leave alone what came or changed within the last DAYS days.",
)
@click.option(
    "--engine",
    "with_engine",
    is_flag=True,
    help="Also Kiln's own engine: images that no current record names, and BuildKit's cache (the next build makes every step anew).",
)
@click.pass_obj
def gc(context: Context, dry_run: bool, yes: bool, days: int, with_engine: bool) -> None:
    """Remove what lies in the state folder and is named by no lock, no release record and no current build. It shows what and how much, then asks.

    Without a terminal it removes nothing unless --yes is given. What goes, what stays and why: docs/housekeeping.md.

    \b
    Example: kiln gc --dry-run
             kiln gc --older-than 14 --yes
             kiln gc --engine
    """
    from kiln.enginegc import look_in_engine, own_engine, remove_from_engine
    from kiln.housekeeping import look, remove, table

    failed: list[str] = []
    with context.working():
        found = look(context.workspace, days)
        rows = found.rows()
        lines = [table(rows)] if rows else ["nothing in the state folder is without a name"]
        left_alone = list(found.left_alone)
        engine, in_engine = (own_engine(context.workspace.state) if with_engine else None), None
        if engine and not found.unknown:
            in_engine = look_in_engine(engine, found.digests, found.bases)
            lines.append(in_engine.text())
        elif with_engine:
            reason = (
                "it cannot be told which images are current" if engine else "none of Kiln's own runs (kiln engine up)"
            )
            left_alone.append(f"the engine: {reason}")
        lines += [f"left alone: {line}" for line in left_alone]
        something = bool(rows or (in_engine and (in_engine.images or in_engine.cache)))
        asks = something and not dry_run and not yes and not context.as_json and sys.stdin.isatty()
        removes = something and not dry_run and (yes or (asks and _agreed(lines)))
        if removes:
            failed = remove(found.items)
            if engine and in_engine:
                failed += remove_from_engine(engine, in_engine, days)
    if asks:
        # They were shown with the question.
        lines = []
    if something and not removes:
        lines.append("nothing was removed" + ("" if dry_run else "; remove it with: kiln gc --yes"))
    elif removes:
        lines.append(f"removed; {megabytes(sum(row.frees for row in rows))} of the state folder are free again")
    data: dict[str, Any] = {
        "removed": removes,
        "kinds": [asdict(row) for row in rows],
        "paths": [str(item.path) for item in found.items],
        "engine": asdict(in_engine) if in_engine else None,
        "left_alone": left_alone,
        "failed": failed,
    }
    context.result("\n".join(lines), data)
    if failed:
        raise HostError(
            f"{len(failed)} things could not be removed",
            why="\n".join(failed),
            fix="find out who may (another user made it?), then run the same command again",
        )


def _agreed(lines: list[str]) -> bool:
    """Whether a person at a terminal, who is shown what would go, says yes."""
    click.echo("\n".join(lines), err=True)
    return click.confirm("remove all of it?", err=True)


COMMANDS = (gc,)
