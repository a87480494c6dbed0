"""Fetch and build on the real engine, and what happens when something breaks: one clear error, and the next run completes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
import uuid
from pathlib import Path

import pytest

from tests.integration.conftest import Project

pytestmark = pytest.mark.engine
SITE = "/usr/local/lib/python3.11/dist-packages"


def digest(done_out: str) -> str:
    return re.search(r"sha256:[0-9a-f]{64}", done_out)[0]


def forget_cached_steps(project: Project) -> None:
    """Make every step one that BuildKit has not seen, without touching the engine's cache, which may be a person's own."""
    macros = project.root / "templates" / "macros.j2"
    macros.write_text(macros.read_text().replace("/tools/uv pip install", f": {uuid.uuid4()} && /tools/uv pip install"))


def test_building_again_builds_nothing(project: Project) -> None:
    first = project.kiln("build", "toy")
    second = project.kiln("build", "toy")
    assert (first.code, second.code) == (0, 0)
    assert "is built already" in second.err
    assert first.out == second.out
    assert "fetching" not in second.err


def without_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have bake use no step that was carried out before. The cache, which may be a person's own, stays as it is."""
    (folder / "bin").mkdir()
    wrapper = folder / "bin" / "docker"
    wrapper.write_text(
        f'#!/bin/sh\n[ "$1 $2" = "buildx bake" ] && {{ shift 2; set -- buildx bake --no-cache "$@"; }}\nexec {shutil.which("docker")} "$@"\n'
    )
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")


def test_the_same_inputs_give_the_same_digest(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digest(project.kiln("build", "toy").out)
    (record,) = (project.state / "builds").iterdir()
    record.unlink()
    without_cache(tmp_path, monkeypatch)
    again = project.kiln("build", "toy")
    assert again.code == 0, again.err
    assert "is built already" not in again.err
    log = (project.state / "logs" / "build-toy.log").read_text()
    assert "uv pip install" in log
    assert "CACHED" not in log
    assert digest(again.out) == before


def test_a_flipped_byte_in_a_stored_wheel_is_found_and_mended(project: Project) -> None:
    wheel = next(wheel for wheel in project.lock.wheels if wheel.name == "packaging")
    blob = project.blob(wheel.sha256)
    blob.chmod(0o644)
    data = bytearray(blob.read_bytes())
    data[1000] ^= 1
    blob.write_bytes(data)
    for record in (project.state / "builds").iterdir():
        record.unlink()
    broken = project.kiln("build", "toy")
    assert broken.code == 22
    assert wheel.file in broken.err
    assert wheel.sha256 in broken.err
    assert "what to do" in broken.err
    assert project.kiln("build", "toy").code == 0


def test_a_changed_sha256_in_the_lock_is_refused_with_what_came(project: Project) -> None:
    wheel = next(wheel for wheel in project.lock.wheels if wheel.name == "idna")
    text = project.lock_file.read_text()
    wrong = "0" * 64
    project.lock_file.write_text(text.replace(wheel.sha256, wrong))
    broken = project.kiln("build", "toy")
    assert broken.code == 21
    assert wheel.file in broken.err
    assert wrong in broken.err
    assert wheel.sha256 in broken.err
    assert not project.blob(wrong).exists()
    project.lock_file.write_text(text)
    assert project.kiln("build", "toy").code == 0


def test_an_edit_that_keeps_the_size_arrives_in_the_image(project: Project) -> None:
    """BuildKit compares a context's files by size and time with what it was sent before."""
    source = project.root / "standin" / "standin_server.py"
    for letter in "abc":
        text = re.sub(r"A stand-in (\w?) ?for", f"A stand-in {letter} for", source.read_text())
        source.write_text(text)
        built = project.kiln("--json", "build", "toy")
        assert built.code == 0, built.err
        reference = json.loads(built.out)[0]["reference"]
        words = ["run", "--rm", "--network=none", "--entrypoint=cat", reference, f"{SITE}/standin_server.py"]
        shown = subprocess.run(
            ["docker", *words],
            env=project.environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert shown == text


def test_edited_pins_and_a_missing_lock_are_refused_with_the_command(project: Project) -> None:
    pins = project.root / "pins" / "toy.toml"
    text = pins.read_text()
    pins.write_text(text.replace("2026-11-01", "2026-11-02"))
    stale = project.kiln("build", "toy")
    assert stale.code == 12
    assert "kiln lock toy" in stale.err
    pins.write_text(text)
    lock = project.lock_file.read_text()
    project.lock_file.unlink()
    missing = project.kiln("build", "toy")
    assert missing.code == 11
    assert "kiln lock toy" in missing.err
    project.lock_file.write_text(lock)
    assert project.kiln("build", "toy").code == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk to fill")
def test_a_full_disk_during_fetch_is_one_clear_error(project: Project) -> None:
    store = project.state / "store"
    aside = project.state / "store-aside"
    store.rename(aside)
    store.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(store)], check=True)
    try:
        full = project.kiln("fetch", "toy")
    finally:
        subprocess.run(["umount", str(store)], check=True)
    assert full.code == 23, full.err
    assert "disk" in full.err
    store.rmdir()
    aside.rename(store)
    again = project.kiln("fetch", "toy")
    assert again.code == 0, again.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 130)])
