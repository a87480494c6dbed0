"""The ROCm stack on the real engine, from stand-ins: the very files that are committed, and what must not get through."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from kiln.pins import Pins, read_pins
from kiln.workspace import Workspace
from tests.conftest import FULL
from tests.rehearsal.standins import STACK, UPSTREAM, make_standins, move_tag

pytestmark = pytest.mark.engine
REPOSITORY = Path(__file__).parents[2]
STATE = REPOSITORY / ".kiln" / "rehearsal"
ANOTHER = "v0.1.16.post2"
RUN = re.compile(r"^#(\d+) \[(?:\S+ )?([\w.-]+) +\d+/\d+\] RUN ", re.MULTILINE)


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


def rehearse(standins: Path, *words: str, stack: str = STACK, **env: str) -> Ran:
    command = [sys.executable, "-m", "kiln", "rehearse", stack, "--standins", str(standins), *words]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False, env={**os.environ, **env}
    )
    assert "Traceback" not in done.stderr.split("what to do")[0] or done.returncode == 50, done.stderr
    return Ran(done.returncode, done.stdout, done.stderr)


def records() -> set[str]:
    """The images that are known to be built: what could be verified, and one day published."""
    return {path.name for path in (STATE / "builds").glob("*.json")} if STATE.is_dir() else set()


def layers(image: str) -> list[tuple[str, str]]:
    """The layers of the image that was built last: what each is called and its digest."""
    newest = max((STATE / "builds").glob(f"{image}-*.json"), key=lambda path: path.stat().st_mtime_ns)
    return [(layer["component"], layer["digest"]) for layer in json.loads(newest.read_text())["layers"]]


def stages_run(image: str) -> set[str]:
    """The stages of the last build whose RUN steps were carried out, not taken from the cache."""
    log = (STATE / "logs" / f"build-{image}.log").read_text()
    cached = set(re.findall(r"^#(\d+) CACHED", log, re.MULTILINE))
    return {stage for number, stage in RUN.findall(log) if number not in cached}


@pytest.fixture(scope="module")
def standins() -> Path:
    """The same stand-ins that `make rehearse` uses."""
    return make_standins(REPOSITORY / ".kiln" / "standins")


@pytest.fixture(scope="module")
def green(standins: Path) -> Ran:
    done = rehearse(standins)
    assert done.code == 0, done.err
    return done


def test_both_images_are_built_and_looked_at(green: Ran) -> None:
    digests = re.findall(r"^digest +(sha256:[0-9a-f]{64})$", green.out, re.MULTILINE)
    assert len(digests) == 2
    for digest, name in zip(digests, ("rocm-base", "rocm-serving"), strict=True):
        report = json.loads((STATE / "reports" / f"{digest.replace(':', '-')}.json").read_text())
        assert report["subject"]["image"] == name
        assert report["chosen"] == {"overrides": {}, "allowed_advisories": [], "rehearsal": True}
        assert report["summary"]["fail"] == report["summary"]["error"] == 0
        skipped = {check["id"] for check in report["checks"] if check["status"] == "skip"}
        # Nothing ran on a GPU, and the stand-in for vLLM has neither the switch nor a call: said for each, and not counted as passed.
        unseen = {"ops.aiter", "ops.tilelang", "ops.torch", "ops.race", "vllm.switch", "vllm.calls"}
        unseen |= {f"serve.{setting}.{what}" for setting in ("default", "tilelang") for what in ("answers", "path")}
        assert skipped == (unseen if name == "rocm-serving" else set())
        passed = {check["id"] for check in report["checks"] if check["status"] == "pass"}
        assert passed >= {"packages.wheels", "libraries.resolve", "libraries.mhc", "files.clean", "image.provenance"}
        labels = next(check for check in report["checks"] if check["id"] == "image.labels")["evidence"]["labels"]
        assert labels["io.kiln.rehearsal"] == "true"
        assert re.fullmatch(r"[0-9a-f]{40}", labels["io.kiln.component.aiter.commit"])
        assert re.fullmatch(r"3rdparty/composable_kernel@[0-9a-f]{40}", labels["io.kiln.component.aiter.submodules"])


@pytest.mark.parametrize("image", ["rocm-base", "rocm-serving"])
def test_what_is_rehearsed_is_what_is_committed(green: Ran, standins: Path, image: str) -> None:
    assert rehearse(standins).code == 0
    compare(image)


def compare(image: str) -> None:
    """What was rendered for the rehearsal against what is committed."""
    rehearsed = STATE / "renders" / image
    committed = REPOSITORY / "images" / image
    assert (rehearsed / "Dockerfile").read_bytes() == (committed / "Dockerfile").read_bytes()
    # The bake file differs in what the lock decides, and in nothing else.
    anonymous = [
        re.sub(r"[0-9a-f]{16,64}|unresolved", "#", (folder / "docker-bake.json").read_text())
        for folder in (rehearsed, committed)
    ]
    lines = [set(text.splitlines()) for text in anonymous]
    only = {line.split('"')[1] for line in lines[0] ^ lines[1]}
    assert {name for name in only if not name.startswith("io.kiln.")} == set()


def test_no_step_of_either_file_may_use_a_network(green: Ran) -> None:
    for image in ("rocm-base", "rocm-serving", "rocm-upstream-base", "rocm-upstream-serving"):
        text = (REPOSITORY / "images" / image / "Dockerfile").read_text()
        assert (
            len(re.findall(r"^RUN ", text, re.MULTILINE))
            == len(re.findall(r"^RUN --network=none", text, re.MULTILINE))
            > 5
        )


def test_the_upstream_stack_holds_the_plugin_and_shares_what_is_the_same(green: Ran, standins: Path) -> None:
    done = rehearse(standins, stack=UPSTREAM)
    assert done.code == 0, done.err
    for image in ("rocm-upstream-base", "rocm-upstream-serving"):
        compare(image)
    serving = json.loads(_report(done, "rocm-upstream-serving"))
    assert serving["summary"]["fail"] == serving["summary"]["error"] == 0
    seen = {check["id"]: check for check in serving["checks"]}
    assert "kiln-vllm-mhc-switch 0.1.0" in seen["packages.wheels"]["evidence"]["distributions"]
    assert seen["libraries.mhc"]["status"] == "pass"
    # Nothing is served here; which path each setting must take is said all the same.
    assert [seen[f"serve.{setting}.path"]["status"] for setting in ("default", "tilelang")] == ["skip", "skip"]
    # The two stacks lie beside each other: what is built alike is one layer, and neither takes the other's images or its lock.
    one, other = (dict(layers(image)) for image in ("rocm-base", "rocm-upstream-base"))
    assert {name for name in one if name and one[name] == other.get(name)} >= {"cpython", "amd-smi"}
    assert one["aiter"] != other["aiter"]
    again = rehearse(standins)
    assert again.code == 0
    assert again.err.count("is built already") == 2


def test_a_stack_without_stand_ins_is_answered_with_those_that_have_them(tmp_path: Path, standins: Path) -> None:
    shutil.copy(standins / "standins.json", tmp_path)
    (tmp_path / "locks").mkdir()
    shutil.copy(standins / "locks" / f"{STACK}.lock.toml", tmp_path / "locks")
    done = rehearse(tmp_path, stack=UPSTREAM)
    assert done.code == 2
    assert f"It has them for {STACK}." in done.err


def test_a_second_run_builds_and_checks_nothing(green: Ran, standins: Path) -> None:
    again = rehearse(standins)
    assert again.code == 0
    assert again.err.count("is built already") == again.err.count("is verified already") == 2


def test_another_aiter_rebuilds_aiter_and_what_stands_on_it(green: Ran, standins: Path) -> None:
    shutil.rmtree(STATE / "builds")
    assert rehearse(standins).code == 0
    before = {image: layers(image) for image in ("rocm-base", "rocm-serving")}
    for record in (STATE / "builds").glob("*.json"):
        record.unlink()
    done = rehearse(standins, "--set", f"aiter={ANOTHER}")
    assert done.code == 0, done.err
    assert stages_run("rocm-base") <= {"aiter-wheels", "aiter", "versions"}
    assert stages_run("rocm-serving") <= {"versions"}
    after = {image: layers(image) for image in before}
    changed = {
        image: [n for n, pair in enumerate(zip(before[image], after[image], strict=True)) if pair[0] != pair[1]]
        for image in before
    }
    # Of the base image AITER's layer and the one that says what is in the image; of the serving image the latter once more.
    count = len(before["rocm-base"])
    assert changed["rocm-base"] == [count - 3, count - 2]
    assert changed["rocm-serving"] == [count - 3, count - 2, len(before["rocm-serving"]) - 2]
    assert json.loads(_report(done))["chosen"]["overrides"] == {"aiter": ANOTHER}


def _report(done: Ran, image: str = "rocm-base") -> str:
    """The report of one of the images that a run ended with, the base image's first."""
    paths = [line.split()[1] for line in done.out.splitlines() if line.startswith("report")]
    return (REPOSITORY / paths[image.endswith("-serving")]).read_text()


