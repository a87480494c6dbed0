"""Commands that bring images to others and from others: publish, pull (docs/publish.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kiln.commands.context import ALLOW, SET, Context
from kiln.errors import (
    LockMissingError,
    LockStaleError,
    NotReleasableError,
    ReportInvalidError,
    SignatureError,
    UsageError,
)
from kiln.levels import LEVELS, Level

# The no-op must be fast: what only some commands need is loaded by those commands.
if TYPE_CHECKING:
    from kiln.ci import Cell
    from kiln.cosign import Cosign, Signer, Trusted
    from kiln.engine import Engine
    from kiln.publish import Candidate
    from kiln.pull import Pulled
    from kiln.releases import Release
    from kiln.session import BuiltStack

PUBLIC_KEY = "releases/cosign.pub"
LOG = click.option(
    "--log", is_flag=True, help="With a key: signatures are in the public log too (keyless ones always are)."
)


@click.command()
@click.argument("stack")
@SET
@ALLOW
@click.option(
    "--to",
    required=True,
    envvar="KILN_PUBLISH_TO",
    metavar="HOST/NAME",
    help="Where the images go: each to HOST/NAME/<image> (also: KILN_PUBLISH_TO).",
)
@click.option(
    "--tag",
    "tags",
    multiple=True,
    metavar="NAME",
    help="Let this tag (latest, nightly) point to it, if every required check passed. Repeatable.",
)
@click.option(
    "--key",
    envvar="KILN_SIGN_KEY",
    default="",
    metavar="KEY",
    help="What cosign signs with: a file, env://NAME or a key manager's URI (also: KILN_SIGN_KEY; password: COSIGN_PASSWORD).",
)
@click.option("--keyless", is_flag=True, help="Sign without a key, as cosign does it: needs --identity and --issuer.")
@click.option("--identity", default="", metavar="WHO", help="Keyless: whose certificate it is.")
@click.option("--issuer", default="", metavar="URL", help="Keyless: who vouches for that.")
@LOG
@click.option(
    "--report",
    "files",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A verification report of another machine, for the image that it names. Repeatable.",
)
@click.option(
    "--require-cells",
    "cells",
    type=click.Choice(LEVELS),
    help="Publish only what every cell of the matrix up to this level passed: the reports are merged ones (kiln report merge).",
)
@click.option("--backwards", is_flag=True, help="Moving tags may go back to an older release.")
@click.option(
    "--take-over", is_flag=True, help="Publish although another publisher's name is there (one that was killed)."
)
@click.pass_obj
def publish(
    context: Context,
    stack: str,
    sets: tuple[str, ...],
    allow: tuple[str, ...],
    to: str,
    tags: tuple[str, ...],
    key: str,
    keyless: bool,
    identity: str,
    issuer: str,
    log: bool,
    files: tuple[Path, ...],
    cells: Level | None,
    backwards: bool,
    take_over: bool,
) -> None:
    """Publish the built and verified images of STACK: pushed by digest, signed, attested, read back; then the tags.

    \b
    Example: kiln publish cpu --to registry.example/kiln --key cosign.key
             kiln publish dsv4-mhc --to registry.example/kiln --key awskms:///alias/kiln --tag latest --report mi355x.json
             kiln publish cpu --to registry.example/kiln --key cosign.key --tag latest --report merged.json --require-cells generate
    """
    from kiln.commands.verify import of_stack
    from kiln.cosign import Signer
    from kiln.publish import Publisher, require_cells, require_releasable
    from kiln.session import Choice
    from kiln.verify.required import required_checks

    _require_repository(to)
    if bool(key) == keyless:
        raise UsageError(
            "say who signs",
            why="What is published is signed, with a key or without one.",
            fix="--key FILE (make one: cosign generate-key-pair), or --keyless --identity WHO --issuer URL",
        )
    with context.working():
        cosign, signer = own_cosign(context), Signer(key, log)
        trusted = _trusted_signer(context, cosign, signer, identity, issuer)
        ready = of_stack(context, stack, Choice(sets, allow))
        candidates = _candidates(context, ready, files)
        for one in candidates:
            require_releasable(one, required_checks(one.rendered, release=True), tags, ready.pins)
        wanted = _cells(context, stack, cells) if cells else ()
        for one in candidates if cells else ():
            require_cells(one, [cell.id for cell in wanted if cell.image == one.rendered.image.name])
        session = context.session
        publisher = Publisher(
            context.workspace, context.store, ready.engine, session.config, context.console, cosign, signer, trusted
        )
        done = publisher.publish(ready.pins, ready.lock, candidates, to, tags, backwards=backwards, take_over=take_over)
    lines = []
    for new in done:
        lines += _shown(new.release)
        lines += [f"tags        {', '.join((new.release.tag, *new.tags))}", ""]
    lines.append(f"record      releases/{stack}.toml: commit it, so that others can pull what it names")
    context.result(
        "\n".join(lines),
        {"releases": [{**_plain(new.release), "tags": list(new.tags)} for new in done]},
    )


@click.command()
@click.argument("target", metavar="STACK|IMAGE")
@SET
@click.option(
    "--image", "image", default="", metavar="NAME", help="Of a STACK: this image (default: the one that serves)."
)
@click.option("--latest", is_flag=True, help="Of a STACK: the newest release, whatever the pins say now.")
@click.option(
    "--verify-key",
    envvar="KILN_VERIFY_KEY",
    default="",
    metavar="KEY",
    help=f"The public key to trust: a file or a key manager's URI (also: KILN_VERIFY_KEY; default: {PUBLIC_KEY}).",
)
@click.option("--identity", default="", metavar="WHO", help="Keyless: whose signature counts.")
@click.option("--issuer", default="", metavar="URL", help="Keyless: who vouches for that.")
@LOG
@click.pass_obj
def pull(
    context: Context,
    target: str,
    sets: tuple[str, ...],
    image: str,
    latest: bool,
    verify_key: str,
    identity: str,
    issuer: str,
    log: bool,
) -> None:
    """Pull a release of STACK that has the pins, or an IMAGE by its digest, after its signature and attestations were looked at.

    \b
    Example: kiln pull cpu
             kiln pull dsv4-mhc --set aiter=v0.1.14
             kiln pull registry.example/kiln/rocm-serving@sha256:… --verify-key cosign.pub
    """
    from kiln.pull import Puller, recorded, require_digest
    from kiln.releases import read_releases

    workspace, session = context.workspace, context.session
    release: Release | None
    if target in workspace.stacks():
        release = release_of(context, target, sets, image, latest=latest)
        repository, digest = release.repository, release.digest
    else:
        if sets or image or latest:
            raise UsageError("--set, --image and --latest choose a release of a stack", fix="leave them out")
        repository, digest = require_digest(session.config, target)
        release = recorded({stack: read_releases(workspace, stack) for stack in workspace.stacks()}, repository, digest)
    trusted = trusted_key(context, verify_key, identity, issuer, log=log)
    with context.working():
        puller = Puller(session.engine, session.config, context.console, own_cosign(context), trusted)
        pulled = puller.pull(repository, digest, release)
    context.result("\n".join(told(session.engine, pulled, release)), _data(pulled, release))


def release_of(context: Context, stack: str, sets: tuple[str, ...], image: str, *, latest: bool) -> Release:
    """The release that a stack's pins and the command line choose. Raises NotPublishedError, ReleaseRecordError."""
    from kiln.lockfile import read_lock
    from kiln.pull import choose
    from kiln.releases import read_releases
    from kiln.session import Choice

    pins = context.session.pins(stack, Choice(sets))
    versions = {name: item.ref or item.version for name, item in pins.by_name.items()}
    versions |= {name: item.wheels[0].partition("==")[2] for name, item in pins.by_name.items() if item.wheels}
    try:
        lock = read_lock(context.workspace, pins).sha256
    except (LockMissingError, LockStaleError):
        lock = ""
    versions = {name: version for name, version in versions.items() if version}
    return choose(
        read_releases(context.workspace, stack), pins, image or pins.images[-1], lock, versions, latest=latest
    )


