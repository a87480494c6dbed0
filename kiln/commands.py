"""The commands. They know all stages and print results; no stage knows them. What they raise is for ``kiln.cli``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from kiln import __version__
from kiln.console import Console, megabytes
from kiln.errors import EngineError, error_classes
from kiln.lockfile import Lock, read_lock
from kiln.pins import Pins, read_pins
from kiln.store import Store
from kiln.workspace import Workspace

# The no-op must be fast: what only some commands need is loaded by those commands.
if TYPE_CHECKING:
    from kiln.build import Built
    from kiln.engine import Engine
    from kiln.render import Rendered

    _Reported: TypeAlias = tuple[Rendered, Built, dict[str, Any], Path]


@dataclass(frozen=True)
class Context:
    """What every command starts from."""

    root: Path | None
    state: Path | None
    console: Console
    as_json: bool

    @cached_property
    def workspace(self) -> Workspace:
        """The project; looked for when it is needed, so that --help works anywhere."""
        return Workspace.find(self.root, self.state)

    @property
    def store(self) -> Store:
        """The content store."""
        return Store(self.workspace.state / "store")

    def locked(self, stack: str) -> tuple[Pins, Lock]:
        """The pins of a stack and the lock that belongs to them."""
        pins = read_pins(self.workspace, stack)
        return pins, read_lock(self.workspace, pins)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Hold the state folder while writing to it."""
        with self.workspace.exclusive(self.console.step):
            yield

    def result(self, text: str, data: Any) -> None:
        """Print a command's result: for people, or with --json for programs."""
        click.echo(json.dumps(data, indent=2, ensure_ascii=False) if self.as_json else text)


STACK = click.argument("stack")
MODEL = click.option(
    "--model",
    default="tiny",
    metavar="DIR",
    help="Serve this checkpoint (a folder with config.json, weights and answers.json) instead of the tiny one.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="kiln")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    help="The project folder (default: the one around the current folder, or KILN_ROOT).",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    help="Where Kiln keeps its files (default: .kiln in the project, or KILN_STATE).",
)
@click.option("-q", "--quiet", is_flag=True, help="No progress; results and errors only.")
@click.option("--json", "as_json", is_flag=True, help="Results as JSON on standard output.")
@click.pass_context
def cli(click_context: click.Context, root: Path | None, state: Path | None, quiet: bool, as_json: bool) -> None:
    """Build and verify reproducible container images that serve DeepSeek V4 with vLLM.

    \b
    Example: kiln image cpu        fetch, build and verify the images of the stack `cpu`
             kiln lock cpu --check is the lock current?
    """
    click_context.obj = Context(root, state, Console(quiet=quiet), as_json)


@cli.command()
@STACK
@click.option("--check", is_flag=True, help="Only say whether the lock is current; change nothing, ask nobody.")
@click.pass_obj
def lock(context: Context, stack: str, check: bool) -> None:
    """Resolve the pins of STACK to exact files and write pins/STACK.lock.toml.

    Example: kiln lock cpu
    """
    pins = read_pins(context.workspace, stack)
    if check:
        found = read_lock(context.workspace, pins)
        context.result(
            f"pins/{stack}.lock.toml is current: {len(found.entries())} inputs, lock {found.sha256[:16]}",
            {"current": True, "lock_sha256": found.sha256},
        )
        return
    from kiln.lock import make_lock

    with context.working():
        path, changes = make_lock(context.workspace, pins, context.store, context.console)
    shown = context.workspace.shown(path)
    context.result(
        "\n".join([f"{shown} is written", *changes]) if changes else f"{shown} was current already",
        {"file": shown, "changes": changes},
    )


@cli.command()
@STACK
@click.pass_obj
def fetch(context: Context, stack: str) -> None:
    """Download every locked input of STACK into the content store; what is stored is compared with its name.

    Example: kiln fetch cpu
    """
    from kiln.fetch import fetch as run_fetch

    pins, found = context.locked(stack)
    with context.working():
        for entry in found.entries():
            if context.store.path(entry.sha256).is_file():
                context.store.check(entry.sha256, entry.label)
        done = run_fetch(pins, found, context.store, context.workspace.state / "apt", context.console)
    context.result(
        f"{done.files} files, {megabytes(done.size)}, all as locked; {done.new_files} downloaded ({megabytes(done.new_bytes)})",
        asdict(done),
    )


