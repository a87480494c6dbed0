"""Commands about the pins of a stack: what in them can move, moving them, deriving new ones, and whether upstreams still have what they name."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kiln.commands import complete
from kiln.commands.context import ALLOW, SET, STACK, Context
from kiln.errors import BumpsFailedError, KilnError, UsageError

if TYPE_CHECKING:
    from kiln.bump import Unmoved

DEFAULT_STACK = "dsv4-mhc"


@click.group()
def pins() -> None:
    """What the pins of a stack say, whether any of it can move, moving it, and deriving new ones."""


@pins.command("audit")
@STACK
@SET
@click.pass_obj
def pins_audit(context: Context, stack: str, sets: tuple[str, ...]) -> None:
    """List every input of STACK that can change without its pins or its lock changing, in the lock and in the rendered Dockerfiles.

    Example: kiln pins audit dsv4-mhc
    """
    from kiln.audit import audit, judge_audit
    from kiln.session import Choice

    chosen, found, images, _ = context.session.ready(stack, Choice(sets), refuse=False)
    result = audit(chosen, found, images)
    context.result(str(result), asdict(result))
    judge_audit(result, stack)


@pins.command("bump")
@click.argument("component", required=False, shell_complete=complete.components)
@click.option(
    "--to", default="", metavar="REF", help="Go to this tag, commit or version instead of the newest release."
)
@click.option("--all", "every", is_flag=True, help="Each component that has a newer release, one commit each.")
@click.option("--stack", default=DEFAULT_STACK, show_default=True, shell_complete=complete.stacks, help="The stack.")
@click.option("--dry-run", is_flag=True, help="Show what changes, and write nothing.")
@click.option("--commit/--no-commit", default=True, show_default=True, help="Make one git commit of it.")
@ALLOW
@click.pass_obj
def pins_bump(
    context: Context,
    component: str | None,
    to: str,
    every: bool,
    stack: str,
    dry_run: bool,
    commit: bool,
    allow: tuple[str, ...],
) -> None:
    """Move COMPONENT to its newest release: show what lies between, what advisories say and what is to be rebuilt; then write pins, lock and rendered files,
    and commit them.

    \b
    Example: kiln pins bump aiter --dry-run
             kiln pins bump aiter --to v0.1.16.post2
             kiln pins bump --all --stack cpu
    """
    from kiln.bump import bumpable, require_clean
    from kiln.session import Choice

    if bool(component) == every or (every and to):
        raise UsageError(
            "a bump is of one COMPONENT, to a release that --to may name; or of --all, to the newest of each",
            fix="kiln pins bump COMPONENT [--to REF], or kiln pins bump --all",
        )
    done: list[dict[str, Any]] = []
    stayed: list[Unmoved] = []
    failed: list[tuple[str, KilnError]] = []
    with context.working():
        session = context.session
        if commit and not dry_run:
            require_clean(session, stack)
        names = [component.lower()] if component else bumpable(session.pins(stack, Choice()))
        for name in names:
            try:
                moved = _bump(context, stack, name, to, allow, write=not dry_run, commit=commit)
            except KilnError as error:
                if not every:
                    raise
                context.console.warn(f"{name}: {error.what}")
                failed.append((name, error))
                continue
            if isinstance(moved, dict):
                done.append(moved)
            else:
                stayed.append(moved)
    context.result(
        "\n".join(_summary(done, stayed, failed, every)),
        {
            "stack": stack,
            "bumps": done,
            "unmoved": [asdict(one) for one in stayed],
            "failed": [
                {"component": name, "error": error.what, "exit_code": error.exit_code} for name, error in failed
            ],
        },
    )
    if failed:
        raise BumpsFailedError(
            f"{len(failed)} of {len(names)} components could not be bumped",
            why="\n\n".join(f"{name}: {error.what}\n{error.why}".strip() for name, error in failed),
            fix="the others were bumped as is said above. Try one by itself: kiln pins bump COMPONENT",
        )


def _bump(
    context: Context, stack: str, name: str, to: str, allow: tuple[str, ...], *, write: bool, commit: bool
) -> dict[str, Any] | Unmoved:
    from kiln.bump import Unmoved, propose
    from kiln.bump import write as write_bump
    from kiln.bumptext import data, message, text

    bump = propose(context.session, stack, name, to, allow)
    if isinstance(bump, Unmoved):
        return bump
    if not context.as_json:
        click.echo(text(bump))
    files: list[str] = []
    made = ""
    if write:
        written, made = write_bump(context.session, bump, message(bump) if commit else None)
        files = [context.workspace.shown(path) for path in written]
    return {**data(bump), "message": message(bump), "files": files, "commit": made or None}


def _summary(
    done: list[dict[str, Any]], stayed: list[Unmoved], failed: list[tuple[str, KilnError]], every: bool
) -> list[str]:
    """What came of it, a line each; what each bump changes was shown before it was written."""
    from kiln.bumptext import unmoved

    lines = []
    for one in done:
        what = f"committed as {one['commit']}" if one["commit"] else "written, not committed"
        moved = f"{one['component']}: {one['from']['ref']} -> {one['to']['ref']}: " if every else ""
        lines.append(moved + (what if one["files"] else "nothing was written"))
    lines += [unmoved(one) for one in stayed]
    return lines + [f"{name}: failed: {error.what}" for name, error in failed]


@pins.command("derive")
@click.option(
    "--vllm",
    "ref",
    default="",
    metavar="REF",
    help="The revision: a release's tag (v0.29.0), or URL@COMMIT for another repository.",
)
@click.option(
    "--source",
    type=click.Path(path_type=Path),
    help="Read these files instead: a folder with a source of vLLM, or its source distribution (.tar.gz).",
)
@click.option(
    "--as",
    "name",
    default="",
    metavar="STACK",
    help="Write pins/STACK.toml, which must not be there yet; else they are printed.",
)
@click.option(
    "--against",
    default=DEFAULT_STACK,
    show_default=True,
    metavar="STACK",
    shell_complete=complete.stacks,
    help="The stack to compare with, which also gives what vLLM's files do not speak of.",
)
@click.pass_obj
def pins_derive(context: Context, ref: str, source: Path | None, name: str, against: str) -> None:
    """Read the pins of a stack out of a vLLM revision's own files, and say what is open, what differs, and which advisories apply.

    Where vLLM's repository is not reached, a release is read out of its source distribution, which carries these files too. Nothing is guessed (docs/derive.md).

    \b
    Example: kiln pins derive --vllm v0.29.0 --as dsv4-mhc-029
             kiln pins derive --source vllm-0.29.0.tar.gz --against dsv4-mhc
    """
    from kiln.deriving import derive_pins

    if not ref and source is None:
        raise UsageError("which vLLM?", fix="name a revision, or its files: --vllm v0.29.0, or --source FOLDER")
    with context.working():
        text, data = derive_pins(context.session, ref, source, name, against)
    context.result(text, data)


@pins.command("verify")
@click.argument("stack", required=False, shell_complete=complete.stacks)
@click.option("--online", is_flag=True, help="Ask every upstream again for what the lock names.")
@click.pass_obj
def pins_verify(context: Context, stack: str | None, online: bool) -> None:
    """Compare STACK (or every stack) with the world: the lock with the pins, what is stored with its sha256; with --online each tag, commit, archive, wheel,
    package and base image with what its upstream says today. Whoever could not be asked is listed apart, and is no pass.

    \b
    Example: kiln pins verify cpu
             kiln pins verify dsv4-mhc --online
    """
    from kiln.pinscheck import judge_checked, verify_online, verify_stored
    from kiln.pinscheck import text as shown
    from kiln.session import Choice

    session, results = context.session, {}
    with context.working():
        for name in [stack] if stack else context.workspace.stacks():
            chosen = session.pins(name, Choice())
            lock = session.lock(chosen)
            stored = verify_stored(lock, session.store)
            results[name] = [*stored, *(verify_online(session, chosen, lock) if online else ())]
    lines = [line for name, found in results.items() for line in shown(name, found)]
    if not online:
        lines.append("no upstream was asked; --online asks them")
    context.result(
        "\n".join(lines),
        {"online": online, "stacks": {name: [asdict(one) for one in found] for name, found in results.items()}},
    )
    judge_checked(results)


COMMANDS = (pins,)
