"""What a real build notes of its image, what a plan reads out of it, and the bytes that an update costs."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from typing import Any

import pytest

import kiln.layers
from kiln.engine import Engine, probe
from kiln.errors import EngineError
from tests.integration.conftest import Project

pytestmark = pytest.mark.engine


def planned(project: Project) -> dict[str, dict[str, Any]]:
    done = project.kiln("--json", "plan", "toy")
    assert done.code == 0, done.err
    components: dict[str, dict[str, Any]] = json.loads(done.out)["toy"]["components"]
    return components


def saved(project: Project, reference: str) -> dict[str, bytes]:
    """Every file of the image as `docker save` writes it."""
    tar = subprocess.run(["docker", "save", reference], env=project.environment, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(tar)) as files:
        return {member.name: files.extractfile(member).read() for member in files if member.isfile()}  # type: ignore[union-attr]


def test_a_bump_is_planned_built_and_costs_its_own_layer(project: Project) -> None:
    (before,) = json.loads(project.kiln("--json", "build", "toy").out)
    assert planned(project)["small"]["image"] == before["reference"]
    source = project.root / "standin" / "standin_server.py"
    source.write_text(source.read_text() + "# another\n")
    components = planned(project)
    assert (components["small"]["state"], components["small"]["image"]) == ("in the engine", before["reference"])
    assert components["server"] | {"version": "", "key": ""} == {
        "version": "",
        "key": "",
        "reproducible": "same-digest",
        "state": "to build",
        "image": None,
        "reasons": ["the files of standin changed"],
        "cache": None,
    }
    told = project.kiln("plan", "toy", "--pull-cost", f"{before['digest']}..current")
    assert "not known before it is built: server, versions, manifest and configuration" in told.out
    (after,) = json.loads(project.kiln("--json", "build", "toy").out)
    assert {one["state"] for one in planned(project).values()} == {"in the engine"}
    done = project.kiln("--json", "plan", "toy", "--pull-cost", f"{before['key'][:16]}..current")
    cost = json.loads(done.out)
    # The engine itself says which blobs the two images are made of.
    old, new = (saved(project, one["reference"]) for one in (before, after))
    blobs = {name: text for name, text in new.items() if name.startswith("blobs/") and name not in old}
    assert cost["complete"] is True
    assert cost["bytes"] == sum(map(len, blobs.values()))
    assert [one["component"] for one in cost["layers"]] == ["server", "versions"]
    assert {f"blobs/sha256/{one['digest'][7:]}" for one in cost["layers"]} < blobs.keys()


def test_the_record_names_the_layers_as_the_image_has_them(project: Project) -> None:
    (built,) = json.loads(project.kiln("--json", "build", "toy").out)
    files = saved(project, built["reference"])
    manifest = json.loads(files[f"blobs/sha256/{built['digest'][7:]}"])
    config = json.loads(files[f"blobs/sha256/{manifest['config']['digest'][7:]}"])
    assert [one["component"] for one in built["layers"]] == ["rootfs", "small", "server", "versions"]
    assert [(one["digest"], one["size"]) for one in built["layers"]] == [
        (one["digest"], one["size"]) for one in manifest["layers"]
    ]
    assert [one["diff_id"] for one in built["layers"]] == config["rootfs"]["diff_ids"]


def test_an_engine_whose_files_cannot_be_read_gives_the_manifest_too(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    (built,) = json.loads(project.kiln("--json", "build", "toy").out)
    engine = probe(project.host)
    assert isinstance(engine, Engine)
    near = kiln.layers.manifest_text(engine, built["reference"], built["digest"])
    monkeypatch.setattr(kiln.layers, "content_folders", lambda _: [])
    far = kiln.layers.manifest_text(engine, built["reference"], built["digest"])
    assert near == far
    assert f"sha256:{hashlib.sha256(far).hexdigest()}" == built["digest"]
    with pytest.raises(EngineError, match="does not hand out the manifest"):
        kiln.layers.manifest_text(engine, "kiln/toy:nobody", built["digest"])
    with pytest.raises(EngineError, match="other layers than its Dockerfile makes"):
        kiln.layers.read_layers(engine, built["reference"], built["digest"], ("rootfs", "small"), on_base=False)
    layered = kiln.layers.read_layers(engine, built["reference"], built["digest"], ("server", "versions"), on_base=True)
    assert [one.component for one in layered.layers] == ["base", "base", "server", "versions"]
