"""Commands about what comes out: rendered files, plans, images and what checks say of them."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kiln.commands import complete
from kiln.commands.context import ALLOW, BUILDER, MODEL, SET, STACK, Context
from kiln.commands.verify import look, reported, show_reports
from kiln.errors import UsageError
from kiln.levels import Scope
from kiln.proof import Reported, inputs_digest, proven, remember

# The no-op must be fast: what only some commands need is loaded by those commands.
if TYPE_CHECKING:
    from kiln.changes import Kept
    from kiln.plan import Unit
    from kiln.render import Rendered
    from kiln.session import BuiltStack


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

    Example: kiln render cpu --out rendered
    """
    from kiln.render import check_rendered, write_rendered
    from kiln.session import Choice

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
@click.option(
    "--image",
    "image_name",
    metavar="NAME",
    shell_complete=complete.images,
    help="Of this image instead of the one that stands on all others.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write to this file instead of standard output."
)
@click.pass_obj
def sbom(context: Context, stack: str, sets: tuple[str, ...], image_name: str | None, out: Path | None) -> None:
    """Print the SBOM of an image of STACK (CycloneDX 1.6, JSON): what the pins and the lock say is in it. The built image holds the same bytes.

    \b
    Example: kiln sbom cpu --out sbom.cdx.json
             kiln sbom dsv4-mhc --image rocm-base
    """
    from kiln.session import Choice
    from kiln.store import write_whole

    _, _, images, _ = context.session.ready(stack, Choice(sets), refuse=False)
    by_name = {rendered.image.name: rendered for rendered in images}
    if image_name and image_name not in by_name:
        raise UsageError(f"the stack {stack!r} has no image {image_name!r}", fix=f"one of: {', '.join(by_name)}")
    text = by_name[image_name].sbom if image_name else images[-1].sbom
    if out:
        write_whole(out, text)
        context.result(str(out), {"file": str(out)})
    else:
        # It is JSON already, and UTF-8 wherever it goes.
        click.echo(text.encode(), nl=False)


@click.command()
@STACK
@SET
@click.option(
    "--pull-cost",
    "span",
    metavar="FROM..TO",
    help="Say instead what a node downloads that goes from one image to another. Each is an image that was built here (reference, digest, or the beginning of either its digest or its build key) or `current`, what the pins say now; an empty FROM is a node that has nothing.",
)
@click.pass_obj
def plan(context: Context, stack: str, sets: tuple[str, ...], span: str | None) -> None:
    """Show the components of STACK's images: versions, build keys, how far each is claimed to be the same again, where it is kept or why it is to be
    built; and what advisories say. Builds nothing.

    \b
    Example: kiln plan dsv4-mhc --set aiter=v0.1.14
             kiln plan cpu --pull-cost 8fef078fe3c90673..current
    """
    from kiln.changes import Known, kept_components
    from kiln.commands.cache import in_registry
    from kiln.engine import find_engine, image_digest
    from kiln.pullcost import pull_cost
    from kiln.records import Built, all_records, components_of
    from kiln.reproducible import level_of
    from kiln.session import Choice

    pins, found, images, findings = context.session.ready(stack, Choice(sets), refuse=False)
    records = all_records(context.workspace)
    if span is not None:
        keys = {made.name: made.key for rendered in images for made in components_of(rendered, pins)}
        cost = pull_cost(context.workspace, span, records, images, keys)
        context.result(cost.text(), cost.data())
        return
    engine = context.session.given_engine or find_engine(context.workspace.state)[0]

    def held(record: Built) -> bool:
        return engine is not None and image_digest(engine, record.reference) == record.digest

    cache = context.session.cache if engine else None

    def cached(rendered: Rendered, unit: Unit, state: Kept) -> dict[str, object] | None:
        """Of what the engine has not: whether the registry's cache has it."""
        if not cache or state.image or unit.name not in rendered.layers:
            return None
        return in_registry(cache, unit.name, unit.key)

    kept = kept_components(images, Known(records, held if engine else None))
    lines: list[str] = []
    data: dict[str, Any] = {}
    for rendered in images:
        lines.append(f"{rendered.image.name}  key {rendered.key[:16]}")
        components = {}
        for unit, state in zip(rendered.units, kept[rendered.image.name], strict=True):
            level, there = level_of(rendered.image, unit.name, found), cached(rendered, unit, state)
            lines.append(f"  {unit.name:20} {unit.version:24} key {unit.key[:16]}  {unit.about}")
            words = [level, state.described]
            if there:
                words.append("in the cache" if there["registry"] else f"not in the cache {there['problem']}".rstrip())
            lines.append(f"  {'':20} {'; '.join(words)}")
            components[unit.name] = {
                "version": unit.version,
                "key": unit.key,
                "reproducible": level,
                "state": state.state,
                "image": state.image or None,
                "reasons": list(state.reasons),
                "cache": there,
            }
        data[rendered.image.name] = {"key": rendered.key, "components": components}
    lines += [f"advisory {finding.advisory.id} ({finding.effect}): {finding.because}" for finding in findings]
    if found.unresolved:
        lines.append(f"{len(found.unresolved)} inputs are unresolved: kiln lock {stack}")
    context.result("\n".join(lines), data)


