"""Cache entries: written, read again, and refused where they are not what was asked for; and a layer as a build context."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from kiln import cacheentry as form
from kiln.canonical import canonical_json
from kiln.errors import CacheEntryError
from kiln.layout import make_layout
from kiln.records import Layer
from kiln.registryclient import MANIFEST, Manifest

KEY = "a1" * 32
LAYER = Layer("torch", "sha256:" + "1" * 64, "sha256:" + "2" * 64, 77)
PLATFORM = "linux/amd64"


def changed(manifest: Manifest, change: Callable[[dict[str, Any]], object]) -> Manifest:
    table = manifest.table
    change(table)
    return Manifest(canonical_json(table), MANIFEST)


def test_an_entry_says_what_it_was_given() -> None:
    config, manifest = form.component_entry("cpu", KEY, LAYER, PLATFORM)
    digest, descriptor = form.read_component_entry("x", manifest, "torch", KEY)
    assert digest == f"sha256:{hashlib.sha256(config).hexdigest()}"
    assert form.read_layer("x", "torch", descriptor, config) == LAYER
    assert form.component_entry("cpu", KEY, LAYER, PLATFORM) == (config, manifest)
    assert form.tag_of("torch", KEY) == "torch-a1a1a1a1a1a1a1a1"


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table["annotations"].update({form.KEY: KEY[:16] + "0" * 48}),
        lambda table: table["annotations"].update({form.COMPONENT: "vllm"}),
        lambda table: table.pop("annotations"),
        lambda table: table.update(annotations=[]),
        lambda table: table.update(layers=[]),
        lambda table: table["layers"].append(table["layers"][0]),
        lambda table: table["layers"][0].update(digest="sha256:1"),
        lambda table: table["layers"][0].update(digest="../" + "1" * 64),
        lambda table: table["layers"][0].update(size="77"),
        lambda table: table["layers"][0].update(mediaType="application/vnd.oci.image.layer.v1.tar"),
        lambda table: table.update(config=None),
    ],
)
def test_an_entry_of_something_else_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    _, manifest = form.component_entry("cpu", KEY, LAYER, PLATFORM)
    with pytest.raises(CacheEntryError, match="host/name:tag"):
        form.read_component_entry("host/name:tag", changed(manifest, change), "torch", KEY)


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"\xff"])
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(CacheEntryError):
        form.read_component_entry("x", Manifest(data, MANIFEST), "torch", KEY)
    with pytest.raises(CacheEntryError):
        form.read_image_record("x", Manifest(data, MANIFEST), "cpu-serving", KEY)


@pytest.mark.parametrize("config", [b"", b"{}", b'{"rootfs": {"diff_ids": []}}', b'{"rootfs": {"diff_ids": [1]}}'])
def test_a_configuration_that_names_no_layer(config: bytes) -> None:
    with pytest.raises(CacheEntryError):
        form.read_layer("x", "torch", {"digest": LAYER.digest, "size": 1}, config)


def test_a_record_names_the_image_by_its_digest_and_has_the_whole_key() -> None:
    record = form.image_record("cpu", "cpu-serving", KEY, "sha256:" + "3" * 64, 500)
    assert form.read_image_record("x", record, "cpu-serving", KEY) == "sha256:" + "3" * 64
    with pytest.raises(CacheEntryError, match="another key"):
        form.read_image_record("x", record, "cpu-serving", KEY[:16] + "0" * 48)
    with pytest.raises(CacheEntryError, match="another key"):
        form.read_image_record("x", record, "rocm-base", KEY)


def test_an_image_must_say_of_itself_what_was_rendered() -> None:
    labels = (("io.kiln.lock.sha256", "1"), ("io.kiln.stack", "cpu"))
    form.require_image("x", json.dumps({"config": {"Labels": {**dict(labels), "more": "y"}}}).encode(), labels)
    for wrong in ({"config": {"Labels": {"io.kiln.stack": "cpu"}}}, {"config": {"Labels": None}}, {}, []):
        with pytest.raises(CacheEntryError):
            form.require_image("x", json.dumps(wrong).encode(), labels)


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: Any) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mtime, entry.mode = kind, 1793491200, 0o755
    for field, value in fields.items():
        setattr(entry, field, value)
    return entry


def blob_of(folder: Path, *members: tarfile.TarInfo) -> tuple[Path, Layer]:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in members:
            entry.size = 5 if entry.isreg() else 0
            tar.addfile(entry, io.BytesIO(b"hello") if entry.isreg() else None)
    tar_bytes = stream.getvalue()
    packed = zstandard.ZstdCompressor(level=3).compress(tar_bytes)
    (folder / "blob").write_bytes(packed)
    diff_id = f"sha256:{hashlib.sha256(tar_bytes).hexdigest()}"
    return folder / "blob", Layer("torch", f"sha256:{hashlib.sha256(packed).hexdigest()}", diff_id, len(packed))


def laid_out(folder: Path) -> dict[str, tarfile.TarInfo]:
    """The files of the one layer in a layout, every blob compared with its name on the way."""
    for path in (folder / "blobs" / "sha256").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    (named,) = json.loads((folder / "index.json").read_bytes())["manifests"]
    manifest = json.loads((folder / "blobs" / "sha256" / named["digest"][7:]).read_bytes())
    (layer,) = manifest["layers"]
    with tarfile.open(folder / "blobs" / "sha256" / layer["digest"][7:]) as tar:
        return {entry.name: entry for entry in tar}


def test_a_layer_lies_below_out_with_all_that_it_had(tmp_path: Path) -> None:
    long = "usr/" + "d" * 120 + "/" + "f" * 120
    blob, layer = blob_of(
        tmp_path,
        member("usr/", tarfile.DIRTYPE),
        member(long, uid=7, gid=8, uname="u", gname="g", pax_headers={"SCHILY.xattr.user.x": "y"}),
        member("usr/hard", tarfile.LNKTYPE, linkname=long),
        member("usr/soft", tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("usr/\udcff"),
    )
    digest = make_layout("x", layer, blob, PLATFORM, tmp_path / "layout")
    assert json.loads((tmp_path / "layout" / "index.json").read_bytes())["manifests"][0]["digest"] == digest
    found = laid_out(tmp_path / "layout")
    assert set(found) == {"out", "out/usr", f"out/{long}", "out/usr/hard", "out/usr/soft", "out/usr/\udcff"}
    whole = found[f"out/{long}"]
    assert (whole.uid, whole.gid, whole.uname, whole.mtime, whole.mode) == (7, 8, "u", 1793491200, 0o755)
    assert whole.pax_headers["SCHILY.xattr.user.x"] == "y"
    assert found["out/usr/hard"].linkname == f"out/{long}"
    assert found["out/usr/soft"].linkname == "/etc/passwd"
    # The same again gives the same, so that BuildKit need not unpack it twice.
    assert make_layout("x", layer, blob, PLATFORM, tmp_path / "layout") == digest


@pytest.mark.parametrize(
    "entry",
    [
        member("/etc/passwd"),
        member("usr/../../etc/passwd"),
        member("usr/.wh.lib"),
        member("usr/.wh..wh..opq"),
        member("usr/hard", tarfile.LNKTYPE, linkname="../../etc/passwd"),
        member("dev/sda", tarfile.BLKTYPE),
        member("fifo", tarfile.FIFOTYPE),
    ],
    ids=lambda entry: entry.name,
)
def test_what_no_component_holds_is_refused(tmp_path: Path, entry: tarfile.TarInfo) -> None:
    blob, layer = blob_of(tmp_path, entry)
    with pytest.raises(CacheEntryError, match="holds what no component holds"):
        make_layout("x", layer, blob, PLATFORM, tmp_path / "layout")


def test_a_layer_that_unpacks_to_something_else_is_refused(tmp_path: Path) -> None:
    blob, layer = blob_of(tmp_path, member("usr/a"))
    wrong = Layer("torch", layer.digest, "sha256:" + "0" * 64, layer.size)
    with pytest.raises(CacheEntryError, match="something else than the entry says"):
        make_layout("x", wrong, blob, PLATFORM, tmp_path / "layout")


@pytest.mark.parametrize("data", [b"", b"no zstd at all", zstandard.ZstdCompressor().compress(b"no tar" * 200)])
def test_a_layer_that_cannot_be_unpacked_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "blob").write_bytes(data)
    with pytest.raises(CacheEntryError):
        make_layout("x", LAYER, tmp_path / "blob", PLATFORM, tmp_path / "layout")


def test_a_layer_that_was_cut_is_refused(tmp_path: Path) -> None:
    blob, layer = blob_of(tmp_path, *(member(f"usr/{number}") for number in range(2000)))
    blob.write_bytes(blob.read_bytes()[:-50])
    with pytest.raises(CacheEntryError):
        make_layout("x", layer, blob, PLATFORM, tmp_path / "layout")
