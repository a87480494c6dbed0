"""The command that compares two images."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kiln.commands import complete
from kiln.commands.context import Context
from kiln.errors import DifferentError, UsageError

if TYPE_CHECKING:
    from kiln.engine import Engine


@click.command("diff")
@click.argument("a", metavar="A", shell_complete=complete.built)
@click.argument("b", metavar="B", shell_complete=complete.built)
@click.option(
    "--ignore",
    "ignore",
    metavar="WORDS",
    multiple=True,
    help="Kinds of difference and fields that do not count, with commas between them: mtimes,order,history. Repeatable.",
)
@click.option("--semantic", is_flag=True, help="--ignore mtime,order,tar-form,compression,history,created")
@click.option(
    "--inside", is_flag=True, help="Show the first five files that differ with diffoscope, where it is installed."
)
@click.option("--host", "hosts", multiple=True, metavar="NAME", help="A machine that built one of them. Repeatable.")
@click.option("--path", "paths", multiple=True, metavar="DIR", help="A folder that one was built in. Repeatable.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON on standard output: up to 10,000 files.")
@click.pass_obj
def diff_command(
    context: Context,
    a: str,
    b: str,
    ignore: tuple[str, ...],
    semantic: bool,
    inside: bool,
    hosts: tuple[str, ...],
    paths: tuple[str, ...],
    as_json: bool,
) -> None:
    """Compare the images A and B: what differs, in which layer and file, of which kind, and what that usually comes of.

    An image is a folder or an archive in OCI's layout (docker save, buildx type=oci), an image of the engine, or one of a registry by its digest. Strict:
    only the same manifest digest is the same image. Ends with 0 where nothing differs that counts.

    \b
    Example: kiln diff kiln/cpu-serving:8fef078fe3c90673 kiln/cpu-serving:748f462d92bd2b04
             kiln diff one.tar registry.example/kiln/cpu@sha256:… --ignore mtimes,order,history
    """
    import json

    from kiln.diff import Options, diff
    from kiln.diffkinds import Hints, ignorable
    from kiln.diffoscope import diffoscope
    from kiln.diffreport import but_for, report, summary
    from kiln.layernames import layer_names
    from kiln.ociimage import Reader

    words = [word for text in ignore for word in text.split(",") if word] + ["semantic"] * semantic
    if unknown := sorted(set(words) - set(ignorable())):
        raise UsageError(f"--ignore does not know {', '.join(unknown)}", why=f"It knows {', '.join(ignorable())}.")
    with tempfile.TemporaryDirectory(prefix="diff-", dir=_scratch(context, a, b)) as folder:
        reader = Reader(Path(folder), lambda: _engine(context), lambda: context.session.config, context.console)
        show = diffoscope(context.console) if inside else None
        options = Options(frozenset(words), Hints(hosts, paths), lambda image: layer_names(context.root, image), show)
        found = diff(reader, a, b, options)
    if as_json or context.as_json:
        click.echo(json.dumps(found.data(), indent=2, ensure_ascii=True))
    elif found.identical:
        context.result(f"identical: {found.a.digest}", None)
    else:
        context.result(report(found), None)
    if not found.same:
        raise DifferentError(f"{a} and {b} differ: {summary(found)}")
    if not found.identical:
        context.console.step(f"the same but for {but_for(found)}")


def _scratch(context: Context, *images: str) -> Path | None:
    """Where what the engine saves may lie; archives and folders need no project, and then it is the system's own place."""
    if all(Path(image).exists() for image in images):
        return None
    folder = context.workspace.state / "scratch"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _engine(context: Context) -> Engine:
    """The engine; the state folder is held only while one is looked for, since what follows writes nothing there."""
    with context.working():
        return context.session.engine


COMMANDS = (diff_command,)
