"""What the stack `toy` renders to, byte by byte. After a change that is meant: pytest tests/golden --update-golden."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TOY, invented_lock

from kiln.build import bake_argv
from kiln.lockfile import dump_lock
from kiln.pins import read_pins
from kiln.render import render, write_rendered
from kiln.workspace import Workspace

EXPECTED = TOY / "expected"


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``: its path and its bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def kiln(*words: str | Path, cwd: Path, **env: str) -> None:
    """Run ``python -m kiln`` as a program of its own; it must succeed."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("KILN_", "LC_", "LANG", "PYTHON"))}
    done = subprocess.run([sys.executable, "-m", "kiln", "--quiet", *words], cwd=cwd, env={**inherited, **env}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_lock_is_written_as_it_always_was(toy: Workspace, update_golden: bool) -> None:
    text = dump_lock(invented_lock(read_pins(toy, "toy")))
    text = text.replace("\n", "\n# Invented for the tests: no file has such a sha256.\n", 1)
    golden = TOY / "pins" / "toy.lock.toml"
    if update_golden:
        golden.write_text(text, encoding="utf-8")
        toy.lock_file("toy").write_text(text, encoding="utf-8")
    assert golden.read_text(encoding="utf-8") == text


def test_the_toy_stack_renders_to_the_golden_files(toy: Workspace, tmp_path: Path, update_golden: bool) -> None:
    if update_golden:
        shutil.copyfile(TOY / "pins" / "toy.lock.toml", toy.lock_file("toy"))
    kiln("--root", toy.root, "render", "toy", "--out", tmp_path / "out", cwd=tmp_path)
    if update_golden:
        shutil.rmtree(EXPECTED, ignore_errors=True)
        shutil.copytree(tmp_path / "out", EXPECTED)
    rendered, golden = tree(tmp_path / "out"), tree(EXPECTED)
    assert list(rendered) == list(golden)
    for name, expected in golden.items():
        assert rendered[name].decode() == expected.decode(), f"{name} changed; if that is meant: --update-golden"


def test_a_plain_ascii_locale_changes_nothing(toy: Workspace, tmp_path: Path) -> None:
    """The toy's pins hold a letter outside ASCII; a machine whose locale has no such letter must render it all the same."""
    kiln("--root", toy.root, "render", "toy", "--out", tmp_path / "out", cwd=tmp_path, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert tree(tmp_path / "out") == tree(EXPECTED)


def test_the_real_stack_renders_alike_in_any_zone_locale_seed_and_folder(project: Path, project_copy: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    kiln("render", "cpu", "--out", one, cwd=project, TZ="Pacific/Kiritimati", LC_ALL="C.UTF-8", PYTHONHASHSEED="1")
    kiln("render", "cpu", "--out", other, cwd=project_copy, TZ="America/St_Johns", LC_ALL="POSIX", PYTHONHASHSEED="4242")
    assert tree(one)
    assert tree(one) == tree(other)


def test_rendering_twice_gives_equal_values(toy: Workspace, tmp_path: Path) -> None:
    pins = read_pins(toy, "toy")
    lock = invented_lock(pins)
    assert render(toy, pins, lock) == render(toy, pins, lock)


def test_the_build_command(toy: Workspace) -> None:
    pins = read_pins(toy, "toy")
    (rendered,) = render(toy, pins, invented_lock(pins))
    assert bake_argv(rendered) == [
        "docker",
        "buildx",
        "bake",
        "--builder=default",
        "--progress=plain",
        "--metadata-file=images/toy-serving.metadata.json",
        "--file=renders/toy-serving/docker-bake.json",
        "toy-serving",
    ]


def test_the_bake_file_names_every_stage_input_once() -> None:
    target = json.loads((EXPECTED / "toy-serving" / "docker-bake.json").read_text(encoding="utf-8"))["target"]["toy-serving"]
    dockerfile = (EXPECTED / "toy-serving" / "Dockerfile").read_text(encoding="utf-8")
    assert target["args"] == {"SOURCE_DATE_EPOCH": "1580608922"}
    assert target["platforms"] == ["linux/amd64"]
    for name in target["contexts"]:
        assert f"from={name}," in dockerfile


def test_requirements_that_are_no_longer_rendered_go(toy: Workspace, tmp_path: Path) -> None:
    pins = read_pins(toy, "toy")
    old = tmp_path / "out" / "toy-serving" / "requirements" / "gone.txt"
    old.parent.mkdir(parents=True)
    old.write_text("gone==1\n")
    kept = tmp_path / "out" / "toy-serving" / "image.toml"
    kept.write_text("by hand")
    write_rendered(render(toy, pins, invented_lock(pins)), tmp_path / "out")
    assert not old.exists()
    assert kept.read_text() == "by hand"


@pytest.mark.parametrize("name", sorted(path.relative_to(EXPECTED).as_posix() for path in EXPECTED.rglob("*") if path.is_file()))
def test_golden_files_are_plain_text_with_unix_line_ends(name: str) -> None:
    data = (EXPECTED / name).read_bytes()
    assert data.endswith(b"\n")
    assert b"\r" not in data
    assert b"\t" not in data
