"""The stage *render*: pins, lock and templates in; Dockerfiles, requirements and bake files out.

Pure: no clock, no network, no environment, no path of this machine. The same inputs give the same bytes in any time zone,
locale, hash seed and folder.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from kiln.errors import RenderError, RenderStaleError
from kiln.image import Image, read_images
from kiln.lockfile import TOOLS, Lock
from kiln.pins import Pins
from kiln.plan import (
    Context,
    Unit,
    builder,
    component_contexts,
    component_version,
    image_key,
    key_settings,
    rootfs_context,
    unit_key,
    wheels_context,
)
from kiln.provenance import FILE as PROVENANCE
from kiln.provenance import provenance, provenance_context
from kiln.reproducible import level_of
from kiln.sbom import FILE as SBOM
from kiln.sbom import sbom
from kiln.store import write_whole
from kiln.wheels import requirements_text
from kiln.workspace import Workspace

LABEL = "io.kiln"
# BuildKit makes a layer for each of these lines; for the working folder too, unless it is the root.
_LAYER = re.compile(r"COPY --link --from=(?P<stage>\S+) |ADD --link (?P<file>rootfs)\.tar |WORKDIR /.")


@dataclass(frozen=True)
class Rendered:
    """One image, ready to build: its files by name, its components, contexts (the main one first) and build key; ``parents`` are the images
    whose bake files it needs beside its own, ``layers`` what each of its layers is, the lowest first (those of a base image are not among them)."""

    image: Image
    files: tuple[tuple[str, str], ...]
    units: tuple[Unit, ...]
    contexts: tuple[Context, ...]
    labels: tuple[tuple[str, str], ...]
    key: str
    parents: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()

    @property
    def dockerfile(self) -> str:
        """The text of the Dockerfile."""
        return dict(self.files)["Dockerfile"]

    @property
    def sbom(self) -> str:
        """The text of the SBOM."""
        return dict(self.files)[SBOM]


class _Watched(Mapping[str, Any]):
    """Template variables that remember which of them were used: one that no template uses is a mistake somewhere."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self.used: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.used.add(key)
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def unused(self) -> list[str]:
        return sorted(self._values.keys() - self.used)


class Variables:
    """All variables of one image's templates, watched one level deep: ``stack.name``, ``image.user``…"""

    def __init__(self, groups: Mapping[str, Any]) -> None:
        self._groups = {name: _Watched(value) if isinstance(value, dict) else value for name, value in groups.items()}

    def with_extra(self, **extra: Any) -> dict[str, Any]:
        """All groups, and what one template gets beside them."""
        return {**self._groups, **extra}

    def unused(self) -> list[str]:
        """The variables that no template has used so far."""
        return [
            f"{group}.{name}"
            for group, value in self._groups.items()
            if isinstance(value, _Watched)
            for name in value.unused()
        ]

    def require_all_used(self, image: Image) -> None:
        """Raise RenderError where a variable was used by no template."""
        if unused := self.unused():
            raise RenderError(
                f"no template of {image.name} uses {', '.join(unused)}",
                why="What is pinned or set and then used nowhere is a mistake: it looks as if it had an effect.",
                fix=f"use it in templates/{image.template} or a recipe, or remove it",
            )


def render(workspace: Workspace, pins: Pins, lock: Lock) -> tuple[Rendered, ...]:
    """Render every image of the stack.

    Raises RenderError where a template uses a variable that is not there or leaves one unused, PinsError where an image's
    description does not fit the pins.
    """
    environment = template_environment(workspace)
    images = read_images(workspace, pins)
    if pins.target == "rocm":
        from kiln.renderrocm import render_rocm

        return render_rocm(environment, workspace, pins, lock, images)
    return tuple(_render_image(environment, workspace, pins, lock, image) for image in images)


