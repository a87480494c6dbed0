"""The gates, through real containers: servers of both settings in turn, tools beside them, a verdict, and nothing left behind.

What stands in for lm-eval and ``vllm bench serve`` asks the server over loopback as they do; docs/gates.md says what of the real ones was run.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kiln.canonical import digest_of, sha256_file
from tests.integration.conftest import HERE, REPOSITORY, Project, Ran, model_folder

pytestmark = pytest.mark.engine

GATES = """
[verify.gates]
serve = []
memory-gib = 1
start-seconds = 20
[verify.gates.accuracy]
task = "answers"
filter = "none"
few-shot = 0
questions = 0
concurrent = 2
max-tokens = 16
target = 0.9
half-width = 0.4
seconds = 30
[verify.gates.sweep]
workloads = ["16/8"]
concurrency = [1, 2]
prompts-each = 2
warmups-each = 1
range-ratio = 0.0
repeats = 3
tolerance = 0.0
margin = 0.02
seconds = 30
"""


def gates(project: Project, tmp_path: Path, mode: str) -> tuple[Ran, dict[str, Any]]:
    """The toy project verified up to its gates; returns what kiln said, and the checks of the gates by id."""
    project.set_server(mode)
    described = project.root / "images" / "toy" / "image.toml"
    described.write_text(described.read_text() + GATES)
    shutil.copytree(REPOSITORY / "requirements", project.root / "requirements")
    key = digest_of([sha256_file(project.root / "requirements" / "gates.txt"), "3.11", "2.36"])[:16]
    lm_eval = project.state / "tools" / f"lm-eval-{key}"
    (lm_eval / "lm_eval-0.4.13.dist-info").mkdir(parents=True)
    (lm_eval / "lm_eval-0.4.13.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: lm_eval\nVersion: 0.4.13\n"
    )
    shutil.copy(HERE / "standin" / "lm_eval.py", lm_eval)
    built = project.kiln("build", "toy")
    assert built.code == 0, built.err
    model = model_folder(tmp_path / "model")
    answers = json.loads((model / "answers.json").read_text())
    # Three questions prove nothing either way; eight tell all right from all wrong.
    first = answers["prompts"][0]
    answers["prompts"] = [
        first | {"id": f"q{n}", "prompt": f"Question {n}?", "messages": [{"role": "user", "content": f"Question {n}?"}]}
        for n in range(8)
    ]
    (model / "answers.json").write_text(json.dumps(answers))
    done = project.kiln("--json", "verify", "toy", "--level", "gates", "--model", str(model))
    report = json.loads(done.out)[0]
    return done, {check["id"]: check for check in report["checks"] if check["level"] == "gates"}


def test_a_good_image_passes_its_gates(project: Project, tmp_path: Path) -> None:
    done, found = gates(project, tmp_path, "right")
    assert {name: check["status"] for name, check in found.items()} == {
        "gates.answers.default": "pass",
        "gates.answers.tilelang": "pass",
        "gates.path.default": "pass",
        "gates.path.tilelang": "pass",
        "gates.answers.paired": "pass",
        "gates.throughput": "pass",
    }, done.err
    assert done.code == 0, done.err
    assert "8 of 8 right" in found["gates.answers.default"]["summary"]
    sweep = found["gates.throughput"]["evidence"]
    assert len(sweep["order"]) == 6
    assert [cell["verdict"] for cell in sweep["cells"]] == ["pass", "pass"]
    newest = max((project.state / "reports").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert newest.name.endswith("-gates.json")


def test_a_slow_default_fails(project: Project, tmp_path: Path) -> None:
    done, found = gates(project, tmp_path, "slow")
    assert done.code == 61
    assert found["gates.throughput"]["status"] == "fail"
    assert found["gates.throughput"]["summary"].startswith("fail: default against tilelang, 16/8 C1: -49")


def test_a_server_that_dies_fails_every_gate_that_needs_it(project: Project, tmp_path: Path) -> None:
    done, found = gates(project, tmp_path, "die-late")
    assert done.code == 61
    assert {name: check["status"] for name, check in found.items()} == {
        "gates.answers.default": "fail",
        "gates.answers.tilelang": "fail",
        "gates.path.default": "pass",
        "gates.path.tilelang": "pass",
        "gates.answers.paired": "error",
        "gates.throughput": "fail",
    }
    assert "ended by itself with exit code 9" in found["gates.throughput"]["summary"]
