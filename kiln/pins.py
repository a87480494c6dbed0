"""Pins: what a person chose for a stack. In: ``pins/<stack>.toml``. Out: a ``Pins`` value that the other stages read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import PurePosixPath

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from kiln.canonical import digest_of
from kiln.errors import UsageError
from kiln.tomlread import Problems, Table, read_table
from kiln.workspace import Workspace

SCHEMA = 1
TARGETS = ("cpu", "rocm")
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ARCH = re.compile(r"gfx[0-9a-f]{3,4}")


@dataclass(frozen=True)
class Pick:
    """A commit of a repository that is applied on top of a component's own."""

    git: str
    ref: str


@dataclass(frozen=True)
class ArchivePin:
    """A file that a component's build wants beside its source.

    ``url`` may hold ``{version}`` (with a format, such as ``{version:.8}``), which is the first line of the file ``version_from`` of the
    component's source. ``sha256`` is what its maker published, where somebody did.
    """

    name: str
    url: str
    version_from: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class ComponentPins:
    """One component of a stack: its own recipe, build key and layer.

    ``wheels`` are ``name==version``; with ``dependencies_of`` set, the component holds what that other component's wheels
    need and nobody above it in the file holds already; with ``requires`` set, it holds what these requirements resolve to. ``without``
    names direct dependencies that are left out, each with the reason. ``sources`` are folders of the project that are built into wheels.

    ``git`` and ``ref`` name a source that ``recipe`` builds into the distributions ``provides``, the first of them with ``version``, standing on
    the components ``on``; ``requirements`` are files of the source that say which wheels it wants.
    ``version_in_source`` says that the build cannot be told its version: at another ref it is what the source says, which nobody knows yet.
    """

    name: str
    recipe: str
    about: str
    wheels: tuple[str, ...] = ()
    index: str = ""
    dependencies_of: str = ""
    without: tuple[tuple[str, str], ...] = ()
    sources: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    git: str = ""
    ref: str = ""
    version: str = ""
    picks: tuple[Pick, ...] = ()
    archives: tuple[ArchivePin, ...] = ()
    without_submodules: tuple[tuple[str, str], ...] = ()
    provides: tuple[str, ...] = ()
    on: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()
    version_in_source: bool = False

    @property
    def holds_wheels(self) -> bool:
        """Whether the component is wheels from an index."""
        return bool(self.wheels or self.requires or self.dependencies_of)


@dataclass(frozen=True)
class PackagePins:
    """The distribution release that packages come from, and the packages that are asked for by name."""

    distribution: str
    suite: str
    architecture: str
    packages: tuple[str, ...]


@dataclass(frozen=True)
class BasePins:
    """The image that a ROCm stack stands on: its repository, the tag for people, the digest for machines, and the ROCm in it."""

    image: str
    tag: str
    digest: str
    rocm: str

    @property
    def reference(self) -> str:
        """Repository, tag and (where it is known) digest: what a Dockerfile's FROM names."""
        return f"{self.image}:{self.tag}" + (f"@{self.digest}" if self.digest else "")


@dataclass(frozen=True)
class Pins:
    """A stack as a person wrote it down; ``as_of`` is the moment (UTC) whose newest wheels requirements resolve to. With it goes what the command line chose instead (``overrides``: name and ref) and the advisories that it
    allowed and that apply."""

    stack: str
    target: str
    about: str
    platform: str
    epoch: int
    python: str
    glibc: str
    packages: PackagePins
    base: BasePins | None
    archs: tuple[str, ...]
    indexes: tuple[tuple[str, str], ...]
    components: tuple[ComponentPins, ...]
    tools: tuple[str, ...]
    images: tuple[str, ...]
    sha256: str
    as_of: str = ""
    overrides: tuple[tuple[str, str], ...] = ()
    allowed: tuple[str, ...] = ()

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
    top = read_table(path, shown, problems)
    pins = _parse(top, problems, digest_of(top.data))
    if pins.stack != stack:
        problems.add("stack.name", f"is {pins.stack!r}, but the file is named {stack}.toml")
    problems.raise_if_any()
    return pins