def _render_image(
    environment: jinja2.Environment, workspace: Workspace, pins: Pins, lock: Lock, image: Image
) -> Rendered:
    rootfs = rootfs_context(workspace, pins, lock)
    tools = wheels_context(lock, TOOLS)
    inputs = {name: component_contexts(workspace, pins, lock, name) for name in image.components}
    versions = {name: component_version(pins, lock, name, found[0].digest) for name, found in inputs.items()}
    labels = _labels(pins, lock, image, versions)
    variables = Variables(
        {
            "stack": {"name": pins.stack, "epoch": pins.epoch},
            "python": {"version": pins.python},
            "debian": {"suite": pins.packages.suite, "packages": pins.packages.packages, "count": len(lock.debs)},
            "image": {
                "name": image.name,
                "about": image.about,
                "template": image.template,
                "env": image.env,
                "user": image.user,
                "workdir": image.workdir,
                "entrypoint": list(image.entrypoint),
            },
        }
    )
    tools_stage = fill(environment, "components/cpu/tools.j2", variables.with_extra())
    below = (("rootfs", rootfs.digest), (TOOLS, unit_key(tools_stage, (tools,), [rootfs.digest], pins)))
    builds_on, settings = [key for _, key in below], key_settings(pins)
    units = []
    for name, found in inputs.items():
        pinned = pins.by_name[name]
        component = {"name": name, "about": pinned.about, "wheels": found[0].wheels, "sources": pinned.sources}
        stage = fill(environment, f"components/cpu/{pinned.recipe}.j2", variables.with_extra(component=component))
        key = unit_key(stage, found, builds_on, pins)
        units.append(Unit(name, pinned.about, stage, found, key, versions[name], on=below, settings=settings))
    said = {
        PROVENANCE: provenance(workspace, pins, lock, image, units),
        SBOM: sbom(workspace, pins, lock, image, image.components, image.components, labels),
    }
    about = provenance_context(workspace, said, "what the lock says is in the image")
    contexts = (rootfs, about, tools, *(context for found in inputs.values() for context in found))
    dockerfile = fill(
        environment,
        image.template,
        variables.with_extra(
            contexts=contexts, stages=[tools_stage, *(unit.stage for unit in units)], components=units, labels=labels
        ),
    )
    variables.require_all_used(image)
    files = {
        "Dockerfile": dockerfile,
        "docker-bake.json": _bake(pins, image, contexts),
        **requirements(contexts),
        **said,
    }
    return Rendered(
        image,
        tuple(sorted(files.items())),
        tuple(units),
        contexts,
        labels,
        image_key(dockerfile, image, tuple(units), pins, about),
        layers=layer_names(dockerfile, image),
    )


def layer_names(dockerfile: str, image: Image) -> tuple[str, ...]:
    """What the layers are that the image's own stage lays down."""
    return lines_with_layers(dockerfile[dockerfile.rindex(f" AS {image.name}\n") :])


def lines_with_layers(stage: str) -> tuple[str, ...]:
    """What each line of a stage that makes a layer lays down: what the stage is called that a COPY takes from (a component's name), the root file
    system, or the working folder."""
    lines = filter(None, map(_LAYER.match, stage.splitlines()))
    return tuple(match["stage"] or match["file"] or "workdir" for match in lines)


def requirements(contexts: tuple[Context, ...]) -> dict[str, str]:
    """A requirements file for every context of wheels, by its name below the image's folder."""
    return {
        f"requirements/{context.name.removeprefix('wheels-')}.txt": requirements_text(context.wheels)
        for context in contexts
        if context.wheels
    }


