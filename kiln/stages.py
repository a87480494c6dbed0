"""Which stages and contexts of rendered Dockerfiles a build needs, and what stages use of each other.

Kiln's own Dockerfiles are read here, and no others: a stage that is used in a way that is not understood is an error, not a guess.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from kiln.errors import RenderError
from kiln.render import Rendered

# An image's stage or context: the image's name, and its own.
Node = tuple[str, str]
OUT = "/out/"
# What a mount without `from` and an ADD read: the first of an image's contexts.
_MAIN = ""


@dataclass(frozen=True)
class Use:
    """One stage that uses another stage or a context: which, by whom, and what of it ("" for all, where it is what a stage begins from)."""

    node: Node
    by: Node
    path: str


@dataclass(frozen=True)
class Graph:
    """The stages of an image and of those that it is built with, down to the contexts."""

    start: Node
    uses: dict[Node, tuple[Use, ...]]

    def reached(self, cut: Collection[Node] = ()) -> dict[Node, tuple[Use, ...]]:
        """All that the build needs where ``cut`` is there already, and for what."""
        found: dict[Node, tuple[Use, ...]] = {self.start: ()}
        todo = [self.start]
        while todo:
            node = todo.pop()
            for use in () if node in cut else self.uses.get(node, ()):
                if use.node not in found:
                    todo.append(use.node)
                found[use.node] = (*found.get(use.node, ()), use)
        return found


def read_graph(images: Sequence[Rendered]) -> Graph:
    """The graph of the last of ``images``, which those before it are built for. Raises RenderError where a Dockerfile is not understood."""
    uses: dict[Node, tuple[Use, ...]] = {}
    for rendered in images:
        image = rendered.image.name
        main, *_ = rendered.contexts
        for stage, used in _stages(rendered.dockerfile):
            by = (image, stage)
            uses[by] = tuple(Use((image, main.name if name == _MAIN else name), by, path) for name, path in used)
        for context in rendered.contexts:
            if context.target:
                parent = next(name for name in rendered.parents if f"{context.target}-".startswith(f"{name}-"))
                by = (image, context.name)
                whole = Use((parent, context.target.removeprefix(f"{parent}-")), by, "")
                # A stage of another image is used through its context, so what is wanted of the one is wanted of the other.
                uses[by] = (whole,)
    last = images[-1].image.name
    return Graph((last, last), uses)


def _stages(dockerfile: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    name, used = "", list[tuple[str, str]]()
    for words in _instructions(dockerfile):
        if words[0] == "FROM":
            if name:
                yield name, used
            name, used = words[3], [] if words[1] == "scratch" else [(words[1], "")]
        elif words[0] in ("COPY", "ADD"):
            used += _copied(words)
        elif words[0] == "RUN":
            used += _mounted(words)
    yield name, used


def _copied(words: list[str]) -> list[tuple[str, str]]:
    options = [word for word in words[1:] if word.startswith("--")]
    given = [word for word in words[1:] if not word.startswith("--")]
    if given[0].startswith("<<"):
        return []
    stage = next((option.removeprefix("--from=") for option in options if option.startswith("--from=")), _MAIN)
    return [(stage, path) for path in given[:-1]]


def _mounted(words: list[str]) -> list[tuple[str, str]]:
    used = []
    for word in words:
        if word.startswith("--mount="):
            fields = dict(part.partition("=")[::2] for part in word.removeprefix("--mount=").split(","))
            if fields.get("type") != "bind":
                raise RenderError(f"Kiln reads no mounts but those of type bind: {word}")
            used.append((fields.get("from", _MAIN), fields.get("source", "/")))
    return used


def _instructions(dockerfile: str) -> Iterator[list[str]]:
    """Each instruction as its words, without comments and here-documents."""
    lines = iter(dockerfile.splitlines())
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        whole = line
        while whole.endswith("\\"):
            whole = whole[:-1] + " " + next(lines)
        yield whole.split()
        if found := re.search(r"<<-?['\"]?(\w+)['\"]?", whole if not whole.startswith("RUN") else ""):
            for document in lines:
                if document.strip() == found[1]:
                    break


def restorable(images: Sequence[Rendered], wanted: Collection[Node]) -> tuple[list[Node], dict[Node, str]]:
    """Which of the components in ``wanted`` can stand in for their stages with their ``/out`` alone, in the order of the images; and why others cannot.

    One that nothing needs where the others are there is in neither.
    """
    graph = read_graph(images)
    own = {
        (rendered.image.name, unit.name): [
            *((rendered.image.name, name) for name, _ in _stages(unit.stage) if name and name != unit.name),
            *((rendered.image.name, context.name) for context in unit.contexts),
        ]
        for rendered in images
        for unit in rendered.units
    }
    taken = [node for node in own if node in wanted]
    refused: dict[Node, str] = {}
    while True:
        reached = graph.reached(taken)
        found = {node: reason for node in taken if (reason := _reason(graph, node, own[node], reached))}
        if not found:
            return [node for node in taken if _needed(node, reached, graph)], refused
        refused |= found
        taken = [node for node in taken if node not in found]


def _needed(node: Node, reached: dict[Node, tuple[Use, ...]], graph: Graph) -> bool:
    return node in reached and node != graph.start


def _reason(graph: Graph, node: Node, own: Collection[Node], reached: dict[Node, tuple[Use, ...]]) -> str:
    """Why this component cannot be restored while all of ``reached`` is built, or ""."""
    for use in _uses_of(node, reached, graph):
        if use.path != OUT:
            return f"{use.by[1]} uses {use.path or 'all'} of it, and not only {OUT}"
    for part in own:
        for use in reached.get(part, ()):
            return f"{use.by[1]} needs {use.path} of {part[1]}, which only building it leaves"
    return ""


def _uses_of(node: Node, reached: dict[Node, tuple[Use, ...]], graph: Graph) -> Iterator[Use]:
    """Who uses a stage, where a context that stands for it in another image's Dockerfile is looked through."""
    for use in reached.get(node, ()):
        through = use.path == "" and graph.uses.get(use.by) == (use,) and use.by[0] != node[0]
        yield from reached.get(use.by, ()) if through else (use,)
