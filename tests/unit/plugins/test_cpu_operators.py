"""Which of DeepSeek V4's operators are registered, and where; what they compute is tests/integration/test_cpu_operators.py's."""

from __future__ import annotations

import importlib
import logging
import re
import sys
from typing import Any

import pytest

from .standin import CUSTOM_OPS, Tree

FILE = "vllm/_custom_ops.py"
MODULE = "vllm._custom_ops"
NAMES = {*re.findall(r"^def (\w+)", CUSTOM_OPS, re.MULTILINE), "convert_weight_packed"}


def register() -> None:
    """What vLLM does with the entry point."""
    importlib.import_module("kiln_vllm_cpu_shims.plugin").register()


def libraries() -> list[Any]:
    return list(importlib.import_module("torch.library").libraries)


def compile_in(*names: str) -> None:
    """What vLLM's compiled library does, before its wrappers are there."""
    for name in names:
        setattr(importlib.import_module("torch.library").namespace, name, "compiled")


def operators_line(caplog: pytest.LogCaptureFixture) -> str:
    (line,) = [message for message in caplog.messages if "operators=" in message]
    return line


def test_a_library_without_them_gets_them_all(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "vllm.kiln"):
        register()
        assert not libraries()
        assert MODULE not in sys.modules
        importlib.import_module(MODULE)
    assert operators_line(caplog) == ("kiln-cpu-shims: operators=pytorch count=16 reason=processor-lacks-avx512-bf16")
    (library,) = libraries()
    assert (library.name, library.kind) == ("_C", "FRAGMENT")
    assert library.kernels.keys() == NAMES
    for name, (kernel, key) in library.kernels.items():
        assert key == "CPU"
        assert kernel.__name__ == name
        assert kernel.__module__.startswith("kiln_vllm_cpu_shims.operators.")


def test_each_takes_what_its_schema_says(tree: Tree) -> None:
    register()
    importlib.import_module(MODULE)
    (library,) = libraries()
    registration = importlib.import_module("kiln_vllm_cpu_shims.operators.registration")
    for schema in library.schemas:
        code = library.kernels[registration.name_of(schema)][0].__code__
        assert list(code.co_varnames[: code.co_argcount]) == registration.arguments_of(schema), schema


def test_where_they_are_compiled_nothing_is_registered_or_loaded(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    importlib.import_module("torch")
    compile_in(*NAMES)
    register()
    with caplog.at_level(logging.INFO, "vllm.kiln"):
        importlib.import_module(MODULE)
    assert operators_line(caplog) == "kiln-cpu-shims: operators=compiled count=16"
    assert not libraries()
    loaded = {name for name in sys.modules if name.startswith("kiln_vllm_cpu_shims.operators.")}
    assert loaded == {"kiln_vllm_cpu_shims.operators.registration"}


def test_a_library_with_some_gets_the_others(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    torch = importlib.import_module("torch")
    torch.cpu._is_avx512_bf16_supported = lambda: True
    compile_in("bmm_cpu", "hc_pre_fused_cpu")
    register()
    with caplog.at_level(logging.INFO, "vllm.kiln"):
        importlib.import_module(MODULE)
    assert operators_line(caplog) == "kiln-cpu-shims: operators=pytorch count=14 reason=library-lacks-them"
    assert libraries()[0].kernels.keys() == NAMES - {"bmm_cpu", "hc_pre_fused_cpu"}


def test_nothing_happens_on_another_platform(tree: Tree) -> None:
    tree.replace("vllm/platforms.py", "device_type = 'cpu'", "device_type = 'cuda'")
    register()
    importlib.import_module(MODULE)
    assert not libraries()


def test_loading_twice_or_after_the_import_is_the_same(tree: Tree) -> None:
    importlib.import_module(MODULE)
    register()
    register()
    (library,) = libraries()
    assert library.kernels.keys() == NAMES


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("def bmm_cpu(", "def bmm_other(", "bmm_cpu of vLLM 0.32.0: it is not there"),
        ("comb): ...", "comb, norm): ...", "its arguments are x, residual, post, comb, norm"),
        ("hc_eps, norm_eps)", "norm_eps, hc_eps)", "hc_head_fused_cpu of vLLM 0.32.0"),
    ],
    ids=["no such wrapper", "one more argument", "another order"],
)
def test_callers_that_are_not_known_stop_the_start(tree: Tree, old: str, new: str, why: str) -> None:
    tree.replace(FILE, old, new)
    register()
    with pytest.raises(RuntimeError, match=re.escape(why)):
        importlib.import_module(MODULE)
    assert not libraries()


def test_other_callers_do_not_matter_where_the_operators_are_compiled(tree: Tree) -> None:
    tree.replace(FILE, "comb): ...", "comb, norm): ...")
    importlib.import_module("torch")
    compile_in(*NAMES)
    register()
    importlib.import_module(MODULE)


def test_compiling_a_model_with_them_is_refused(tree: Tree) -> None:
    register()
    importlib.import_module(MODULE)
    (library,) = libraries()
    assert library.fakes.keys() == {f"_C::{name}" for name in NAMES}
    for fake in library.fakes.values():
        with pytest.raises(RuntimeError, match="--enforce-eager"):
            fake(1, shape=2)