def test_a_killed_build_leaves_nothing_half_done(project: Project, number: signal.Signals, code: int) -> None:
    forget_cached_steps(project)
    with subprocess.Popen(
        project.command("build", "toy"),
        env=project.environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        for line in process.stderr:
            if "building toy" in line:
                break
        time.sleep(0.3)
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(timeout=30) == code
    assert "Traceback" not in rest
    again = project.kiln("build", "toy")
    assert again.code == 0, again.err
    assert not list((project.state / "store").glob("tmp-*"))


def test_a_failing_step_is_named_with_its_last_lines_and_the_log(project: Project) -> None:
    recipe = project.root / "templates" / "components" / "cpu" / "wheels.j2"
    recipe.write_text(
        recipe.read_text().replace(
            "/tools/uv pip install", "echo the last words of this step && false && /tools/uv pip install"
        )
    )
    macros = project.root / "templates" / "macros.j2"
    macros.write_text(
        macros.read_text().replace(
            "/tools/uv pip install", "echo the last words of this step && false && /tools/uv pip install"
        )
    )
    broken = project.kiln("build", "toy")
    assert broken.code == 50
    assert "the last words of this step" in broken.err
    # Both components install wheels, side by side; whichever failed first is named.
    assert re.search(r"the build step (small|server): RUN .* failed", broken.err)
    assert "build-toy.log" in broken.err


def test_a_step_has_no_network(project: Project) -> None:
    macros = project.root / "templates" / "macros.j2"
    probe = 'ls /sys/class/net > /interfaces && test "$(cat /interfaces)" = lo && /tools/uv pip install'
    macros.write_text(macros.read_text().replace("/tools/uv pip install", probe))
    done = project.kiln("build", "toy")
    assert done.code == 0, done.err


def test_two_runs_at_once_both_end_well(project: Project) -> None:
    for record in (project.state / "builds").iterdir():
        record.unlink()
    runs = [
        subprocess.Popen(
            project.command("build", "toy"),
            env=project.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outs = [run.communicate(timeout=300) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outs
    assert outs[0][0] == outs[1][0]


def test_the_engine_says_what_it_is(project: Project) -> None:
    done = project.kiln("engine", "status")
    assert done.code == 0
    assert project.host in done.out


def test_layers_hold_one_time_and_nothing_of_this_machine(project: Project, tmp_path: Path) -> None:
    import tarfile

    reference = project.kiln("build", "toy").out.split()[0]
    archive = tmp_path / "rootfs.tar"
    created = subprocess.run(
        ["docker", "create", "--network=none", reference],
        env=project.environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    try:
        subprocess.run(["docker", "export", "--output", str(archive), created], env=project.environment, check=True)
    finally:
        subprocess.run(["docker", "rm", created], env=project.environment, check=True, capture_output=True)
    with tarfile.open(archive) as tar:
        members = {member.name.removeprefix("./"): member for member in tar}
    ours = [member for name, member in members.items() if name.startswith("usr/local/lib/python3.11/dist-packages/")]
    assert ours
    assert {int(member.mtime) for member in ours} == {1793491200}
    assert not [
        name for name in members if name.endswith("uv_cache.json") or name.startswith(("etc/apt/", "var/cache/apt/"))
    ]