@cli.command()
@STACK
@click.option("--out", type=click.Path(path_type=Path), help="Write below this folder instead of images/.")
@click.option(
    "--check", is_flag=True, help="Compare with the committed files instead of writing; fails where they differ."
)
@click.pass_obj
def render(context: Context, stack: str, out: Path | None, check: bool) -> None:
    """Write the Dockerfiles, requirements and bake files of STACK.

    Example: kiln render cpu --out /tmp/rendered
    """
    from kiln.render import check_rendered, write_rendered
    from kiln.render import render as run_render

    images = run_render(context.workspace, *context.locked(stack))
    if check:
        check_rendered(images, context.workspace)
        context.result("the committed files are what renders now", {"current": True})
        return
    files = [context.workspace.shown(path) for path in write_rendered(images, out or context.workspace.root / "images")]
    context.result("\n".join(files), {"files": files})


@cli.command()
@STACK
@click.pass_obj
def plan(context: Context, stack: str) -> None:
    """Show the components of STACK's images, their versions and build keys. Builds nothing.

    Example: kiln plan cpu
    """
    from kiln.render import render as run_render

    lines, data = [], {}
    for rendered in run_render(context.workspace, *context.locked(stack)):
        lines.append(f"{rendered.image.name}  key {rendered.key[:16]}")
        lines += [f"  {unit.name:14} {unit.version:22} key {unit.key[:16]}  {unit.about}" for unit in rendered.units]
        data[rendered.image.name] = {
            "key": rendered.key,
            "components": {unit.name: {"version": unit.version, "key": unit.key} for unit in rendered.units},
        }
    context.result("\n".join(lines), data)


@cli.command()
@STACK
@click.pass_obj
def build(context: Context, stack: str) -> None:
    """Fetch what is missing and build the images of STACK. Nothing is verified; `kiln image` does both.

    Example: kiln build cpu
    """
    with context.working():
        _, _, built = _build(context, *context.locked(stack))
    context.result("\n".join(f"{one.reference}  {one.digest}" for one in built), [asdict(one) for one in built])


@cli.command()
@STACK
@MODEL
@click.pass_obj
def verify(context: Context, stack: str, model: str) -> None:
    """Look at the built images of STACK with every check, and write their reports.

    Example: kiln verify cpu
    """
    from kiln.build import known_build
    from kiln.engine import ensure_engine
    from kiln.render import render as run_render

    pins, found = context.locked(stack)
    with context.working():
        images = run_render(context.workspace, pins, found)
        engine = ensure_engine(context.workspace.state, context.console)
        pairs = [(rendered, known_build(context.workspace, rendered, engine)) for rendered in images]
        missing = [rendered.image.name for rendered, built in pairs if built is None]
        if missing:
            raise EngineError(
                f"{', '.join(missing)}: not built from these pins, or no longer in the engine",
                fix=f"kiln build {stack}   (or: make image STACK={stack})",
            )
        reports = [_verify(context, pins, found, rendered, built, engine, model) for rendered, built in pairs if built]
    _show_reports(context, reports)


@cli.command()
@STACK
@MODEL
@click.pass_obj
def image(context: Context, stack: str, model: str) -> None:
    """Fetch, build and verify the images of STACK: `make image`. Does nothing that is done already.

    Example: kiln image cpu
    """
    from kiln.verify.report import good_report, report_file
    from kiln.verify.required import required_checks

    with context.working():
        pins, found = context.locked(stack)
        engine, pairs, built = _build(context, pins, found)
        reports = []
        for rendered, one in zip(pairs, built, strict=True):
            known = (
                good_report(context.workspace, one.digest, found.sha256, required_checks(rendered))
                if model == "tiny"
                else None
            )
            if known:
                context.console.step(
                    f"{rendered.image.name} is verified already: nothing to do (repeat it with: kiln verify {stack})"
                )
                reports.append((rendered, one, known, report_file(context.workspace, one.digest)))
            else:
                reports.append(_verify(context, pins, found, rendered, one, engine, model))
    _show_reports(context, reports)


