"""The commands that carry the inputs of a stack, or a release of it, to a machine without a network (docs/airgap.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from kiln.commands.context import STACK, Context
from kiln.console import megabytes
from kiln.errors import BundleForeignError, HashMismatchError
from kiln.session import Choice

# The no-op must be fast: what only some commands need is loaded by those commands.
if TYPE_CHECKING:
    from kiln.bundle import Index
    from kiln.bundleimage import ImageIndex
    from kiln.bundletar import Bundled

KEY = click.option(
    "--verify-key",
    envvar="KILN_VERIFY_KEY",
    default="",
    metavar="KEY",
    help="Of an image: the public key to trust (also: KILN_VERIFY_KEY; default: releases/cosign.pub).",
)


@click.command()
@STACK
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write this file (default: STACK-LOCK.bundle.tar in the current folder, with the beginning of the lock's checksum).",
)
@click.option(
    "--image",
    is_flag=True,
    help="Instead of the inputs: the release that has the pins, with its signature, SBOM, provenance and report (default name: IMAGE-TAG.image.tar).",
)
@KEY
@click.pass_obj
def bundle(context: Context, stack: str, out: Path | None, image: bool, verify_key: str) -> None:
    """Write every input of STACK's lock into one file, for a machine without a network: `kiln unbundle` there, then `make image`.

    What is missing is fetched first, the base image of a ROCm stack too. The same lock gives the same bytes. Not in it: the container engine, Kiln's
    own Python environment (docs/airgap.md). With --image: a published image and what is signed of it.

    \b
    Example: kiln bundle cpu --out cpu.bundle.tar
             kiln bundle cpu --image --out cpu.image.tar
    """
    from kiln.bundletar import write_bundle

    with context.working():
        index, name = _image(context, stack, verify_key) if image else _inputs(context, stack)
        place = out or Path(name)
        done = write_bundle(index, context.store, place, context.console)
    lines = [f"{place}: {done.files} files, {megabytes(done.size)}", f"sha256 {done.sha256}", *_bases(done)]
    context.result("\n".join(lines), {"file": str(place), **asdict(done)})


def _inputs(context: Context, stack: str) -> tuple[Index, str]:
    """The index of everything that a lock names, all of it fetched, and the usual name of the file."""
    from kiln.bundle import make_index
    from kiln.imageparts import fetch_parts, held_parts
    from kiln.registryclient import Repository

    session = context.session
    pins = session.pins(stack, Choice())
    lock = session.lock(pins)
    session.require_resolved(pins, lock)
    session.fetch(pins, lock)
    for base in lock.images:
        if not held_parts(context.store, base.digest):
            repository = Repository(session.config.mirrored(base.name))
            fetch_parts(repository, base.digest, context.store, context.console)
    return make_index(context.workspace, pins, lock, context.store), f"{stack}-{lock.sha256[:16]}.bundle.tar"


def _image(context: Context, stack: str, key: str) -> tuple[ImageIndex, str]:
    """The index of a release, all of it fetched, after a look at what is signed of it; and the usual name of the file."""
    from kiln.bundleimage import fetch_image
    from kiln.commands.release import own_cosign, release_of, trusted_key
    from kiln.publish import looked_at
    from kiln.pull import described
    from kiln.registryclient import Repository

    config = context.session.config
    release = release_of(context, stack, (), "", latest=False)
    mirrored = config.mirrored(release.repository)
    trusted = trusted_key(context, key, "", "", log=False)
    labels, _ = described(Repository(mirrored), release.digest)
    looked_at(own_cosign(context), trusted, f"{mirrored}@{release.digest}", labels, release)
    return fetch_image(
        stack, release, config, context.store, context.console
    ), f"{release.image}-{release.tag}.image.tar"


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--sha256",
    "expected",
    metavar="HEX",
    help="Refuse the file unless it has this checksum (`kiln bundle` printed it). It vouches for sources, which a lock names by their tree alone.",
)
@KEY
@click.pass_obj
def unbundle(context: Context, file: Path, expected: str | None, verify_key: str) -> None:
    """Take the inputs in a bundle FILE into the content store. Each is compared with the lock of this checkout; what is stored already is passed over.

    A FILE with an image is taken into the engine, after cosign verified what is signed of it, without a network.

    Example: kiln unbundle cpu.bundle.tar
    """
    from kiln import bundle as of_inputs
    from kiln import bundleimage
    from kiln.bundletar import read_head
    from kiln.canonical import sha256_file

    if expected and (found := sha256_file(file)) != expected.lower():
        raise HashMismatchError(
            f"{file} is not the bundle that is meant",
            why=f"expected sha256 {expected.lower()}\ngot             {found}",
        )
    with context.working(), file.open("rb") as stream:
        kinds: dict[str, Callable[..., Index | ImageIndex]]
        kinds = {of_inputs.KIND: of_inputs.parsed, bundleimage.KIND: bundleimage.parsed}
        index = read_head(stream, kinds)
        if index.stack not in context.workspace.stacks():
            raise BundleForeignError(
                f"the bundle is of the stack {index.stack!r}, which this project does not have",
                why=f"It has {', '.join(context.workspace.stacks())}.",
            )
        if isinstance(index, bundleimage.ImageIndex):
            done, lines = _read_image(context, index, stream, verify_key)
        else:
            done, lines = _read_inputs(context, index, stream)
    context.result("\n".join(lines), asdict(done))


def _read_inputs(context: Context, index: Index, stream: BinaryIO) -> tuple[Bundled, list[str]]:
    """The inputs into the store; what there is to say of them."""
    from kiln.bundle import read_bundle

    pins = context.session.pins(index.stack, Choice())
    lock = context.session.lock(pins)
    done = read_bundle(context.workspace, pins, lock, index, stream, context.store, context.console)
    for name in done.differing:
        context.console.warn(f"{name} is not the file that it was where the bundle was made: the image may be another")
    new = f"{done.new_files} new ({megabytes(done.new_bytes)})"
    return done, [f"{done.stack}: {done.files} files, {megabytes(done.size)}, all as locked; {new}", *_bases(done)]


def _read_image(context: Context, index: ImageIndex, stream: BinaryIO, key: str) -> tuple[Bundled, list[str]]:
    """The image into the engine; what there is to say of it."""
    from kiln.bundleimage import Unpacker
    from kiln.commands.release import own_cosign, told, trusted_key
    from kiln.pull import recorded
    from kiln.releases import read_releases

    workspace, engine = context.workspace, context.session.engine
    repository, _, digest = index.place.partition("@")
    release = recorded({stack: read_releases(workspace, stack) for stack in workspace.stacks()}, repository, digest)
    trusted = trusted_key(context, key, "", "", log=False)
    done, pulled = Unpacker(engine, context.store, context.console, own_cosign(context), trusted).read(
        index, stream, release
    )
    return done, told(engine, pulled, release)


def _bases(done: Bundled) -> list[str]:
    """What is in a bundle besides files."""
    return [f"with the base image {image}" for image in done.base_images]


COMMANDS = (bundle, unbundle)
