"""The stage *plan*: pins, lock and sources in; the components of each image out, with their inputs and build keys.

A build key is the sha256 over everything that decides a component's bytes. Same key: nothing to do.
"""

from __future__ import annotations

from dataclasses import dataclass

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kiln.canonical import digest_of, sha256_file, tree_digest
from kiln.errors import PinsError
from kiln.image import Image
from kiln.lockentries import Archive, Deb, Git, Wheel
from kiln.lockfile import Lock
from kiln.pins import Pins
from kiln.rootfs import rootfs_key
from kiln.workspace import Workspace

# What of the builder decides bytes, beside the recipes: part of every key, so that changing it rebuilds. Levels are spelled
# out because a default may move between BuildKit versions.
BUILDER_ON_A_BASE = {"type": "image", "oci-mediatypes": "true", "compression": "zstd", "compression-level": "3"}
# The layers of a base image stay as its maker packed them: whoever has them need not pull them again, and they are many gigabytes.
BUILDER = {**BUILDER_ON_A_BASE, "force-compression": "true"}
ROOTFS = "rootfs"


def builder(pins: Pins) -> dict[str, str]:
    """How the layers of a stack are packed."""
    return BUILDER_ON_A_BASE if pins.base else BUILDER


@dataclass(frozen=True)
class Input:
    """One input of a component as a person calls it: what it is, its name, its version where it has one, and what tells its bytes from others'."""

    kind: str
    name: str
    version: str
    digest: str


@dataclass(frozen=True)
class Context:
    """One named build context: a folder of inputs whose name says what is in it.

    ``wheels``, ``debs``, ``archives`` (by their names) and ``git`` come from the content store, ``sources`` and ``scripts`` (folders and files
    relative to the project) from the project itself, ``files`` (name and text) were rendered; one with none of these holds the root file
    system's tar. ``target`` is no folder but a stage that another image's bake file builds.
    """

    name: str
    about: str
    digest: str
    wheels: tuple[Wheel, ...] = ()
    sources: tuple[str, ...] = ()
    debs: tuple[Deb, ...] = ()
    archives: tuple[Archive, ...] = ()
    git: Git | None = None
    scripts: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    target: str = ""

    @property
    def folder(self) -> str:
        """Where it is laid out, relative to the state folder; or what bake calls the stage that it is."""
        return f"target:{self.target}" if self.target else f"contexts/{self.name}-{self.digest[:16]}"

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What is in it, each by itself; of the project's own folders all together."""
        found = [Input("wheel", wheel.name, wheel.version, wheel.sha256) for wheel in self.wheels]
        found += [Input("archive", archive.name, "", archive.sha256) for archive in self.archives]
        if self.sources:
            found.append(Input("folder", ", ".join(self.sources), "", self.digest))
        if self.git:
            found.append(Input("source", self.git.url.removeprefix("https://"), self.git.ref, self.git.commit))
            found += [Input("submodule", sub.path, "", sub.commit) for sub in self.git.submodules]
            found += [Input("pick", url, "", commit) for url, _, commit in (p.rpartition("@") for p in self.git.picks)]
        return tuple(found)


@dataclass(frozen=True)
class Unit:
    """One component as it will be built: its recipe's text, its inputs and the key over both and over what it builds on (``on``, by name)
    and the ``settings`` of the stack."""

    name: str
    about: str
    stage: str
    contexts: tuple[Context, ...]
    key: str
    version: str
    provides: tuple[str, ...] = ()
    on: tuple[tuple[str, str], ...] = ()
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def parts(self) -> dict[str, str]:
        """What the key is made of, a digest each, by name: another key has another of these."""
        inputs = {f"input {context.name}": context.digest for context in self.contexts}
        on = {f"on {name}": key for name, key in self.on}
        return {"recipe": digest_of(self.stage), **inputs, **on, **dict(self.settings)}

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What goes into it, each by itself."""
        return tuple(one for context in self.contexts for one in context.inputs)


def wheels_context(lock: Lock, component: str) -> Context:
    """The locked wheels of a component (or of the build tools)."""
    wheels = lock.wheels_of(component)
    digest = digest_of(sorted((wheel.file, wheel.sha256) for wheel in wheels))
    return Context(
        f"wheels-{component}",
        f"{len(wheels)} wheel{'s' if len(wheels) != 1 else ''}, by sha256 from the lock",
        digest,
        wheels=wheels,
    )


def source_context(workspace: Workspace, component: str, sources: tuple[str, ...]) -> Context:
    """Folders of the project that a component is built from. Raises PinsError where one is missing."""
    for source in sources:
        if not (workspace.root / source / "pyproject.toml").is_file():
            raise PinsError(
                f"components.{component}.sources: {source} is no Python project",
                fix="give a folder that holds a pyproject.toml",
            )
    digest = digest_of([(source, tree_digest(workspace.root / source)) for source in sources])
    return Context(f"source-{component}", ", ".join(sources), digest, sources=sources)


def rootfs_context(workspace: Workspace, pins: Pins, lock: Lock) -> Context:
    """The main context: the root file system alone."""
    return Context(
        ROOTFS, f"the main context: rootfs.tar, Debian {pins.packages.suite}", rootfs_key(workspace, pins, lock)
    )


def git_context(pins: Pins, lock: Lock, name: str) -> Context:
    """The source of a component, by commit; while it is not resolved, a context that stands for what the pins say and cannot be laid out."""
    component, git = pins.by_name[name], lock.git_of.get(name)
    about = f"{component.git.removeprefix('https://')} {component.ref}, with its submodules"
    digest = git.digest if git else digest_of(["unresolved", component.git, component.ref])
    return Context(f"source-{name}", about, digest, git=git)


def archives_context(pins: Pins, lock: Lock, name: str) -> Context:
    """The files that a component's build wants beside its source."""
    archives = lock.archives_of(name)
    digest = digest_of(sorted((archive.name, archive.sha256) for archive in archives))
    names = ", ".join(archive.name for archive in pins.by_name[name].archives)
    return Context(f"archives-{name}", f"{names}, by sha256 from the lock", digest, archives=archives)


