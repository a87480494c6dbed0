"""What of a stack's images is there already, in the engine or in a cache, and how the rest is built with what the cache has of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kiln.build import build, known_build
from kiln.builders import ENGINE, Builder, builders_of
from kiln.cache import in_engine
from kiln.errors import BuilderLostError, CacheEntryError
from kiln.fetch import missing_of
from kiln.host import ensure_mmdebstrap
from kiln.lockfile import Lock
from kiln.pins import Pins
from kiln.records import Built, all_records
from kiln.render import Rendered
from kiln.restored import NOTHING_GIVEN, spared
from kiln.room import build_needs, fetch_need, require_room
from kiln.verify.machine import lacking_here

if TYPE_CHECKING:
    from kiln.session import Session


def found(session: Session, pins: Pins, images: Sequence[Rendered], builder: Builder = ENGINE) -> dict[str, Built]:
    """The images that need not be built: the engine holds them, or now does since the cache had them; by name.

    What another image is to be built on is built by the same ``builder``, and not pulled: only so are its layers packed in the same way in that image
    (what BuildKit has not exported itself it packs as it likes, where a base image's layers are to stay as they are).
    """
    there: dict[str, Built] = {}
    built_on: set[str] = set()
    for rendered in reversed(images):
        name = rendered.image.name
        known = known_build(session.workspace, rendered, session.engine)
        if known and not (name in built_on and (known.pulled or known.builder != builder.name)):
            session.console.step(f"{name} is built already: key {rendered.key[:16]}, {known.digest[:19]}…")
        else:
            known = session.cache.image(rendered, pins) if session.cache and name not in built_on else None
        if known:
            there[name] = known
        else:
            built_on |= set(rendered.parents)
    return there


def build_images(
    session: Session, pins: Pins, lock: Lock, images: Sequence[Rendered], names: str
) -> tuple[list[Built], list[tuple[Rendered, Built]]]:
    """The images in the engine, and those of them that were built now. ``names`` are the builders, in the order in which they are tried.

    One that is lost is not asked again: the next one goes on, and what it is to build on, it builds as well. Raises BuilderLostError where none is left,
    and what the stages raise.
    """
    builders, lost = list(builders_of(names)), list[str]()
    new: dict[str, tuple[Rendered, Built]] = {}
    while True:
        try:
            return _built(session, pins, lock, images, builders[0], new), list(new.values())
        except BuilderLostError as error:
            lost.append(f"{error.what}\n{error.why}".strip())
            del builders[0]
            if not builders:
                raise BuilderLostError(error.what, why="\n\n".join(lost)) from error
            session.console.warn(f"{lost[-1]}\n{builders[0].described} goes on")


def _built(
    session: Session,
    pins: Pins,
    lock: Lock,
    images: Sequence[Rendered],
    builder: Builder,
    new: dict[str, tuple[Rendered, Built]],
) -> list[Built]:
    """The images in the engine, those that are not there made by one builder and noted in ``new``. Raises what the stages raise."""
    there = found(session, pins, images, builder)
    built: list[Built] = []
    for rendered in images:
        known = there.get(rendered.image.name)
        if known is None:
            if lacking := lacking_here(rendered.image.needs, pins.archs):
                session.console.note(f"it can be built here, and not be served: {lacking}")
            below = [pair for pair in zip(images, built, strict=False) if pair[0].image.name in rendered.parents]
            known = build_one(session, pins, lock, rendered, below, builder)
            new[rendered.image.name] = (rendered, known)
        built.append(known)
    return built


def build_one(
    session: Session,
    pins: Pins,
    lock: Lock,
    rendered: Rendered,
    below: Sequence[tuple[Rendered, Built]],
    builder: Builder,
) -> Built:
    """Build an image, with what the cache has of it; ``below`` are the images whose stages it takes.

    An entry that became something else than it says is named and not used again, and the image is built once more. Raises DiskFullError before
    anything is fetched or started where there is no room for it, and BuilderLostError where the builder does not answer.
    """
    if builder.name:
        builder.require()
    state, engine = session.workspace.state, session.engine
    here, records = in_engine(session.workspace, engine, builder.name), all_records(session.workspace)
    needs = build_needs(state, engine, rendered, pins, lock, records, here)
    require_room([fetch_need(session.store.folder, missing_of(lock, session.store)), *needs])
    if not pins.base:
        ensure_mmdebstrap(session.workspace.state, session.console)
    images = (*(parent for parent, _ in below), rendered)
    # What came out of a cache left no contexts behind, and its stages are wanted all the same.
    parents = [parent for parent, one in below if one.restored]
    cache = session.cache
    tidy = cache.tidy if cache else lambda: None
    while True:
        given, files = cache.components(images, pins, builder.name) if cache else (NOTHING_GIVEN, ())
        session.fetch(pins, lock.without(spared(images, given)))
        more_files = (*session.base_override(pins, lock, builder), *files)
        try:
            return build(
                session.workspace,
                pins,
                lock,
                rendered,
                session.store,
                session.engine,
                session.console,
                more_files,
                given,
                parents,
                builder,
            )
        except CacheEntryError as error:
            if cache is None:
                raise
            cache.distrust(given, error)
        finally:
            tidy()