def _cells(context: Context, stack: str, level: Level) -> tuple[Cell, ...]:
    """The cells that a release must have passed: those of the checkout's own matrix, whatever a report says of what was asked for."""
    from kiln.commands.ci import matrices

    (found,) = matrices(context, (stack,))
    return found.only(LEVELS[: LEVELS.index(level) + 1]).fewest().cells


def _candidates(context: Context, ready: BuiltStack, files: tuple[Path, ...]) -> list[Candidate]:
    """Every image of a stack with its report: one that was given, or this state folder's own. Raises NotReleasableError, ReportInvalidError."""
    from kiln.publish import Candidate
    from kiln.verify.render.shape import read_report
    from kiln.verify.report import report_file

    given = {path: read_report(path) for path in files}
    of_digest = {report["subject"]["manifest_digest"]: report for report in given.values()}
    digests = {built.digest for built in ready.images}
    if foreign := [str(path) for path, report in given.items() if report["subject"]["manifest_digest"] not in digests]:
        raise ReportInvalidError(f"{', '.join(foreign)}: of no image of {ready.pins.stack} that is built here")
    found = []
    for rendered, built in zip(ready.rendered, ready.images, strict=True):
        report = of_digest.get(built.digest)
        if report is None:
            path = report_file(context.workspace, built.digest)
            if not path.is_file():
                raise NotReleasableError(
                    f"{rendered.image.name} was not verified", fix=f"kiln verify {ready.pins.stack}, or --report FILE"
                )
            report = read_report(path)
        if report["subject"]["manifest_digest"] != built.digest or report["lock"]["sha256"] != ready.lock.sha256:
            raise ReportInvalidError(f"the report of {rendered.image.name} is of another digest or another lock")
        if report["chosen"]["rehearsal"]:
            raise NotReleasableError(
                f"{rendered.image.name} was built from stand-ins", fix="build it from what the lock names"
            )
        found.append(Candidate(rendered, built, report))
    return found