def _build(context: Context, pins: Pins, found: Lock) -> tuple[Engine, tuple[Rendered, ...], list[Built]]:
    """The images of a stack, built where they are not, and the engine that holds them."""
    from kiln.build import build as run_build
    from kiln.build import known_build
    from kiln.engine import ensure_engine
    from kiln.fetch import fetch as run_fetch
    from kiln.host import ensure_mmdebstrap
    from kiln.render import render as run_render

    images = run_render(context.workspace, pins, found)
    engine = ensure_engine(context.workspace.state, context.console)
    built = []
    for rendered in images:
        known = known_build(context.workspace, rendered, engine)
        if known:
            context.console.step(
                f"{rendered.image.name} is built already: key {rendered.key[:16]}, {known.digest[:19]}…"
            )
        else:
            ensure_mmdebstrap(context.workspace.state, context.console)
            run_fetch(pins, found, context.store, context.workspace.state / "apt", context.console)
            known = run_build(context.workspace, pins, found, rendered, context.store, engine, context.console)
        built.append(known)
    return engine, images, built


def _verify(
    context: Context, pins: Pins, found: Lock, rendered: Rendered, built: Built, engine: Engine, model: str
) -> _Reported:
    from kiln.verify.run import verify as run_verify

    verified = run_verify(
        context.workspace, pins, found, rendered, built, engine, context.store, context.console, model
    )
    return rendered, built, verified.report, verified.path


def _show_reports(context: Context, reports: list[_Reported]) -> None:
    """Print every report's table and what the image is; then raise for the first that is not good."""
    from kiln.verify.report import judge, table

    lines = []
    for rendered, built, report, path in reports:
        summary = report["summary"]
        lines += [table(report), ""]
        lines.append(f"image       {built.reference}")
        lines.append(f"digest      {built.digest}")
        lines.append("components  " + ", ".join(f"{unit.name} {unit.version}" for unit in rendered.units))
        lines.append(f"report      {context.workspace.shown(path)}")
        lines.append(
            f"checks      {summary['pass']} of {summary['total']} passed"
            + "".join(f", {summary[key]} {key}" for key in ("fail", "error", "skip") if summary[key])
        )
    context.result("\n".join(lines), [report for _, _, report, _ in reports])
    for _, _, report, path in reports:
        judge(report, context.workspace.shown(path))


@cli.group()
def engine() -> None:
    """The container engine: one that is there, or a private one of Kiln's own."""


@engine.command("up")
@click.pass_obj
def engine_up(context: Context) -> None:
    """Find a usable engine, or install and start a private one.

    Example: kiln engine up
    """
    from kiln.engine import ensure_engine

    with context.working():
        found = ensure_engine(context.workspace.state, context.console)
    context.result(found.described, asdict(found))


@engine.command("status")
@click.pass_obj
def engine_status(context: Context) -> None:
    """Say which engine would be used, and why others would not.

    Example: kiln engine status
    """
    from kiln.engine import find_engine, status

    found, unfit = find_engine(context.workspace.state)
    lines = [found.described if found else "no usable engine is up (start one with: kiln engine up)"]
    context.result(
        "\n".join(lines + [f"not used: {other.host}: {other.why}" for other in unfit]), status(context.workspace.state)
    )


@engine.command("down")
@click.pass_obj
def engine_down(context: Context) -> None:
    """Stop the private engine, if Kiln started one. No other daemon is touched; the images stay on disk.

    Example: kiln engine down
    """
    from kiln.engine import PrivateEngine

    stopped = PrivateEngine(context.workspace.state).stop()
    context.result("the private engine is stopped" if stopped else "no private engine runs", {"stopped": stopped})


@cli.command("exit-codes")
@click.pass_obj
def exit_codes(context: Context) -> None:
    """The exit codes and what they mean, as docs/exit-codes.md has them.

    Example: kiln exit-codes
    """
    rows = [(cls.exit_code, cls.__name__, (cls.__doc__ or "").splitlines()[0]) for cls in error_classes()]
    lines = [
        "| code | error | meaning |",
        "| --- | --- | --- |",
        "| 0 | | Everything asked for is done. |",
        *(f"| {code} | `{name}` | {about} |" for code, name, about in rows),
    ]
    context.result("\n".join(lines), [{"code": code, "error": name, "meaning": about} for code, name, about in rows])
