"""Small images in OCI's layout, made of what a test names: files of layers, their headers and order, the configuration. No engine is needed."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

EPOCH = 1793491200
MEDIA = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True)
class Entry:
    """A member of a layer, a file unless ``type`` says otherwise."""

    path: str
    content: bytes = b""
    type: bytes = tarfile.REGTYPE
    mode: int = 0o644
    mtime: float = EPOCH
    uid: int = 0
    gid: int = 0
    uname: str = ""
    gname: str = ""
    link: str = ""
    pax: dict[str, str] = field(default_factory=dict)


def folder(path: str, **words: Any) -> Entry:
    return Entry(path, type=tarfile.DIRTYPE, **({"mode": 0o755} | words))


def make_tar(entries: Sequence[Entry], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as tar:
        for entry in entries:
            info = tarfile.TarInfo(entry.path)
            info.type, info.mode, info.mtime, info.size = entry.type, entry.mode, entry.mtime, len(entry.content)
            info.uid, info.gid, info.uname, info.gname = entry.uid, entry.gid, entry.uname, entry.gname
            info.linkname, info.pax_headers = entry.link, dict(entry.pax)
            tar.addfile(info, io.BytesIO(entry.content))
    return out.getvalue()


@dataclass(frozen=True)
class Made:
    """A layer as it goes into a layout: the tar, and its blob (by default the tar as it is, else compressed as named)."""

    tar: bytes
    compression: str = ""
    level: int = 6

    @property
    def blob(self) -> bytes:
        if self.compression == "gzip":
            return gzip.compress(self.tar, self.level, mtime=0)
        if self.compression == "zstd":
            return zstandard.ZstdCompressor(level=self.level).compress(self.tar)
        return self.tar

    @property
    def media_type(self) -> str:
        return MEDIA + (f"+{self.compression}" if self.compression else "")


def layer(*entries: Entry, compression: str = "gzip", level: int = 6) -> Made:
    return Made(make_tar(entries), compression, level)


def write_layout(
    place: Path, layers: Sequence[Made], config: dict[str, Any] | None = None, manifest: dict[str, Any] | None = None
) -> Path:
    """A layout with one image in the folder ``place``. ``config`` and ``manifest`` add to what every image has."""
    (place / "blobs" / "sha256").mkdir(parents=True)
    document = {
        "architecture": "amd64",
        "os": "linux",
        "created": "2026-11-01T00:00:00Z",
        "config": {"Env": ["PATH=/usr/bin"], "Labels": {}},
        "history": [{"created_by": f"COPY step-{number} /"} for number in range(len(layers))],
        "rootfs": {"type": "layers", "diff_ids": [digest(made.tar) for made in layers]},
    }
    config_entry = put(
        place, json.dumps(document | (config or {})).encode(), "application/vnd.oci.image.config.v1+json"
    )
    entries = [put(place, made.blob, made.media_type) for made in layers]
    described = {"schemaVersion": 2, "config": config_entry, "layers": entries} | (manifest or {})
    write_index(place, [put(place, json.dumps(described).encode(), "application/vnd.oci.image.manifest.v1+json")])
    return place


def write_index(place: Path, entries: Sequence[dict[str, Any]]) -> None:
    (place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": list(entries)}))


def put(place: Path, data: bytes, media_type: str) -> dict[str, Any]:
    """Write a blob; its descriptor."""
    name = digest(data)
    blob(place, name).write_bytes(data)
    return {"mediaType": media_type, "digest": name, "size": len(data)}


def blob(place: Path, name: str) -> Path:
    return place / "blobs" / "sha256" / name.removeprefix("sha256:")


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def archive(place: Path, target: Path) -> Path:
    """The tar of a layout, as buildx writes it."""
    with tarfile.open(target, "w") as tar:
        tar.add(place, arcname=".")
    return target
