"""The command that builds twice and compares."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kiln.commands.context import ALLOW, SET, STACK, Context
from kiln.errors import DifferentError

if TYPE_CHECKING:
    from kiln.diff import Diff
    from kiln.repro import Outcome


@click.command()
@STACK
@SET
@ALLOW
@click.option(
    "--rehearse",
    "standins",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Rehearse a ROCm STACK with this folder of stand-ins instead of building it (tests/rehearsal/standins.py makes one).",
)
@click.option(
    "--across",
    "suite",
    metavar="SUITE",
    default="",
    help="Build a third time with the Docker of this Debian suite (forky: Docker 28, BuildKit 0.25), unpacked beside, not installed.",
)
@click.pass_obj
def repro(
    context: Context, stack: str, sets: tuple[str, ...], allow: tuple[str, ...], standins: Path | None, suite: str
) -> None:
    """Build STACK twice from nothing and compare what comes out, digest by digest; where it differs, say which file, how, and what usually causes that.

    The second build has another folder, disk, time zone, locale, umask, hash seed, date, host name and number of processors. Each has a private
    engine without a cache, so it needs root, time and disk for two whole builds.

    \b
    Example: kiln repro cpu
             kiln repro cpu --across forky
             kiln repro dsv4-mhc --rehearse .kiln/standins
    """
    from kiln.diffreport import report
    from kiln.layernames import layer_names
    from kiln.repro import Asked, builds, compared, differences
    from kiln.session import Choice

    missing: dict[str, str] = {}
    words = tuple(word for one in sets for word in ("--set", one)) + tuple(
        word for one in allow for word in ("--allow-advisory", one)
    )
    lines: list[str] = []
    data: dict[str, Any] = {"stack": stack}
    scratch = context.workspace.state / "scratch"

    def look(one: Outcome, other: Outcome, place: int) -> Diff:
        scratch.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="repro-", dir=scratch) as folder:
            return differences(
                one,
                other,
                place,
                Path(folder),
                lambda image: layer_names(context.workspace.root, image),
                context.console,
            )

    with context.working():
        pins, lock, images, _ = context.session.ready(stack, Choice(sets, allow), refuse=standins is None)
        if standins is None:
            context.session.require_resolved(pins, lock)
            context.session.fetch(pins, lock)
        with builds(context.workspace, Asked(stack, words, standins), context.console, suite, missing) as outcomes:
            lines += _conditions(outcomes) + [f"not varied here: {what}: {why}" for what, why in missing.items()]
            found = compared(outcomes, images, lock, look)
            data |= {
                "builds": [{key: value for key, value in asdict(one).items() if key != "engine"} for one in outcomes],
                "not_varied": missing,
                "images": [image.data() for image in found],
            }
    for image in found:
        lines += ["", image.text()]
    if standins:
        lines += [
            "",
            "This is a rehearsal: what is measured holds for the recipes and the packing, and says nothing of the compilers.",
        ]
    for image in found:
        for other, difference in image.differences:
            lines += [
                "",
                f"{image.image}, build {data['builds'][0]['name']} (a) against build {other} (b):",
                report(difference),
            ]
    context.result("\n".join(lines), data)
    wrong = [image for image in found if image.differences or image.broken_claims]
    if wrong:
        raise DifferentError(
            f"{stack} is not the same again: {', '.join(image.image for image in wrong)}",
            why="\n".join(line for image in wrong for line in image.broken_claims),
            fix="the kinds above say what each difference usually comes of; mend the recipe, or claim less in image.toml ([reproducible])",
        )


def _conditions(outcomes: list[Outcome]) -> list[str]:
    """A table: what each build had."""
    rows = [["", *(f"build {one.name}" for one in outcomes)]]
    rows.append(["builder", *(one.builder for one in outcomes)])
    rows += [[name, *(one.conditions[name] for one in outcomes)] for name in outcomes[0].conditions]
    rows.append(["seconds", *(f"{one.seconds:.0f}" for one in outcomes)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


COMMANDS = (repro,)
