"""The CPU shims: the Triton backend and the mended metadata builder."""

from __future__ import annotations

import importlib
import inspect
import logging
import sys
from collections.abc import Callable
from typing import Any

import pytest

from .standin import CPU_MLA, Tree

FILE = "vllm/models/deepseek_v4/cpu/cpu_mla.py"
MODULE = "vllm.models.deepseek_v4.cpu.cpu_mla"
BACKEND = "kiln_vllm_cpu_shims.triton_backend"


def register() -> None:
    """What vLLM does with the entry point."""
    importlib.import_module("kiln_vllm_cpu_shims.plugin").register()


def build() -> Any:
    """What vLLM's model runner does at every step."""
    return importlib.import_module(MODULE).DeepseekV4CPUSparseSWAMetadataBuilder().build()


def test_the_bug_is_there_without_the_plugin(tree: Tree) -> None:
    with pytest.raises(KeyError, match="c1a"):
        build()


def test_the_plugin_mends_it_without_importing_the_model(tree: Tree) -> None:
    register()
    assert MODULE not in sys.modules
    assert build() == [None] * 5


def test_loading_twice_or_after_the_import_is_the_same(tree: Tree) -> None:
    module = importlib.import_module(MODULE)
    register()
    once = module.DeepseekV4CPUSparseSWAMetadataBuilder.build_tile_scheduler
    register()
    assert module.DeepseekV4CPUSparseSWAMetadataBuilder.build_tile_scheduler is once
    assert build() == [None] * 5


@pytest.mark.parametrize(
    "source",
    [
        CPU_MLA.replace(
            "_LAYER_TYPE_C128A: None,",
            "_LAYER_TYPE_C128A: None, _LAYER_TYPE_C1A: None, _LAYER_TYPE_C2A: None,",
        ).replace("_LAYER_TYPE_C4A,", "_LAYER_TYPE_C1A, _LAYER_TYPE_C2A, _LAYER_TYPE_C4A,", 1),
        CPU_MLA.split("    def build_tile")[0] + "    pass\n",
    ],
    ids=["has the keys", "inherits the method"],
)
def test_a_mended_upstream_is_left_alone(tree: Tree, source: str, caplog: pytest.LogCaptureFixture) -> None:
    tree.write(FILE, source)
    with caplog.at_level(logging.INFO, "vllm.kiln"):
        register()
    module = importlib.import_module(MODULE)
    method = module.DeepseekV4CPUSparseSWAMetadataBuilder.build_tile_scheduler
    assert not hasattr(method, "__kiln_tile_scheduler__")
    assert build() == [None] * 5
    assert "needs no mending" in caplog.text


@pytest.mark.parametrize(
    ("old", "new", "symbol"),
    [
        ("class DeepseekV4CPUSparse", "class Other", "DeepseekV4CPUSparseSWAMetadataBuilder"),
        ("_LAYER_TYPE_C4A: None", "_LAYER_TYPE_C8A: None", "build_tile_scheduler"),
        ("_LAYER_TYPE_C4A: None", "_LAYER_TYPE_C4A: object()", "build_tile_scheduler"),
        ("return {", "return {} or {", "build_tile_scheduler"),
    ],
    ids=["no class", "other keys", "plans that are not None", "not a dictionary display"],
)
def test_unknown_code_stops_the_start(tree: Tree, old: str, new: str, symbol: str) -> None:
    tree.replace(FILE, old, new)
    with pytest.raises(RuntimeError, match=rf"{symbol}.* of vLLM 0\.32\.0"):
        register()


def test_a_missing_module_stops_the_start(tree: Tree) -> None:
    (tree.root / FILE).unlink()
    with pytest.raises(RuntimeError, match=r"cpu_mla of vLLM 0\.32\.0: the module is not there"):
        register()


def test_nothing_happens_on_another_platform(tree: Tree) -> None:
    tree.replace("vllm/platforms.py", "device_type = 'cpu'", "device_type = 'cuda'")
    (tree.root / FILE).unlink()
    register()


def use_our_backend() -> Any:
    """Register the backend as Triton does, from its two modules."""
    backends = importlib.import_module("triton.backends").backends
    compiler = importlib.import_module(f"{BACKEND}.compiler")
    driver = importlib.import_module(f"{BACKEND}.driver")

    class Backend:
        """Triton's pair of classes."""

    Backend.compiler = compiler.InterpreterOnly  # type: ignore[attr-defined]
    Backend.driver = driver.InterpreterDriver  # type: ignore[attr-defined]
    backends["cpu"] = Backend
    return Backend


def test_the_interpreter_must_be_on(tree: Tree) -> None:
    use_our_backend()
    register()
    importlib.import_module("triton.knobs").runtime.interpret = False
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        register()


def test_a_real_cpu_backend_needs_no_interpreter(tree: Tree) -> None:
    backend = use_our_backend()
    backend.compiler = type("CPUBackend", (), {"__module__": "triton_cpu.compiler"})
    importlib.import_module("triton.knobs").runtime.interpret = False
    register()


def test_each_backend_module_has_one_concrete_class(tree: Tree) -> None:
    for name, base in (("compiler", "BaseBackend"), ("driver", "DriverBase")):
        wanted = getattr(importlib.import_module(f"triton.backends.{name}"), base)
        module = importlib.import_module(f"{BACKEND}.{name}")
        found = [
            c
            for c in vars(module).values()
            if inspect.isclass(c) and issubclass(c, wanted) and not inspect.isabstract(c)
        ]
        assert len(found) == 1


def test_the_driver_is_active_only_while_interpreting(tree: Tree) -> None:
    driver = use_our_backend().driver
    assert driver.is_active()
    importlib.import_module("triton.knobs").runtime.interpret = False
    assert not driver.is_active()


def test_driver_and_compiler_agree_and_refuse_to_compile(tree: Tree) -> None:
    backend = use_our_backend()
    driver = backend.driver()
    target = driver.get_current_target()
    compiler = backend.compiler(target)
    assert driver.get_active_torch_device() == ("device", "cpu")
    assert compiler.get_module_map() == {}
    assert compiler.hash()
    refusals: tuple[Callable[[], object], ...] = (
        lambda: compiler.parse_options({}),
        lambda: compiler.add_stages({}, None, None),
        lambda: driver.map_python_to_cpp_type("i32"),
    )
    for refuse in refusals:
        with pytest.raises(RuntimeError):
            refuse()


def test_the_benchmarker_runs_the_kernel_once(tree: Tree) -> None:
    bench = use_our_backend().driver().get_benchmarker()
    runs: list[int] = []
    times = bench(lambda: runs.append(1), quantiles=(0.5, 0.2, 0.8))
    assert runs == [1]
    assert len(times) == 3
    assert min(times) >= 0
    assert len(bench(lambda: None)) == 1
