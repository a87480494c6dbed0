"""What the stack `toy` renders to, byte by byte. After a change that is meant: pytest tests/golden --update-golden."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kiln.build import bake_argv
from kiln.lockentries import Deb, Wheel
from kiln.lockfile import Lock, dump_lock
from kiln.pins import Pins, read_pins
from kiln.render import render, write_rendered
from kiln.workspace import Workspace

REPOSITORY = Path(__file__).parents[2]
TOY = Path(__file__).parent / "toy"
EXPECTED = TOY / "expected"


def invented_lock(pins: Pins) -> Lock:
    """What the lock of `toy` holds. No such files exist: every sha256 is one byte, 32 times over."""
    debs = [("base-files", "12.4", "amd64"), ("python3", "3.11.2-1+b1", "amd64"), ("tzdata", "1:2026a-0", "all")]
    wheels = [
        ("base", "toy-base", "1.0+cpu", "toy_base-1.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl", "extra"),
        ("needs", "toy-dependency", "0.3", "toy_dependency-0.3-py3-none-any.whl", ""),
        ("needs", "toy-second", "4.5.6", "toy_second-4.5.6-py3-none-any.whl", ""),
        ("app", "toy-app", "2.0", "toy_app-2.0-py3-none-any.whl", ""),
        ("tools", "uv", "0.13.8", "uv-0.13.8-py3-none-manylinux_2_17_x86_64.whl", ""),
        ("tools", "flit-core", "3.12.0", "flit_core-3.12.0-py3-none-any.whl", ""),
    ]
    return Lock(
        pins.stack,
        pins.sha256,
        tuple(
            Deb(
                name,
                version,
                arch,
                f"pool/main/{name[0]}/{name}/{name}_{version}_{arch}.deb",
                f"{number:02x}" * 32,
                1000 + number,
            )
            for number, (name, version, arch) in enumerate(debs, 1)
        ),
        tuple(
            Wheel(component, name, version, file, f"{number:02x}" * 32, 1000 + number, index)
            for number, (component, name, version, file, index) in enumerate(wheels, 17)
        ),
    )


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``: its path and its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def kiln(*words: str | Path, cwd: Path, **env: str) -> None:
    """Run ``python -m kiln`` as a program of its own; it must succeed."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("KILN_", "LC_", "LANG", "PYTHON"))
    }
    done = subprocess.run(
        [sys.executable, "-m", "kiln", "--quiet", *words],
        cwd=cwd,
        env={**inherited, **env},
        capture_output=True,
        text=True,
        check=False,
    )
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
    kiln(
        "--root",
        toy.root,
        "render",
        "toy",
        "--out",
        tmp_path / "out",
        cwd=tmp_path,
        LC_ALL="C",
        PYTHONUTF8="0",
        PYTHONCOERCECLOCALE="0",
    )
    assert tree(tmp_path / "out") == tree(EXPECTED)


@pytest.mark.parametrize("stack", ["cpu", "dsv4-mhc", "dsv4-mhc-upstream"])
def test_a_real_stack_renders_alike_in_any_zone_locale_seed_and_folder(
    project: Path, project_copy: Path, tmp_path: Path, stack: str
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    kiln("render", stack, "--out", one, cwd=project, TZ="Pacific/Kiritimati", LC_ALL="C.UTF-8", PYTHONHASHSEED="1")
    kiln(
        "render", stack, "--out", other, cwd=project_copy, TZ="America/St_Johns", LC_ALL="POSIX", PYTHONHASHSEED="4242"
    )
    assert tree(one)
    assert tree(one) == tree(other)
    # The committed files are the golden ones: a change of a pin, a recipe or a template is seen in them.
    for name, data in tree(one).items():
        assert (REPOSITORY / "images" / name).read_bytes() == data, (
            f"images/{name} is not what renders now: kiln render {stack}"
        )


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
        f"--set=toy-serving.tags=kiln/toy-serving:{rendered.key[:16]}",
        "--file=renders/toy-serving/docker-bake.json",
        "toy-serving",
    ]


def test_the_bake_file_names_every_stage_input_once() -> None:
    target = json.loads((EXPECTED / "toy-serving" / "docker-bake.json").read_text(encoding="utf-8"))["target"][
        "toy-serving"
    ]
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


def test_golden_files_are_plain_text_with_unix_line_ends() -> None:
    files = tree(EXPECTED)
    assert files
    assert [name for name, data in files.items() if not data.endswith(b"\n") or b"\r" in data or b"\t" in data] == []