FAULTS = {
    "no-module": "aiter/jit/module_mhc.so",
    "gfx942-only": "gfx950",
    "uses-the-network": "urlopen",
    "swaps-triton-loudly": "Replacing existing",
    "swaps-triton-silently": "3.7.0",
}
ONLY_A_BUILD = ("uses-the-network", "swaps-triton-silently")


@pytest.mark.parametrize("fault", FAULTS if FULL else ONLY_A_BUILD)
def test_a_wheel_that_is_wrong_goes_nowhere(green: Ran, standins: Path, tmp_path: Path, fault: str) -> None:
    """What only a build can show, with FULL=1 also what scripts/check_wheel.py is shown by the corpus."""
    make_standins(tmp_path / "standins", (STACK,), aiter_fault=fault, like=standins)
    known = records()
    done = rehearse(tmp_path / "standins")
    assert done.code == 50, done.err
    assert "the build step aiter-wheels" in done.err
    assert FAULTS[fault] in done.err
    assert records() == known
    assert done.out == ""


def test_a_tag_that_moved_is_refused_with_both_commits(green: Ran, standins: Path, tmp_path: Path) -> None:
    folder = make_standins(tmp_path / "standins", (STACK,), like=standins)
    assert rehearse(folder).code == 0
    lock = (STATE / "locks" / f"{STACK}.lock.toml").read_text()
    was = re.search(r'component = "aiter".*?commit = "([0-9a-f]{40})"', lock, re.DOTALL)
    assert was
    now = move_tag(folder / "repositories", read_pins(Workspace(REPOSITORY, STATE), STACK), "v0.1.14")
    done = rehearse(folder)
    assert done.code == 17
    assert was[1] in done.err
    assert now in done.err
    assert "--accept-moved aiter" in done.err
    assert (STATE / "locks" / f"{STACK}.lock.toml").read_text() == lock


