"""The commands that carry the inputs of a stack to a machine without a network (docs/airgap.md)."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from kiln.commands.context import STACK, Context
from kiln.console import megabytes
from kiln.errors import BundleForeignError, HashMismatchError
from kiln.session import Choice


@click.command()
@STACK
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write this file (default: STACK-LOCK.bundle.tar in the current folder, with the beginning of the lock's checksum).",
)
@click.pass_obj
def bundle(context: Context, stack: str, out: Path | None) -> None:
    """Write every input of STACK's lock into one file, for a machine without a network: `kiln unbundle` there, then `make image`.

    What is missing is fetched first. The same lock gives the same bytes. Not in it: the base image of a ROCm stack, the container engine, Kiln's
    own Python environment (docs/airgap.md).

    Example: kiln bundle cpu --out cpu.bundle.tar
    """
    from kiln.bundle import make_index, write_bundle

    with context.working():
        pins = context.session.pins(stack, Choice())
        lock = context.session.lock(pins)
        context.session.require_resolved(pins, lock)
        context.session.fetch(pins, lock)
        index = make_index(context.workspace, pins, lock, context.store)
        place = out or Path(f"{stack}-{lock.sha256[:16]}.bundle.tar")
        done = write_bundle(index, context.store, place, context.console)
    lines = [
        f"{place}: {done.files} files, {megabytes(done.size)}",
        f"sha256 {done.sha256}",
        *_beside(done.base_images),
    ]
    context.result("\n".join(lines), {"file": str(place), **asdict(done)})


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--sha256",
    "expected",
    metavar="HEX",
    help="Refuse the file unless it has this checksum (`kiln bundle` printed it). It vouches for sources, which a lock names by their tree alone.",
)
@click.pass_obj
def unbundle(context: Context, file: Path, expected: str | None) -> None:
    """Take the inputs in a bundle FILE into the content store. Each is compared with the lock of this checkout; what is stored already is passed over.

    Example: kiln unbundle cpu.bundle.tar
    """
    from kiln.bundle import read_bundle, read_index
    from kiln.canonical import sha256_file

    if expected and (found := sha256_file(file)) != expected.lower():
        raise HashMismatchError(
            f"{file} is not the bundle that is meant",
            why=f"expected sha256 {expected.lower()}\ngot             {found}",
        )
    with context.working(), file.open("rb") as stream:
        index = read_index(stream)
        if index.stack not in context.workspace.stacks():
            raise BundleForeignError(
                f"the bundle is of the stack {index.stack!r}, which this project does not have",
                why=f"It has {', '.join(context.workspace.stacks())}.",
            )
        pins = context.session.pins(index.stack, Choice())
        lock = context.session.lock(pins)
        done = read_bundle(context.workspace, pins, lock, index, stream, context.store, context.console)
    for name in done.differing:
        context.console.warn(f"{name} is not the file that it was where the bundle was made: the image may be another")
    lines = [
        f"{done.stack}: {done.files} files, {megabytes(done.size)}, all as locked; {done.new_files} new ({megabytes(done.new_bytes)})",
        *_beside(done.base_images),
    ]
    context.result("\n".join(lines), asdict(done))


def _beside(images: tuple[str, ...]) -> list[str]:
    """What a person has to bring in another way."""
    return [f"not in it: the base image {image} (docs/airgap.md says how to bring it)" for image in images]


COMMANDS = (bundle, unbundle)
