"""An image with two of its layers exchanged: the same files, another manifest."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from typing import Any


def reordered(archive: bytes, layers: Sequence[int], reference: str) -> bytes:
    """An OCI archive as `docker save` wrote it, with two layers exchanged (by their places, as a list has them) and ``reference`` as its name."""
    blobs: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        for member in opened:
            if member.name.startswith("blobs/") and member.isfile():
                blobs[member.name.rpartition("/")[2]] = opened.extractfile(member).read()  # type: ignore[union-attr]
        index = json.load(opened.extractfile("index.json"))  # type: ignore[arg-type]
    manifest = json.loads(blobs[_hex(index["manifests"][0]["digest"])])
    config = json.loads(blobs[_hex(manifest["config"]["digest"])])
    steps = [place for place, step in enumerate(config["history"]) if not step.get("empty_layer")]
    one, other = layers
    for rows in (manifest["layers"], config["rootfs"]["diff_ids"]):
        rows[one], rows[other] = rows[other], rows[one]
    history = config["history"]
    history[steps[one]], history[steps[other]] = history[steps[other]], history[steps[one]]
    manifest["config"] |= _kept(blobs, config)
    entry = {**index["manifests"][0], **_kept(blobs, manifest)}
    entry["annotations"] = {
        "io.containerd.image.name": f"docker.io/library/{reference}",
        "org.opencontainers.image.ref.name": reference,
    }
    index["manifests"] = [entry]
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as written:
        _add(written, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add(written, "index.json", json.dumps(index).encode())
        for name, data in blobs.items():
            _add(written, f"blobs/sha256/{name}", data)
    return made.getvalue()


def _kept(blobs: dict[str, bytes], document: dict[str, Any]) -> dict[str, Any]:
    data = json.dumps(document).encode()
    digest = hashlib.sha256(data).hexdigest()
    blobs[digest] = data
    return {"digest": f"sha256:{digest}", "size": len(data)}


def _hex(digest: str) -> str:
    return digest.partition(":")[2]


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))
