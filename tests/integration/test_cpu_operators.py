"""The PyTorch operators of plugins/vllm-cpu-shims in the real image: against plain formulations of the same, and through vLLM's own callers."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kiln.verify.ops import ON_PROCESSOR

pytestmark = pytest.mark.engine
REPOSITORY = Path(__file__).parents[2]
PACKAGE = "kiln_vllm_cpu_shims"
INSTALLED = f"/usr/local/lib/python3.11/dist-packages/{PACKAGE}"


@pytest.fixture(scope="module")
def image(engine_host: str) -> str:
    """The newest CPU image on the engine; it is the end-to-end test's to build one."""
    docker = ["docker", "--host", engine_host]
    listed = subprocess.run(
        [*docker, "image", "ls", "-q", "kiln/cpu-serving"], capture_output=True, text=True, check=True
    )
    if not listed.stdout.split():
        pytest.skip("no image kiln/cpu-serving on the engine: make image STACK=cpu builds one")
    return listed.stdout.split()[0]


def run(host: str, image: str, script: str, *words: str) -> tuple[int, dict[str, Any]]:
    """A script of ours in the image, with this tree's package over the installed one; its exit code and its document."""
    mounts = [
        f"{REPOSITORY}/plugins/vllm-cpu-shims/{PACKAGE}:{INSTALLED}:ro",
        f"{REPOSITORY}/{script.partition('/')[0]}:/kiln/{script.partition('/')[0]}:ro",
    ]
    volumes = [word for mount in mounts for word in ("--volume", mount)]
    limits = ["--network", "none", "--memory", "8g", "--entrypoint", "python3"]
    done = subprocess.run(
        ["docker", "--host", host, "run", "--rm", *limits, *volumes, image, f"/kiln/{script}", *words],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.stdout.lstrip().startswith("{"), done.stderr[-2000:]
    return done.returncode, json.loads(done.stdout)


def test_every_operator_gives_what_its_definition_gives(engine_host: str, image: str) -> None:
    code, document = run(engine_host, image, "tests/evidence/compare_cpu_operators.py", "--against", "plain")
    assert [row for row in document["rows"] if not row["within"]] == []
    assert document["uncovered"] == []
    assert len({operator for row in document["rows"] for operator in row["operators"]}) == 16
    assert code == 0


def test_an_operator_that_is_wrong_is_seen_each_in_turn(engine_host: str, image: str) -> None:
    code, document = run(engine_host, image, "tests/evidence/compare_cpu_operators.py", "--against", "plain", "--prove")
    assert len(document["seen"]) == 16
    assert [name for name, seen in document["seen"].items() if not seen] == []
    assert code == 0


def test_vllms_mhc_functions_give_what_the_formula_gives(engine_host: str, image: str) -> None:
    code, document = run(engine_host, image, "scripts/check_mhc.py", "--backend", "cpu", *ON_PROCESSOR)
    assert document["could_not_look"] == []
    assert document["wrong"] == []
    assert code == 0
