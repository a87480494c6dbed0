"""What is fed with damaged documents: every reader of a file or an answer that somebody else may have written."""

from __future__ import annotations

import base64
import io
import json
import random
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kiln import bundleimage
from kiln.advisories import read_advisories
from kiln.bundletar import INDEX, header_of, read_head
from kiln.cacheentry import component_entry, image_record, read_component_entry, read_image_record, read_layer
from kiln.canonical import canonical_json
from kiln.config import read_config
from kiln.cosign import statements
from kiln.derive import asked_nobody, derive
from kiln.derivedtext import text_of
from kiln.imageparts import parts_of
from kiln.lockfile import parse_lock
from kiln.ociimage import read_layout
from kiln.pins import read_pins
from kiln.records import Layer
from kiln.registryclient import MANIFEST, OCI, Manifest, digest_of_bytes
from kiln.releases import Checked, Release, dump, read_releases, releases_file
from kiln.verify.render.shape import read_report
from kiln.vllmfiles import UPSTREAM, Revision
from kiln.vllmpins import read_said
from kiln.wheels import resolved
from kiln.workspace import Workspace
from tests.fuzz.mutate import damaged_table, damaged_text
from tests.unit.derivations import small_vllm

PROJECT = Path(__file__).parents[2]
DIGEST = "sha256:" + "ab" * 32
Target = Callable[[random.Random], object]


def targets(folder: Path) -> dict[str, Target]:
    """Each target by its name: one call damages its document anew and has it read. ``folder`` is for the files."""
    return {
        "pins": _pins(folder / "pins", "dsv4-mhc"),
        "pins cpu": _pins(folder / "pins-cpu", "cpu"),
        "lock": _lock("dsv4-mhc"),
        "lock cpu": _lock("cpu"),
        "advisories": _advisories(folder / "advisories"),
        "report": _report(folder / "report"),
        "image layout": _layout(folder / "layout"),
        "cache entry": _entries(),
        "releases": _releases(folder / "releases"),
        "attestations": _attestations(),
        "index page": _index(),
        "bundle": _bundles(),
        "configuration": _configuration(folder / "configuration"),
        "vLLM's files": _vllm_files(),
    }


def _text_file(path: Path, text: str, read: Callable[[], object]) -> Target:
    path.parent.mkdir(parents=True, exist_ok=True)

    def target(random_: random.Random) -> object:
        path.write_bytes(damaged_text(random_, text).encode("utf-8", "surrogatepass"))
        return read()

    return target


