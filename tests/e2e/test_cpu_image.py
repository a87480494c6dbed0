"""The main job as a person does it: `make image STACK=cpu`, the real vLLM serving a real DeepSeek V4, and what must fail."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests import manual
from tests.conftest import FULL

pytestmark = pytest.mark.engine
REPOSITORY = Path(__file__).parents[2]
WITH_IMAGE = [block for page in manual.pages() for block in manual.read_blocks(page) if block.needs == ("image",)]
# As a person's shell has it: under `make test`, make would take this make for a part of its own and print where it is.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}


def run(*words: str, timeout: float = 1800) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        words, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout, check=False, env=ENVIRONMENT
    )
    assert "Traceback" not in done.stderr.split("its last lines")[0], done.stderr
    return done


def kiln(*words: str) -> subprocess.CompletedProcess[str]:
    return run(str(REPOSITORY / ".kiln/venv/bin/kiln"), *words)


@pytest.fixture(scope="module")
def made() -> subprocess.CompletedProcess[str]:
    return run("make", "image", "STACK=cpu")


@pytest.fixture(scope="module")
def image(made: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert made.returncode == 0, made.stderr
    return made


def test_make_image_ends_with_what_the_image_is(image: subprocess.CompletedProcess[str]) -> None:
    last = image.stdout.strip().splitlines()[-5:]
    assert [line.split()[0] for line in last] == ["image", "digest", "components", "report", "checks"]
    assert "vllm 0.32.0" in last[2]
    assert last[4].split() == ["checks", "20", "of", "20", "passed"]


def test_the_digest_is_the_one_that_the_readme_has(image: subprocess.CompletedProcess[str]) -> None:
    """Whoever builds this checkout gets this image, to the bit."""
    (built,) = [line.split()[1] for line in image.stdout.splitlines() if line.startswith("digest ")]
    said = re.findall(r"sha256[:-][0-9a-f]{64}", (REPOSITORY / "README.md").read_text())
    assert {digest.replace("-", ":") for digest in said} == {built}


def test_the_operators_are_compared_with_the_mathematics_on_any_processor(
    made: subprocess.CompletedProcess[str],
) -> None:
    done = kiln("--json", "verify", "cpu", "--level", "ops", "--require", "ops")
    assert done.returncode == 0, made.stderr + done.stderr
    checks = {check["id"]: check for check in json.loads(done.stdout)[0]["checks"]}
    assert {check["level"] for check in checks.values()} == {"static", "ops"}
    race = checks["ops.race"]["evidence"]
    for backend in ("torch", "cpu"):
        found = checks[f"ops.{backend}"]["evidence"]
        assert found["alarms"] == 0
        assert found["runs"] >= 200
        for quantity in ("post_mix", "comb_mix", "layer_input", "post"):
            worst = found["worst"][quantity]
            assert 0 < worst["error"] <= worst["tolerance"], quantity
    assert race["alarms"] == race["runs"] == 200
    assert race["worst"]["post_mix"]["error"] > race["worst"]["post_mix"]["tolerance"]


def test_the_report_proves_both_settings(image: subprocess.CompletedProcess[str]) -> None:
    line = next(line for line in image.stdout.splitlines() if line.startswith("report"))
    report = json.loads((REPOSITORY / line.split()[1]).read_text())
    checks = {check["id"]: check for check in report["checks"]}
    for setting, path in (("default", "unfused"), ("tilelang", "fused")):
        answers = checks[f"serve.{setting}.answers"]["evidence"]
        assert answers["exact"] == answers["total"] == 18
        assert answers["operators"] in ("compiled", "pytorch")
        assert checks[f"serve.{setting}.path"]["evidence"]["ran"] == [path]
    assert report["model"].startswith("sha256:")
    assert report["subject"]["manifest_digest"] in image.stdout


def test_a_second_run_builds_and_checks_nothing(image: subprocess.CompletedProcess[str]) -> None:
    again = run("make", "image", "STACK=cpu", timeout=60)
    assert again.returncode == 0
    assert "is built and verified already" in again.stderr
    assert "building" not in again.stderr
    assert again.stdout == image.stdout


@pytest.mark.parametrize("block", WITH_IMAGE, ids=str)
def test_what_the_manual_does_with_the_image_works(
    image: subprocess.CompletedProcess[str], block: manual.Block, tmp_path: Path
) -> None:
    report = next(line.split()[1] for line in image.stdout.splitlines() if line.startswith("report"))
    # In a command the manual's `…` is this image's digest; what it writes goes elsewhere.
    lines = [
        line.replace(".kiln/reports/sha256-….json", report).replace("--out .kiln/", f"--out {tmp_path}/")
        if block.language == "sh" or line.startswith("$ ")
        else line
        for line in block.text.splitlines(keepends=True)
    ]
    kept = {key: value for key, value in ENVIRONMENT.items() if key.startswith("KILN_")}
    more = kept | {"GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}
    manual.run(
        replace(block, text="".join(lines)), REPOSITORY, manual.environment(REPOSITORY / ".kiln/venv/bin", **more)
    )


def test_a_model_trained_on_other_answers_fails(image: subprocess.CompletedProcess[str]) -> None:
    """With the setting that operators get who set nothing; with FULL=1 with the opt-in too."""
    done = kiln("--json", "verify", "cpu", "--model", "tiny-wrong", "--backend", "both" if FULL else "aiter")
    assert done.returncode == 61, done.stderr
    checks = {check["id"]: check for check in json.loads(done.stdout)[0]["checks"]}
    for setting in ("default", "tilelang") if FULL else ("default",):
        assert checks[f"serve.{setting}.answers"]["status"] == "fail"
    assert "answers are wrong" in done.stderr
    # The report of the image itself, made with the right model, stays as it was.
    assert run("make", "image", "STACK=cpu", timeout=60).stdout == image.stdout
