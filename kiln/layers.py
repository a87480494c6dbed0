"""Which layers an image in the engine has: digests and sizes from its manifest, digests of their tars from its configuration.

Docker 26 hands out no manifest. It lies in the engine's content store, which root can read on the machine of the engine; elsewhere the image is
read as the engine saves it, up to its manifest.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiln.engine import Engine, image_document
from kiln.errors import EngineError
from kiln.records import BASE, Layer
from kiln.unixhttp import get_json, get_stream

# Below Docker's own folder where it brings its containerd, and a system's containerd.
_CONTENT = "io.containerd.content.v1.content/blobs/sha256"
_SYSTEM_CONTAINERD = Path("/var/lib/containerd")
SAVE_SECONDS = 600


@dataclass(frozen=True)
class Layered:
    """The layers of an image, the lowest first, and the size of its manifest and configuration together."""

    layers: tuple[Layer, ...]
    described: int


def read_layers(engine: Engine, reference: str, digest: str, names: tuple[str, ...], *, on_base: bool) -> Layered:
    """The layers of an image in the engine, called by ``names``; those of a base image below them are called ``base``.

    Raises EngineError where the engine does not give the manifest, or the image has other layers than its Dockerfile makes.
    """
    text = manifest_text(engine, reference, digest)
    manifest: dict[str, Any] = json.loads(text)
    found = list(manifest.get("layers", ()))
    document = image_document(engine, reference) or {}
    diff_ids = list(document.get("RootFS", {}).get("Layers", ()))
    below = len(found) - len(names)
    if below < 0 or (below > 0) != on_base or len(diff_ids) != len(found):
        raise EngineError(
            f"{reference} has other layers than its Dockerfile makes",
            why=f"The manifest names {len(found)}, the configuration {len(diff_ids)}; the Dockerfile makes {len(names)}"
            + (" on those of the base image." if on_base else "."),
            fix="this is a defect of kiln or of the engine: please report it with the Dockerfile in .kiln/renders",
        )
    called = [BASE] * below + list(names)
    layers = tuple(
        Layer(name, str(layer["digest"]), str(diff_id), int(layer["size"]))
        for name, layer, diff_id in zip(called, found, diff_ids, strict=True)
    )
    return Layered(layers, len(text) + int(manifest["config"]["size"]))


def manifest_text(engine: Engine, reference: str, digest: str) -> bytes:
    """The manifest of an image in the engine, byte by byte. Raises EngineError where the engine does not give it."""
    sha256 = digest.removeprefix("sha256:")
    for folder in content_folders(engine):
        try:
            text = (folder / sha256).read_bytes()
        except OSError:
            continue
        if hashlib.sha256(text).hexdigest() == sha256:
            return text
    if (saved := _saved(engine, reference, sha256)) is not None:
        return saved
    raise EngineError(
        f"the engine does not hand out the manifest of {reference}",
        why=f"It is {digest}, and neither the engine's content store can be read nor the image saved.",
        fix=f"look whether the engine holds it: docker save {reference}",
    )


def content_folders(engine: Engine) -> list[Path]:
    """Where the blobs of the engine may lie: below its own folder, and a system's containerd."""
    info = get_json(engine.socket, "/info") or {}
    own = Path(str(info.get("DockerRootDir", ""))) / "containerd" / "daemon"
    return [own / _CONTENT, _SYSTEM_CONTAINERD / _CONTENT]


def _saved(engine: Engine, reference: str, sha256: str) -> bytes | None:
    """The blob out of what the engine saves, read no further than there."""
    try:
        with (
            get_stream(engine.socket, f"/images/{reference}/get", SAVE_SECONDS) as stream,
            tarfile.open(fileobj=stream, mode="r|") as tar,
        ):
            for member in tar:
                if member.name == f"blobs/sha256/{sha256}" and (file := tar.extractfile(member)):
                    text = file.read()
                    return text if hashlib.sha256(text).hexdigest() == sha256 else None
    except (OSError, tarfile.TarError):
        pass
    return None
