"""Two images compared: what differs, in which layer and file, of which kind. In: two images that can be read; out: one ``Diff``.

Strict unless told otherwise: only the same manifest is the same image. With ``ignore`` the kinds and fields named there do not count, and the
result says what it left out.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from kiln.console import Console, megabytes
from kiln.diffconfig import FieldDifference, Matched, fields, match_layers
from kiln.diffkinds import Finding, Hints, Kind, ignored
from kiln.difflayer import Compared, FileDifference, LayerPair, Show
from kiln.ociimage import OciImage, Reader

# How many files a result lists; all are counted.
LISTED = 10_000
# How many files a tool from outside is called for.
SHOWN = 5


@dataclass(frozen=True)
class Side:
    """One of the two images: what it was named, and its manifest digest."""

    name: str
    digest: str


@dataclass(frozen=True)
class LayerDifference:
    """A layer that differs. Its places count from 1, None where one image has it not; ``differing`` counts all files, ``files`` lists the first of them."""

    name: str
    place_a: int | None
    place_b: int | None
    digest_a: str
    digest_b: str
    findings: tuple[Finding, ...]
    files: tuple[FileDifference, ...]
    differing: int
    members: int


@dataclass(frozen=True)
class Diff:
    """The result. ``kinds`` counts the files (and tars) by kind, ``ignored`` what was left out by kind or field."""

    a: Side
    b: Side
    fields: tuple[FieldDifference, ...] = ()
    layers: tuple[LayerDifference, ...] = ()
    kinds: tuple[tuple[Kind, int], ...] = ()
    ignored: tuple[tuple[str, int], ...] = ()

    @property
    def identical(self) -> bool:
        """Whether both are one image, to the bit."""
        return self.a.digest == self.b.digest

    @property
    def same(self) -> bool:
        """Whether nothing differs that counts."""
        return not self.fields and not self.layers

    @property
    def files(self) -> int:
        """How many files differ in what counts."""
        return sum(layer.differing for layer in self.layers)

    def data(self) -> dict[str, Any]:
        """The result as JSON data."""
        found: dict[str, Any] = {"schema_version": 1, "identical": self.identical, "same": self.same, **asdict(self)}
        return found | {"kinds": {str(kind): count for kind, count in self.kinds}, "ignored": dict(self.ignored)}


@dataclass(frozen=True)
class Options:
    """How to compare: what does not count, what is known of the builds, and a tool that shows files.

    ``names`` tells the components of an image's layers, in order ('' where one is not known; nothing where none is).
    """

    ignore: frozenset[str] = frozenset()
    hints: Hints = field(default_factory=Hints)
    names: Callable[[OciImage], Sequence[str]] = lambda _: ()
    show: Show | None = None
    listed: int = LISTED


def diff(reader: Reader, a: str, b: str, options: Options) -> Diff:
    """Compare two images by what people call them. Where the engine says that both are one, neither is read.

    Raises UsageError for what names no image, ImageDamagedError where one is not whole; see ``Reader``.
    """
    digests = reader.digest(a), reader.digest(b)
    if digests[0] and digests[0] == digests[1]:
        return Diff(Side(a, digests[0]), Side(b, digests[1]))
    one, other = reader.read(a, b)
    return compare(one, other, reader.scratch, reader.console, options)


def compare(one: OciImage, other: OciImage, scratch: Path, console: Console, options: Options) -> Diff:
    """Compare two images that were opened. ``scratch`` is a folder for files that differ, emptied again. Raises ImageDamagedError."""
    sides = Side(one.name, one.digest), Side(other.name, other.digest)
    if one.digest == other.digest:
        return Diff(*sides)
    ignore = ignored(options.ignore)
    hints = replace(options.hints, times=(*options.hints.times, *_times(one), *_times(other), int(time.time())))
    differing = fields(one, other)
    kinds: Counter[Kind] = Counter()
    left_out: Counter[str] = Counter(each.group for each in differing if each.group in ignore)
    counted = tuple(each for each in differing if each.group not in ignore)
    layers: list[LayerDifference] = []
    seen = bool(differing)
    room, shown = options.listed, SHOWN
    for matched in match_layers(one, other, options.names(one), options.names(other)):
        compared = _layer(
            one, other, matched, scratch, console, replace(options, hints=hints, ignore=ignore, listed=room), shown
        )
        if compared is None:
            continue
        seen = True
        kinds.update(compared.kinds)
        left_out.update({str(kind): count for kind, count in compared.ignored.items()})
        if compared.findings or compared.differing:
            layers.append(_difference(one, other, matched, compared))
        room -= len(compared.files)
        shown -= sum(bool(file.inside) for file in compared.files)
    if not seen:
        # The same to every reader, in other bytes: spaces or the order of keys in the manifest or the configuration.
        counted = (FieldDifference("manifest (spelling)", "manifest", one.digest, other.digest),)
    return Diff(*sides, counted, tuple(layers), tuple(sorted(kinds.items())), tuple(sorted(left_out.items())))


def _layer(
    one: OciImage, other: OciImage, matched: Matched, scratch: Path, console: Console, options: Options, shown: int
) -> Compared | None:
    """What differs in a layer; None where nothing does."""
    if matched.a is None or matched.b is None:
        kind = Kind.REMOVED if matched.b is None else Kind.ADDED
        layer = one.layers[matched.a] if matched.a is not None else other.layers[matched.b or 0]
        return _whole(Finding(kind, f"the whole layer, {megabytes(layer.size)}"), options)
    mine, theirs = one.layers[matched.a], other.layers[matched.b]
    if mine.digest == theirs.digest:
        return None
    console.step(f"comparing {matched.name}: {megabytes(mine.size)} and {megabytes(theirs.size)}")
    pair = LayerPair((one, matched.a), (other, matched.b), scratch, console)
    if mine.diff_id == theirs.diff_id:
        # That the tar is the same is so far only what both configurations say.
        pair.read_both()
        return _whole(Finding(Kind.COMPRESSION, f"{mine.size} / {theirs.size} bytes of the same tar"), options)
    return pair.compare(options.hints, options.ignore, max(options.listed, 0), options.show, shown)


def _whole(finding: Finding, options: Options) -> Compared:
    compared = Compared()
    (compared.ignored if finding.kind in options.ignore else compared.kinds)[finding.kind] += 1
    compared.findings += [finding] if finding.kind not in options.ignore else []
    return compared


def _difference(one: OciImage, other: OciImage, matched: Matched, compared: Compared) -> LayerDifference:
    return LayerDifference(
        matched.name,
        None if matched.a is None else matched.a + 1,
        None if matched.b is None else matched.b + 1,
        "" if matched.a is None else one.layers[matched.a].digest,
        "" if matched.b is None else other.layers[matched.b].digest,
        tuple(compared.findings),
        tuple(compared.files),
        compared.differing,
        compared.members,
    )


def _times(image: OciImage) -> tuple[int, ...]:
    """When the image says that it was made."""
    try:
        return (int(datetime.fromisoformat(str(image.config.get("created"))).timestamp()),)
    except (ValueError, OverflowError):
        return ()
