"""The command that looks at images, and what it and `kiln image` share: looking, and showing what was found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kiln.commands import complete
from kiln.commands.context import ALLOW, MODEL, SET, Context
from kiln.errors import EngineError, ForeignImageError, UsageError
from kiln.levels import BACKENDS, LEVELS, Backend, Level, Scope
from kiln.proof import Reported
from kiln.store import write_whole

# The no-op must be fast: what only some commands need is loaded by those commands.
if TYPE_CHECKING:
    from kiln.records import Built
    from kiln.render import Rendered
    from kiln.session import BuiltStack, Choice


@click.command()
@click.argument("target", metavar="STACK|IMAGE", shell_complete=complete.targets)
@SET
@ALLOW
@MODEL
@click.option(
    "--level",
    type=click.Choice(LEVELS),
    default=Scope().level,
    show_default=True,
    help="Make the checks up to this level: the image as it lies, its mHC operators, serving with it, and (hours) the gates.",
)
@click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default=Scope().backend,
    show_default=True,
    help="Serve with this mHC setting alone: aiter is what operators get who set nothing, tilelang the opt-in.",
)
@click.option(
    "--require",
    type=click.Choice(LEVELS),
    help="Fail where a check up to this level was skipped: for jobs on machines that have what it needs.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The folder with the data of the gates' task: gsm8k's train.jsonl and test.jsonl (docs/gates.md).",
)
@click.option(
    "--image",
    "image_name",
    metavar="NAME",
    default="",
    shell_complete=complete.images,
    help="Look at this image of the STACK alone.",
)
@click.option(
    "--reports",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write the reports to this folder too, a file for each image, IMAGE.json.",
)
@click.option(
    "--as",
    "as_",
    metavar="STACK/IMAGE",
    shell_complete=complete.stack_images,
    default="",
    help="Compare an IMAGE with this image of the pins, whatever its labels say.",
)
@click.pass_obj
def verify(
    context: Context,
    target: str,
    sets: tuple[str, ...],
    allow: tuple[str, ...],
    model: str,
    level: Level,
    backend: Backend,
    require: Level | None,
    data: Path | None,
    image_name: str,
    reports: Path | None,
    as_: str,
) -> None:
    """Look at the built images of a STACK, or at an IMAGE of the engine or a registry, and write the reports.

    An IMAGE is compared with the pins of this checkout: to verify a release, check out its revision. One that the engine has not is pulled by its
    digest; a tag of a registry is refused, with the digest that it points to.

    \b
    Example: kiln verify cpu
             kiln verify dsv4-mhc --level static
             kiln verify dsv4-mhc --backend tilelang --require generate
             kiln verify dsv4-mhc --level gates --model /models/DeepSeek-V4-Pro --data /data/gsm8k
             kiln verify registry.example/kiln/rocm-serving@sha256:…
    """
    from kiln.session import Choice

    if require and LEVELS.index(require) > LEVELS.index(level):
        raise UsageError(f"--require {require} asks for more than --level {level} makes", fix=f"--level {require}")
    scope = Scope(level, backend, model)
    with context.working():
        if target in context.workspace.stacks():
            if as_:
                raise UsageError(f"{target} is a stack, and --as goes with an image", fix="leave --as out")
            ready = of_stack(context, target, Choice(sets, allow, model), image_name)
            images = tuple(one for one in ready.rendered if image_name in ("", one.image.name))
        else:
            if image_name:
                raise UsageError(
                    "--image goes with a stack", fix="say which image of the pins it is with --as STACK/IMAGE"
                )
            context, ready, images = _of_image(context, target, as_, Choice(sets, allow, model))
        looked = [
            look(context, ready, rendered, built, scope, data)
            for rendered, built in zip(images, ready.images, strict=True)
        ]
    if reports:
        for one in looked:
            write_whole(reports / f"{one.report['subject']['image']}.json", one.path.read_text(encoding="utf-8"))
    show_reports(context, looked, require)


def of_stack(context: Context, stack: str, choice: Choice, only: str = "") -> BuiltStack:
    """The stack with its images that were built here: all, or the one called ``only``.

    Raises EngineError where one of these was not built, UsageError where the stack has no image of that name.
    """
    from kiln.build import known_build
    from kiln.session import BuiltStack

    pins, found, images, _ = context.session.ready(stack, choice)
    wanted = tuple(rendered for rendered in images if only in ("", rendered.image.name))
    if not wanted:
        names = ", ".join(rendered.image.name for rendered in images)
        raise UsageError(f"the stack {stack!r} has no image {only!r}", fix=f"one of: {names}")
    engine = context.session.engine
    pairs = [(rendered, known_build(context.workspace, rendered, engine)) for rendered in wanted]
    missing = [rendered.image.name for rendered, built in pairs if built is None]
    if missing:
        raise EngineError(
            f"{', '.join(missing)}: not built from these pins, or no longer in the engine",
            fix=f"kiln build {stack}   (or: make image STACK={stack})",
        )
    return BuiltStack(pins, found, engine, images, tuple(built for _, built in pairs if built))


def _of_image(
    context: Context, target: str, as_: str, choice: Choice
) -> tuple[Context, BuiltStack, tuple[Rendered, ...]]:
    """The image that somebody names, and the one of the pins that it says it is. Raises ForeignImageError where these pins have no such image."""
    from kiln.named import find_image
    from kiln.records import Built
    from kiln.rehearse import rehearsed
    from kiln.session import BuiltStack

    stack, _, image = as_.partition("/")
    if as_ and not (stack and image):
        raise UsageError(f"--as {as_!r} is not STACK/IMAGE", fix="for example: --as cpu/cpu-serving")
    session = context.session
    named = find_image(session.engine, session.config, target, context.console, stack=stack, image=image)
    if named.stack not in context.workspace.stacks():
        raise ForeignImageError(
            f"{target} is of the stack {named.stack!r}, which this project does not have",
            why=f"It has {', '.join(context.workspace.stacks())}.",
            fix="verify it in the checkout that it was built from",
        )
    if named.rehearsal:
        context = replace(context, given_session=rehearsed(context.workspace, session.engine, context.console))
    choice = replace(choice, sets=choice.sets or named.sets, allow=(*choice.allow, *named.allow))
    pins, found, images, _ = context.session.ready(named.stack, choice)
    rendered = next((one for one in images if one.image.name == named.image), None)
    if rendered is None:
        raise ForeignImageError(
            f"{target} says that it is {named.image!r}, and the stack {named.stack} has no such image",
            why=f"It has {', '.join(one.image.name for one in images)}.",
            fix="verify it in the checkout that it was built from",
        )
    built = Built(named.image, rendered.key, named.digest, named.reference, 0.0)
    return context, BuiltStack(pins, found, session.engine, images, (built,)), (rendered,)


def look(
    context: Context, stack: BuiltStack, rendered: Rendered, built: Built, scope: Scope, data: Path | None = None
) -> Reported:
    """Verify one image of a stack and write its report."""
    from kiln.verify.run import verify as run_verify

    unsafe = context.session.unsafe_here(stack.pins, stack.lock, stack.rendered, stack.pins.allowed)
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
        scope,
        unsafe,
        data,
    )
    return reported(rendered, built, verified.report, verified.path)


def reported(rendered: Rendered, built: Built, report: dict[str, Any], path: Path) -> Reported:
    """An image with its report, as a person is shown them."""
    held = [unit for unit in rendered.units if unit.name in rendered.image.components]
    return Reported(
        built.reference, built.digest, ", ".join(f"{unit.name} {unit.version}" for unit in held), report, path
    )


def show_reports(context: Context, reports: list[Reported], require: Level | None = None) -> None:
    """Print every report's table and what the image is; then raise for the first that is not good."""
    from kiln.verify.report import judge, table

    lines = []
    for one in reports:
        summary = one.report["summary"]
        lines += [table(one.report), ""]
        lines.append(f"image       {one.reference}")
        lines.append(f"digest      {one.digest}")
        lines.append(f"components  {one.held}")
        lines.append(f"report      {context.workspace.shown(one.path)}")
        lines.append(
            f"checks      {summary['pass']} of {summary['total']} passed"
            + "".join(f", {summary[key]} {key}" for key in ("fail", "error", "skip") if summary[key])
        )
    context.result("\n".join(lines), [one.report for one in reports])
    for one in reports:
        judge(one.report, context.workspace.shown(one.path), require)


COMMANDS = (verify,)
