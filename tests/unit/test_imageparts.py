"""Images in bundles: what they are made of follows from their digest, and nothing else gets into a store."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as examples
from hypothesis import strategies as st

from kiln import bundle, bundleimage
from kiln.bundle import make_index, read_bundle, require_own
from kiln.bundleimage import ImageIndex, require_whole
from kiln.bundletar import INDEX, Member, header_of, read_head, read_members, write_bundle
from kiln.console import Console
from kiln.errors import BundleInvalidError, FetchError, ImageDamagedError
from kiln.imageparts import Parts, held_parts, keep_manifests, lay_out, parts_of
from kiln.kept import kept
from kiln.lockentries import BaseImage
from kiln.lockfile import Lock, dump_lock
from kiln.pins import Pins
from kiln.registryclient import MANIFEST, OCI
from kiln.store import Store
from kiln.workspace import Workspace

QUIET = Console(quiet=True)


def put(store: Store, data: bytes) -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    store.path(sha256).parent.mkdir(parents=True, exist_ok=True)
    store.path(sha256).write_bytes(data)
    return f"sha256:{sha256}"


def image(store: Store, text: str, *, listed: bool = False) -> Parts:
    """An image of two blobs in the store, behind an index with another platform's and an attestation where it is ``listed``."""
    blobs = [{"digest": put(store, data), "size": len(data)} for data in (f"config {text}".encode(), text.encode() * 9)]
    top = json.dumps({"mediaType": MANIFEST, "config": blobs[0], "layers": blobs[1:]})
    if listed:
        own, other = put(store, top.encode()), "sha256:" + "1" * 64
        platforms = [("unknown", "unknown", other), ("linux", "arm64", other), ("linux", "amd64", own)]
        entries = [{"digest": one, "platform": {"os": system, "architecture": kind}} for system, kind, one in platforms]
        top = json.dumps({"mediaType": f"{OCI}.index.v1+json", "manifests": entries})
    found = held_parts(store, put(store, top.encode()))
    assert found
    return found


@pytest.mark.parametrize("listed", [False, True])
def test_an_image_is_held_only_where_all_of_it_is(tmp_path: Path, listed: bool) -> None:
    store = Store(tmp_path)
    parts = image(store, "a", listed=listed)
    assert (len(parts.manifests), len(parts.blobs)) == (1 + listed, 2)
    for one in (*parts.manifests, *parts.blobs):
        path = store.path(one.removeprefix("sha256:"))
        data = path.read_bytes()
        path.write_bytes(data[:-1])
        assert held_parts(store, parts.digest) is None
        path.unlink()
        assert held_parts(store, parts.digest) is None
        path.write_bytes(data)
    assert held_parts(store, parts.digest) == parts


@pytest.mark.parametrize(
    "table",
    [
        "",
        "[]",
        "{}",
        '{"manifests": [{"digest": "sha256:x", "platform": {"os": "linux", "architecture": "arm64"}}]}',
        '{"config": {"digest": "../../etc/passwd", "size": 1}, "layers": []}',
        '{"config": {"digest": 1}, "layers": []}',
        '{"config": {"digest": "x", "size": 1e999}, "layers": []}',
        "[" * 100_000,
    ],
)
def test_a_manifest_of_no_image_is_refused(table: str) -> None:
    digest = f"sha256:{hashlib.sha256(table.encode()).hexdigest()}"
    with pytest.raises(ImageDamagedError):
        parts_of(digest, lambda _: table.encode())


def test_a_manifest_with_another_digest_is_refused(tmp_path: Path) -> None:
    parts = image(Store(tmp_path), "a")
    with pytest.raises(ImageDamagedError, match="no image that Kiln knows"):
        parts_of(parts.digest, lambda one: parts.manifests[one] + b" ")


