"""Components that need not be built: which stages and contexts something else stands in for, and the layer that each of them must become."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kiln.errors import CacheEntryError
from kiln.records import Layer
from kiln.render import Rendered
from kiln.stages import Node, read_graph
from kiln.store import write_whole
from kiln.workspace import Workspace

FOLDER = "restored"
BAKE_FILE = f"{FOLDER}/docker-bake.json"
EMPTY = f"{FOLDER}/empty"


@dataclass(frozen=True)
class Entry:
    """A component as a cache has it: the entry's name for people, and the layer."""

    where: str
    layer: Layer


@dataclass(frozen=True)
class Given:
    """What of a build is there already: entries of components by image and stage, and the contexts that are not needed then."""

    entries: Mapping[Node, Entry]
    unneeded: frozenset[Node]

    def require_layers(self, image: str, layers: Sequence[Layer]) -> None:
        """Raise CacheEntryError naming the entries that did not become the layers that they hold.

        BuildKit packs the same files into the same layer; where it made another, the entry's was not made by building the component.
        """
        found = {layer.component: layer for layer in layers}
        wrong = [
            f"{entry.where}\nexpected {entry.layer.digest}\ngot      {found[name].digest}"
            for (_, name), entry in self.entries.items()
            if name in found and found[name].digest != entry.layer.digest
        ]
        if wrong:
            raise CacheEntryError(
                f"{image} has other layers than the cache entries that it was built from", why="\n".join(wrong)
            )


NOTHING_GIVEN = Given({}, frozenset())


def unneeded_contexts(images: Sequence[Rendered], restored: Sequence[Node]) -> frozenset[Node]:
    """The contexts that the last of ``images`` is built without, where ``restored`` stand in for their stages."""
    reached = read_graph(images).reached(restored)
    return frozenset(
        node
        for rendered in images
        for context in rendered.contexts
        if (node := (rendered.image.name, context.name)) not in reached
    )


def spared(images: Sequence[Rendered], given: Given) -> frozenset[str]:
    """The components none of whose inputs are needed: they need not even be fetched."""
    return frozenset(
        unit.name
        for rendered in images
        for unit in rendered.units
        if unit.contexts and all((rendered.image.name, context.name) in given.unneeded for context in unit.contexts)
    )


def write_bake_file(workspace: Workspace, images: Sequence[Rendered], given: Given, layouts: Mapping[Node, str]) -> str:
    """A bake file that lays ``layouts`` (stages, and what stands in for them) over the rendered ones; its name in the state folder.

    What is not needed becomes an empty folder, since bake looks for every context and builds every stage that it finds named as one.
    """
    (workspace.state / EMPTY).mkdir(parents=True, exist_ok=True)
    targets: dict[str, dict[str, dict[str, str]]] = {}
    for rendered in images:
        image = rendered.image.name
        contexts = {stage: place for (holder, stage), place in layouts.items() if holder == image}
        for context in rendered.contexts:
            if (image, context.name) in given.unneeded and context is not rendered.contexts[0]:
                contexts[context.name] = EMPTY
            for (holder, stage), place in layouts.items():
                if context.target == f"{holder}-{stage}":
                    contexts[context.name] = place
        targets[image] = {"contexts": contexts}
    write_whole(workspace.state / BAKE_FILE, json.dumps({"target": targets}, indent=2) + "\n")
    return BAKE_FILE
