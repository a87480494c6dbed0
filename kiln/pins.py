"""Pins: what a person chose for a stack. In: ``pins/<stack>.toml``. Out: a ``Pins`` value that the other stages read."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Literal, get_args

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from kiln.canonical import digest_of
from kiln.errors import UsageError
from kiln.tomlread import Problems, Table, read_table
from kiln.workspace import Workspace

SCHEMA = 1
Recipe = Literal["wheels", "plugins"]
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True)
class ComponentPins:
    """One component of a stack: its own recipe, build key and layer.

    ``wheels`` are ``name==version``; with ``dependencies_of`` set, the component holds what that other component's wheels
    need and nobody above it in the file holds already. ``without`` names direct dependencies that are left out, each with
    the reason. ``sources`` are folders of the project that are built into wheels.
    """

    name: str
    recipe: Recipe
    about: str
    wheels: tuple[str, ...] = ()
    index: str = ""
    dependencies_of: str = ""
    without: tuple[tuple[str, str], ...] = ()
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class DebianPins:
    """The Debian release that the root file system is made of, and the packages in it beside the essential ones."""

    suite: str
    architecture: str
    packages: tuple[str, ...]


@dataclass(frozen=True)
class Pins:
    """A stack as a person wrote it down."""

    stack: str
    target: str
    about: str
    platform: str
    epoch: int
    python: str
    glibc: str
    debian: DebianPins
    indexes: tuple[tuple[str, str], ...]
    components: tuple[ComponentPins, ...]
    tools: tuple[str, ...]
    images: tuple[str, ...]
    sha256: str

    @cached_property
    def by_name(self) -> dict[str, ComponentPins]:
        """The components by their names."""
        return {component.name: component for component in self.components}


def read_pins(workspace: Workspace, stack: str) -> Pins:
    """The pins of ``stack``. Raises UsageError where there is no such stack, PinsError listing all that is wrong with it.

    ``Pins.sha256`` covers what the file means, not how it is written: comments and line breaks may change freely.
    """
    path = workspace.pins_file(stack)
    if not path.is_file():
        known = ", ".join(workspace.stacks()) or "none"
        raise UsageError(
            f"there is no stack {stack!r}",
            why=f"Stacks with pins in this project: {known}.",
            fix="name one of them: STACK=… or `kiln … STACK`",
        )
    shown = workspace.shown(path)
    problems = Problems(shown)
    pins = _parse(
        read_table(path, shown, problems), problems, digest_of(tomllib.loads(path.read_text(encoding="utf-8")))
    )
    if pins.stack != stack:
        problems.add("stack.name", f"is {pins.stack!r}, but the file is named {stack}.toml")
    problems.raise_if_any()
    return pins


def _parse(top: Table, problems: Problems, sha256: str) -> Pins:
    if top.number("schema") != SCHEMA:
        problems.add("schema", f"must be {SCHEMA}")
    stack = top.table("stack")
    debian = top.table("debian")
    python = top.table("python")
    tools = top.table("tools")
    indexes = top.strings("indexes")
    components = tuple(_component(name, table, indexes) for name, table in _tables(top, "components"))
    pins = Pins(
        stack=stack.text("name", check=_name),
        target=stack.text("target", check=lambda text: None if text in ("cpu", "rocm") else "must be cpu or rocm"),
        about=stack.text("about"),
        platform=stack.text(
            "platform", check=lambda text: None if text == "linux/amd64" else "only linux/amd64 is supported"
        ),
        epoch=_epoch(stack),
        python=python.text("version", check=_minor_version),
        glibc=python.text("glibc", check=_minor_version),
        debian=DebianPins(
            debian.text("suite", check=_name), debian.text("architecture", check=_name), debian.texts("packages")
        ),
        indexes=tuple(indexes.items()),
        components=components,
        tools=tools.texts("wheels"),
        images=stack.texts("images"),
        sha256=sha256,
    )
    for requirement in pins.tools:
        _exact(requirement, "tools.wheels", problems)
    for table in (stack, debian, python, tools, top):
        table.done()
    _check_references(pins, problems)
    return pins


def _tables(top: Table, key: str) -> list[tuple[str, Table]]:
    group = top.table(key)
    return [(name, group.table(name)) for name in group.names()]


def _component(name: str, table: Table, indexes: dict[str, str]) -> ComponentPins:
    problems = table.problems
    if wrong := _name(name):
        problems.add(table.where, wrong)
    recipe = table.text(
        "recipe",
        check=lambda text: None if text in get_args(Recipe) else f"must be one of {', '.join(get_args(Recipe))}",
    )
    component = ComponentPins(
        name=name,
        recipe="plugins" if recipe == "plugins" else "wheels",
        about=table.text("about"),
        wheels=table.texts("wheels", ()),
        index=table.text("index", ""),
        dependencies_of=table.text("dependencies-of", ""),
        without=tuple((str(canonicalize_name(left)), reason) for left, reason in table.strings("without").items()),
        sources=table.texts("sources", ()),
    )
    for requirement in component.wheels:
        _exact(requirement, f"{table.where}.wheels", problems)
    if component.index and component.index not in indexes:
        problems.add(f"{table.where}.index", f"{component.index!r} is not among [indexes]")
    if recipe == "wheels" and bool(component.wheels) == bool(component.dependencies_of):
        problems.add(table.where, "give either wheels or dependencies-of")
    if recipe == "plugins" and not component.sources:
        problems.add(table.where, "a component of plugins needs sources")
    if recipe == "plugins" and (component.wheels or component.dependencies_of or component.without or component.index):
        problems.add(table.where, "a component of plugins is built from sources alone")
    table.done()
    return component


def _check_references(pins: Pins, problems: Problems) -> None:
    used_indexes = {component.index for component in pins.components}
    for name, _ in pins.indexes:
        if name not in used_indexes:
            problems.add(f"indexes.{name}", "no component uses it; remove it")
    # These names are stages of the same Dockerfile.
    reserved = {"rootfs", "tools", *pins.images, *(f"{component.name}-wheels" for component in pins.components)}
    for component in pins.components:
        if component.name in reserved:
            problems.add(f"components.{component.name}", "this name is another build stage's; choose another")
        if component.dependencies_of and component.dependencies_of not in pins.by_name:
            problems.add(
                f"components.{component.name}.dependencies-of", f"there is no component {component.dependencies_of!r}"
            )
    if len(set(pins.images)) != len(pins.images) or not pins.images:
        problems.add("stack.images", "name at least one image, and each once")


def _exact(requirement: str, where: str, problems: Problems) -> None:
    try:
        parsed = Requirement(requirement)
    except InvalidRequirement as error:
        problems.add(where, f"{requirement!r} is not a requirement: {error}")
        return
    specifiers = list(parsed.specifier)
    if (
        len(specifiers) != 1
        or specifiers[0].operator != "=="
        or "*" in specifiers[0].version
        or parsed.url
        or parsed.marker
    ):
        problems.add(where, f"{requirement!r} is not exact; write name==version")


def _name(text: str) -> str | None:
    return None if _NAME.fullmatch(text) else f"{text!r} is no name; use lower-case letters, digits and single hyphens"


def _minor_version(text: str) -> str | None:
    return None if re.fullmatch(r"\d+\.\d+", text) else f"{text!r} is no version of the form 3.11"


def _epoch(stack: Table) -> int:
    value = stack.raw("epoch")
    if not isinstance(value, datetime) or value.tzinfo is None:
        stack.problems.add("stack.epoch", "give a date with a time zone, such as 2026-11-01T00:00:00Z")
        return 0
    return int(value.astimezone(UTC).timestamp())
