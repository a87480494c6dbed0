"""The stand-ins of plugins/vllm-cpu-shims for vLLM's kernels in the real image: against Triton's interpretation of the kernels."""

from __future__ import annotations

import pytest

from .test_cpu_operators import image, run

pytestmark = pytest.mark.engine
SCRIPT = "tests/evidence/compare_cpu_kernels.py"
__all__ = ["image"]


def test_every_kernel_is_known_and_its_stand_in_leaves_the_same_memory(engine_host: str, image: str) -> None:
    code, document = run(engine_host, image, SCRIPT, "--cases", "40")
    assert document["left"] == []
    assert document["uncovered"] == []
    assert len(document["seconds"]) == 5
    assert document["different"] == {}
    assert code == 0


def test_a_stand_in_that_writes_too_little_or_too_much_is_seen(engine_host: str, image: str) -> None:
    code, document = run(engine_host, image, SCRIPT, "--cases", "8", "--prove")
    assert len(document["seen"]) == 10
    assert [name for name, seen in document["seen"].items() if not seen] == []
    assert code == 0
