"""Rendering the images of a ROCm stack: one Dockerfile an image, the second standing on stages of the first through bake.

What the lock decides (commits, checksums) is in the bake file and in the contexts, not in the Dockerfile: that one depends on the pins
and the templates alone, so a rehearsal with stand-ins for the sources builds from the very same text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import jinja2

from kiln.canonical import digest_of
from kiln.image import Image, chain
from kiln.lockfile import TOOLS, Lock
from kiln.pins import ComponentPins, Pins
from kiln.plan import (
    Context,
    Unit,
    component_contexts,
    component_version,
    debs_context,
    key_settings,
    scripts_context,
    unit_key,
    wheels_context,
)
from kiln.provenance import FILE as PROVENANCE
from kiln.provenance import provenance, provenance_context
from kiln.render import LABEL, Rendered, Variables, bake_target, fill, layer_names, requirements
from kiln.reproducible import level_of
from kiln.sbom import FILE as SBOM
from kiln.sbom import sbom
from kiln.workspace import Workspace

RECIPES = "components/rocm"
CHECKS = ("scripts/check_wheel.py", "scripts/elf.py")
# How records call what every component stands on.
GROUND = "ground"
# Components that the toolchain itself is made of, in every recipe's stage already.
IN_TOOLCHAIN = ("cpython",)


def render_rocm(
    environment: jinja2.Environment, workspace: Workspace, pins: Pins, lock: Lock, images: tuple[Image, ...]
) -> tuple[Rendered, ...]:
    """Render every image of a ROCm stack, each after the one that it stands on. Raises RenderError as ``kiln.render.render`` does."""
    done: dict[str, Rendered] = {}
    for image in images:
        parents = chain(images, image.name)[:-1]
        done[image.name] = _Image(environment, workspace, pins, lock, image, parents, done).render()
    return tuple(done.values())


class _Image:
    """One image while it is being rendered."""

    def __init__(
        self,
        environment: jinja2.Environment,
        workspace: Workspace,
        pins: Pins,
        lock: Lock,
        image: Image,
        parents: tuple[Image, ...],
        done: dict[str, Rendered],
    ) -> None:
        assert pins.base is not None, "only a stack on a base image is rendered here"
        self.environment, self.workspace, self.pins, self.lock = environment, workspace, pins, lock
        self.image, self.parents, self.done, self.base = image, parents, done, pins.base
        self.archs = ";".join(pins.archs)
        self.checks = scripts_context(workspace, CHECKS)
        self.above = {unit.name: unit for parent in parents for unit in done[parent.name].units}
        self.names = self._stages_needed()
        groups: dict[str, Any] = {
            "stack": {"name": pins.stack, "epoch": pins.epoch},
            "python": {"version": pins.python, "glibc": pins.glibc},
            "base": {"reference": self.base.reference},
            "system": {
                "distribution": pins.packages.distribution,
                "suite": pins.packages.suite,
                "packages": pins.packages.packages,
            },
            "image": {key: getattr(image, key) for key in ("name", "about", "template", "env", "user", "workdir")}
            | (
                {"parent": image.parent, "entrypoint": image.entrypoint}
                if image.parent
                else {"command": image.command, "arch_variables": image.arch_variables}
            ),
        }
        if image.parent:
            # Base image, packages and Python are the parent's affair.
            del groups["base"], groups["system"], groups["python"]["version"]
        self.variables = Variables(groups)

    def _stages_needed(self) -> list[str]:
        """The image's components and what they are built on, in the order of the pins, less what a parent has."""
        wanted = set(self.image.components)
        for component in reversed(self.pins.components):
            if component.name in wanted:
                wanted |= set(component.on)
        return [item.name for item in self.pins.components if item.name in wanted and item.name not in self.above]

    def render(self) -> Rendered:
        pins, lock, image = self.pins, self.lock, self.image
        inputs = {name: component_contexts(self.workspace, pins, lock, name) for name in self.names}
        units = self._units(inputs)
        own = [unit for unit in units if unit.name in image.components]
        labels = self._labels(own)
        said = {
            PROVENANCE: provenance(self.workspace, pins, lock, image, own),
            SBOM: self._sbom(units, labels),
        }
        main = provenance_context(self.workspace, said, "the main context: what the lock says is in the image")
        contexts = (main, *self._shared_contexts(), *(context for found in inputs.values() for context in found))
        stages = [unit.stage for unit in units if unit.name not in IN_TOOLCHAIN]
        if not image.parent:
            python = next(unit.stage for unit in units if unit.name in IN_TOOLCHAIN)
            stages = [python, self._fill("toolchain.j2"), *stages]
        dockerfile = fill(
            self.environment,
            image.template,
            self.variables.with_extra(archs=self.archs, contexts=contexts, stages=stages, components=own),
        )
        self.variables.require_all_used(image)
        files = {
            "Dockerfile": dockerfile,
            "docker-bake.json": self._bake(contexts, labels),
            **requirements(contexts),
            **said,
        }
        parents = tuple(parent.name for parent in self.parents)
        key = digest_of(
            {
                "files": sorted(files.items()),
                "units": [(unit.name, unit.key) for unit in units],
                "parents": [self.done[name].key for name in parents],
            }
        )
        below = self.done[parents[-1]].layers if parents else ()
        layers = (*below, *layer_names(dockerfile, image))
        return Rendered(image, tuple(sorted(files.items())), tuple(units), contexts, labels, key, parents, layers)

    def _shared_contexts(self) -> list[Context]:
        """The contexts that are no component's: packages and tools below, or the stages of the parent."""
        if not self.parents:
            return [debs_context(self.pins, self.lock), wheels_context(self.lock, TOOLS), self.checks]
        parent = self.parents[-1]
        stages = ["python", "tools", "toolchain", *self._needed_from_parent()]
        shared = [
            Context(
                stage,
                f"a stage of images/{parent.name}/Dockerfile",
                self.done[parent.name].key,
                target=f"{parent.name}-{stage}",
            )
            for stage in stages
        ]
        image = Context(
            parent.name, f"the image of images/{parent.name}", self.done[parent.name].key, target=parent.name
        )
        return [image, *shared, self.checks]

    def _needed_from_parent(self) -> list[str]:
        wanted = {name for own in self.names for name in self.pins.by_name[own].on}
        return [item.name for item in self.pins.components if item.name in wanted and item.name not in self.names]

    def _units(self, inputs: dict[str, tuple[Context, ...]]) -> list[Unit]:
        units: list[Unit] = []
        keys = {name: unit.key for name, unit in self.above.items()}
        ground, settings = self._ground(), key_settings(self.pins)
        for name, contexts in inputs.items():
            pinned = self.pins.by_name[name]
            stage = self._fill(f"{pinned.recipe}.j2", component=self._component(pinned))
            below = [
                (GROUND, ground),
                *((other, keys[other]) for other in (*IN_TOOLCHAIN, *pinned.on) if other in keys),
            ]
            if pinned.provides:
                below.append((self.checks.name, self.checks.digest))
            key = keys[name] = unit_key(stage, contexts, [digest for _, digest in below], self.pins)
            version = component_version(self.pins, self.lock, name, contexts[0].digest if contexts else "")
            units.append(
                Unit(name, pinned.about, stage, contexts, key, version, pinned.provides, tuple(below), settings)
            )
        return units

    def _ground(self) -> str:
        """What every component stands on: the base image with its packages, and what installs wheels."""
        packages, tools = debs_context(self.pins, self.lock), wheels_context(self.lock, TOOLS)
        return digest_of([self.base.digest or self.base.reference, packages.digest, tools.digest])

    def _component(self, pinned: ComponentPins) -> dict[str, Any]:
        sources = {item.name for item in self.pins.components if item.recipe == "source"}
        return {
            "name": pinned.name,
            "about": pinned.about,
            "version": pinned.version,
            "provides": pinned.provides,
            "copies": [name for name in pinned.on if name not in sources],
        }

    def _fill(self, template: str, **extra: Any) -> str:
        variables = self.variables.with_extra(archs=self.archs, **extra)
        return fill(self.environment, f"{RECIPES}/{template}", variables)

    def _sbom(self, units: Sequence[Unit], labels: tuple[tuple[str, str], ...]) -> str:
        """The SBOM of the image and of those it stands on."""
        every = (*self.above, *(unit.name for unit in units))
        held = [name for one in (*self.parents, self.image) for name in one.components]
        return sbom(self.workspace, self.pins, self.lock, self.image, every, held, labels)

    def _labels(self, units: Sequence[Unit]) -> tuple[tuple[str, str], ...]:
        """What the image says of itself: pins and commits, so that nobody has to start it to know."""
        labels = {
            "org.opencontainers.image.title": self.image.name,
            "org.opencontainers.image.description": self.image.about,
            "org.opencontainers.image.base.name": f"{self.base.image}:{self.base.tag}",
            "org.opencontainers.image.base.digest": self.base.digest or "unresolved",
            f"{LABEL}.stack": self.pins.stack,
            f"{LABEL}.lock.sha256": self.lock.sha256,
            f"{LABEL}.archs": self.archs,
            f"{LABEL}.rocm": self.base.rocm,
        }
        inherited = dict(self.done[self.parents[-1].name].labels) if self.parents else {}
        labels |= {key: value for key, value in inherited.items() if key.startswith(f"{LABEL}.component.")}
        for unit in units:
            name = f"{LABEL}.component.{unit.name}"
            labels |= {name: unit.version, f"{name}.reproducible": level_of(self.image, unit.name, self.lock)}
            if git := self.lock.git_of.get(unit.name):
                labels |= {f"{name}.url": git.url, f"{name}.commit": git.commit}
                if git.picks:
                    labels[f"{name}.picks"] = " ".join(git.picks)
                if git.submodules:
                    labels[f"{name}.submodules"] = " ".join(f"{sub.path}@{sub.commit}" for sub in git.submodules)
        if self.pins.overrides:
            labels[f"{LABEL}.overrides"] = " ".join(f"{name}={ref}" for name, ref in self.pins.overrides)
        if self.pins.allowed:
            labels[f"{LABEL}.advisories.allowed"] = " ".join(self.pins.allowed)
        if self.workspace.rehearsal:
            labels[f"{LABEL}.rehearsal"] = "true"
        return tuple(sorted(labels.items()))

    def _bake(self, contexts: tuple[Context, ...], labels: tuple[tuple[str, str], ...]) -> str:
        """The bake file: the image, and (for images that stand on it) its stages by name, which are built and not put out."""
        name = self.image.name
        targets = {name: bake_target(self.pins, self.image, contexts) | {"labels": dict(labels)}}
        if not self.parents:
            stages = [
                "python",
                "tools",
                "toolchain",
                *(item for item in self.names if self.pins.by_name[item].recipe != "source"),
            ]
            targets |= {
                f"{name}-{stage}": {"inherits": [name], "target": stage, "output": ["type=cacheonly"]}
                for stage in stages
            }
        return json.dumps({"group": {"default": {"targets": [name]}}, "target": targets}, indent=2) + "\n"