@click.command()
@STACK
@SET
@ALLOW
@BUILDER
@click.option(
    "--image",
    "image_name",
    metavar="NAME",
    shell_complete=complete.images,
    help="Only this image of the stack, and those it stands on.",
)
@click.pass_obj
def build(
    context: Context, stack: str, sets: tuple[str, ...], allow: tuple[str, ...], builder: str, image_name: str
) -> None:
    """Fetch what is missing and build the images of STACK. Nothing is verified; `kiln image` does both.

    \b
    Example: kiln build cpu
             kiln build cpu --builder farm,default
    """
    from kiln.session import Choice, build_stack

    with context.working():
        _, built = build_stack(context.session, stack, Choice(sets, allow, builder=builder), image_name)
    show_built(context, built)


def show_built(context: Context, built: BuiltStack) -> None:
    """Print the names and digests of what was built."""
    context.result(
        "\n".join(f"{one.reference}  {one.digest}" for one in built.images), [asdict(one) for one in built.images]
    )


@click.command()
@STACK
@SET
@ALLOW
@MODEL
@BUILDER
@click.option(
    "--image",
    "image_name",
    metavar="NAME",
    shell_complete=complete.images,
    help="Only this image of the stack, and those it stands on.",
)
@click.pass_obj
def image(
    context: Context,
    stack: str,
    sets: tuple[str, ...],
    allow: tuple[str, ...],
    model: str,
    builder: str,
    image_name: str,
) -> None:
    """Fetch, build and verify the images of STACK: `make image`. Does nothing that is done already.

    \b
    Example: kiln image cpu
             kiln image dsv4-mhc --set aiter=v0.1.14
    """
    choices = (sets, allow, model, image_name)
    inputs = inputs_digest(context.workspace, stack, choices)
    if engine := context.running_engine:
        known = proven(context.workspace, engine, stack, choices, inputs)
        if known:
            context.console.step(
                f"{stack} is built and verified already: nothing to do (repeat the checks with: kiln verify {stack})"
            )
            show_reports(context, known)
            return

    from kiln.session import Choice, build_stack

    with context.working():
        findings, built = build_stack(context.session, stack, Choice(sets, allow, model, builder), image_name)
        reports = _image(context, built, model)
    show_reports(context, reports)
    # An advisory speaks of what it could find out then; a model of the user's own may be another now.
    if not findings and model == Scope().model:
        remember(context.workspace, stack, choices, inputs, reports)


def _image(context: Context, built: BuiltStack, model: str) -> list[Reported]:
    """The reports of a built stack, made where there is no good one yet."""
    from kiln.verify.report import good_report, report_file
    from kiln.verify.required import required_checks

    reports = []
    for rendered, one in zip(built.rendered, built.images, strict=True):
        known = (
            good_report(context.workspace, one.digest, built.lock.sha256, required_checks(rendered))
            if model == Scope().model
            else None
        )
        if known:
            context.console.step(f"{rendered.image.name} is verified already")
            reports.append(reported(rendered, one, known, report_file(context.workspace, one.digest)))
        else:
            reports.append(look(context, built, rendered, one, Scope(model=model)))
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
@click.option("--no-verify", is_flag=True, help="Lock and build; look at nothing.")
@click.pass_obj
def rehearse(
    context: Context, stack: str, sets: tuple[str, ...], allow: tuple[str, ...], standins: Path, no_verify: bool
) -> None:
    """Lock, build and verify a ROCm STACK from stand-ins for its upstreams: the same files and steps, without ROCm's compilers.

    Example: kiln rehearse dsv4-mhc --standins .kiln/standins --set aiter=v0.1.14
    """
    from kiln.engine import ensure_engine
    from kiln.lock import make_lock
    from kiln.rehearse import rehearsal
    from kiln.session import Choice, build_stack

    with context.working():
        engine = ensure_engine(context.workspace.state, context.console)
        session = rehearsal(context.workspace, standins, stack, engine, context.console)
        pins = session.pins(stack, Choice())
        make_lock(session.workspace, pins, session.store, session.console, session.upstreams_of(pins))
        apart = replace(context, given_session=session)
        built = build_stack(session, stack, Choice(sets, allow))[1]
        reports = [] if no_verify else _image(apart, built, Scope().model)
    if no_verify:
        show_built(apart, built)
        return
    show_reports(apart, reports)


COMMANDS = (render, sbom, plan, build, image, rehearse)