def test_a_submodule_commit_that_nobody_has_is_named(green: Ran, standins: Path, tmp_path: Path) -> None:
    def forget(folder: Path, _: Pins) -> None:
        kernels = folder / "repositories/github.com/ROCm/composable_kernel"
        shutil.rmtree(kernels)
        shutil.copytree(folder / "repositories/github.com/NVIDIA/cutlass", kernels)

    known = records()
    done = rehearse(make_standins(tmp_path / "standins", (STACK,), also=forget, like=standins))
    assert done.code == 24
    assert "a submodule commit is missing: " in done.err
    assert "composable_kernel" in done.err
    assert records() == known


def test_a_tag_that_is_not_there_is_answered_with_those_that_are(green: Ran, standins: Path) -> None:
    done = rehearse(standins, "--set", "aiter=v0.1.41", ALLOW_ADVISORY="aiter-mhc-race aiter-mhc-rocm723")
    assert done.code == 16
    assert "v0.1.14" in done.err


def test_a_known_bad_aiter_is_refused_unless_it_is_allowed_and_then_the_image_says_so(
    green: Ran, standins: Path
) -> None:
    done = rehearse(standins, "--set", "aiter=v0.1.13")
    assert done.code == 19
    assert "aiter-mhc-race" in done.err
    assert "v0.1.14" in done.err.split("what to do")[1]
    allowed = rehearse(standins, "--set", "aiter=v0.1.13", ALLOW_ADVISORY="aiter-mhc-race")
    assert allowed.code == 0, allowed.err
    report = json.loads(_report(allowed))
    assert report["chosen"]["allowed_advisories"] == ["aiter-mhc-race"]
    labels = next(check for check in report["checks"] if check["id"] == "image.labels")["evidence"]["labels"]
    assert labels["io.kiln.advisories.allowed"] == "aiter-mhc-race"
    assert labels["io.kiln.overrides"] == "aiter=v0.1.13"
