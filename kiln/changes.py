"""Where each component of a plan is kept, or which of its inputs is another than when it was last built here: from the build records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kiln.plan import ROOTFS, Input, Unit
from kiln.records import Built, Made

if TYPE_CHECKING:
    from kiln.render import Rendered

# A line for people names this many changes, JSON all of them.
SHOWN = 8
# What components stand on beside each other, as a person calls it.
_GROUNDS = {
    ROOTFS: "the root file system",
    "ground": "the base image with its packages and build tools",
    "tools": "the build tools",
    "checks": "the checks of wheels",
}
_SETTINGS = {
    "platform": "the platform changed",
    "epoch": "the stack's time (epoch) changed",
    "builder": "the builder's settings changed",
}


@dataclass(frozen=True)
class Kept:
    """One component of a plan: the image of the engine that has it with this very key, else why it is to be built.

    ``image`` is ``""`` where the engine has none, None where nobody can say.
    """

    component: str
    key: str
    image: str | None
    reasons: tuple[str, ...]

    @property
    def state(self) -> str:
        """In one word or three."""
        return "unknown" if self.image is None else "in the engine" if self.image else "to build"

    @property
    def described(self) -> str:
        """One line for people."""
        if self.image:
            return f"{self.state}, in {self.image}"
        more = [f"and {len(self.reasons) - SHOWN} more"] if len(self.reasons) > SHOWN else []
        return f"{self.state}: {'; '.join([*self.reasons[:SHOWN], *more])}"


class Known:
    """What the build records say, and of their images those that the engine still holds; ``held`` is asked for a record when it matters.

    ``held`` is None where no engine is up.
    """

    def __init__(self, records: Sequence[Built], held: Callable[[Built], bool] | None) -> None:
        self._held, self._asked = held, dict[str, bool]()
        self._images: dict[tuple[str, str], list[Built]] = {}
        self._last: dict[tuple[str, str], Made] = {}
        # Records of an older Kiln do not say what was built of what.
        self._silent = {record.image for record in records if not record.components}
        for record in records:
            for made in record.components:
                self._images.setdefault((made.name, made.key), []).append(record)
                self._last.setdefault((record.image, made.name), made)

    def kept(self, image: str, unit: Unit) -> Kept:
        """Where a component of an image is kept, or why it is to be built."""
        there = self._images.get((unit.name, unit.key), [])
        if there and self._held is None:
            why = f"built here, in {there[0].reference}; no engine is up to say whether it still has it"
            return Kept(unit.name, unit.key, None, (why,))
        for record in there:
            if self._holds(record):
                return Kept(unit.name, unit.key, record.reference, ())
        if there:
            reasons: tuple[str, ...] = (f"the engine no longer holds {there[0].reference}, which has it",)
        else:
            reasons = self._reasons(image, unit)
        return Kept(unit.name, unit.key, "", reasons)

    def _holds(self, record: Built) -> bool:
        if self._held is None:
            return False
        if record.digest not in self._asked:
            self._asked[record.digest] = self._held(record)
        return self._asked[record.digest]

    def _reasons(self, image: str, unit: Unit) -> tuple[str, ...]:
        if last := self._last.get((image, unit.name)):
            return differences(last, unit)
        if image in self._silent:
            return ("no record says what it was built of before",)
        return ("never built here",)


def kept_components(images: Iterable[Rendered], known: Known) -> dict[str, tuple[Kept, ...]]:
    """The components of every image, by its name."""
    return {one.image.name: tuple(known.kept(one.image.name, unit) for unit in one.units) for one in images}


def differences(made: Made, unit: Unit) -> tuple[str, ...]:
    """What of a component is another than when it was last built, the most telling first."""
    parts = unit.parts
    changed = [name for name in dict.fromkeys((*parts, *made.parts)) if parts.get(name) != made.parts.get(name)]
    found = list(_inputs(made.inputs, unit.inputs))
    if not found:
        # An input that no entry of the lock stands for, such as the submodules that are left out.
        found = [f"what is in {name.removeprefix('input ')} changed" for name in changed if name.startswith("input ")]
    found += ["its recipe's text changed"] if "recipe" in changed else []
    for name in changed:
        if name.startswith("on "):
            below = name.removeprefix("on ")
            found.append(f"builds on {_GROUNDS.get(below, below)}, which changed")
    found += [_SETTINGS[name] for name in changed if name in _SETTINGS]
    return tuple(found) or ("its key is made of other parts than it was",)


def _inputs(before: Iterable[Input], now: Iterable[Input]) -> Iterable[str]:
    old, new = ({(one.kind, one.name): one for one in inputs} for inputs in (before, now))
    for key, one in new.items():
        was = old.get(key)
        if was is None:
            yield f"{_called(one)} is new"
        elif was.digest != one.digest or was.version != one.version:
            yield _change(was, one)
    for key, one in old.items():
        if key not in new:
            yield f"{_called(one)} is gone"


def _called(one: Input) -> str:
    return " ".join(filter(None, (one.kind, one.name, one.version)))


def _change(was: Input, now: Input) -> str:
    if now.kind == "folder":
        return f"the files of {now.name} changed"
    label = f"{now.kind} {now.name}"
    if now.kind == "wheel" and was.version != now.version:
        return f"{label} {was.version} -> {now.version}"
    if now.kind == "source" and was.version != now.version:
        return f"{label} {was.version} ({was.digest[:12]}) -> {now.version} ({now.digest[:12]})"
    return f"{' '.join(filter(None, (label, now.version)))}: {was.digest[:12]} -> {now.digest[:12]}"
