"""A component's layer as a build context: its files below ``/out``, where the stage that would have made them leaves them.

``COPY --link --from=torch /out/ /`` of an unchanged Dockerfile then takes them from here, and makes the same layer of them again.
"""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO, Any

from zstandard import ZstdDecompressor, ZstdError

from kiln.cacheentry import CONFIG
from kiln.canonical import canonical_json, sha256_file
from kiln.errors import CacheEntryError, ImageDamagedError
from kiln.ocistream import Hashed
from kiln.records import Layer
from kiln.registryclient import MANIFEST, OCI, digest_of_bytes
from kiln.store import write_whole

PREFIX = "out"


def make_layout(where: str, layer: Layer, blob: Path, platform: str, folder: Path) -> str:
    """Make ``folder`` an OCI layout of one image that holds the layer's files below ``/out``; returns the image's manifest digest.

    Raises CacheEntryError where the blob does not unpack to what the entry (``where``) says, or holds what no component holds.
    """
    shutil.rmtree(folder, ignore_errors=True)
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    made = blobs / "layer"
    try:
        with ZstdDecompressor().stream_reader(blob.open("rb"), closefd=True) as plain, made.open("wb") as stream:
            hashed = Hashed(plain, layer.diff_id, where)
            _move_below(where, hashed, stream)
            hashed.check()
    except (tarfile.TarError, ZstdError) as error:
        raise CacheEntryError(f"the layer of the cache entry {where} cannot be unpacked", why=str(error)) from error
    except ImageDamagedError as error:
        raise CacheEntryError(
            f"the layer of the cache entry {where} holds something else than the entry says", why=error.why
        ) from error
    diff_id = sha256_file(made)
    size = made.stat().st_size
    made.rename(blobs / diff_id)
    system, _, architecture = platform.partition("/")
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]}
    config = _blob(blobs, {"os": system, "architecture": architecture, "config": {}, "rootfs": rootfs}, CONFIG)
    files = {"mediaType": f"{OCI}.layer.v1.tar", "digest": f"sha256:{diff_id}", "size": size}
    manifest = _blob(blobs, {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [files]}, MANIFEST)
    write_whole(folder / "oci-layout", '{"imageLayoutVersion":"1.0.0"}')
    (folder / "index.json").write_bytes(canonical_json({"schemaVersion": 2, "manifests": [manifest]}))
    return str(manifest["digest"])


def _blob(blobs: Path, table: dict[str, Any], media_type: str) -> dict[str, Any]:
    data = canonical_json(table)
    digest = digest_of_bytes(data)
    (blobs / digest.removeprefix("sha256:")).write_bytes(data)
    return {"mediaType": media_type, "digest": digest, "size": len(data)}


def _move_below(where: str, source: IO[bytes] | Hashed, target: IO[bytes]) -> None:
    with (
        tarfile.open(fileobj=source, mode="r|") as old,
        tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as new,
    ):
        top = tarfile.TarInfo(PREFIX)
        top.type, top.mode = tarfile.DIRTYPE, 0o755
        new.addfile(top)
        for entry in old:
            _require_harmless(where, entry)
            entry.name = f"{PREFIX}/{entry.name}"
            # Written anew from the name above.
            entry.pax_headers = {
                name: value for name, value in entry.pax_headers.items() if name not in ("path", "linkpath")
            }
            if entry.islnk():
                entry.linkname = f"{PREFIX}/{entry.linkname}"
            new.addfile(entry, old.extractfile(entry) if entry.isreg() else None)


def _require_harmless(where: str, entry: tarfile.TarInfo) -> None:
    """A component lays down files, folders and links. Anything else in a layer would do something when it is unpacked."""
    names = [entry.name] + ([entry.linkname] if entry.islnk() else [])
    outside = any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in names)
    removes = PurePosixPath(entry.name).name.startswith(".wh.")
    if outside or removes or not (entry.isreg() or entry.isdir() or entry.issym() or entry.islnk()):
        raise CacheEntryError(
            f"the layer of the cache entry {where} holds what no component holds", why=f"{entry.name!r}"
        )
