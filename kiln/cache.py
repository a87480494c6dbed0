"""The component cache in a registry: what was built under a key, here or elsewhere, is taken from there instead of being built again.

Nothing that comes is trusted for its name. A blob has the digest that its manifest gives, a manifest the digest that it was asked by, or the whole
key in its annotations; a layer unpacks to what its entry says; where this project built the same key itself, the entry has the layer that came
of it; and what was built from an entry has that entry's layer (``kiln.build``). An entry that fails is named and not used; a registry that fails is noted
and not asked again. Neither stops a build.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from kiln import cacheentry as form
from kiln.build import reference_of
from kiln.console import Console, Meter, megabytes
from kiln.engine import Engine, image_digest
from kiln.errors import (
    AccessDeniedError,
    CacheEntryError,
    HashMismatchError,
    KilnError,
    RefNotFoundError,
    UpstreamError,
)
from kiln.layers import manifest_text, read_layers
from kiln.layout import make_layout
from kiln.pins import Pins
from kiln.process import Finished, run
from kiln.records import Built, Layer, all_records, components_of, read_record, record_file, write_record
from kiln.registryclient import Manifest, Repository
from kiln.render import Rendered
from kiln.restored import FOLDER, NOTHING_GIVEN, Entry, Given, unneeded_contexts, write_bake_file
from kiln.stages import Node, restorable
from kiln.store import Store
from kiln.torn import docker_pull
from kiln.workspace import Workspace

TRANSFER_SECONDS = 6 * 3600
T = TypeVar("T")


@dataclass
class Cache:
    """The cache of one run: what was found wrong in it is not used again, and a registry that failed is not asked again."""

    workspace: Workspace
    store: Store
    engine: Engine
    console: Console
    repository: Repository
    bad: set[str] = field(default_factory=set)
    silent: bool = False

    def image(self, rendered: Rendered, pins: Pins) -> Built | None:
        """The whole image in the engine, under its name and on record, where the cache has it; else None."""
        return self._tried(lambda: self._image(rendered, pins))

    def components(self, images: Sequence[Rendered], pins: Pins, builder: str = "") -> tuple[Given, tuple[str, ...]]:
        """What of the last of ``images`` the cache has and the builder has not, laid out for the build: with the bake file that brings it in."""
        self.tidy()
        here = in_engine(self.workspace, self.engine, builder)
        keys = {(one.image.name, unit.name): unit.key for one in images for unit in one.units if unit.key not in here}
        wanted, refused = restorable(images, keys)
        found: dict[Node, Entry] = {}
        for node in wanted:
            if entry := self._tried(lambda node=node: self._entry(node[1], keys[node])):  # type: ignore[misc]
                found[node] = entry
        layouts = self._laid_out(found, pins)
        # One that could not be had is built, and may need what another would have spared.
        usable, _ = restorable(images, layouts)
        given = Given({node: found[node] for node in usable}, unneeded_contexts(images, usable))
        if not usable:
            return NOTHING_GIVEN, ()
        self.console.step(f"taken from the cache: {', '.join(name for _, name in usable)}")
        for (_, name), reason in refused.items():
            self.console.note(f"{name} is built here whatever the cache has: {reason}")
        return given, (write_bake_file(self.workspace, images, given, {node: layouts[node] for node in usable}),)

    def tidy(self) -> None:
        """Remove what was laid out for a build: the engine has it then."""
        shutil.rmtree(self.workspace.state / FOLDER, ignore_errors=True)

    def distrust(self, given: Given, error: CacheEntryError) -> None:
        """Do not use again, in this run, the entries that ``error`` names. Raises it where it names none of them."""
        named = {entry.where for entry in given.entries.values() if entry.where in error.why.splitlines()}
        if not named:
            raise error
        self.bad |= named
        self._say(error)

    def share(self, pins: Pins, built: Sequence[tuple[Rendered, Built]]) -> None:
        """Push, where a cache that cannot be written to is told of and ends nothing."""
        self._tried(lambda: self.push(pins, built))

    def push(self, pins: Pins, built: Sequence[tuple[Rendered, Built]]) -> list[str]:
        """Push what was built here and is not in the cache yet: the images, and each of their components by its key. Returns the tags that are new.

        Raises CacheEntryError where the cache has something else under a key, which is left as it is; UpstreamError, AccessDeniedError.
        """
        new: list[str] = []
        other: list[str] = []
        for rendered, one in built:
            self._push_image(pins, rendered, one, new, other)
            for layer in one.layers:
                unit = next((unit for unit in rendered.units if unit.name == layer.component), None)
                if unit and unit.name not in one.restored:
                    config, manifest = form.component_entry(pins.stack, unit.key, layer, pins.platform)
                    self._put(form.tag_of(unit.name, unit.key), manifest, [config], new, other)
        if other:
            raise CacheEntryError(
                "the cache has something else under keys that were built here",
                why="\n".join(other),
                fix="nothing of it was replaced. One of the two is wrong, or the build is not reproducible: compare them; remove the wrong one",
            )
        return new

    def has(self, component: str, key: str) -> bool:
        """Whether the cache has a component under its key. Raises CacheEntryError where it has something else there, UpstreamError."""
        try:
            return self._entry(component, key) is not None
        except RefNotFoundError:
            return False

    def _image(self, rendered: Rendered, pins: Pins) -> Built | None:
        name, key = rendered.image.name, rendered.key
        where = self._where(form.record_tag(name, key))
        if where in self.bad:
            return None
        digest = form.read_image_record(where, self.repository.manifest(form.record_tag(name, key)), name, key)
        known = read_record(record_file(self.workspace, name, key))
        if known and known.key == key and not known.restored and known.digest != digest:
            raise _not_what_was_built(where, known.digest, digest)
        manifest = self.repository.manifest(digest)
        config = self.repository.blob(str(manifest.table["config"]["digest"]))
        form.require_image(where, config, rendered.labels)
        self.console.step(f"pulling {name} from the cache: key {key[:16]}, {digest[:19]}…")
        place, reference = f"{self.repository.place}@{digest}", reference_of(rendered)
        done = docker_pull(self.engine, place, TRANSFER_SECONDS)
        if done.code != 0:
            kind = CacheEntryError if _speaks_of_bytes(done.output) else UpstreamError
            raise kind(f"the cached image {where} could not be pulled", why=done.tail(3))
        self._docker("tag", place, reference)
        self._docker("rmi", place)
        if (found := image_digest(self.engine, reference)) != digest:
            raise _not_what_was_built(where, digest, str(found))
        layered = read_layers(self.engine, reference, digest, rendered.layers, on_base=bool(pins.base))
        restored = tuple(unit.name for unit in rendered.units)
        made = components_of(rendered, pins)
        built = Built(name, key, digest, reference, 0.0, layered.layers, made, layered.described, restored, True)
        write_record(self.workspace, built)
        return built

    def _entry(self, component: str, key: str) -> Entry | None:
        tag = form.tag_of(component, key)
        where = self._where(tag)
        if where in self.bad:
            return None
        manifest = self.repository.manifest(tag)
        config, descriptor = form.read_component_entry(where, manifest, component, key)
        layer = form.read_layer(where, component, descriptor, self.repository.blob(config))
        for known in built_here(self.workspace, component, key):
            if known.digest != layer.digest:
                raise _not_what_was_built(where, known.digest, layer.digest)
        return Entry(where, layer)

    def _laid_out(self, found: Mapping[Node, Entry], pins: Pins) -> dict[Node, str]:
        """What stands in for the stages, as bake names it; an entry whose layer cannot be had or is wrong is left out."""
        missing = [entry.layer for entry in found.values() if not self._stored(entry.layer)]
        if missing:
            size = sum(layer.size for layer in missing)
            self.console.step(f"fetching {len(missing)} layers from the cache, {megabytes(size)}")
        meter = Meter(self.console, "fetched", len(missing), sum(layer.size for layer in missing))
        layouts = {}
        for node, entry in found.items():
            place = f"{FOLDER}/{node[1]}"
            digest = self._tried(lambda entry=entry, place=place: self._laid(entry, pins, place, meter))  # type: ignore[misc]
            if digest:
                layouts[node] = f"oci-layout://{place}@{digest}"
        return layouts

    def _laid(self, entry: Entry, pins: Pins, place: str, meter: Meter) -> str:
        layer = entry.layer
        sha256 = layer.digest.removeprefix("sha256:")
        if not self._stored(layer):
            with self.store.scratch() as scratch:
                try:
                    self.repository.download(layer.digest, layer.size, scratch / "layer", lambda got: meter.add(0, got))
                except HashMismatchError as error:
                    raise CacheEntryError(
                        f"the layer of the cache entry {entry.where} is damaged", why=error.why
                    ) from error
                self.store.add(
                    scratch / "layer", sha256=sha256, size=layer.size, label=entry.where, origin=self.repository.place
                )
            meter.add(1, 0)
        blob = self.store.check(sha256, entry.where)
        return make_layout(entry.where, layer, blob, pins.platform, self.workspace.state / place)

    def _stored(self, layer: Layer) -> bool:
        return self.store.has(layer.digest.removeprefix("sha256:"), layer.size)

    def _push_image(self, pins: Pins, rendered: Rendered, one: Built, new: list[str], other: list[str]) -> None:
        tag = form.tag_of(one.image, one.key)
        if (there := self.repository.digest_of(tag)) not in (None, one.digest):
            other.append(f"{self._where(tag)}\nthere {there}\nhere  {one.digest}")
            return
        if there is None:
            self.console.step(f"pushing {one.image} to the cache: key {one.key[:16]}, {one.digest[:19]}…")
            place = f"{self.repository.place}:{tag}"
            self._docker("tag", one.reference, place)
            done = self._docker("push", "--quiet", place)
            self._docker("rmi", place)
            if done.code != 0:
                denied = any(word in done.output.lower() for word in ("denied", "unauthorized", "authorization"))
                kind = AccessDeniedError if denied else UpstreamError
                raise kind(f"{one.image} could not be pushed to {self.repository.place}", why=done.tail(3))
            new.append(tag)
        size = len(manifest_text(self.engine, one.reference, one.digest))
        record = form.image_record(pins.stack, one.image, rendered.key, one.digest, size)
        self._put(form.record_tag(one.image, one.key), record, [form.EMPTY], new, other)

    def _put(self, tag: str, manifest: Manifest, blobs: Sequence[bytes], new: list[str], other: list[str]) -> None:
        there = self.repository.digest_of(tag)
        if there is None:
            for blob in blobs:
                self.repository.upload(blob)
            self.repository.put_manifest(tag, manifest)
            new.append(tag)
        elif there != manifest.digest:
            other.append(f"{self._where(tag)}\nthere {there}\nhere  {manifest.digest}")

    def _docker(self, *words: str) -> Finished:
        return run(["docker", *words], env=self.engine.environment, timeout=TRANSFER_SECONDS)

    def _where(self, tag: str) -> str:
        return f"{self.repository.place}:{tag}"

    def _tried(self, ask: Callable[[], T | None]) -> T | None:
        """What was asked for; None where the cache has not got it, does not answer, or has something wrong, of which a person is told."""
        if self.silent:
            return None
        try:
            return ask()
        except RefNotFoundError:
            return None
        except UpstreamError as error:
            self.silent = True
            self.console.step(f"the cache is not used: {error.what}" + (f" ({error.why})" if error.why else ""))
        except (CacheEntryError, HashMismatchError) as error:
            self._say(error)
        return None

    def _say(self, error: KilnError) -> None:
        """A cache entry is wrong: said in full, even where progress is not wanted."""
        text = [error.what, error.why, "It is not used: what it stands for is built here.", error.fix]
        self.console.warn("\n".join(filter(None, text)))


def in_engine(workspace: Workspace, engine: Engine, builder: str = "") -> set[str]:
    """The keys of the components that this engine built (or a ``builder`` elsewhere): those of every image on record that the engine still holds."""
    return {
        key
        for record in all_records(workspace)
        if record.builder == builder and image_digest(engine, record.reference) == record.digest
        for name, key in record.keys.items()
        if name not in record.restored
    }


def built_here(workspace: Workspace, component: str, key: str) -> list[Layer]:
    """The layers that building this component under this key gave in this project, as the records say."""
    return [
        layer
        for record in all_records(workspace)
        if record.keys.get(component) == key and component not in record.restored
        for layer in record.layers
        if layer.component == component
    ]


def _speaks_of_bytes(text: str) -> bool:
    """Whether Docker refused to pull something because of what came, and not because nothing came (containerd's words)."""
    return any(
        word in text for word in ("failed precondition", "unexpected commit", "size validation", "digest mismatch")
    )


def _not_what_was_built(where: str, expected: str, found: str) -> CacheEntryError:
    return CacheEntryError(
        f"the cache entry {where} is not what was built under this key", why=f"expected {expected}\ngot      {found}"
    )
