"""The mHC switch on ROCm, on a small stand-in for vLLM's code; tests/contract has the real code of the releases."""

from __future__ import annotations

import importlib
import logging
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from . import standin_rocm
from .standin import Tree

VARIABLE = "VLLM_ROCM_USE_TILELANG_MHC"
LAYERS = "vllm.model_executor.layers.mhc"
MODEL = "vllm.models.deepseek_v4.amd.model"
FILE = "vllm/models/deepseek_v4/amd/model.py"
LAYERS_FILE = "vllm/model_executor/layers/mhc.py"


@pytest.fixture(autouse=True)
def _rocm(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    for path, text in standin_rocm.FILES.items():
        tree.write(path, text)
    caplog.set_level(logging.INFO, "vllm.kiln")


def register() -> None:
    """What vLLM does with the entry point."""
    importlib.import_module("kiln_vllm_mhc_switch.plugin").register()


def build(hidden_size: int = 7168, hc_mult: int = 4, mono: Any = None) -> Any:
    """What a worker does: import the model's module and build it."""
    config = SimpleNamespace(hidden_size=hidden_size, hc_mult=hc_mult, mono=mono)
    return importlib.import_module(MODEL).DeepseekV4Model(config)


def messages(caplog: pytest.LogCaptureFixture) -> str:
    """All log messages, one a line."""
    return "\n".join(record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("value", "machine", "line"),
    [
        (None, "aiter, tilelang, arch = True, True, 'gfx950'", "path=aiter-fused requested=default"),
        ("0", "aiter, tilelang, arch = True, True, 'gfx950'", "path=aiter-fused requested=env"),
        ("1", "aiter, tilelang, arch = True, True, 'gfx950'", "path=tilelang-fused requested=env"),
        (" True ", "aiter, tilelang, arch = True, True, 'gfx950'", "path=tilelang-fused requested=env"),
        (None, "aiter, tilelang, arch = True, True, 'gfx942'", "path=aiter-fused requested=default"),
        (None, "aiter, tilelang, arch = False, True, 'gfx950'", "path=tilelang-fused requested=default"),
        (None, "aiter, tilelang, arch = False, True, 'gfx942'", "path=native-unfused requested=default"),
        (None, "aiter, tilelang, arch = False, False, 'gfx950'", "path=native-unfused requested=default"),
        ("1", "aiter, tilelang, arch = False, True, 'gfx950'", "path=tilelang-fused requested=env"),
    ],
)
def test_the_line_names_the_path_that_the_model_was_built_for(
    tree: Tree,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    value: str | None,
    machine: str,
    line: str,
) -> None:
    tree.write("vllm/machine.py", machine)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    register()
    assert {MODEL, LAYERS}.isdisjoint(sys.modules)
    build()
    (said,) = [message for message in messages(caplog).splitlines() if "path=" in message]
    assert said.startswith(
        f"kiln-mhc: {line} env={VARIABLE}:{'unset' if value is None else value.strip()} platform=rocm vllm=0.32.0 layers=2 kernels="
    )


def test_the_line_says_which_kernels_and_why(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    register()
    build()
    assert "kernels=mhc_pre_tilelang,mhc_fused_post_pre_tilelang,mhc_post_tilelang" in messages(caplog)
    assert "because=aiter:off,tilelang:yes,arch:gfx950,hidden:7168,hc_mult:4" in messages(caplog)


def test_a_path_through_the_kernels_of_two_is_named_so(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    # An AITER from before its fused operator.
    tree.replace(LAYERS_FILE, "HAS_AITER_MHC_FUSED = bool(HAS_AITER_MHC)", "HAS_AITER_MHC_FUSED = False")
    register()
    build()
    assert "path=aiter+tilelang-fused" in messages(caplog)


def test_off_leaves_every_flag_as_vllm_found_it() -> None:
    register()
    build()
    layers: Any = importlib.import_module(LAYERS)
    assert (layers.HAS_AITER_MHC, layers.HAS_AITER_MHC_FUSED, layers.HAS_TILELANG_MHC) == (True, True, True)


def test_on_makes_the_flags_what_they_are_without_aiter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    register()
    model = build()
    layers: Any = importlib.import_module(LAYERS)
    flags = ("HAS_AITER_MHC", "HAS_AITER_MHC_FUSED", "HAS_AITER_MHC_PRE_NORM", "HAS_AITER_MHC_FUSED_NORM")
    assert [getattr(layers, flag) for flag in flags] == [False] * 4
    assert importlib.import_module(MODEL).HAS_AITER_MHC is False
    assert [layer.use_fused_mhc for layer in model.layers] == [True, True]


def test_the_choice_is_part_of_the_compile_caches_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    register()
    assert importlib.import_module("vllm.envs").compile_factors() == {VARIABLE: True}


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        ("aiter, tilelang, arch = True, True, 'gfx942'", "on gfx942 .* wrong results"),
        ("aiter, tilelang, arch = True, False, 'gfx942'", "on gfx942 .* wrong results"),
        ("aiter, tilelang, arch = True, False, 'gfx950'", "finds no tilelang"),
    ],
)
def test_tilelang_where_it_is_wrong_or_lacking_stops_the_start(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, machine: str, words: str
) -> None:
    tree.write("vllm/machine.py", machine)
    monkeypatch.setenv(VARIABLE, "1")
    with pytest.raises(RuntimeError, match=words):
        register()
    assert LAYERS not in sys.modules


def test_a_value_that_is_neither_on_nor_off_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "garbage")
    with pytest.raises(RuntimeError, match="neither on nor off"):
        register()