def _parse(top: Table, problems: Problems, sha256: str) -> Pins:
    if top.number("schema") != SCHEMA:
        problems.add("schema", f"must be {SCHEMA}")
    stack = top.table("stack")
    target = stack.text("target", check=lambda text: None if text in TARGETS else "must be cpu or rocm")
    distribution = "ubuntu" if target == "rocm" else "debian"
    packages = top.table(distribution)
    python = top.table("python")
    tools = top.table("tools")
    indexes = top.strings("indexes")
    components = tuple(_component(name, table, indexes, target) for name, table in _tables(top, "components"))
    archs = stack.texts("archs") if target == "rocm" else ()
    for arch in archs:
        if wrong := bad_arch(arch):
            problems.add("stack.archs", wrong)
    if target == "rocm" and len(set(archs)) != max(len(archs), 1):
        problems.add("stack.archs", "name at least one, and each once")
    pins = Pins(
        stack=stack.text("name", check=bad_name),
        target=target,
        about=stack.text("about"),
        platform=stack.text(
            "platform", check=lambda text: None if text == "linux/amd64" else "only linux/amd64 is supported"
        ),
        epoch=_epoch(stack),
        python=python.text("version", check=_minor_version),
        glibc=python.text("glibc", check=_minor_version),
        packages=PackagePins(
            distribution,
            packages.text("suite", check=bad_name),
            packages.text("architecture", check=bad_name),
            packages.texts("packages"),
        ),
        base=_base(top.table("base")) if target == "rocm" else None,
        archs=archs,
        indexes=tuple(indexes.items()),
        components=components,
        tools=tools.texts("wheels"),
        images=stack.texts("images"),
        sha256=sha256,
        as_of=_as_of(python) if target == "rocm" else "",
    )
    for requirement in pins.tools:
        _exact(requirement, "tools.wheels", problems)
    for table in (stack, packages, python, tools, top):
        table.done()
    _check_references(pins, problems)
    return pins


def _tables(top: Table, key: str) -> list[tuple[str, Table]]:
    group = top.table(key, required=False) if key != "components" else top.table(key)
    return [(name, group.table(name)) for name in group.names()]


def _base(table: Table) -> BasePins:
    base = BasePins(
        image=table.text(
            "image", check=lambda text: None if "/" in text and ":" not in text else "give host/name/name"
        ),
        tag=table.text("tag"),
        digest=table.text(
            "digest", "", check=lambda text: None if _DIGEST.fullmatch(text) else f"{text!r} is no sha256 digest"
        ),
        rocm=table.text("rocm", check=lambda text: None if re.fullmatch(r"\d+(\.\d+)+", text) else "give 7.2.3"),
    )
    table.done()
    return base


def _component(name: str, table: Table, indexes: dict[str, str], target: str) -> ComponentPins:
    problems = table.problems
    if wrong := bad_name(name):
        problems.add(table.where, wrong)
    component = ComponentPins(
        name=name,
        recipe=table.text("recipe", check=bad_name),
        about=table.text("about"),
        wheels=table.texts("wheels", ()),
        index=table.text("index", ""),
        dependencies_of=table.text("dependencies-of", ""),
        without=tuple((str(canonicalize_name(left)), reason) for left, reason in table.strings("without").items()),
        sources=table.texts("sources", ()),
        requires=table.texts("requires", ()),
        git=table.text("git", "", check=_git_url),
        ref=table.text("ref", ""),
        version=table.text("version", "", check=_version),
        picks=tuple(_pick(text, table) for text in table.texts("picks", ())),
        archives=tuple(_archive(archive, entry) for archive, entry in _tables(table, "archives")),
        without_submodules=tuple(table.strings("without-submodules").items()),
        provides=tuple(str(canonicalize_name(text)) for text in table.texts("provides", ())),
        on=table.texts("on", ()),
        requirements=table.texts("requirements", ()),
        version_in_source=table.flag("version-in-source"),
    )
    table.done()
    for requirement in component.wheels:
        _exact(requirement, f"{table.where}.wheels", problems)
    for requirement in component.requires:
        _requirement(requirement, f"{table.where}.requires", problems)
    _check_kind(component, table.where, problems, indexes, target)
    return component


def _check_kind(component: ComponentPins, where: str, problems: Problems, indexes: dict[str, str], target: str) -> None:
    ways = sum(map(bool, (component.wheels, component.dependencies_of, component.requires)))
    wheels = component.recipe == "wheels"
    source_parts = (component.picks, component.archives, component.without_submodules, component.requirements)
    wrong = {
        "give one of wheels, dependencies-of and requires": wheels and ways != 1,
        "a component of wheels is not built from a source": wheels and (component.git or component.sources),
        "dependencies-of, without and index are for a cpu stack; a ROCm one has requires": wheels
        and target == "rocm"
        and (component.dependencies_of or component.without or component.index),
        "requires is for a ROCm stack; a cpu one has wheels and dependencies-of": target == "cpu"
        and component.requires,
        f"the recipe {component.recipe} takes no wheels from an index": not wheels
        and (ways or component.without or component.index),
        "a component of plugins needs sources": component.recipe == "plugins" and not component.sources,
        "sources are for the recipe plugins alone": component.sources
        and (component.recipe != "plugins" or component.git),
        "give git and ref, or neither": bool(component.git) != bool(component.ref),
        "picks, archives, without-submodules and requirements belong to a component with git": not component.git
        and any(source_parts),
    }
    for text, holds in wrong.items():
        if holds:
            problems.add(where, text)
    if component.index and component.index not in indexes:
        problems.add(f"{where}.index", f"{component.index!r} is not among [indexes]")


def _pick(text: str, table: Table) -> Pick:
    url, at, ref = text.rpartition("@")
    if not at or _git_url(url) or not ref:
        table.problems.add(f"{table.where}.picks", f"{text!r} is not URL@COMMIT")
    return Pick(url, ref)


