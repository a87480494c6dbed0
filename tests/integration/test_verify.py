"""The checks on servers that misbehave: each is caught, named, and ends in bounded time."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.integration.conftest import Project, Ran, model_folder

pytestmark = pytest.mark.engine


def statuses(project: Project, out: str) -> dict[str, str]:
    report = json.loads(out)[0]
    return {check["id"]: check["status"] for check in report["checks"]}


def verify(project: Project, tmp_path: Path, mode: str, *words: str) -> Ran:
    project.set_server(mode)
    built = project.kiln("build", "toy")
    assert built.code == 0, built.err
    return project.kiln("--json", "verify", "toy", "--model", str(model_folder(tmp_path / "model")), *words)


def test_a_good_image_passes_every_check(project: Project, tmp_path: Path) -> None:
    done = verify(project, tmp_path, "right")
    assert done.code == 0, done.err
    found = statuses(project, done.out)
    # The checkpoint was given, and what stands in for vLLM has no switch to look at.
    assert found.pop("model.known") == found.pop("vllm.switch") == "skip"
    assert set(found.values()) == {"pass"}


@pytest.mark.parametrize(
    ("mode", "check", "words"),
    [
        ("wrong", "serve.default.answers", "answers are wrong"),
        ("die", "serve.default.answers", "ended by itself with exit code 1"),
        ("die-late", "serve.default.answers", "ended by itself with exit code 9"),
        ("garbage", "serve.default.answers", "HTTP"),
        ("no-path", "serve.default.path", "no line of the log says which mHC path ran"),
        ("other-path", "serve.tilelang.path", "expected the fused path"),
    ],
)
def test_a_server_that_misbehaves_fails_the_check_by_name(
    project: Project, tmp_path: Path, mode: str, check: str, words: str
) -> None:
    # The other setting is served by the same stand-in, misbehaving alike.
    done = verify(project, tmp_path, mode, "--backend", "tilelang" if "tilelang" in check else "aiter")
    assert done.code == 61, done.err
    assert statuses(project, done.out)[check] == "fail"
    assert check in done.err
    assert words in done.err


@pytest.mark.parametrize("mode", ["hang", "start-never"])
def test_a_server_that_hangs_is_ended_in_bounded_time(project: Project, tmp_path: Path, mode: str) -> None:
    done = verify(project, tmp_path, mode, "--backend", "aiter")
    assert done.code == 61, done.err
    assert statuses(project, done.out)["serve.default.answers"] == "fail"
    assert "within" in done.err


def test_an_image_that_is_not_what_the_lock_says_fails_by_name(project: Project, tmp_path: Path) -> None:
    recipe = project.root / "templates" / "serving.Dockerfile.j2"
    recipe.write_text(
        recipe.read_text().replace(
            "WORKDIR",
            "COPY --link --from=small /out/usr/local/lib/python3.11/dist-packages/idna-{{ '' }}[0-9]*.dist-info /usr/local/lib/python3.11/dist-packages/idna-0.1.dist-info/\nWORKDIR",
        )
    )
    assert project.kiln("build", "toy").code == 0
    done = project.kiln("--json", "verify", "toy", "--model", str(model_folder(tmp_path / "model")))
    assert done.code == 61, done.err
    assert statuses(project, done.out)["packages.wheels"] == "fail"
    assert "idna" in done.err


def test_a_folder_that_is_no_checkpoint_is_refused(project: Project, tmp_path: Path) -> None:
    done = project.kiln("verify", "toy", "--model", str(tmp_path))
    assert done.code == 60
    assert "answers.json" in done.err


def test_no_container_is_left(project: Project, tmp_path: Path) -> None:
    verify(project, tmp_path, "die")
    left = subprocess.run(
        ["docker", "ps", "--all", "--quiet", "--filter", project.owner],
        env=project.environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert left == ""