def own_cosign(context: Context) -> Cosign:
    """The program, fetched where it is not there. Raises HostError, FetchError, ResolveError."""
    from kiln.cosign import Cosign
    from kiln.host import ensure_cosign

    return Cosign(ensure_cosign(context.workspace.state, context.console))


def _trusted_signer(context: Context, cosign: Cosign, signer: Signer, identity: str, issuer: str) -> Trusted:
    """What a signature of the signer is verified with. Its public key is laid into the project, for those who pull."""
    from kiln.cosign import Trusted
    from kiln.store import write_whole

    if not signer.key:
        return _keyless(identity, issuer)
    path = context.workspace.root / PUBLIC_KEY
    public = cosign.public_key(signer)
    if path.is_file() and path.read_text(encoding="utf-8").strip() != public.strip():
        raise SignatureError(
            f"{PUBLIC_KEY} is the key of another signer",
            why="Whoever pulls from this checkout trusts that one.",
            fix=f"sign with it; or remove {PUBLIC_KEY} if the key was changed on purpose: it is written anew",
        )
    if not path.is_file():
        write_whole(path, public)
        context.console.note(f"{PUBLIC_KEY} is the public half of the key: commit it")
    return Trusted(str(path), log=signer.log)


def trusted_key(context: Context, key: str, identity: str, issuer: str, *, log: bool) -> Trusted:
    """Whose signatures count: a key's, by default the project's own. Raises UsageError where nobody is said."""
    from kiln.cosign import Trusted

    if identity or issuer:
        return _keyless(identity, issuer)
    path = context.workspace.root / PUBLIC_KEY
    if not key and not path.is_file():
        raise UsageError(
            "no key says whose images to trust",
            why=f"There is no {PUBLIC_KEY} in this project.",
            fix="give the publisher's public key: --verify-key FILE",
        )
    return Trusted(key or str(path), log=log)


def _keyless(identity: str, issuer: str) -> Trusted:
    from kiln.cosign import Trusted

    if not (identity and issuer):
        raise UsageError("a keyless signature is somebody's: --identity and --issuer say whose", fix="give both")
    return Trusted(identity=identity, issuer=issuer, log=True)


def _require_repository(to: str) -> None:
    from kiln.config import no_repository

    if wrong := no_repository(to):
        raise UsageError(f"--to {to!r} {wrong}")


def _shown(release: Release) -> list[str]:
    from kiln.console import megabytes

    return [
        f"image       {release.place}",
        f"components  {', '.join(f'{name} {version}' for name, version in release.components.items())}",
        f"checks      {release.checked.shown}",
        f"size        {megabytes(release.size)} for a node that has nothing of it",
    ]


def told(engine: Engine, pulled: Pulled, release: Release | None) -> list[str]:
    """An image that is in the engine now, for a person."""
    from kiln.render import LABEL

    prefix = f"{LABEL}.component."
    held = [
        f"{name.removeprefix(prefix)} {version}"
        for name, version in sorted(pulled.labels.items())
        if name.startswith(prefix) and not name.endswith((".reproducible", ".commit", ".ref"))
    ]
    chosen = [*(f"{name}={ref}" for name, ref in pulled.said["overrides"].items()), *pulled.said["allowed"]]
    lines = [f"image       {pulled.place}", f"components  {', '.join(held)}"]
    lines += [f"chosen      {', '.join(chosen)}"] if chosen else []
    lines += [
        f"checks      {pulled.said['checked'].shown}",
        f"signed      signature, SBOM, provenance and report, verified by cosign; lock {pulled.said['lock'][:16]}…",
        f"record      {f'release {release.tag} of {release.date[:10]}' if release else 'not in releases/ of this project'}",
    ]
    host = f"DOCKER_HOST={engine.host} " if engine.private else ""
    return [*lines, "", f"run it:     {host}docker run --rm {pulled.place} --help"]


def _plain(release: Release) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(vars(release), default=vars))
    return data


def _data(pulled: Pulled, release: Release | None) -> dict[str, Any]:
    said = {**pulled.said, "checked": vars(pulled.said["checked"])}
    return {
        "place": pulled.place,
        "digest": pulled.digest,
        "labels": dict(pulled.labels),
        "signed": said,
        "release": _plain(release) if release else None,
    }


COMMANDS = (publish, pull)