def _archive(name: str, table: Table) -> ArchivePin:
    if wrong := bad_name(name):
        table.problems.add(table.where, wrong)
    archive = ArchivePin(
        name,
        table.text("url", check=_archive_url),
        table.text("version-from", "", check=_inside),
        table.text(
            "sha256", "", check=lambda text: None if re.fullmatch(r"[0-9a-f]{64}", text) else "give 64 hex digits"
        ),
    )
    if ("{version" in archive.url) != bool(archive.version_from):
        table.problems.add(table.where, "an url with {version} needs version-from, and only such a one")
    table.done()
    return archive


def _check_references(pins: Pins, problems: Problems) -> None:
    used_indexes = {component.index for component in pins.components}
    for name in dict(pins.indexes).keys() - used_indexes:
        problems.add(f"indexes.{name}", "no component uses it; remove it")
    if len(set(pins.images)) != len(pins.images) or not pins.images:
        problems.add("stack.images", "name at least one image, and each once")
    _check_names(pins, problems)


def _check_names(pins: Pins, problems: Problems) -> None:
    """What components call each other, and what they are called: all of it becomes names in one Dockerfile."""
    # These names are stages of the same Dockerfile.
    stages = {
        "cpu": {"rootfs", "tools"},
        "rocm": {
            "base",
            "packages",
            "system",
            "python",
            "tools",
            "toolchain",
            "versions",
            "debs",
            "checks",
            "provenance",
        },
    }
    reserved = {*stages.get(pins.target, ()), *pins.images}
    kinds = ("{}-wheels", "wheels-{}", "source-{}", "archives-{}")
    reserved |= {kind.format(component.name) for component in pins.components for kind in kinds}
    above: set[str] = set()
    providers: dict[str, str] = {}
    for component in pins.components:
        where = f"components.{component.name}"
        if component.name in reserved:
            problems.add(where, "this name is another build stage's; choose another")
        if component.dependencies_of and component.dependencies_of not in pins.by_name:
            problems.add(f"{where}.dependencies-of", f"there is no component {component.dependencies_of!r}")
        for name in component.on:
            if name not in above:
                problems.add(f"{where}.on", f"{name!r} is no component above it")
        for name in component.provides:
            if name in providers:
                problems.add(f"{where}.provides", f"{name} is provided by {providers[name]} already")
            providers[name] = component.name
        above.add(component.name)


def _requirement(text: str, where: str, problems: Problems) -> Requirement | None:
    try:
        return Requirement(text)
    except ValueError as error:
        problems.add(where, f"{text!r} is not a requirement: {error}")
        return None


def _exact(requirement: str, where: str, problems: Problems) -> None:
    parsed = _requirement(requirement, where, problems)
    if parsed is None:
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


def bad_arch(text: str) -> str | None:
    """What is wrong with the name of a GPU architecture, or None."""
    return None if _ARCH.fullmatch(text) else f"{text!r} is no GPU architecture such as gfx942"


def bad_name(text: str) -> str | None:
    """What is wrong with the name of a stack or a component, or None."""
    return None if _NAME.fullmatch(text) else f"{text!r} is no name; use lower-case letters, digits and single hyphens"


def _git_url(text: str) -> str | None:
    return (
        None if text.startswith("https://") else f"{text!r} is no https URL; mirrors and local clones go into kiln.toml"
    )


def _archive_url(text: str) -> str | None:
    if not re.fullmatch(r"https://\S+/[A-Za-z0-9][A-Za-z0-9._+~{}:-]*", text):
        return "give an https URL that ends with a file name"
    try:
        text.format(version="0" * 40)
    except (KeyError, IndexError, ValueError):
        return "only {version} can stand in braces"
    return None


def _version(text: str) -> str | None:
    try:
        Version(text)
    # InvalidVersion; and what Python says of a number with more than 4300 digits.
    except ValueError:
        return f"{text!r} is no version (PEP 440)"
    return None


def _inside(text: str) -> str | None:
    path = PurePosixPath(text)
    return "give a path inside the source" if path.is_absolute() or ".." in path.parts else None


def _minor_version(text: str) -> str | None:
    return None if re.fullmatch(r"\d+\.\d+", text) else f"{text!r} is no version of the form 3.11"


def _as_of(python: Table) -> str:
    value = python.raw("as-of")
    if value is None:
        return ""
    if not isinstance(value, datetime) or value.tzinfo is None:
        python.problems.add("python.as-of", "give a date with a time zone, such as 2026-05-30T00:00:00Z")
        return ""
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _epoch(stack: Table) -> int:
    value = stack.raw("epoch")
    if not isinstance(value, datetime) or value.tzinfo is None:
        stack.problems.add("stack.epoch", "give a date with a time zone, such as 2026-11-01T00:00:00Z")
        return 0
    return int(value.astimezone(UTC).timestamp())