def test_loading_twice_chooses_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    register()
    register()
    build()
    register()
    build()
    assert messages(caplog).count("path=tilelang-fused") == 2, "one line per model that is built"
    assert messages(caplog).count("because=aiter:off") == 2


def test_changing_the_choice_in_a_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    build()
    monkeypatch.setenv(VARIABLE, "1")
    with pytest.raises(RuntimeError, match="cannot be chosen anew"):
        register()


def test_a_model_that_was_imported_before_the_choice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module(MODEL)
    monkeypatch.setenv(VARIABLE, "1")
    with pytest.raises(RuntimeError, match="imported before kiln_mhc_switch could choose"):
        register()


def test_a_vllm_that_has_the_switch_itself_is_left_alone(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tree.write("vllm/envs.py", f"environment_variables = {{{VARIABLE!r}: lambda: True}}\n")
    tree.replace(LAYERS_FILE, "HAS_AITER_MHC", "USE_AITER")
    monkeypatch.setenv(VARIABLE, "1")
    register()
    assert "vLLM 0.32.0 has the switch itself platform=rocm" in messages(caplog)
    assert importlib.import_module(LAYERS).USE_AITER is True


def test_a_decode_kernel_beside_the_switch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    register()
    with pytest.raises(RuntimeError, match="--monokernel"):
        build(mono=object())


def test_a_layer_that_is_built_for_another_path_stops_the_worker(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    register()
    layers: Any = importlib.import_module(LAYERS)
    layers.HAS_TILELANG_MHC = False
    with pytest.raises(RuntimeError, match=r"asks for the mHC path tilelang-fused, but .* built for native-unfused"):
        build()


def test_a_flag_that_is_no_bool_stops_the_import(tree: Tree) -> None:
    tree.replace("vllm/_aiter_ops.py", "return machine.aiter", "return machine")
    register()
    with pytest.raises(RuntimeError, match=r"HAS_AITER_MHC of vLLM 0\.32\.0: it is <module"):
        build()


@pytest.mark.parametrize(
    ("file", "old", "new", "symbol"),
    [
        (LAYERS_FILE, "HAS_AITER_MHC = is_aiter", "HAS_AITER_MHC = not is_aiter", "HAS_AITER_MHC"),
        (LAYERS_FILE, "return not on_gfx942()", "return True", "_has_tilelang_mhc"),
        (LAYERS_FILE, "return HAS_AITER_MHC and", "return", "_aiter_mhc_supported"),
        (LAYERS_FILE, "HAS_AITER_MHC_PRE_NORM", "HAS_AITER_MHC_NORM", "HAS_AITER_MHC_NORM"),
        (LAYERS_FILE, "if HAS_AITER_MHC_FUSED and", "if", "MHCFusedPostPreOp.forward_hip"),
        (LAYERS_FILE, "        elif HAS_TILELANG_MHC:", "        elif HAS_AITER_MHC:", "MHCPreOp.forward_hip"),
        (LAYERS_FILE, "class MHCPostOp:", "class Other:\n    def forward_hip(self):\n        torch.ops.vllm.x_aiter()\n\n\nclass MHCPostOp:", "Other.forward_hip"),
        (FILE, "    HAS_AITER_MHC, HAS_TILELANG_MHC,", "    HAS_AITER_MHC as HAS, HAS_TILELANG_MHC,", "HAS_AITER_MHC"),
        (FILE, "use_aiter_mhc or HAS", "HAS", "DeepseekV4DecoderLayer.use_fused_mhc"),
        (FILE, "if not self.use_fused_mhc:", "if residual is None:", "DeepseekV4DecoderLayer.forward"),
        (FILE, "self.mono is not None", "self.mono", "DeepseekV4DecoderLayer.forward"),
        (FILE, "return self.mhc_post(x, residual)", "return x", "DeepseekV4DecoderLayer.hc_post"),
        (FILE, "self.hc_post(self.hc_pre(x), x)", "self.hc_pre(x)", "._forward_unfused_post_pre"),
        (FILE, "if layer is not None and layer.use_fused_mhc:", "if residual is not None:", "DeepseekV4Model.forward"),
        ("vllm/models/deepseek_v4/amd/mtp.py", "if self.mtp_block.use_fused_mhc:", "if residual:", "PredictorLayer.forward"),
        ("vllm/envs.py", "environment_variables.items()", "{}.items()", "compile_factors"),
        ("vllm/envs.py", '"VLLM_PORT"', f'"{VARIABLE}"', "compile_factors"),
        ("vllm/platforms/rocm.py", "def on_gfx942", "def on_gfx94", "on_gfx942"),
        (FILE, "import", "import (", "not Python"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", [None, "1"])
def test_unknown_code_stops_the_start_whether_set_or_not(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, file: str, old: str, new: str, symbol: str, value: str | None
) -> None:
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    tree.replace(file, old, new)
    with pytest.raises(RuntimeError, match=rf"does not know this code: .*{re.escape(symbol)}") as caught:
        register()
    assert " of vLLM 0.32.0: " in str(caught.value)
    assert LAYERS not in sys.modules


def test_a_missing_module_stops_the_start(tree: Tree) -> None:
    (tree.root / LAYERS_FILE).unlink()
    with pytest.raises(RuntimeError, match=r"layers\.mhc of vLLM 0\.32\.0: the module is not there"):
        register()
