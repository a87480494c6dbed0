"""What differs between the configurations and manifests of two images, field by field, and which layer of one belongs to which of the other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import Any

from kiln.difftext import shown_text
from kiln.ociimage import OciImage

# What of a manifest the layers say by themselves, and of a configuration.
_ELSEWHERE = {"layers", "config"}


@dataclass(frozen=True)
class FieldDifference:
    """A field that differs, with both values; None where one image has it not. ``group`` is the word that ignores it."""

    field: str
    group: str
    a: str | None
    b: str | None


def fields(one: OciImage, other: OciImage) -> list[FieldDifference]:
    """Every field of configuration and manifest that differs, in the order of their names."""
    found = list(_tables("", one.config, other.config, {"config", "history", "rootfs"}))
    found += _config(one.config.get("config") or {}, other.config.get("config") or {})
    found += _history(_entries(one.config.get("history")), _entries(other.config.get("history")))
    found += _tables("manifest.", one.manifest, other.manifest, {*_ELSEWHERE, "annotations"}, "manifest")
    notes = (one.manifest.get("annotations") or {}, other.manifest.get("annotations") or {})
    found += _tables("annotations.", *notes, set(), "annotations")
    found += _rootfs(one, other)
    return sorted(found, key=lambda each: each.field)


def _tables(
    prefix: str, one: dict[str, Any], other: dict[str, Any], skip: set[str], group: str = ""
) -> Iterator[FieldDifference]:
    for key in sorted((one.keys() | other.keys()) - skip):
        if one.get(key) != other.get(key):
            yield FieldDifference(
                shown_text(prefix + key), group or shown_text(key.lower()), _shown(one.get(key)), _shown(other.get(key))
            )


def _config(one: dict[str, Any], other: dict[str, Any]) -> Iterator[FieldDifference]:
    """The settings to run with: variables and labels one by one, everything else as it is written."""
    yield from _tables("", one, other, {"Env", "Labels"})
    yield from _tables("label.", one.get("Labels") or {}, other.get("Labels") or {}, set(), "labels")
    lists = [[str(item) for item in side.get("Env") or []] for side in (one, other)]
    tables = [dict(item.partition("=")[::2] for item in side) for side in lists]
    changed = list(_tables("env.", tables[0], tables[1], set(), "env"))
    yield from changed
    if not changed and lists[0] != lists[1]:
        yield FieldDifference("env (order)", "env", _shown(lists[0]), _shown(lists[1]))


def _history(one: list[Any], other: list[Any]) -> Iterator[FieldDifference]:
    """Steps by their place; where one image has a step more, what is equal finds its like first."""
    mine_keys, their_keys = ([json.dumps(step, sort_keys=True) for step in side] for side in (one, other))
    for tag, a1, a2, b1, b2 in SequenceMatcher(None, mine_keys, their_keys, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        for mine, theirs in zip_longest(range(a1, a2), range(b1, b2)):
            steps = [side[at] if at is not None else None for side, at in ((one, mine), (other, theirs))]
            tables = [step for step in steps if isinstance(step, dict)]
            name = f"history[{(mine if mine is not None else theirs or 0) + 1}]"
            if len(tables) == 2:
                yield from _tables(f"{name}.", tables[0], tables[1], set(), "history")
            else:
                yield FieldDifference(name, "history", _shown(steps[0]), _shown(steps[1]))


def _rootfs(one: OciImage, other: OciImage) -> Iterator[FieldDifference]:
    """A layer with one digest has one tar in it: images that say otherwise contradict each other."""
    tars = {layer.digest: layer.diff_id for layer in one.layers}
    for layer in other.layers:
        if tars.get(layer.digest, layer.diff_id) != layer.diff_id:
            yield FieldDifference(f"rootfs ({layer.digest[:19]}…)", "rootfs", tars[layer.digest], layer.diff_id)
    sides = [{layer.digest: (layer.media_type, layer.size) for layer in image.layers} for image in (one, other)]
    for digest in sorted(sides[0].keys() & sides[1].keys()):
        if sides[0][digest] != sides[1][digest]:
            yield FieldDifference(
                f"layers ({digest[:19]}…)", "layers", _shown(list(sides[0][digest])), _shown(list(sides[1][digest]))
            )
    orders = [
        [layer.digest for layer in image.layers if layer.digest in sides[0] and layer.digest in sides[1]]
        for image in (one, other)
    ]
    if orders[0] != orders[1]:
        yield FieldDifference("layers (order)", "layers", _shown(orders[0]), _shown(orders[1]))


def _entries(found: Any) -> list[Any]:
    return found if isinstance(found, list) else []


def _shown(value: Any) -> str | None:
    if value is None:
        return None
    return shown_text(value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False))


@dataclass(frozen=True)
class Matched:
    """A layer and its counterpart, by their places (from 0); None where one image has none."""

    name: str
    a: int | None
    b: int | None


def match_layers(one: OciImage, other: OciImage, names: Sequence[str], others: Sequence[str]) -> list[Matched]:
    """Which layer belongs to which: by component where both are named, else by tar, and between equal ones by place.

    ``names`` are the components of the layers in order, '' where that is not known.
    """
    here, there = _named(one, names), _named(other, others)
    by_name = dict(zip(here, range(len(here)), strict=True))
    found: dict[int, int] = {}
    for place, name in enumerate(there):
        if name and name in by_name:
            found[by_name[name]] = place
    left = [[n for n in range(len(here)) if n not in found], [n for n in range(len(there)) if n not in found.values()]]
    ids = [[image.layers[n].diff_id for n in places] for image, places in zip((one, other), left, strict=True)]
    for tag, a1, a2, b1, b2 in SequenceMatcher(None, ids[0], ids[1], autojunk=False).get_opcodes():
        if tag in ("equal", "replace"):
            found |= dict(zip(left[0][a1:a2], left[1][b1:b2], strict=False))
    matched = [Matched(_layer_name(one, here, n), n, found.get(n)) for n in range(len(here))]
    matched += [Matched(_layer_name(other, there, n), None, n) for n in range(len(there)) if n not in found.values()]
    return matched


def _named(image: OciImage, names: Sequence[str]) -> list[str]:
    """The components of the layers; none where the names are not one for each layer, each its own."""
    known = [name for name in names if name]
    fits = len(names) == len(image.layers) and len(set(known)) == len(known)
    return list(names) if fits else [""] * len(image.layers)


def _layer_name(image: OciImage, names: list[str], place: int) -> str:
    """The component, or the place and the step that made it: the image itself says no more."""
    if names[place]:
        return names[place]
    steps = [
        str(step.get("created_by", ""))
        for step in _entries(image.config.get("history"))
        if isinstance(step, dict) and not step.get("empty_layer")
    ]
    step = shown_text(steps[place]).removesuffix(" # buildkit") if len(steps) == len(image.layers) else ""
    return f"layer {place + 1}" + (f" ({step[:60]})" if step else "")
