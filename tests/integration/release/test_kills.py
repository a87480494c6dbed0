"""Killed (kill -9) at random moments of every stage: nothing wrong is left behind, and the next run completes.

Two moments a stage in CI, twenty with FULL=1 (``make faults FULL=1``), by chance: SEED= repeats them. Only Kiln's own process is killed, as a person or the kernel does it: what it had started
lives on for a while, and the next run must get along with that.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kiln.canonical import sha256_file
from kiln.store import Store
from kiln.workspace import Workspace
from tests.integration.conftest import IMAGE, Project, model_folder
from tests.integration.registry import Registry
from tests.integration.release.conftest import FULL, SEED, Home, repository, sound, tried, whole_or_nameless
from tests.integration.served import lay_index, served

pytestmark = pytest.mark.engine
MOMENTS = 20 if FULL else 2


def killed_and_completed(
    project: Project,
    words: tuple[str, ...],
    prepare: Callable[[int], object],
    look: Callable[[], object],
    env: dict[str, str] | None = None,
) -> None:
    """Run a command whole once, to know how long it takes; then kill it at random moments of that; then let it end."""
    environment = {**project.environment, **(env or {})}
    prepare(0)
    began = time.monotonic()
    done = subprocess.run(
        project.command(*words), env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    whole = time.monotonic() - began
    moments = random.Random(f"{SEED} {words[0]}")  # noqa: S311
    for number in range(1, MOMENTS + 1):
        prepare(number)
        process = subprocess.Popen(
            project.command(*words), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(moments.uniform(0.1, 1.0) * whole)
        process.kill()
        process.wait()
        tried[f"kill {words[0]}"] += 1
        look()
        done = subprocess.run(
            project.command(*words), env=environment, capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        look()


def containers(project: Project) -> list[str]:
    """The containers of this state folder that still are."""
    owner = Workspace(project.root, project.state).identity
    listed = subprocess.run(
        ["docker", "ps", "--all", "--quiet", "--filter", f"label=io.kiln.owner={owner}"],
        env=project.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return listed.stdout.split()


def test_fetch(project: Project, tmp_path: Path) -> None:
    wheels = project.lock.wheels_of("small")
    index = lay_index(tmp_path / "index", project, wheels)
    store = Store(project.state / "store")

    def forget(_: int) -> None:
        for wheel in wheels:
            store.path(wheel.sha256).unlink(missing_ok=True)

    def look() -> None:
        # What a killed run was writing lies in a scratch folder, under no blob's name; kiln gc sweeps it up.
        sound(store, scratch=True)

    with served(index) as host:
        asked = {"PIP_INDEX_URL": f"http://{host}/simple", "PIP_CONFIG_FILE": os.devnull}
        killed_and_completed(project, ("fetch", "toy"), forget, look, asked)
    assert all(store.path(wheel.sha256).is_file() for wheel in wheels)


def test_build(project: Project) -> None:
    recipe = project.root / "images" / "toy" / "image.toml"

    def another(number: int) -> None:
        recipe.write_text(IMAGE.replace('TOY = "1"', f'TOY = "killed {number}"'))

    killed_and_completed(
        project, ("build", "toy"), another, lambda: sound(Store(project.state / "store"), scratch=True)
    )


def test_verify(project: Project, tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model")
    reports = project.state / "reports"

    def forget(_: int) -> None:
        shutil.rmtree(reports, ignore_errors=True)

    words = ("verify", "toy", "--model", str(model))
    killed_and_completed(project, words, forget, lambda: None)
    assert len(list(reports.iterdir())) == 1
    assert containers(project) == []


def test_publish(publisher: Project, registry: Registry, home: Home) -> None:
    record = publisher.root / "releases" / "toy.toml"

    def forget(_: int) -> None:
        shutil.rmtree(registry.folder / "docker", ignore_errors=True)
        record.unlink(missing_ok=True)

    key = str(home.keys / "cosign.key")
    words = ("publish", "toy", "--to", f"{registry.host}/kiln", "--key", key, "--report", str(home.report))
    words += ("--tag", "latest", "--take-over")
    killed_and_completed(publisher, words, forget, lambda: whole_or_nameless(registry, home))
    assert repository(registry).digest_of("latest") == home.digest
    assert record.read_text().count("[[release]]") == 1


def test_pull(machine: Project, registry: Registry, home: Home) -> None:
    place = f"{registry.host}/kiln/toy@{home.digest}"

    def forget(_: int) -> None:
        subprocess.run(["docker", "image", "rm", place], env=machine.environment, capture_output=True, check=False)

    killed_and_completed(machine, ("pull", "toy"), forget, lambda: None)
    assert containers(machine) == []


def test_bundle(base_project: Project, tmp_path: Path) -> None:
    out = tmp_path / "toy.tar"
    whole: set[str] = set()

    def forget(_: int) -> None:
        out.unlink(missing_ok=True)

    def look() -> None:
        if out.exists():
            whole.add(sha256_file(out))
        assert len(whole) <= 1

    killed_and_completed(base_project, ("bundle", "toy", "--out", str(out)), forget, look)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_unbundle(base_project: Project, tmp_path: Path) -> None:
    out = tmp_path / "toy.tar"
    assert base_project.kiln("bundle", "toy", "--out", str(out)).code == 0
    away = replace(base_project, state=tmp_path / "away")

    def forget(_: int) -> None:
        shutil.rmtree(away.state, ignore_errors=True)

    killed_and_completed(away, ("unbundle", str(out)), forget, lambda: sound(Store(away.state / "store"), scratch=True))
    assert json.loads(away.kiln("--json", "fetch", "toy").out)["new_files"] == 0


def test_two_at_once_make_one_image(project: Project, tmp_path: Path) -> None:
    """Nothing is killed here: what two runs in one checkout do to each other is of the same kind."""
    recipe = project.root / "images" / "toy" / "image.toml"
    recipe.write_text(IMAGE.replace('TOY = "1"', 'TOY = "two at once"'))
    builds, reports = (project.state / name for name in ("builds", "reports"))
    before = {path.name for folder in (builds, reports) for path in folder.glob("*.json")}
    words = project.command("--json", "image", "toy", "--model", str(model_folder(tmp_path / "model")))
    both = [
        subprocess.Popen(words, env=project.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [process.communicate(timeout=600) for process in both]
    tried["two at once"] += 1
    assert [process.returncode for process in both] == [0, 0], told
    first, second = (json.loads(out)[0]["subject"]["manifest_digest"] for out, _ in told)
    assert first == second
    new = [path for folder in (builds, reports) for path in folder.glob("*.json") if path.name not in before]
    assert sorted(path.parent.name for path in new) == ["builds", "reports"]
    assert all(json.loads(path.read_text()) for path in new)
    sound(Store(project.state / "store"))
    assert containers(project) == []
