"""The commands. They know all stages and print results; no stage knows them. What they raise is for ``kiln.cli``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from kiln import __version__
from kiln.console import Console, megabytes
from kiln.errors import EngineError, error_classes
from kiln.lockfile import lock_path, read_lock
from kiln.session import BuiltStack, Choice, Session, build_stack
from kiln.store import Store
from kiln.workspace import Workspace

# The no-op must be fast: what only some commands need is loaded by those commands.
if TYPE_CHECKING:
    from kiln.build import Built
    from kiln.render import Rendered

    _Reported: TypeAlias = tuple[Rendered, Built, dict[str, Any], Path]


@dataclass(frozen=True)
class Context:
    """What every command starts from."""

    root: Path | None
    state: Path | None
    console: Console
    as_json: bool
    given_session: Session | None = None

    @cached_property
    def workspace(self) -> Workspace:
        """The project; looked for when it is needed, so that --help works anywhere."""
        return self.given_session.workspace if self.given_session else Workspace.find(self.root, self.state)

    @property
    def store(self) -> Store:
        """The content store."""
        return Store(self.workspace.state / "store")

    @cached_property
    def session(self) -> Session:
        """The workspace at work."""
        return self.given_session or Session(self.workspace, self.store, self.console)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Hold the state folder while writing to it."""
        with self.workspace.exclusive(self.console.step):
            yield

    def result(self, text: str, data: Any) -> None:
        """Print a command's result: for people, or with --json for programs."""
        click.echo(json.dumps(data, indent=2, ensure_ascii=False) if self.as_json else text)


STACK = click.argument("stack")
SET = click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="NAME=REF",
    help="Take another tag, commit or version than the pins do, for this command (aiter=v0.1.14, base=TAG, archs=gfx942). Repeatable.",
)
ALLOW = click.option(
    "--allow-advisory",
    "allow",
    multiple=True,
    metavar="ID",
    envvar="ALLOW_ADVISORY",
    help="Go past this advisory (also: ALLOW_ADVISORY=ID). The image says so for ever. Repeatable.",
)
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
@SET
@click.option("--check", is_flag=True, help="Only say whether the lock is current; change nothing, ask nobody.")
@click.option("--save", is_flag=True, help="Write what --set chooses into the pins, and lock those.")
@click.option("--upgrade", is_flag=True, help="Resolve wheels and packages anew although their pins did not change.")
@click.option(
    "--accept-moved", multiple=True, metavar="NAME", help="Lock this component although its tag moved. Repeatable."
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
        upstreams = context.session.upstreams() if pins.target == "rocm" else None
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


@cli.command()
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


@cli.command()
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

    _, _, images, _ = context.session.ready(stack, Choice(sets), refuse=False)
    if check:
        check_rendered(images, context.workspace)
        context.result("the committed files are what renders now", {"current": True})
        return
    files = [context.workspace.shown(path) for path in write_rendered(images, out or context.workspace.root / "images")]
    context.result("\n".join(files), {"files": files})


@cli.command()
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


@cli.command()
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


@cli.command()
@STACK
@SET
@ALLOW
@MODEL
@click.pass_obj
def verify(context: Context, stack: str, sets: tuple[str, ...], allow: tuple[str, ...], model: str) -> None:
    """Look at the built images of STACK with every check, and write their reports.

    Example: kiln verify cpu
    """
    from kiln.build import known_build
    from kiln.engine import ensure_engine

    with context.working():
        pins, found, images, _ = context.session.ready(stack, Choice(sets, allow))
        engine = ensure_engine(context.workspace.state, context.console)
        pairs = [(rendered, known_build(context.workspace, rendered, engine)) for rendered in images]
        missing = [rendered.image.name for rendered, built in pairs if built is None]
        if missing:
            raise EngineError(
                f"{', '.join(missing)}: not built from these pins, or no longer in the engine",
                fix=f"kiln build {stack}   (or: make image STACK={stack})",
            )
        ready = BuiltStack(pins, found, engine, images, tuple(built for _, built in pairs if built))
        reports = [_verify(context, ready, rendered, built, model) for rendered, built in pairs if built]
    _show_reports(context, reports)


@cli.command()
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
        reports = _image(context, build_stack(context.session, stack, Choice(sets, allow), image_name)[1], stack, model)
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


@cli.command()
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
        make_lock(session.workspace, session.pins(stack, Choice()), session.store, session.console, session.upstreams())
        apart = replace(context, given_session=session)
        reports = _image(apart, build_stack(session, stack, Choice(sets, allow))[1], stack, "tiny")
    _show_reports(apart, reports)


@cli.command()
@click.argument("stack", required=False)
@SET
@ALLOW
@click.option("--ask", is_flag=True, help="Fetch the histories that decide, where they are not in the cache.")
@click.pass_obj
def advisories(context: Context, stack: str | None, sets: tuple[str, ...], allow: tuple[str, ...], ask: bool) -> None:
    """Explain the known-bad combinations, or say which of them STACK is.

    \b
    Example: kiln advisories
             kiln advisories dsv4-mhc --set aiter=v0.1.13.post1
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


@cli.group()
def pins() -> None:
    """What the pins of a stack say, and whether any of it can move."""


@pins.command("audit")
@STACK
@SET
@click.pass_obj
def pins_audit(context: Context, stack: str, sets: tuple[str, ...]) -> None:
    """List every input of STACK that can change without its pins or its lock changing, in the lock and in the rendered Dockerfiles.

    Example: kiln pins audit dsv4-mhc
    """
    from kiln.audit import audit, judge_audit

    chosen, found, images, _ = context.session.ready(stack, Choice(sets), refuse=False)
    result = audit(chosen, found, images)
    context.result(str(result), asdict(result))
    judge_audit(result, stack)


def _verify(context: Context, stack: BuiltStack, rendered: Rendered, built: Built, model: str) -> _Reported:
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
        held = [unit for unit in rendered.units if unit.name in rendered.image.components]
        lines.append("components  " + ", ".join(f"{unit.name} {unit.version}" for unit in held))
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