def _pins(folder: Path, stack: str) -> Target:
    workspace = Workspace(folder, folder / "state")
    text = (PROJECT / "pins" / f"{stack}.toml").read_text()
    for name in ("images", "plugins", "templates"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return _text_file(folder / "pins" / f"{stack}.toml", text, lambda: read_pins(workspace, stack))


def _lock(stack: str) -> Target:
    # The whole of one takes a quarter of a second to read: its head, and one entry of every kind, say as much.
    parts = (PROJECT / "pins" / f"{stack}.lock.toml").read_text().split("\n\n")
    kept: dict[str, str] = {}
    for part in parts:
        kept.setdefault(part.lstrip().split("\n", 1)[0], part)
    text = "\n\n".join(kept.values())
    return lambda random_: parse_lock(damaged_text(random_, text), "the lock")


def _vllm_files() -> Target:
    files = {path: data.decode() for path, data in small_vllm().items()}
    raw = tomllib.loads((PROJECT / "pins" / "dsv4-mhc.toml").read_text(encoding="utf-8"))

    def target(random_: random.Random) -> object:
        path = random_.choice(sorted(files))
        damaged = {**files, path: damaged_text(random_, files[path])}
        read = {name: text.encode("utf-8", "surrogatepass") for name, text in damaged.items()}.get
        revision = Revision(UPSTREAM, "v0.25.0", "0.25.0", "", "", "here", read)
        # What is read can be written: as TOML, whatever it is.
        return tomllib.loads(text_of(derive("new", "dsv4-mhc", raw, revision, read_said(read), asked_nobody()), "x"))

    return target


def _advisories(folder: Path) -> Target:
    workspace = Workspace(folder, folder / "state")
    text = (PROJECT / "pins" / "advisories.toml").read_text()
    return _text_file(folder / "pins" / "advisories.toml", text, lambda: read_advisories(workspace))


def _report(folder: Path) -> Target:
    (good, *_) = sorted((PROJECT / "tests" / "golden" / "reports").rglob("*.json"))
    table, path = json.loads(good.read_text()), folder / "report.json"
    folder.mkdir()

    def target(random_: random.Random) -> object:
        if random_.random() < 0.5:
            path.write_text(json.dumps(damaged_table(random_, table)))
        else:
            path.write_bytes(damaged_text(random_, json.dumps(table)).encode("utf-8", "surrogatepass"))
        return read_report(path)

    return target


def _layout(folder: Path) -> Target:
    """A layout whose blobs have the digests that are asked for, whatever is in them: nothing is caught by its hash alone."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes) -> dict[str, Any]:
        digest = digest_of_bytes(data)
        (blobs / digest.removeprefix("sha256:")).write_bytes(data)
        return {"mediaType": MANIFEST, "digest": digest, "size": len(data)}

    def target(random_: random.Random) -> object:
        shutil.rmtree(blobs)
        blobs.mkdir()
        config: Any = {"rootfs": {"type": "layers", "diff_ids": [DIGEST]}, "config": {"Labels": {"a": "b"}}}
        layer = {"mediaType": f"{OCI}.layer.v1.tar+zstd", "digest": DIGEST, "size": 9}
        which = random_.randrange(3)
        if which == 0:
            config = damaged_table(random_, config)
        manifest: Any = {"schemaVersion": 2, "config": put(json.dumps(config).encode()), "layers": [layer]}
        if which == 1:
            manifest = damaged_table(random_, manifest)
        index: Any = {"schemaVersion": 2, "manifests": [put(json.dumps(manifest).encode())]}
        if which == 2:
            index = damaged_table(random_, index)
        text = json.dumps(index)
        (folder / "index.json").write_text(damaged_text(random_, text) if random_.random() < 0.1 else text)
        return read_layout(folder)

    return target


def _entries() -> Target:
    layer = Layer("aiter", DIGEST, DIGEST, 9)
    config, entry = component_entry("cpu", "c" * 64, layer, "linux/amd64")
    record = image_record("cpu", "cpu-serving", "c" * 64, DIGEST, 9)

    def target(random_: random.Random) -> object:
        which = random_.randrange(3)
        if which == 0:
            broken = Manifest(canonical_json(damaged_table(random_, record.table)), MANIFEST)
            return read_image_record("x/y:z", broken, "cpu-serving", "c" * 64)
        if which == 1:
            broken = Manifest(damaged_text(random_, entry.data.decode()).encode(), MANIFEST)
            return read_component_entry("x/y:z", broken, "aiter", "c" * 64)
        broken = Manifest(canonical_json(damaged_table(random_, entry.table)), MANIFEST)
        _, descriptor = read_component_entry("x/y:z", broken, "aiter", "c" * 64)
        return read_layer("x/y:z", "aiter", descriptor, damaged_text(random_, config.decode()).encode())

    return target


def _releases(folder: Path) -> Target:
    workspace = Workspace(folder, folder / "state")
    one = Release(
        "cpu-serving", DIGEST, "r.example/kiln/cpu-serving", "v1-abc", "2026-11-25", "c" * 64, "d" * 64, "e" * 64, 9,
        Checked(20, 0, 0, 0, "generate", "a processor"), {"vllm": "0.32.0"}, {"aiter": "v0.1.14"}, ("some",),
    )  # fmt: skip
    path = releases_file(workspace, "cpu")
    return _text_file(path, dump("cpu", [one, one]), lambda: read_releases(workspace, "cpu"))


def _attestations() -> Target:
    statement = {"subject": [{"name": "x", "digest": {"sha256": "ab" * 32}}], "predicate": {"a": [1, {"b": 2}]}}

    def target(random_: random.Random) -> object:
        inner = json.dumps(damaged_table(random_, statement))
        if random_.random() < 0.2:
            inner = damaged_text(random_, inner)
        outer: Any = {"payloadType": "x", "payload": base64.b64encode(inner.encode("utf-8", "surrogatepass")).decode()}
        text = json.dumps(damaged_table(random_, outer) if random_.random() < 0.3 else outer)
        return statements(damaged_text(random_, text) if random_.random() < 0.2 else text, f"x/y@{DIGEST}")

    return target


def _index() -> Target:
    """What an index's page says reaches Kiln as pip's report."""
    item = {
        "metadata": {"name": "Some.Package", "version": "1.0", "requires_dist": ["other>=1; python_version > '3.8'"]},
        "download_info": {"url": "https://x.example/some-1.0-py3-none-any.whl", "archive_info": {"hashes": {"sha256": "ab" * 32}}},
    }  # fmt: skip

    def target(random_: random.Random) -> object:
        text = json.dumps(damaged_table(random_, {"version": "1", "install": [item, item]}))
        return resolved(damaged_text(random_, text) if random_.random() < 0.3 else text)

    return target


def _bundles() -> Target:
    """The index of an image's bundle, and the manifests in it, which have the digests that are asked for."""
    entry = {"digest": DIGEST, "size": 9}
    manifest = {"mediaType": MANIFEST, "config": entry, "layers": [entry]}
    listed = {"manifests": [{"digest": DIGEST, "platform": {"os": "linux", "architecture": "amd64"}}]}
    parts = parts_of(digest_of_bytes(canonical_json(manifest)), lambda _: canonical_json(manifest))
    place = f"r.example/kiln/cpu@{parts.digest}"
    table = json.loads(bundleimage.index_of("cpu", place, dict.fromkeys(("image", "sigs", "atts"), parts)).text())

    def target(random_: random.Random) -> object:
        if random_.random() < 0.3:
            data = json.dumps(damaged_table(random_, random_.choice((manifest, listed)))).encode()
            return parts_of(digest_of_bytes(data), lambda _: data)
        text = (json.dumps(damaged_table(random_, table), indent=1, sort_keys=True) + "\n").encode()
        stream = io.BytesIO(header_of(INDEX, len(text)) + text + bytes(-len(text) % 512))
        return bundleimage.require_whole(read_head(stream, {bundleimage.KIND: bundleimage.parsed}))

    return target


def _configuration(folder: Path) -> Target:
    workspace = Workspace(folder, folder / "state")
    text = '[mirrors]\n"docker.io" = "mirror.example/hub"\n"https://github.com" = "../git"\n[apt-sources]\nbookworm = "a.sources"\n[cache]\nregistry = "r.example/kiln"\npush = true\n'
    return _text_file(folder / "kiln.toml", text, lambda: read_config(workspace, {}))
