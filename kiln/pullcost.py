"""What a node downloads that goes from one image to another: the layers that it has not, as registries have them, with manifest and configuration.

Known of images that were built here, from their build records; and of one that was not built yet as far as its components were.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kiln.console import megabytes
from kiln.errors import UsageError
from kiln.plan import ROOTFS
from kiln.records import BASE, Built, Layer, record_file
from kiln.workspace import Workspace

if TYPE_CHECKING:
    from kiln.render import Rendered

CURRENT = "current"


@dataclass(frozen=True)
class End:
    """One end of an update: what it is called, its layers, the size of manifest and configuration (None where it is not known), and the
    layers that nobody knows yet."""

    called: str
    digest: str
    layers: tuple[Layer, ...]
    described: int | None = None
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class PullCost:
    """The cost of an update. ``size`` is all of it in bytes, or the least that it can be where something is unknown."""

    start: End
    end: End

    @property
    def new(self) -> tuple[Layer, ...]:
        """The layers to download, each once."""
        have = {layer.digest for layer in self.start.layers}
        return tuple({layer.digest: layer for layer in self.end.layers if layer.digest not in have}.values())

    @property
    def described(self) -> int | None:
        """The bytes of manifest and configuration: none where both ends are one image."""
        return 0 if self.start.digest and self.start.digest == self.end.digest else self.end.described

    @property
    def size(self) -> int:
        """The bytes to download, as far as they are known."""
        return sum(layer.size for layer in self.new) + (self.described or 0)

    @property
    def unknown(self) -> tuple[str, ...]:
        """What to download nobody can say the size of before it is built."""
        return (*self.end.unknown, *(["manifest and configuration"] if self.described is None else []))

    def data(self) -> dict[str, object]:
        """For programs."""
        return {
            "from": {"image": self.start.called, "digest": self.start.digest},
            "to": {"image": self.end.called, "digest": self.end.digest},
            "bytes": self.size,
            "complete": not self.unknown,
            "layers": [{"component": one.component, "digest": one.digest, "size": one.size} for one in self.new],
            "manifest_and_config": self.described,
            "unknown": list(self.unknown),
        }

    def text(self) -> str:
        """For people."""
        least = "at least " if self.unknown else ""
        lines = [
            f"from {self.start.called or 'nothing'} to {self.end.called}: {least}{self.size:,} bytes ({megabytes(self.size)}) to download"
        ]
        lines += [f"  {one.component:20} {one.size:>14,}  {one.digest}" for one in self.new]
        if self.described:
            lines.append(f"  {'manifest, config':20} {self.described:>14,}")
        new = {one.digest for one in self.new}
        same = {layer.digest: layer.size for layer in self.end.layers if layer.digest not in new}
        lines.append(f"  {'there already':20} {sum(same.values()):>14,}  {len(same)} layers")
        if self.unknown:
            lines.append(f"  not known before it is built: {', '.join(self.unknown)}")
        return "\n".join(lines)


def pull_cost(
    workspace: Workspace, span: str, records: Sequence[Built], images: Sequence[Rendered], keys: Mapping[str, str]
) -> PullCost:
    """The cost of going along ``span``, FROM..TO: an empty FROM is a node that has nothing; ``current`` is what the pins say now.

    ``images`` are the stack's, ``keys`` the build keys of all their components and of what lies below them, as a record would have them.
    Raises UsageError where an end is no image that was built here.
    """
    first, dots, last = span.partition("..")
    if not dots or not last or (first == last == CURRENT):
        raise UsageError(
            f"--pull-cost {span!r} does not name two images", fix=f"FROM..TO, such as {_example(records)}..{CURRENT}"
        )
    named = {text: _record(workspace, text, records) for text in (first, last) if text and text != CURRENT}
    other = next(iter(named.values()), None)
    image = other.image if other else images[-1].image.name

    def end(text: str) -> End:
        if not text:
            return End("", "", ())
        if text == CURRENT:
            return _current(image, records, images, keys)
        record = named[text]
        return End(record.reference, record.digest, record.layers, record.described)

    return PullCost(end(first), end(last))


def _record(workspace: Workspace, text: str, records: Sequence[Built]) -> Built:
    """The record of the image that ``text`` names: by reference, digest, or the beginning of digest or key."""
    begins = text.removeprefix("sha256:")
    short = bool(re.fullmatch(r"[0-9a-f]{6,64}", begins))
    found = {
        record.digest: record
        for record in records
        if text in (record.reference, f"{record.reference.rpartition(':')[0]}@{record.digest}")
        or (short and record.digest.removeprefix("sha256:").startswith(begins))
        or (short and text == begins and record.key.startswith(begins))
    }
    if len(found) != 1:
        known = "\n".join(f"{record.reference}  {record.digest}" for record in records) or "none yet"
        raise UsageError(
            f"{text!r} is {'more than one image that was' if found else 'no image that was'} built here",
            why=f"Only what this folder's build records know can be compared. They know:\n{known}",
            fix="name one of them, by its reference, its digest, or the beginning of its build key",
        )
    (record,) = found.values()
    if not record.layers:
        file = workspace.shown(record_file(workspace, record.image, record.key))
        raise UsageError(
            f"the build record of {record.reference} names no layers",
            why="An older kiln wrote it.",
            fix=f"rm {file}, then build the image again (its steps are in the builder's cache): kiln build STACK",
        )
    return record


def _current(image: str, records: Sequence[Built], images: Sequence[Rendered], keys: Mapping[str, str]) -> End:
    """What the pins say now: from its record, or layer by layer from those of other builds, for the same key is the same layer."""
    rendered = next((one for one in images if one.image.name == image), None)
    if rendered is None:
        raise UsageError(
            f"the stack has no image {image!r}", fix="name images of this stack, or the stack of that image"
        )
    for record in records:
        if record.key == rendered.key and record.layers:
            return End(record.reference, record.digest, record.layers, record.described)
    known: dict[tuple[str, str], tuple[Layer, ...]] = {}
    for record in records:
        for name, key in record.keys.items():
            layers = tuple(layer for layer in record.layers if layer.component == name)
            if layers:
                known.setdefault((name, key), layers)
    names = rendered.layers if ROOTFS in rendered.layers else (BASE, *rendered.layers)
    found, unknown = list[Layer](), list[str]()
    for name in dict.fromkeys(names):
        layers = known.get((name, keys.get(name, "")), ())
        found += layers
        if not layers:
            unknown.append(name)
    return End(f"{image}, key {rendered.key[:16]}, not built", "", tuple(found), None, tuple(unknown))


def _example(records: Sequence[Built]) -> str:
    return records[0].key[:16] if records else "8fef078fe3c90673"
