"""What an entry of the component cache in a registry looks like: manifests, tags and keys. Nothing is asked or sent here.

Two kinds lie in one repository, each under a tag made of its name and the first 16 digits of its build key; the whole key is an
annotation, so that a tag that was moved or mistaken is seen. A component's entry is an image whose only layer is the component's layer in the
whole image, the same blob. An image's entry (its record) names the whole image, as it was pushed, by its manifest digest.
"""

from __future__ import annotations

import json
import re
from typing import Any

from kiln.canonical import canonical_json
from kiln.errors import CacheEntryError
from kiln.records import Layer
from kiln.registryclient import MANIFEST, OCI, Manifest, digest_of_bytes

KEY, COMPONENT, IMAGE, STACK = "io.kiln.key", "io.kiln.component", "io.kiln.image", "io.kiln.stack"
CONFIG = f"{OCI}.config.v1+json"
RECORD = "application/vnd.kiln.image-record.v1"
EMPTY, EMPTY_TYPE = b"{}", "application/vnd.oci.empty.v1+json"
# How the layers of components are packed, in every stack (kiln.plan.BUILDER).
LAYER = f"{OCI}.layer.v1.tar+zstd"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def tag_of(name: str, key: str) -> str:
    """The tag of a component (or image) with this build key."""
    return f"{name}-{key[:16]}"


def record_tag(image: str, key: str) -> str:
    """The tag of an image's record; the image itself is behind ``tag_of``."""
    return f"{tag_of(image, key)}.key"


def component_entry(stack: str, key: str, layer: Layer, platform: str) -> tuple[bytes, Manifest]:
    """The configuration and the manifest of a component's entry; the same bytes for the same component."""
    system, _, architecture = platform.partition("/")
    config = canonical_json(
        {
            "os": system,
            "architecture": architecture,
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
        }
    )
    table = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": digest_of_bytes(config), "size": len(config)},
        "layers": [{"mediaType": LAYER, "digest": layer.digest, "size": layer.size}],
        "annotations": {KEY: key, COMPONENT: layer.component, STACK: stack},
    }
    return config, Manifest(canonical_json(table), MANIFEST)


def image_record(stack: str, image: str, key: str, digest: str, size: int) -> Manifest:
    """The record of an image: that this build key gave this manifest. Its blobs are ``EMPTY``."""
    empty = {"mediaType": EMPTY_TYPE, "digest": digest_of_bytes(EMPTY), "size": len(EMPTY)}
    table = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": RECORD,
        "config": empty,
        "layers": [empty],
        "subject": {"mediaType": MANIFEST, "digest": digest, "size": size},
        "annotations": {KEY: key, IMAGE: image, STACK: stack},
    }
    return Manifest(canonical_json(table), MANIFEST)


def read_component_entry(where: str, manifest: Manifest, component: str, key: str) -> tuple[str, dict[str, Any]]:
    """The configuration's digest and the layer's descriptor of an entry that was found by tag. Raises CacheEntryError where it is another's."""
    table = _table(where, manifest)
    _require_named(where, table, COMPONENT, component, key)
    layers = table.get("layers")
    if not isinstance(layers, list) or len(layers) != 1:
        raise CacheEntryError(f"the cache entry {where} is no component", why="A component's entry has one layer.")
    return _descriptor(where, table.get("config"))["digest"], _descriptor(where, layers[0], LAYER)


def read_layer(where: str, component: str, descriptor: dict[str, Any], config: bytes) -> Layer:
    """The layer of an entry, with what its configuration says is in it. Raises CacheEntryError."""
    try:
        (diff_id,) = json.loads(config)["rootfs"]["diff_ids"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CacheEntryError(f"the cache entry {where} has no readable configuration", why=str(error)) from error
    if not isinstance(diff_id, str) or not _DIGEST.fullmatch(diff_id):
        raise CacheEntryError(f"the cache entry {where} has no readable configuration", why=f"diff_id {diff_id!r}")
    return Layer(component, descriptor["digest"], diff_id, descriptor["size"])


def read_image_record(where: str, manifest: Manifest, image: str, key: str) -> str:
    """The manifest digest of the image that a record names. Raises CacheEntryError where it is the record of another image or key."""
    table = _table(where, manifest)
    _require_named(where, table, IMAGE, image, key)
    return str(_descriptor(where, table.get("subject"))["digest"])


def require_image(where: str, config: bytes, labels: tuple[tuple[str, str], ...]) -> None:
    """Raise CacheEntryError where an image's configuration does not say of itself what the rendered image says (its lock's checksum among it)."""
    try:
        said = json.loads(config)["config"]["Labels"]
        wrong = [name for name, value in labels if said.get(name) != value]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CacheEntryError(f"the cached image {where} has no readable configuration", why=str(error)) from error
    if wrong:
        shown = "\n".join(f"{name}: expected {dict(labels)[name]!r}, got {said.get(name)!r}" for name in wrong[:5])
        raise CacheEntryError(f"the cached image {where} is another than its key stands for", why=shown)


def _table(where: str, manifest: Manifest) -> dict[str, Any]:
    try:
        return manifest.table
    except ValueError as error:
        raise CacheEntryError(f"the cache entry {where} is no manifest", why=str(error)) from error


def _require_named(where: str, table: dict[str, Any], kind: str, name: str, key: str) -> None:
    given = table.get("annotations")
    said = given if isinstance(given, dict) else {}
    for annotation, expected in ((kind, name), (KEY, key)):
        if said.get(annotation) != expected:
            raise CacheEntryError(
                f"the cache entry {where} is of another key than its tag says",
                why=f"{annotation}\nexpected {expected}\ngot      {said.get(annotation)}",
            )


def _descriptor(where: str, found: Any, media_type: str = "") -> dict[str, Any]:
    good = (
        isinstance(found, dict)
        and isinstance(found.get("digest"), str)
        and _DIGEST.fullmatch(found["digest"])
        and isinstance(found.get("size"), int)
        and media_type in ("", found.get("mediaType"))
    )
    if not good:
        raise CacheEntryError(f"the cache entry {where} cannot be read", why=f"It names {found!r}."[:300])
    return dict(found)
