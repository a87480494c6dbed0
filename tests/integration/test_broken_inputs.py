"""What kiln verify does with images that cannot be right, and with containers that somebody ends: a clear error, in bounded time and memory."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import Project, Ran, model_folder

pytestmark = pytest.mark.engine
NAME = "kiln-broken:1"
MEGABYTE = 1 << 20


def docker(project: Project, *words: str, given: bytes = b"") -> str:
    done = subprocess.run(
        ["docker", *words], env=project.environment, input=given, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


@pytest.fixture
def broken(base_project: Project) -> Iterator[Project]:
    yield base_project
    subprocess.run(["docker", "rmi", "--force", NAME], env=base_project.environment, capture_output=True, check=False)


def imported(project: Project, platform: str, *changes: str) -> None:
    """An image with one small file in it, under the name that the tests look at."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("nothing"))
    words = [word for one in changes for word in ("--change", one)]
    docker(project, "import", f"--platform={platform}", *words, "-", NAME, given=archive.getvalue())


def checks_of(done: Ran) -> dict[str, dict[str, str]]:
    return {check["id"]: check for check in json.loads(done.out)[0]["checks"]}


def test_an_image_of_somebody_elses_is_refused(broken: Project) -> None:
    imported(broken, "linux/amd64")
    done = broken.kiln("verify", NAME)
    assert done.code == 64
    assert "is not an image that kiln built" in done.err
    assert "--as STACK/IMAGE" in done.err


def test_an_image_of_a_stack_that_is_not_here_is_refused(broken: Project) -> None:
    imported(broken, "linux/amd64", "LABEL io.kiln.stack=other org.opencontainers.image.title=other-serving")
    done = broken.kiln("verify", NAME)
    assert done.code == 64
    assert "is of the stack 'other', which this project does not have" in done.err


def test_an_image_that_the_stack_has_not_is_refused(broken: Project) -> None:
    imported(broken, "linux/amd64", "LABEL io.kiln.stack=toy org.opencontainers.image.title=doll")
    done = broken.kiln("verify", NAME)
    assert done.code == 64
    assert "the stack toy has no such image" in done.err


def test_an_empty_image_fails_and_every_check_says_why(broken: Project) -> None:
    imported(broken, "linux/amd64")
    done = broken.kiln("--json", "verify", NAME, "--as", "toy/toy", "--level", "static", timeout=120)
    assert done.code == 61, done.err
    found = checks_of(done)
    assert found["image.config"]["status"] == found["image.labels"]["status"] == "fail"
    assert found["packages.wheels"]["status"] == "error"
    assert "no program of the image could be started" in found["packages.wheels"]["summary"]


def test_an_image_for_another_processor_fails_and_is_not_run(broken: Project) -> None:
    imported(broken, "linux/arm64", "LABEL io.kiln.stack=toy org.opencontainers.image.title=toy")
    done = broken.kiln("--json", "verify", NAME, "--level", "static", timeout=120)
    assert done.code == 61, done.err
    found = checks_of(done)
    assert "expected 'linux/amd64', found 'linux/arm64'" in found["image.config"]["summary"]
    assert found["packages.wheels"]["status"] == "error"


def test_a_report_that_was_edited_by_hand_is_refused(project: Project) -> None:
    done = project.kiln("--json", "verify", "toy", "--level", "static")
    file = max((project.state / "reports").glob("*-static.json"), key=lambda path: path.stat().st_mtime_ns)
    text = file.read_text(encoding="utf-8")
    assert project.kiln("report", str(file)).code == done.code
    for changed in (
        text.replace('"status": "pass"', '"status": "passed"', 1),
        text.replace('"pass": ', '"pass": 1', 1),
        text.replace('"manifest_digest": "sha256:', '"manifest_digest": "md5:', 1),
        text[: len(text) // 2],
    ):
        assert changed != text
        file.write_text(changed, encoding="utf-8")
        told = project.kiln("report", str(file))
        assert told.code == 63, told.err


def kill_when_it_runs(project: Project, seen: list[str]) -> None:
    """End the server's container as soon as there is one, as an operator or the kernel might."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        listed = docker(project, "ps", "--quiet", "--no-trunc", "--filter", project.owner)
        for container in listed.split():
            if "standin-serve" in docker(project, "inspect", "--format={{.Path}}", container):
                docker(project, "kill", container)
                seen.append(container)
                return
        time.sleep(0.1)


def test_a_container_that_is_killed_in_the_middle_is_named(project: Project, tmp_path: Path) -> None:
    project.set_server("hang")
    assert project.kiln("build", "toy").code == 0
    seen: list[str] = []
    killer = threading.Thread(target=kill_when_it_runs, args=(project, seen))
    killer.start()
    done = project.kiln(
        "--json", "verify", "toy", "--backend", "aiter", "--model", str(model_folder(tmp_path / "model"))
    )
    killer.join()
    assert seen
    assert done.code == 61, done.err
    assert "exit code 137" in checks_of(done)["serve.default.answers"]["summary"]


def test_a_server_that_writes_without_end_proves_nothing(project: Project, tmp_path: Path) -> None:
    project.set_server("flood")
    assert project.kiln("build", "toy").code == 0
    measured = tmp_path / "peak"
    program = (
        "import resource, subprocess, sys; done = subprocess.run(sys.argv[2:]);"
        " open(sys.argv[1], 'w').write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)); sys.exit(done.returncode)"
    )
    words = project.command(
        "--json", "verify", "toy", "--backend", "aiter", "--model", str(model_folder(tmp_path / "model"))
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(measured), *words],
        env=project.environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    found = checks_of(Ran(done.returncode, done.stdout, done.stderr))
    assert found["serve.default.path"]["status"] == "error", done.stderr
    assert "wrote more than 16 MiB of log" in found["serve.default.path"]["summary"]
    assert done.returncode in (61, 62)
    assert int(measured.read_text()) << 10 < 200 * MEGABYTE
    assert len(done.stdout) < MEGABYTE
