"""The base image of a ROCm stack: found in a real registry by tag, pulled by digest through a mirror, and built on without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kiln.baseimage import base_name, ensure_base, package_status
from kiln.config import Config
from kiln.console import Console
from kiln.engine import Engine, image_digest
from kiln.errors import RefNotFoundError, UpstreamError
from kiln.lockentries import BaseImage
from kiln.registry import tag_digest
from tests.integration.registry import registry_in
from tests.rehearsal.standins import make_standins

pytestmark = pytest.mark.engine
REPOSITORY = Path(__file__).parents[2]
NAME, TAG = "docker.io/rocm/dev-standin", "7.2.3-complete"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a registry of this module's own."""
    with registry_in(tmp_path_factory.mktemp("registry") / "data") as made:
        yield made.host


@pytest.fixture(scope="module")
def engine(engine_host: str) -> Engine:
    return Engine(engine_host, "", "1.45", private=False)


def docker(engine: Engine, *words: str) -> str:
    done = subprocess.run(
        ["docker", *words],
        env={**os.environ, **engine.environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def published(registry: str, engine: Engine) -> BaseImage:
    """The stand-in of the base image, in the registry and nowhere else."""
    import json

    folder = make_standins(REPOSITORY / ".kiln" / "standins")
    base = json.loads((folder / "standins.json").read_text())["base"]
    docker(engine, "load", "--quiet", "--input", str(folder / base["archive"]))
    there = f"{registry}/rocm/dev-standin:{TAG}"
    docker(engine, "tag", base["digest"], there)
    docker(engine, "push", "--quiet", there)
    docker(engine, "rmi", there)
    return BaseImage(NAME, TAG, base["digest"])


@pytest.fixture
def mirrors(registry: str) -> Config:
    return Config((("docker.io/rocm/", f"{registry}/rocm/"),))


def test_a_tag_is_resolved_to_the_digest_that_was_pushed(published: BaseImage, mirrors: Config) -> None:
    assert tag_digest(mirrors, NAME, TAG) == published.digest


def test_a_tag_that_is_not_there_is_answered_with_those_that_are(published: BaseImage, mirrors: Config) -> None:
    with pytest.raises(RefNotFoundError, match=r"7\.2\.3-complet'") as caught:
        tag_digest(mirrors, NAME, TAG[:-1])
    assert TAG in caught.value.why


def test_it_is_pulled_by_digest_and_asked_for_its_packages(
    published: BaseImage, mirrors: Config, engine: Engine
) -> None:
    name = ensure_base(engine, mirrors, published, Console(quiet=True))
    assert name == base_name(published.digest)
    assert image_digest(engine, name) == published.digest
    assert b"Package: dpkg\n" in package_status(engine, name)
    # The second time there is nothing to pull, and nobody to ask.
    assert (
        ensure_base(engine, Config((("docker.io/rocm/", "127.0.0.1:9/rocm/"),)), published, Console(quiet=True)) == name
    )


def test_a_file_that_names_it_by_digest_is_built_without_asking_the_registry(
    published: BaseImage, mirrors: Config, engine: Engine, tmp_path: Path
) -> None:
    name = ensure_base(engine, mirrors, published, Console(quiet=True))
    reference = f"{NAME}:{TAG}@{published.digest}"
    (tmp_path / "Dockerfile").write_text(f"FROM {reference}\nRUN --network=none dpkg --version\n")
    context = f"{reference.removeprefix('docker.io/')}=docker-image://{name}"
    docker(
        engine,
        "buildx",
        "build",
        "--builder=default",
        "--build-context",
        context,
        "--output=type=cacheonly",
        str(tmp_path),
    )


def test_a_builder_takes_it_from_the_mirror_by_its_digest(
    published: BaseImage, mirrors: Config, engine: Engine, tmp_path: Path
) -> None:
    """As a builder elsewhere has to: it sees no engine that holds it under a name."""
    reference = f"{NAME}:{TAG}@{published.digest}"
    (tmp_path / "Dockerfile").write_text(f"FROM {reference}\nRUN --network=none dpkg --version\n")
    place = f"docker-image://{mirrors.mirrored(published.name)}@{published.digest}"
    context = f"--build-context={reference.removeprefix('docker.io/')}={place}"
    docker(engine, "buildx", "build", "--builder=default", context, "--output=type=cacheonly", str(tmp_path))


def test_an_image_that_nobody_has_is_said_to_be_missing(mirrors: Config, engine: Engine) -> None:
    with pytest.raises(UpstreamError, match="could not be pulled"):
        ensure_base(engine, mirrors, BaseImage(NAME, TAG, "sha256:" + "0" * 64), Console(quiet=True))


def test_a_stack_with_open_inputs_builds_nothing_and_says_what_is_open() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kiln", "image", "dsv4-mhc", "--set", "aiter=v0.1.14"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 18
    for name in ("torch", "triton", "cpython", "vllm", "kiln lock dsv4-mhc"):
        assert name in done.stderr
    assert done.stdout == ""
