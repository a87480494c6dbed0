"""What a source itself requires, against what is locked: a component at another ref may want other wheels than those that were chosen for it."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from kiln.errors import ResolveError
from kiln.lockentries import Unresolved, Wheel
from kiln.pins import Pins

Read = Callable[[str], bytes | None]


def unmet(pins: Pins, component: str, read: Read, wheels: Iterable[Wheel]) -> list[Unresolved]:
    """The requirements of a component's source that the locked wheels do not meet.

    ``read`` gives a file of the source, or None. A requirement on what is not locked is no matter here: upstream's files also name what only
    its tests need, and what is built from source is judged when it is built. Raises ResolveError where a file is not there.
    """
    locked = {wheel.name: wheel for wheel in wheels}
    found = []
    for path in pins.by_name[component].requirements:
        for requirement in requirements_in(component, path, read):
            wheel = locked.get(str(canonicalize_name(requirement.name)))
            if (
                wheel
                and holds(requirement, pins.python)
                and not requirement.specifier.contains(wheel.version, prereleases=True)
            ):
                wanted = f"{wheel.name}{requirement.specifier}"
                asks = f"{component} {pins.by_name[component].ref} asks for it in its {path}, and {wheel.version} is locked"
                found.append(
                    Unresolved("wheel", component, wanted, f"{asks}; choose it with --set NAME=VERSION, or in the pins")
                )
    return found


def requirements_in(component: str, path: str, read: Read) -> Iterator[Requirement]:
    """The requirements of a requirements file and of those that it includes (``-r``); options and addresses are passed over."""
    for line in requirement_lines(component, path, read):
        if not line.text.startswith("-"):
            try:
                yield Requirement(line.text)
            except InvalidRequirement:
                continue


@dataclass(frozen=True)
class RequirementLine:
    """A line of a requirements file without its comment, and where it stands."""

    file: str
    number: int
    text: str


def requirement_lines(
    component: str, path: str, read: Read, seen: frozenset[str] = frozenset()
) -> Iterator[RequirementLine]:
    """The lines of a requirements file that say something, with those of the files that it includes in their place. Raises ResolveError."""
    data = read(path)
    if data is None:
        raise ResolveError(
            f"the source of {component} has no {path}, which the pins say holds its requirements",
            fix=f"correct components.{component}.requirements",
        )
    for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
        text = re.sub(r"(^|\s)#.*", "", line).strip()
        if included := re.match(r"(?:-r|--requirement)[ =](\S+)", text):
            inside = posixpath.normpath(posixpath.join(posixpath.dirname(path), included[1]))
            if inside not in seen:
                yield from requirement_lines(component, inside, read, seen | {path})
        elif text:
            yield RequirementLine(path, number, text)


def holds(requirement: Requirement, python: str) -> bool:
    """Whether a requirement's marker holds in an image with that Python."""
    environment = {"python_version": python, "sys_platform": "linux", "platform_machine": "x86_64", "extra": ""}
    return requirement.marker is None or requirement.marker.evaluate(environment)
