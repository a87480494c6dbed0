"""Tidying up a real engine: what no record names is found by name and size; BuildKit's cache is emptied in an engine of the test's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kiln.console import Console
from kiln.engine import Engine, PrivateEngine, image_digest, probe
from kiln.enginegc import EngineFound, look_in_engine, own_engine, remove_from_engine
from tests.integration.conftest import Project

pytestmark = pytest.mark.engine


def test_an_image_is_found_unless_a_record_names_it(project: Project) -> None:
    engine = probe(project.host)
    assert isinstance(engine, Engine)
    (built,) = json.loads(project.kiln("--json", "build", "toy").out)
    found = dict(look_in_engine(engine, (), ()).images)
    assert found[built["reference"]] > 0
    assert built["reference"] not in dict(look_in_engine(engine, {built["digest"]}, ()).images)


@pytest.fixture
def own(engine_host: str) -> Iterator[Path]:
    """A state folder with an engine of its own; a short path, for the engine's sockets."""
    if os.geteuid() != 0:
        pytest.skip("an engine of one's own needs root")
    with tempfile.TemporaryDirectory(prefix="kiln-gc-") as folder:
        private = PrivateEngine(Path(folder))
        private.start(Console(quiet=True))
        yield Path(folder)
        private.stop()
        shutil.rmtree(private.folder, ignore_errors=True)


def test_an_engine_of_ones_own_is_emptied_of_what_no_record_names(own: Path, tmp_path: Path) -> None:
    engine = own_engine(own)
    assert engine is not None
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY file /\n")
    (tmp_path / "file").write_bytes(os.urandom(1 << 20))
    name = "kiln/toy:" + "0" * 16
    words = ["docker", "buildx", "build", "--builder=default", "--output", f"type=image,name={name}", str(tmp_path)]
    subprocess.run(words, env={**os.environ, **engine.environment}, check=True, capture_output=True)
    found = look_in_engine(engine, (), ())
    assert [image for image, _ in found.images] == [name]
    assert found.cache > 0
    assert remove_from_engine(engine, found) == []
    assert image_digest(engine, name) is None
    assert look_in_engine(engine, (), ()) == EngineFound((), 0)
