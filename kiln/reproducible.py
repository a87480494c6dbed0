"""How far a component is the same again: five levels, each of which holds all before it.

What is claimed stands in ``image.toml`` (``[reproducible]``), in the image's labels and in `kiln plan`. It is claimed where it was measured: `kiln repro`
builds twice and fails where it finds less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kiln.image import Image
    from kiln.lockfile import Lock

LEVELS: Mapping[str, str] = {
    "inputs-pinned": "every input is in the lock, by sha256 or commit",
    "pure-render": "and its recipe renders to the same bytes everywhere",
    "same-content": "and two builds hold the same files, apart from times and order",
    "same-digest": "and two builds with one BuildKit give the same layer digest, whatever the day, folder, disk and machine settings",
    "across-builders": "and so do two versions of BuildKit",
}
# An input of it is not in the lock: no level holds.
NONE = "unpinned"


def level_of(image: Image, component: str, lock: Lock) -> str:
    """The level that is claimed of a component of an image; none while an input of it is not resolved."""
    if any(entry.name == component for entry in lock.unresolved):
        return NONE
    return dict(image.reproducible).get(component) or dict(image.reproducible)["default"]


def measured(digests: Sequence[str], builders: Sequence[str], *, same_content: bool = False) -> str:
    """The level that builds show of one component: the digest of its layer in each build, and which builder made it.

    ``same_content`` is what a comparison of the files said where the digests differ. Two builds of one builder are the least.
    """
    if len(set(digests)) == 1:
        return "across-builders" if len(set(builders)) > 1 else "same-digest"
    first = {digest for digest, builder in zip(digests, builders, strict=True) if builder == builders[0]}
    if len(first) == 1:
        return "same-digest"
    return "same-content" if same_content else "pure-render"


def below_claim(claimed: str, found: str, *, across: bool) -> bool:
    """Whether builds showed less than is claimed. One builder alone cannot show the highest level, and does not deny it."""
    order = list(LEVELS)
    most = "across-builders" if across else "same-digest"
    if claimed == NONE:
        return False
    return order.index(found) < min(order.index(claimed), order.index(most))
