"""Commands for CI systems: the matrix, its job files, and one cell of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kiln.commands import complete
from kiln.commands.context import Context
from kiln.commands.verify import verify as verify_command
from kiln.errors import UsageError
from kiln.levels import LEVELS

if TYPE_CHECKING:
    from kiln.ci import Matrix, Wanted

STACKS = click.argument("stacks", metavar="[STACK]...", nargs=-1, shell_complete=complete.stacks)


@click.group()
def ci() -> None:
    """What CI systems run: the matrix of an image's checks, and job files that are rendered from it (docs/ci.md)."""


@ci.command("matrix")
@STACKS
@click.option(
    "--level", "levels", type=click.Choice(LEVELS), multiple=True, help="Cells of this level. Repeatable; default: all."
)
@click.option(
    "--fewest", is_flag=True, help="Leave out cells whose checks another one makes too: what the job files run."
)
@click.option("--here", is_flag=True, help="Only cells that this machine can run.")
@click.pass_obj
def ci_matrix(context: Context, stacks: tuple[str, ...], levels: tuple[str, ...], fewest: bool, here: bool) -> None:
    """List the cells of STACK (default: of all): image, architecture, mHC setting and level, each a job. With --json, as GitHub's matrices are.

    `--level generate` looks at the operators too: a cell makes all checks up to its level. What is left out, and why, stands in the document.

    \b
    Example: kiln ci matrix
             kiln ci matrix dsv4-mhc --level static --level generate --fewest --json
    """
    from kiln.ci import runs_here

    found = [one.only(levels) for one in matrices(context, stacks)]
    found = [one.fewest() for one in found] if fewest else found
    cells = [cell for one in found for cell in one.cells if not here or runs_here(cell)]
    left_out = [(cell, why) for one in found for cell, why in one.left_out]
    for cell, why in left_out:
        context.console.note(f"left out: {cell.id}: {why}")
    context.result(
        "\n".join(cell.id for cell in cells),
        {
            "matrix": {"include": [cell.data() for cell in cells]},
            "left_out": [{**cell.data(), "reason": why} for cell, why in left_out],
        },
    )


@ci.command("render")
@STACKS
@click.option(
    "--check", is_flag=True, help="Compare with the committed files instead of writing; fails where they differ."
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Write below this folder instead of ci/jobs/."
)
@click.option(
    "--image",
    "images",
    metavar="IMAGE=HOST/NAME@sha256:…",
    multiple=True,
    help="Have the Kubernetes jobs look at this image, by its digest. Repeatable; wants --out.",
)
@click.option(
    "--runner", metavar="HOST/NAME@sha256:…", help="The image that the Kubernetes jobs run kiln in; wants --out."
)
@click.option(
    "--gpus", type=click.IntRange(min=1), help="How many GPUs a Kubernetes node has (default: 8); wants --out."
)
@click.pass_obj
def ci_render(
    context: Context,
    stacks: tuple[str, ...],
    check: bool,
    out: Path | None,
    images: tuple[str, ...],
    runner: str | None,
    gpus: int | None,
) -> None:
    """Write the job files of STACK (default: of all): GitHub Actions, Buildkite, Kubernetes, and a script for one machine.

    \b
    Example: kiln ci render
             kiln ci render --check
             kiln ci render dsv4-mhc --out jobs --image rocm-serving=registry.example/kiln/rocm-serving@sha256:…
    """
    from kiln.ci import JOBS, check_jobs, render_jobs, strays
    from kiln.store import write_whole

    if (images or runner or gpus) and not out:
        raise UsageError(
            "what is in ci/jobs/ is for everybody, and --image, --runner and --gpus are of one cluster",
            fix="name another folder: --out DIR",
        )
    if check and out:
        raise UsageError("--check compares what is committed, and --out writes elsewhere", fix="leave one of them out")
    found = matrices(context, stacks)
    wanted = _wanted(found, images, runner, gpus)
    files = {path: text for one in found for path, text in render_jobs(context.workspace, one, wanted).items()}
    folder = out or context.workspace.root / JOBS
    # Where only some stacks are rendered, the others' files are no business of this run.
    others = matrices(context, ()) if stacks else []
    kept = {path: text for one in others for path, text in render_jobs(context.workspace, one, wanted).items()}
    if check:
        for path in strays(folder, files):
            if path in kept and path not in files:
                files[path] = (folder / path).read_text(encoding="utf-8")
        check_jobs(folder, files, stacks)
        context.result("the committed job files are what renders now", {"current": True, "files": sorted(files)})
        return
    for path, text in files.items():
        write_whole(folder / path, text)
        if path.endswith(".sh"):
            (folder / path).chmod(0o755)
    if not out:
        for path in strays(folder, {**kept, **files}):
            (folder / path).unlink()
    shown = [context.workspace.shown(folder / path) for path in files]
    context.result("\n".join(shown), {"files": shown})


@ci.command("verify")
@click.argument("cell", shell_complete=complete.cells)
@click.option(
    "--image",
    "reference",
    metavar="HOST/NAME@sha256:…",
    default="",
    help="Look at this image of a registry instead of the one that was built here.",
)
@click.option(
    "--reports",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write the report to this folder too, as IMAGE.json.",
)
@click.option(
    "--model",
    metavar="DIR",
    default="tiny",
    shell_complete=complete.folders,
    help="Serve this checkpoint instead of the tiny one.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The data of the gates' task (docs/gates.md).",
)
@click.pass_context
def ci_verify(
    click_context: click.Context, cell: str, reference: str, reports: Path | None, model: str, data: Path | None
) -> None:
    """Make the checks of one CELL of the matrix; a check that is skipped is a failure. The same as `kiln verify` with the cell's own words.

    \b
    Example: kiln ci verify cpu-serving-amd64-default-generate --reports reports
    """
    from kiln.ci import by_digest, find_cell

    context: Context = click_context.obj
    found = find_cell(matrices(context, ()), cell)
    click_context.invoke(
        verify_command,
        target=by_digest(reference) if reference else found.stack,
        image_name="" if reference else found.image,
        as_=f"{found.stack}/{found.image}" if reference else "",
        backend=found.backend,
        level=found.level,
        require=found.require,
        model=model,
        data=data,
        reports=reports,
    )


def matrices(context: Context, stacks: tuple[str, ...]) -> list[Matrix]:
    """The matrix of each stack. What the pins' refs alone say decides what is left out: so it is the same on every machine."""
    from kiln.ci import matrix
    from kiln.image import read_images
    from kiln.session import Choice

    found = []
    for stack in stacks or context.workspace.stacks():
        pins = context.session.pins(stack, Choice())
        images = read_images(context.workspace, pins)
        unsafe = {arch: context.session.unsafe_on((arch,), pins, None, ()) for arch in pins.archs}
        found.append(matrix(pins, images, unsafe))
    return found


def _wanted(found: list[Matrix], images: tuple[str, ...], runner: str | None, gpus: int | None) -> Wanted:
    from kiln.ci import Wanted, by_digest

    plain = Wanted()
    known = {cell.image for one in found for cell in one.cells}
    given: dict[str, str] = {}
    for text in images:
        name, _, reference = text.partition("=")
        if name not in known:
            raise UsageError(
                f"--image {text!r} is of no image of these stacks", fix=f"one of: {', '.join(sorted(known))}"
            )
        given[name] = by_digest(reference)
    return Wanted(given, by_digest(runner) if runner else plain.runner, gpus or plain.gpus)


COMMANDS = (ci,)
