"""Commands about what comes out: rendered files, plans, images and what checks say of them."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from kiln.commands.context import ALLOW, MODEL, SET, STACK, Context
from kiln.errors import EngineError, UsageError
from kiln.levels import LEVELS, Level
from kiln.session import BuiltStack, Choice, build_stack

# The no-op must be fast: what only some commands need is loaded by those commands.
if TYPE_CHECKING:
    from kiln.build import Built
    from kiln.render import Rendered

    _Reported: TypeAlias = tuple[Rendered, Built, dict[str, Any], Path]


@click.command()
@STACK
@SET
@click.option("--out", type=click.Path(path_type=Path), help="Write below this folder instead of images/.")
@click.option(
    "--check", is_flag=True, help="Compare with the committed files instead of writing; fails where they differ."
)
@click.pass_obj
def render(context: Context, stack: str, sets: tuple[str, ...], out: Path | None, check: bool) -> None:
    """Write the Dockerfiles, requirements and bake files of STACK.

    Example: kiln render cpu --out /tmp/rendered
    """
    from kiln.render import check_rendered, write_rendered

    if sets and not out:
        raise UsageError(
            "what is in images/ is rendered from the pins, and --set chooses something else",
            fix="name another folder: --out DIR; or write the choice into the pins: kiln lock STACK --set NAME=REF --save",
        )
    _, _, images, _ = context.session.ready(stack, Choice(sets), refuse=False)
    if check:
        check_rendered(images, context.workspace)
        context.result("the committed files are what renders now", {"current": True})
        return
    files = [context.workspace.shown(path) for path in write_rendered(images, out or context.workspace.root / "images")]
    context.result("\n".join(files), {"files": files})


@click.command()
@STACK
@SET
@click.pass_obj
def plan(context: Context, stack: str, sets: tuple[str, ...]) -> None:
    """Show the components of STACK's images, their versions and build keys, and what advisories say. Builds nothing.

    Example: kiln plan dsv4-mhc --set aiter=v0.1.14
    """
    _, found, images, findings = context.session.ready(stack, Choice(sets), refuse=False)
    lines: list[str] = []
    data: dict[str, Any] = {}
    for rendered in images:
        lines.append(f"{rendered.image.name}  key {rendered.key[:16]}")
        lines += [f"  {unit.name:20} {unit.version:24} key {unit.key[:16]}  {unit.about}" for unit in rendered.units]
        data[rendered.image.name] = {
            "key": rendered.key,
            "components": {unit.name: {"version": unit.version, "key": unit.key} for unit in rendered.units},
        }
    lines += [f"advisory {finding.advisory.id} ({finding.effect}): {finding.because}" for finding in findings]
    if found.unresolved:
        lines.append(f"{len(found.unresolved)} inputs are unresolved: kiln lock {stack}")
    context.result("\n".join(lines), data)


@click.command()
@STACK
@SET
@ALLOW
@click.option("--image", "image_name", metavar="NAME", help="Only this image of the stack, and those it stands on.")
@click.pass_obj
def build(context: Context, stack: str, sets: tuple[str, ...], allow: tuple[str, ...], image_name: str) -> None:
    """Fetch what is missing and build the images of STACK. Nothing is verified; `kiln image` does both.

    Example: kiln build cpu
    """
    with context.working():
        _, built = build_stack(context.session, stack, Choice(sets, allow), image_name)
    context.result(
        "\n".join(f"{one.reference}  {one.digest}" for one in built.images), [asdict(one) for one in built.images]
    )


@click.command()
@STACK
@SET
@ALLOW
@MODEL
@click.option(
    "--level",
    type=click.Choice(LEVELS),
    default=LEVELS[-1],
    show_default=True,
    help="Make the checks up to this level: the image as it lies, its mHC operators, serving with it.",
)
@click.option(
    "--require",
    type=click.Choice(LEVELS),
    help="Fail where a check up to this level was skipped: for jobs on machines that have what it needs.",
)
@click.pass_obj
def verify(
    context: Context,
    stack: str,
    sets: tuple[str, ...],
    allow: tuple[str, ...],
    model: str,
    level: Level,
    require: Level | None,
) -> None:
    """Look at the built images of STACK, and write their reports.

    \b
    Example: kiln verify cpu
             kiln verify dsv4-mhc --level static
             kiln verify dsv4-mhc --require generate
    """
    from kiln.build import known_build
    from kiln.engine import ensure_engine

    if require and LEVELS.index(require) > LEVELS.index(level):
        raise UsageError(f"--require {require} asks for more than --level {level} makes", fix=f"--level {require}")
    with context.working():
        pins, found, images, _ = context.session.ready(stack, Choice(sets, allow, model))
        engine = ensure_engine(context.workspace.state, context.console)
        pairs = [(rendered, known_build(context.workspace, rendered, engine)) for rendered in images]
        missing = [rendered.image.name for rendered, built in pairs if built is None]
        if missing:
            raise EngineError(
                f"{', '.join(missing)}: not built from these pins, or no longer in the engine",
                fix=f"kiln build {stack}   (or: make image STACK={stack})",
            )
        ready = BuiltStack(pins, found, engine, images, tuple(built for _, built in pairs if built))
        reports = [_verify(context, ready, rendered, built, model, level) for rendered, built in pairs if built]
    _show_reports(context, reports, require)


@click.command()
@STACK
@SET
@ALLOW
@MODEL
@click.option("--image", "image_name", metavar="NAME", help="Only this image of the stack, and those it stands on.")
@click.pass_obj
def image(
    context: Context, stack: str, sets: tuple[str, ...], allow: tuple[str, ...], model: str, image_name: str
) -> None:
    """Fetch, build and verify the images of STACK: `make image`. Does nothing that is done already.

    \b
    Example: kiln image cpu
             kiln image dsv4-mhc --set aiter=v0.1.14
    """
    with context.working():
        reports = _image(
            context, build_stack(context.session, stack, Choice(sets, allow, model), image_name)[1], stack, model
        )
    _show_reports(context, reports)


def _image(context: Context, built: BuiltStack, stack: str, model: str) -> list[_Reported]:
    """The reports of a built stack, made where there is no good one yet."""
    from kiln.verify.report import good_report, report_file
    from kiln.verify.required import required_checks

    reports = []
    for rendered, one in zip(built.rendered, built.images, strict=True):
        known = (
            good_report(context.workspace, one.digest, built.lock.sha256, required_checks(rendered))
            if model == "tiny"
            else None
        )
        if known:
            context.console.step(
                f"{rendered.image.name} is verified already: nothing to do (repeat it with: kiln verify {stack})"
            )
            reports.append((rendered, one, known, report_file(context.workspace, one.digest)))
        else:
            reports.append(_verify(context, built, rendered, one, model))
    return reports


@click.command()
@STACK
@SET
@ALLOW
@click.option(
    "--standins",
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A folder of stand-ins (tests/rehearsal/standins.py makes one).",
)
@click.pass_obj
def rehearse(context: Context, stack: str, sets: tuple[str, ...], allow: tuple[str, ...], standins: Path) -> None:
    """Lock, build and verify a ROCm STACK from stand-ins for its upstreams: the same files and steps, without ROCm's compilers.

    Example: kiln rehearse dsv4-mhc --standins .kiln/standins --set aiter=v0.1.14
    """
    from kiln.engine import ensure_engine
    from kiln.lock import make_lock
    from kiln.rehearse import rehearsal

    with context.working():
        engine = ensure_engine(context.workspace.state, context.console)
        session = rehearsal(context.workspace, standins, stack, engine, context.console)
        pins = session.pins(stack, Choice())
        make_lock(session.workspace, pins, session.store, session.console, session.upstreams_of(pins))
        apart = replace(context, given_session=session)
        reports = _image(apart, build_stack(session, stack, Choice(sets, allow))[1], stack, "tiny")
    _show_reports(apart, reports)


def _verify(
    context: Context, stack: BuiltStack, rendered: Rendered, built: Built, model: str, level: Level = LEVELS[-1]
) -> _Reported:
    from kiln.verify.run import verify as run_verify

    verified = run_verify(
        context.workspace,
        stack.pins,
        stack.lock,
        rendered,
        stack.rendered,
        built,
        stack.engine,
        context.store,
        context.console,
        model,
        level,
    )
    return rendered, built, verified.report, verified.path


def _show_reports(context: Context, reports: list[_Reported], require: Level | None = None) -> None:
    """Print every report's table and what the image is; then raise for the first that is not good."""
    from kiln.verify.report import judge, table

    lines = []
    for rendered, built, report, path in reports:
        summary = report["summary"]
        lines += [table(report), ""]
        lines.append(f"image       {built.reference}")
        lines.append(f"digest      {built.digest}")
        held = [unit for unit in rendered.units if unit.name in rendered.image.components]
        lines.append("components  " + ", ".join(f"{unit.name} {unit.version}" for unit in held))
        lines.append(f"report      {context.workspace.shown(path)}")
        lines.append(
            f"checks      {summary['pass']} of {summary['total']} passed"
            + "".join(f", {summary[key]} {key}" for key in ("fail", "error", "skip") if summary[key])
        )
    context.result("\n".join(lines), [report for _, _, report, _ in reports])
    for _, _, report, path in reports:
        judge(report, context.workspace.shown(path), require)


COMMANDS = (render, plan, build, verify, image, rehearse)