def debs_context(pins: Pins, lock: Lock) -> Context:
    """The packages that are installed on the base image."""
    digest = digest_of(sorted((deb.file, deb.sha256) for deb in lock.debs))
    what = f"packages of {pins.packages.distribution.title()} {pins.packages.suite}, by sha256 from the lock"
    return Context("debs", what, digest, debs=lock.debs)


def scripts_context(workspace: Workspace, scripts: tuple[str, ...]) -> Context:
    """Scripts of the project that look at what a build step made."""
    digest = digest_of([(script, sha256_file(workspace.root / script)) for script in scripts])
    return Context("checks", ", ".join(scripts), digest, scripts=scripts)


def component_contexts(workspace: Workspace, pins: Pins, lock: Lock, name: str) -> tuple[Context, ...]:
    """The inputs of one component; the first is the one that it is called by. A component made from the base image has none."""
    component = pins.by_name[name]
    if component.sources:
        return (source_context(workspace, name, component.sources),)
    if component.holds_wheels:
        return (wheels_context(lock, name),)
    if not component.git:
        return ()
    return (git_context(pins, lock, name), *([archives_context(pins, lock, name)] if component.archives else []))


def key_settings(pins: Pins) -> tuple[tuple[str, str], ...]:
    """What of a stack is in the key of each of its components."""
    return (("platform", pins.platform), ("epoch", str(pins.epoch)), ("builder", digest_of(builder(pins))))


def unit_key(stage: str, contexts: tuple[Context, ...], builds_on: list[str], pins: Pins) -> str:
    """The build key of a component: recipe, inputs, the keys of what it builds on, platform, time and builder.

    What it is made of is what ``Unit.parts`` names.
    """
    digests = [context.digest for context in contexts]
    return digest_of(
        {
            "recipe": stage,
            "input": digests[0] if len(digests) == 1 else digests,
            "on": builds_on,
            "platform": pins.platform,
            "epoch": pins.epoch,
            "builder": builder(pins),
        }
    )


def image_key(dockerfile: str, image: Image, units: tuple[Unit, ...], pins: Pins, about: Context) -> str:
    """The build key of an image: its whole Dockerfile (settings and labels are in it), its components' keys, in order, and what it says of itself."""
    return digest_of(
        {
            "dockerfile": dockerfile,
            "units": [(unit.name, unit.key) for unit in units],
            "platform": pins.platform,
            "builder": builder(pins),
            "image": image.name,
            "about": about.digest,
        }
    )


def component_version(pins: Pins, lock: Lock, name: str, source_digest: str) -> str:
    """How a person calls what is in a component: its ref, the version of the wheel it is named after, or how many wheels it holds."""
    component = pins.by_name[name]
    if component.git:
        return component.ref if len(component.ref) < 40 else component.version or component.ref[:12]
    if component.sources:
        return f"source {source_digest[:12]}"
    if not component.holds_wheels:
        return f"of ROCm {pins.base.rocm}" if pins.base else "of the base image"
    named = {canonicalize_name(Requirement(text).name) for text in component.wheels}
    versions = [wheel.version for wheel in lock.wheels_of(name) if wheel.name in named]
    return ", ".join(versions) or f"{len(lock.wheels_of(name))} wheels"