@examples(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_whatever_a_manifest_holds_is_read_or_refused(table: Any) -> None:
    data = json.dumps(table).encode()
    with pytest.raises(ImageDamagedError):
        parts_of(f"sha256:{hashlib.sha256(data).hexdigest()}", lambda _: data)


def test_a_layout_is_made_of_links_and_says_which_is_which(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    one, other = image(store, "a", listed=True), image(store, "b")
    lay_out(tmp_path / "layout", store, {"x": one, "y": other}, "kind")
    listed = json.loads((tmp_path / "layout" / "index.json").read_text())["manifests"]
    assert [(entry["digest"], entry["annotations"]) for entry in listed] == [
        (one.digest, {"kind": "x"}),
        (other.digest, {"kind": "y"}),
    ]
    blobs = {path.name: path for path in (tmp_path / "layout" / "blobs" / "sha256").iterdir()}
    assert {f"sha256:{name}" for name in blobs} == {*one.manifests, *one.blobs, *other.manifests, *other.blobs}
    assert all(path.samefile(store.path(name)) for name, path in blobs.items())


def test_a_manifest_that_does_not_say_its_type_has_one_in_a_layout(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    data = json.dumps({"config": {"digest": put(store, b"config"), "size": 6}, "layers": []}).encode()
    parts = held_parts(store, put(store, data))
    assert parts
    lay_out(tmp_path / "layout", store, {"x": parts}, "kind")
    (entry,) = json.loads((tmp_path / "layout" / "index.json").read_text())["manifests"]
    assert entry["mediaType"] == MANIFEST


@pytest.fixture
def based(toy: Workspace, toy_pins: Pins, toy_lock: Lock) -> tuple[Lock, Store, Parts]:
    """A lock with a base image and nothing else, and a store that has it."""
    store = Store(toy.state / "store")
    parts = image(store, "base", listed=True)
    lock = replace(toy_lock, debs=(), wheels=(), images=(BaseImage("docker.io/rocm/x", "1", parts.digest),))
    toy.lock_file("toy").write_text(dump_lock(toy_lock))
    return lock, store, parts


def test_a_base_image_is_carried_whole(
    toy: Workspace, toy_pins: Pins, based: tuple[Lock, Store, Parts], tmp_path: Path
) -> None:
    lock, store, parts = based
    index = make_index(toy, toy_pins, lock, store)
    write_bundle(index, store, tmp_path / "out.tar", QUIET)
    away = Store(tmp_path / "away")
    with (tmp_path / "out.tar").open("rb") as stream:
        again = read_head(stream, {bundle.KIND: bundle.parsed})
        assert again == index
        read_bundle(toy, toy_pins, lock, again, stream, away, QUIET)
    assert held_parts(away, parts.digest) == parts
    assert held_parts(away, "sha256:" + "0" * 64) is None


def test_a_base_image_that_is_not_there_is_said_to_be_missing(
    toy: Workspace, toy_pins: Pins, based: tuple[Lock, Store, Parts]
) -> None:
    lock, store, parts = based
    store.path(next(iter(parts.blobs)).removeprefix("sha256:")).unlink()
    with pytest.raises(FetchError, match="base image was not fetched"):
        make_index(toy, toy_pins, lock, store)


@pytest.mark.parametrize("change", ["no manifest", "another", "one more", "no blob", "one blob more"])
def test_a_bundle_with_another_base_image_is_refused_before_anything_is_stored(
    toy: Workspace, toy_pins: Pins, based: tuple[Lock, Store, Parts], change: str
) -> None:
    lock, store, _ = based
    index = make_index(toy, toy_pins, lock, store)
    other = image(store, "other")
    changed = {
        "no manifest": replace(index, manifests=index.manifests[:1]),
        "another": replace(index, manifests=other.texts),
        "one more": replace(index, manifests=(*index.manifests, *other.texts)),
        "no blob": replace(index, members=index.members[1:]),
        "one blob more": replace(index, members=(*index.members, Member("more", "f" * 64, 1))),
    }[change]
    with pytest.raises(BundleInvalidError):
        require_own(changed, lock)
    assert require_own(index, lock)[0].digest == lock.images[0].digest


def published(store: Store) -> ImageIndex:
    parts = {kind: image(store, kind) for kind in ("image", "sigs", "atts")}
    return bundleimage.index_of("toy", f"host.example/kiln/toy@{parts['image'].digest}", parts)


def test_an_image_is_carried_with_what_is_signed_of_it(tmp_path: Path) -> None:
    store, away = Store(tmp_path / "store"), Store(tmp_path / "away")
    index = published(store)
    write_bundle(index, store, tmp_path / "out.tar", QUIET)
    with (tmp_path / "out.tar").open("rb") as stream:
        again = read_head(stream, {bundleimage.KIND: bundleimage.parsed})
        parts = require_whole(again)
        read_members(again, stream, away, QUIET)
    assert again == index
    for one in parts.values():
        keep_manifests(one, away)
        assert held_parts(away, one.digest) == one


@pytest.mark.parametrize(
    "change", ["no signatures", "another place", "no place", "no blob", "one more", "order", "manifest"]
)
def test_an_image_without_all_that_belongs_to_it_or_with_more_is_refused(tmp_path: Path, change: str) -> None:
    index = published(Store(tmp_path))
    changed = {
        "no signatures": replace(index, images={"image": index.images["image"], "atts": index.images["atts"]}),
        "another place": replace(index, place=f"host.example/x@sha256:{'0' * 64}"),
        "no place": replace(index, place=f"--privileged {index.place}"),
        "no blob": replace(index, members=index.members[1:]),
        "one more": replace(index, members=(*index.members, Member("more", "f" * 64, 1))),
        "order": replace(index, members=index.members[::-1]),
        "manifest": replace(index, manifests=index.manifests[:2]),
    }[change]
    with pytest.raises(BundleInvalidError):
        require_whole(changed)


def test_text_that_no_bytes_stand_for_is_no_manifest(tmp_path: Path) -> None:
    text = published(Store(tmp_path)).text()
    broken = json.loads(text) | {"manifests": ["\udcff"]}
    new = (json.dumps(broken, indent=1, sort_keys=True) + "\n").encode()
    stream = io.BytesIO(header_of(INDEX, len(new)) + new.ljust(-(-len(new) // 512) * 512, b"\0"))
    with pytest.raises(BundleInvalidError, match="cannot be read"):
        read_head(stream, {bundleimage.KIND: bundleimage.parsed})


def test_gc_keeps_the_base_image_that_a_lock_names(toy: Workspace, based: tuple[Lock, Store, Parts]) -> None:
    lock, _, parts = based
    named = {one.removeprefix("sha256:") for one in (*parts.manifests, *parts.blobs)}
    assert not named & kept(toy).blobs
    (toy.state / "locks").mkdir()
    (toy.state / "locks" / "other.lock.toml").write_text(dump_lock(lock))
    assert named <= kept(toy).blobs
