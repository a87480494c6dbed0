"""Build records: what was built here, of which inputs, and which layers came of it. One JSON file an image and build key, in ``.kiln/builds``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiln.canonical import digest_of
from kiln.pins import Pins
from kiln.plan import ROOTFS, Input
from kiln.store import write_whole
from kiln.workspace import Workspace

if TYPE_CHECKING:
    from kiln.render import Rendered

# How records call the layers of a base image.
BASE = "base"


@dataclass(frozen=True)
class Layer:
    """One layer of an image: the component that it is (or ``base``, ``rootfs``, ``packages``, ``versions``, ``workdir``), its digest and size
    as registries have it, and the digest of its tar."""

    component: str
    digest: str
    diff_id: str
    size: int


@dataclass(frozen=True)
class Made:
    """What a component was built of: its build key, the parts of it (``Unit.parts``) and its inputs, each by itself.

    What lies below the components (root file system or base image) has a key and neither.
    """

    name: str
    key: str
    parts: Mapping[str, str]
    inputs: tuple[Input, ...]


@dataclass(frozen=True)
class Built:
    """An image that was built: its build key, manifest digest and the name it has in the engine; its layers and what its components were built of.

    ``described`` is the size of its manifest and its configuration together: what a node downloads beside layers. ``restored`` are the components
    that were not built here but came out of a cache: their layers were compared with what the cache said, and prove nothing beyond that. ``pulled``:
    the whole image came from there, and BuildKit never had it. ``builder`` is the buildx builder that built it; empty: the engine.
    """

    image: str
    key: str
    digest: str
    reference: str
    seconds: float
    layers: tuple[Layer, ...] = ()
    components: tuple[Made, ...] = ()
    described: int = 0
    restored: tuple[str, ...] = ()
    pulled: bool = False
    builder: str = ""

    @property
    def keys(self) -> dict[str, str]:
        """The build keys of its components, by name."""
        return {made.name: made.key for made in self.components}


def components_of(rendered: Rendered, pins: Pins) -> tuple[Made, ...]:
    """What the components of an image are built of, for its record; first what all of them lie on."""
    if pins.base:
        ground = Made(BASE, digest_of(pins.base.reference), {}, ())
    else:
        ground = Made(ROOTFS, rendered.contexts[0].digest, {}, ())
    return (ground, *(Made(unit.name, unit.key, unit.parts, unit.inputs) for unit in rendered.units))


def record_file(workspace: Workspace, image: str, key: str) -> Path:
    """Where the record of an image with this build key lies, or would lie."""
    return workspace.state / "builds" / f"{image}-{key[:16]}.json"


def write_record(workspace: Workspace, built: Built) -> None:
    """Note what was built. Raises DiskFullError."""
    write_whole(record_file(workspace, built.image, built.key), json.dumps(asdict(built), indent=1) + "\n")


def read_record(path: Path) -> Built | None:
    """A record; None where there is none, or none that this Kiln can read."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        layers = tuple(Layer(**layer) for layer in data.pop("layers", ()))
        components = tuple(
            Made(**{**made, "inputs": tuple(Input(**one) for one in made["inputs"])})
            for made in data.pop("components", ())
        )
        restored = tuple(data.pop("restored", ()))
        return Built(**data, layers=layers, components=components, restored=restored)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def all_records(workspace: Workspace) -> list[Built]:
    """Every record of this state folder, the newest first."""
    files = sorted((workspace.state / "builds").glob("*.json"), key=lambda file: (-file.stat().st_mtime, file.name))
    return [record for record in map(read_record, files) if record]
