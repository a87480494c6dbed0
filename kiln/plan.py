"""The stage *plan*: pins, lock and sources in; the components of each image out, with their inputs and build keys.

A build key is the sha256 over everything that decides a component's bytes. Same key: nothing to do.
"""

from __future__ import annotations

from dataclasses import dataclass

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kiln.canonical import digest_of, tree_digest
from kiln.errors import PinsError
from kiln.image import Image
from kiln.lockfile import Lock, Wheel
from kiln.pins import Pins
from kiln.rootfs import rootfs_key
from kiln.workspace import Workspace

# What of the builder decides bytes, beside the recipes: part of every key, so that changing it rebuilds. Levels are spelled
# out because a default may move between BuildKit versions.
BUILDER = {"output": "oci", "compression": "zstd", "compression-level": "3", "force-compression": "true"}
ROOTFS = "rootfs"


@dataclass(frozen=True)
class Context:
    """One named build context: a folder of inputs whose name says what is in it.

    ``wheels`` come from the content store, ``sources`` (folders relative to the project) from the project itself; the main
    context has neither and holds the root file system's tar.
    """

    name: str
    about: str
    digest: str
    wheels: tuple[Wheel, ...] = ()
    sources: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Where it is laid out, relative to the state folder."""
        return f"contexts/{self.name}-{self.digest[:16]}"


@dataclass(frozen=True)
class Unit:
    """One component as it will be built: its recipe's text, its input and the key over both and over what it builds on."""

    name: str
    about: str
    stage: str
    context: Context
    key: str
    version: str


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
        ROOTFS, f"the main context: rootfs.tar, Debian {pins.debian.suite}", rootfs_key(workspace, pins, lock)
    )


def component_context(workspace: Workspace, pins: Pins, lock: Lock, name: str) -> Context:
    """The input of one component."""
    component = pins.by_name[name]
    return (
        source_context(workspace, name, component.sources)
        if component.recipe == "plugins"
        else wheels_context(lock, name)
    )


def unit_key(stage: str, context: Context, builds_on: list[str], pins: Pins) -> str:
    """The build key of a component: recipe, input, the keys of what it builds on, platform, time and builder."""
    return digest_of(
        {
            "recipe": stage,
            "input": context.digest,
            "on": builds_on,
            "platform": pins.platform,
            "epoch": pins.epoch,
            "builder": BUILDER,
        }
    )


def image_key(dockerfile: str, image: Image, units: tuple[Unit, ...], pins: Pins) -> str:
    """The build key of an image: its whole Dockerfile (settings and labels are in it) and its components' keys, in order."""
    return digest_of(
        {
            "dockerfile": dockerfile,
            "units": [(unit.name, unit.key) for unit in units],
            "platform": pins.platform,
            "builder": BUILDER,
            "image": image.name,
        }
    )


def component_version(pins: Pins, lock: Lock, name: str, source_digest: str) -> str:
    """How a person calls what is in a component: the version of the wheel it is named after, or how many wheels it holds."""
    component = pins.by_name[name]
    if component.recipe == "plugins":
        return f"source {source_digest[:12]}"
    named = {canonicalize_name(Requirement(text).name) for text in component.wheels}
    versions = [wheel.version for wheel in lock.wheels_of(name) if wheel.name in named]
    return ", ".join(versions) or f"{len(lock.wheels_of(name))} wheels"