def _labels(pins: Pins, lock: Lock, image: Image, versions: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """What the image says of itself. The lock's checksum stands for all inputs, so two images with one checksum have one content."""
    labels = {
        "org.opencontainers.image.title": image.name,
        "org.opencontainers.image.description": image.about,
        f"{LABEL}.stack": pins.stack,
        f"{LABEL}.lock.sha256": lock.sha256,
        **{f"{LABEL}.component.{name}": version for name, version in versions.items()},
        **{f"{LABEL}.component.{name}.reproducible": level_of(image, name, lock) for name in versions},
    }
    return tuple(sorted(labels.items()))


def _bake(pins: Pins, image: Image, contexts: tuple[Context, ...]) -> str:
    """The bake file: one target; folders relative to the state folder, in which bake is run."""
    group = {"default": {"targets": [image.name]}}
    return json.dumps({"group": group, "target": {image.name: bake_target(pins, image, contexts)}}, indent=2) + "\n"


def bake_target(pins: Pins, image: Image, contexts: tuple[Context, ...]) -> dict[str, Any]:
    """An image as bake's target: its contexts, and its output into the engine's store (under the name that `kiln build` adds)."""
    main, *named = contexts
    return {
        "context": main.folder,
        "contexts": {context.name: context.folder for context in named},
        "dockerfile": f"../../renders/{image.name}/Dockerfile",
        "target": image.name,
        "platforms": [pins.platform],
        "args": {"SOURCE_DATE_EPOCH": str(pins.epoch)},
        # An attestation would put the image into an index with the time of the build in it; Kiln attaches its own on publishing.
        "attest": ["type=provenance,disabled=true", "type=sbom,disabled=true"],
        "output": [",".join(f"{key}={value}" for key, value in builder(pins).items())],
    }


def template_environment(workspace: Workspace) -> jinja2.Environment:
    """Jinja for the project's templates: a variable that is not there is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(workspace.root / "templates"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        # Dockerfiles are not HTML.
        autoescape=False,  # noqa: S701
    )
    environment.filters["quote"] = _quote
    return environment


def _quote(text: str) -> str:
    """A Dockerfile word in double quotes (its own escapes: backslash, quote and dollar)."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$") + '"'


def fill(environment: jinja2.Environment, template: str, variables: Mapping[str, Any]) -> str:
    """A template with its variables. Raises RenderError where it is missing, is no template, or uses what is not there."""
    try:
        return environment.get_template(template).render(variables)
    except jinja2.TemplateNotFound as error:
        raise RenderError(
            f"there is no template templates/{error.name}", fix="name one that exists, or add it"
        ) from error
    except jinja2.UndefinedError as error:
        raise RenderError(
            f"templates/{template} uses something that is not there",
            why=str(error),
            fix="correct the name in the template",
        ) from error
    except jinja2.TemplateSyntaxError as error:
        raise RenderError(
            f"templates/{error.name or template} is no valid template", why=f"line {error.lineno}: {error.message}"
        ) from error


def write_rendered(images: tuple[Rendered, ...], folder: Path) -> list[Path]:
    """Write the rendered files of each image below ``folder/<image>``; requirements that are no longer rendered go."""
    written = []
    for rendered in images:
        target = folder / rendered.image.name
        for name, text in rendered.files:
            # A file that is there already stays: replacing one costs more than all of rendering it.
            if not _holds(target / name, text):
                write_whole(target / name, text)
            written.append(target / name)
        names = {name for name, _ in rendered.files}
        for old in (target / "requirements").glob("*.txt"):
            if f"requirements/{old.name}" not in names:
                old.unlink()
    return written


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode()
    except OSError:
        return False


def check_rendered(images: tuple[Rendered, ...], workspace: Workspace) -> None:
    """Compare the committed files with what renders now. Raises RenderStaleError with the difference."""
    differences: list[str] = []
    stack = dict(images[0].labels)[f"{LABEL}.stack"]
    for rendered in images:
        folder = workspace.image_folder(rendered.image.name)
        for name, text in rendered.files:
            path = folder / name
            shown = f"images/{rendered.image.name}/{name}"
            # Bytes, not lines: a file whose line ends were changed on checkout is another file.
            found = path.read_bytes() if path.is_file() else b""
            if found != text.encode():
                committed = found.decode(errors="replace").splitlines()
                names = f"{shown} (committed)", f"{shown} (rendered)"
                lines = list(difflib.unified_diff(committed, text.splitlines(), *names, lineterm="", n=1))
                differences += lines or [f"{shown} differs in its line ends"]
        stray = {path.name for path in (folder / "requirements").glob("*.txt")} - {
            Path(name).name for name, _ in rendered.files
        }
        differences += [
            f"images/{rendered.image.name}/requirements/{name} is no longer rendered" for name in sorted(stray)
        ]
    if differences:
        more = f"\n… {len(differences) - 40} more lines" if len(differences) > 40 else ""
        raise RenderStaleError(
            "the committed Dockerfiles are not what renders now",
            why="\n".join(differences[:40]) + more,
            fix=f"kiln render {stack}, look at the difference, and commit it",
        )
