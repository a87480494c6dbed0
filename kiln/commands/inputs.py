"""Commands about what goes in: the lock, the store, the advisories."""

from __future__ import annotations

from dataclasses import asdict

import click

from kiln.commands import complete
from kiln.commands.context import ALLOW, SET, STACK, Context
from kiln.console import megabytes
from kiln.lockfile import lock_path, read_lock
from kiln.session import Choice


@click.command()
@STACK
@SET
@click.option("--check", is_flag=True, help="Only say whether the lock is current; change nothing, ask nobody.")
@click.option("--save", is_flag=True, help="Write what --set chooses into the pins, and lock those.")
@click.option("--upgrade", is_flag=True, help="Resolve wheels and packages anew although their pins did not change.")
@click.option(
    "--accept-moved",
    multiple=True,
    metavar="NAME",
    shell_complete=complete.components,
    help="Lock this component although its tag moved. Repeatable.",
)
@click.pass_obj
def lock(
    context: Context,
    stack: str,
    sets: tuple[str, ...],
    check: bool,
    save: bool,
    upgrade: bool,
    accept_moved: tuple[str, ...],
) -> None:
    """Resolve the pins of STACK to exact files and commits and write pins/STACK.lock.toml.

    What cannot be asked for now is listed as unresolved in it, with the reason; run it again where the network reaches it.

    \b
    Example: kiln lock cpu
             kiln lock dsv4-mhc --set aiter=v0.1.16.post2 --save
    """
    pins = context.session.pins(stack, Choice(sets))
    if check:
        found = read_lock(context.workspace, pins)
        context.result(
            f"{context.workspace.shown(lock_path(context.workspace, pins))} is current: {len(found.entries()) + len(found.gits)} inputs, "
            f"lock {found.sha256[:16]}" + (f", {len(found.unresolved)} unresolved" if found.unresolved else ""),
            {"current": True, "lock_sha256": found.sha256, "unresolved": [asdict(entry) for entry in found.unresolved]},
        )
        return
    from kiln.lock import make_lock

    with context.working():
        saved: list[str] = []
        if save and pins.overrides:
            from kiln.overrides import save as save_choices

            saved = save_choices(context.workspace, pins)
            pins = context.session.pins(stack, Choice())
        upstreams = context.session.upstreams_of(pins)
        path, changes = make_lock(
            context.workspace,
            pins,
            context.store,
            context.console,
            upstreams,
            moved_is_fine=accept_moved,
            upgrade=upgrade,
        )
        found = read_lock(context.workspace, pins)
        findings = context.session.findings(pins, found, (), ask=True)
    shown = context.workspace.shown(path)
    lines = [*saved, f"{shown} is written" if changes else f"{shown} was current already", *changes]
    if found.unresolved:
        lines += [
            "",
            f"{len(found.unresolved)} inputs are unresolved; nothing is built from this lock before they are:",
        ]
        lines += [f"  {entry.label}" for entry in found.unresolved]
    lines += [f"advisory {finding.advisory.id} ({finding.effect}): {finding.because}" for finding in findings]
    data = {
        "file": shown,
        "changes": changes,
        "saved": saved,
        "unresolved": [asdict(entry) for entry in found.unresolved],
    }
    context.result("\n".join(lines), data)


@click.command()
@STACK
@SET
@click.pass_obj
def fetch(context: Context, stack: str, sets: tuple[str, ...]) -> None:
    """Download every locked input of STACK into the content store; what is stored is compared with its name.

    Example: kiln fetch cpu
    """
    with context.working():
        pins = context.session.pins(stack, Choice(sets))
        found = context.session.lock(pins)
        context.session.require_resolved(pins, found)
        for entry in found.entries():
            if context.store.path(entry.sha256).is_file():
                context.store.check(entry.sha256, entry.label)
        done = context.session.fetch(pins, found)
    context.result(
        f"{done.files} files, {megabytes(done.size)}, all as locked; {done.new_files} downloaded ({megabytes(done.new_bytes)})"
        + (f"; {len(found.gits)} sources" if found.gits else ""),
        asdict(done),
    )


@click.command()
@click.argument("stack", required=False, shell_complete=complete.stacks)
@SET
@ALLOW
@click.option("--ask", is_flag=True, help="Fetch the histories that decide, where they are not in the cache.")
@click.pass_obj
def advisories(context: Context, stack: str | None, sets: tuple[str, ...], allow: tuple[str, ...], ask: bool) -> None:
    """Explain the known-bad combinations, or say which of them STACK is.

    \b
    Example: kiln advisories
             kiln advisories dsv4-mhc --set aiter=v0.1.16
    """
    from kiln.advisories import described, enforce, read_advisories

    known = read_advisories(context.workspace)
    if stack is None:
        data = [
            {key: getattr(item, key) for key in ("id", "title", "severity", "scope", "symptom", "instead", "evidence")}
            for item in known
        ]
        context.result("\n\n".join(described(item) for item in known), data)
        return
    pins = context.session.pins(stack, Choice(sets))
    context.session.early_refusal(pins, allow)
    found = context.session.lock(pins)
    from kiln.render import render as run_render

    findings = context.session.findings(pins, found, run_render(context.workspace, pins, found), ask=ask)
    lines = [f"{item.effect:6} {item.advisory.id} (decided by {item.decided_by}): {item.because}" for item in findings]
    context.result(
        "\n".join(lines) or f"no advisory applies to {stack}: {len(known)} were looked at",
        [
            {"id": item.advisory.id, "effect": item.effect, "because": item.because, "decided_by": item.decided_by}
            for item in findings
        ],
    )
    enforce(findings, allow, [item.id for item in known])


COMMANDS = (lock, fetch, advisories)
