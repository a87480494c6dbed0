"""Images that somebody names: what the engine and a registry say of them, and which are refused before anything is run."""

from __future__ import annotations

import json
from typing import Any

import pytest

import kiln.named
import kiln.torn
from kiln.config import Config
from kiln.console import Console
from kiln.engine import Engine
from kiln.errors import ForeignImageError, KilnError, RefNotFoundError, UpstreamError, UsageError
from kiln.named import Named, find_image
from kiln.process import Finished

ENGINE = Engine("unix:///nowhere", "26.1.5", "1.45", private=False)
DIGEST, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64
LABELS = {"io.kiln.stack": "cpu", "org.opencontainers.image.title": "cpu-serving"}


class World:
    """An engine and a registry: what they hold, and what was asked of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images: dict[str, dict[str, Any]] = {}
        self.registry: dict[str, dict[str, Any]] = {}
        self.tags: dict[str, str] = {}
        self.pulled: list[str] = []
        monkeypatch.setattr(kiln.named, "image_document", lambda _, name: self.images.get(name))
        monkeypatch.setattr(kiln.named, "image_digest", lambda _, name: self.images[name]["Id"])
        monkeypatch.setattr(kiln.named, "tag_digest", self.tag)
        monkeypatch.setattr(kiln.named, "run", self.run)
        monkeypatch.setattr(kiln.torn, "run", self.run)

    def tag(self, _: Config, name: str, tag: str) -> str:
        if f"{name}:{tag}" not in self.tags:
            raise RefNotFoundError(f"{name} has no tag {tag}")
        return self.tags[f"{name}:{tag}"]

    def run(self, words: list[str], **_: Any) -> Finished:
        place = words[-1]
        if words[1] == "buildx":
            found = self.registry.get(place)
            return Finished((), 0 if found else 1, json.dumps(found["raw"]) if found else "no such manifest")
        if place not in self.registry:
            return Finished((), 1, "manifest unknown")
        self.pulled.append(place)
        self.images[place] = self.registry[place]
        return Finished((), 0, place)

    def find(self, text: str, **words: str) -> Named:
        return find_image(ENGINE, Config(), text, Console(quiet=True), **words)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def image(digest: str = DIGEST, labels: dict[str, str] | None = None, raw: Any = None) -> dict[str, Any]:
    return {"Id": digest, "Config": {"Labels": LABELS if labels is None else labels}, "raw": raw or {"config": {}}}


def test_an_image_of_the_engine_is_what_its_labels_say(world: World) -> None:
    more = {
        "io.kiln.overrides": "aiter=v0.1.14 archs=gfx942",
        "io.kiln.advisories.allowed": "aiter-mhc-race",
        "io.kiln.rehearsal": "true",
    }
    world.images["kiln/x:1"] = image(labels=LABELS | more)
    assert world.find("kiln/x:1") == Named(
        "kiln/x:1", DIGEST, "cpu", "cpu-serving", ("aiter=v0.1.14", "archs=gfx942"), ("aiter-mhc-race",), rehearsal=True
    )


@pytest.mark.parametrize("labels", [{}, {"io.kiln.stack": "cpu"}, {"org.opencontainers.image.title": "debian"}])
def test_an_image_of_somebody_elses_is_refused(world: World, labels: dict[str, str]) -> None:
    world.images["debian:12"] = image(labels=labels)
    with pytest.raises(ForeignImageError, match="is not an image that kiln built"):
        world.find("debian:12")
    assert world.find("debian:12", stack="cpu", image="cpu-serving").stack == "cpu"


def test_what_is_not_there_is_pulled_by_its_digest(world: World) -> None:
    place = f"registry.example:5000/kiln/cpu@{DIGEST}"
    world.registry[place] = image()
    found = world.find(place)
    assert (found.reference, found.digest) == (place, DIGEST)
    assert world.pulled == [place]
    world.find(place)
    assert world.pulled == [place], "what the engine holds is not pulled again"


def test_of_an_index_with_one_image_the_image_is_taken(world: World) -> None:
    attestation = {"digest": "sha256:" + "c" * 64, "platform": {"os": "unknown", "architecture": "unknown"}}
    listed = [{"digest": OTHER, "platform": {"os": "linux", "architecture": "amd64"}}, attestation]
    world.registry[f"registry.example/cpu@{DIGEST}"] = image(raw={"manifests": listed})
    world.registry[f"registry.example/cpu@{OTHER}"] = image(OTHER)
    assert world.find(f"registry.example/cpu@{DIGEST}").digest == OTHER
    assert world.pulled == [f"registry.example/cpu@{OTHER}"]
    listed.append({"digest": DIGEST, "platform": {"os": "linux", "architecture": "arm64"}})
    with pytest.raises(UsageError, match="an index of 2 images") as caught:
        world.find(f"registry.example/cpu@{DIGEST}")
    assert f"linux/arm64: {DIGEST}" in caught.value.why


def test_a_tag_of_a_registry_is_refused_with_its_digest(world: World) -> None:
    world.tags["registry.example/cpu:latest"] = DIGEST
    with pytest.raises(UsageError) as caught:
        world.find("registry.example/cpu")
    assert caught.value.fix == f"kiln verify registry.example/cpu@{DIGEST}"
    with pytest.raises(UpstreamError, match="a tag is not verified"):
        world.find("registry.example/cpu:v9")
    assert world.pulled == []


@pytest.mark.parametrize(
    "media", ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"]
)
def test_an_index_in_the_engine_is_not_one_image(world: World, media: str) -> None:
    world.images["kiln/x:1"] = image() | {"Descriptor": {"mediaType": media, "digest": DIGEST}}
    with pytest.raises(UsageError, match="is an index"):
        world.find("kiln/x:1")


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("no such thing", UsageError, "is no stack and no image"),
        ("", UsageError, "is no stack and no image"),
        ("-rf", UsageError, "is no stack and no image"),
        ("name:tag@sha256:12", UsageError, "is no stack and no image"),
        ("cpuu", UsageError, "the engine has no image cpuu"),
        ("kiln/cpu:none", UsageError, "the engine has no image kiln/cpu:none"),
        (DIGEST, UsageError, "the engine has no image"),
        (f"registry.example/cpu@{DIGEST}", UpstreamError, "could not be pulled"),
    ],
)
def test_what_names_nothing_is_said_so(world: World, text: str, error: type[KilnError], says: str) -> None:
    with pytest.raises(error) as caught:
        world.find(text)
    assert says in caught.value.what
    assert caught.value.fix or caught.value.why
