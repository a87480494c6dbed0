"""Carried to a machine without a network, in a network namespace that has none: the inputs, of which the same image is made; and the image, which cosign verifies there."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from kiln.baseimage import base_name, ensure_base
from kiln.config import Config
from kiln.console import Console
from kiln.cosign import Cosign
from kiln.engine import Engine, PrivateEngine, image_digest, probe
from kiln.imageparts import fetch_parts
from kiln.lockentries import BaseImage
from kiln.store import Store
from tests.integration.conftest import Project, Ran
from tests.integration.registry import Registry
from tests.integration.release.conftest import Home, make_keys, no_image, repository, sound

pytestmark = pytest.mark.engine


def without_network(project: Project, *words: str) -> Ran:
    """Kiln in a network namespace that has not even loopback; its engine is reached by a socket."""
    done = subprocess.run(
        ["unshare", "--net", *project.command(*words)],
        env=project.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Ran(done.returncode, done.stdout, done.stderr)


def test_the_inputs_give_the_same_image(home: Home, machine: Project, tmp_path: Path) -> None:
    out = tmp_path / "toy.bundle.tar"
    assert home.project.kiln("bundle", "toy", "--out", str(out)).code == 0
    done = without_network(machine, "unbundle", str(out))
    assert done.code == 0, done.err
    done = without_network(machine, "--json", "build", "toy")
    assert done.code == 0, done.err
    assert home.digest in done.out
    sound(Store(machine.state / "store"))


def test_an_image_is_verified_by_cosign_and_has_its_digest(
    publisher: Project, machine: Project, home: Home, cosign: Cosign, tmp_path: Path
) -> None:
    out = tmp_path / "toy.image.tar"
    done = machine.kiln("bundle", "toy", "--image", "--out", str(out))
    assert done.code == 0, done.err
    first = out.read_bytes()
    assert machine.kiln("bundle", "toy", "--image", "--out", str(out)).code == 0
    assert out.read_bytes() == first
    shutil.rmtree(machine.state / "store")

    other = make_keys(cosign, tmp_path / "other") / "cosign.pub"
    done = without_network(machine, "unbundle", str(out), "--verify-key", str(other))
    assert done.code == 71, (done.code, done.err)
    assert no_image(machine)

    changed = bytearray(first)
    changed[-2000] ^= 1
    (tmp_path / "changed.tar").write_bytes(changed)
    shutil.rmtree(machine.state / "store")
    assert without_network(machine, "unbundle", str(tmp_path / "changed.tar")).code in (21, 28)
    assert no_image(machine)

    done = without_network(machine, "--json", "unbundle", str(out))
    assert done.code == 0, done.err
    listed = subprocess.run(
        ["docker", "image", "ls", "--digests", "--no-trunc"],
        env=machine.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert home.digest in listed.stdout
    sound(Store(machine.state / "store"))


def test_a_base_image_out_of_the_store_is_the_one_that_the_lock_names(
    machine: Project, registry: Registry, home: Home
) -> None:
    engine = probe(PrivateEngine(machine.state).host, private=True)
    assert isinstance(engine, Engine)
    store, quiet = Store(machine.state / "store"), Console(quiet=True)
    parts = fetch_parts(repository(registry), home.digest, store, quiet)
    assert parts.digest == home.digest
    image = BaseImage("docker.io/nobody/has-it", "1", home.digest)
    dead = Config((("docker.io/nobody/", "127.0.0.1:9/nobody/"),))
    assert ensure_base(engine, dead, image, quiet, store) == base_name(home.digest)
    assert image_digest(engine, base_name(home.digest)) == home.digest
