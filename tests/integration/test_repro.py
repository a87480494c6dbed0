"""`kiln repro` on the real engine: the toy project is the same again, on two BuildKits too; and what is planted in it is found and called by name."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import HERE, Project

PLANTED = {
    "timestamp.txt": "timestamp",
    "random-id.txt": "random-id",
    "build-path.txt": "build-path",
    "directory-order.txt": "directory-order",
    "module.pyc": "pyc",
    "locale-order.txt": "locale-order",
    "data.gz": "gzip-time",
    "umask.txt": "mode",
    "shared": "setgid",
    "host-name.txt": "host-name",
    "libplant.a": "link-order",
}


@pytest.fixture
def project(project: Project) -> Iterator[Project]:
    """The toy project with a state folder whose path leaves room for the sockets of engines in it."""
    with tempfile.TemporaryDirectory(prefix="kiln-") as folder:
        shutil.copytree(project.state / "store", Path(folder) / "store")
        yield replace(project, state=Path(folder))


def plant(root: Path) -> None:
    """Have a step leave what differs, and uv leave its cache file."""
    template = root / "templates" / "serving.Dockerfile.j2"
    text = template.read_text()
    step = "COPY <<'EOF' /plants.py\n" + (HERE / "plants.py").read_text() + "EOF\n"
    step += "RUN --network=none python3.11 /plants.py /plants\n"
    text = text.replace("FROM rootfs AS versions\n", f"FROM rootfs AS versions\n{step}")
    text = text.replace("--out=/out/app \\\n", "--out=/out/app && cp --archive /plants /out/plants \\\n")
    template.write_text(text)
    macros = root / "templates" / "macros.j2"
    lines = macros.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.lstrip().startswith("&& find /out") or "uv_cache" not in line]
    assert len(lines) - len(kept) == 2
    macros.write_text("".join(kept))


def kinds_of(found: dict[str, Any]) -> dict[str, set[str]]:
    (image,) = found["images"]
    (difference,) = image["differences"]
    return {
        file["path"]: {finding["kind"] for finding in file["findings"]}
        for layer in difference["layers"]
        for file in layer["files"]
    }


def test_what_is_planted_is_found_and_called_by_name(project: Project) -> None:
    plant(project.root)
    done = project.kiln("--json", "repro", "toy", timeout=600)
    assert done.code == 66, done.err
    assert "toy is not the same again" in done.err
    found = json.loads(done.out)
    assert found["not_varied"] == {}
    kinds = kinds_of(found)
    missing = {
        name: kinds.get(f"plants/{name}")
        for name, kind in PLANTED.items()
        if kind not in kinds.get(f"plants/{name}", ())
    }
    assert not missing
    caches = [path for path, which in kinds.items() if path.endswith("uv_cache.json") and "uv_cache" in which]
    assert len(caches) >= 2
    # Nothing else differs but what lists the caches.
    rest = {path: which for path, which in kinds.items() if not path.endswith(("uv_cache.json", "/RECORD"))}
    assert {path: which for path, which in rest.items() if not path.startswith("plants/")} == {}
    # What is claimed of the components is not so any more.
    assert "toy, small: claimed same-digest, measured pure-render" in done.err


def test_the_same_again_on_two_builders(project: Project) -> None:
    done = project.kiln("--json", "repro", "toy", "--across", "forky", timeout=900)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["not_varied"] == {}
    # The suite moves on; what it has is newer than the engine that Kiln installs.
    one, two, other = (int(build["builder"].split()[1].split(".")[0]) for build in found["builds"])
    assert one == two < other
    (image,) = found["images"]
    assert len(set(image["digests"])) == 1
    assert {level for _, _, level in image["components"]} == {"across-builders"}
    first, second, third = (build["conditions"] for build in found["builds"])
    assert [name for name in first if first[name] == second[name]] == []
    assert second == third
    assert not (project.state / "repro").exists()


@pytest.mark.parametrize("words", [("--across", "no-such-suite")])
def test_a_docker_that_cannot_be_had_is_said_before_anything_is_built(project: Project, words: tuple[str, ...]) -> None:
    done = project.kiln("repro", "toy", *words)
    assert done.code != 0
    assert "no-such-suite" in done.err
    assert "build 1" not in done.err
