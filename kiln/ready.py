"""What of a stack's images is there already, in the engine or in a cache, and how the rest is built with what the cache has of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kiln.build import build, known_build
from kiln.cache import in_engine
from kiln.errors import CacheEntryError
from kiln.fetch import missing_of
from kiln.host import ensure_mmdebstrap
from kiln.lockfile import Lock
from kiln.pins import Pins
from kiln.records import Built, all_records
from kiln.render import Rendered
from kiln.restored import NOTHING_GIVEN, spared
from kiln.room import build_needs, fetch_need, require_room

if TYPE_CHECKING:
    from kiln.session import Session


def found(session: Session, pins: Pins, images: Sequence[Rendered]) -> dict[str, Built]:
    """The images that need not be built: the engine holds them, or now does since the cache had them; by name.

    What another image is to be built on is built here as well, and not pulled: only so are its layers packed in the same way in that image (what
    BuildKit has not exported itself it packs as it likes, where a base image's layers are to stay as they are).
    """
    there: dict[str, Built] = {}
    built_on: set[str] = set()
    for rendered in reversed(images):
        name = rendered.image.name
        known = known_build(session.workspace, rendered, session.engine)
        if known and not (known.pulled and name in built_on):
            session.console.step(f"{name} is built already: key {rendered.key[:16]}, {known.digest[:19]}…")
        else:
            known = session.cache.image(rendered, pins) if session.cache and name not in built_on else None
        if known:
            there[name] = known
        else:
            built_on |= set(rendered.parents)
    return there


def build_one(
    session: Session, pins: Pins, lock: Lock, rendered: Rendered, below: Sequence[tuple[Rendered, Built]]
) -> Built:
    """Build an image, with what the cache has of it; ``below`` are the images whose stages it takes.

    An entry that became something else than it says is named and not used again, and the image is built once more. Raises DiskFullError before
    anything is fetched or started where there is no room for it.
    """
    state, engine = session.workspace.state, session.engine
    here, records = in_engine(session.workspace, engine), all_records(session.workspace)
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
        given, files = cache.components(images, pins) if cache else (NOTHING_GIVEN, ())
        session.fetch(pins, lock.without(spared(images, given)))
        more_files = (*session.base_override(pins, lock), *files)
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
            )
        except CacheEntryError as error:
            if cache is None:
                raise
            cache.distrust(given, error)
        finally:
            tidy()
