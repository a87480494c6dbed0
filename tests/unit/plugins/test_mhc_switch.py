"""The mHC switch: reading the variable, choosing the path, and proving which one ran."""

from __future__ import annotations

import importlib
import logging
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest

from .standin import Tree

FILE = "vllm/models/deepseek_v4/cpu/model.py"
MODULE = "vllm.models.deepseek_v4.cpu.model"
VARIABLE = "VLLM_ROCM_USE_TILELANG_MHC"

PATH_LINE = re.compile(
    r"kiln-mhc: path=(?P<path>fused|unfused) requested=(?P<requested>default|env) "
    r"env=VLLM_ROCM_USE_TILELANG_MHC:(?P<env>\S+) platform=cpu vllm=(?P<vllm>\S+) "
    r"layers=(?P<layers>\d+) upstream=(?P<upstream>\S+) kernels=(?P<kernels>\S+)$",
    re.MULTILINE,
)
RAN_LINE = re.compile(
    r"kiln-mhc: ran path=(?P<path>fused|unfused) calls=fused:(\d+),unfused:(\d+) platform=cpu$",
    re.MULTILINE,
)


@pytest.fixture(autouse=True)
def _log(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vllm.kiln")


def register() -> None:
    """What vLLM does with the entry point."""
    importlib.import_module("kiln_vllm_mhc_switch.plugin").register()


def new_model() -> Any:
    """What a worker does: import the model's module and build it."""
    return importlib.import_module(MODULE).DeepseekV4ForCausalLM()


def serve(model: Any) -> Any:
    """One forward pass with attention metadata, as for a request."""
    context: Any = importlib.import_module("vllm.forward_context")
    context.current = {"layers.0.attn": object()}
    try:
        return model.forward(["x"])
    finally:
        context.current = None


def messages(caplog: pytest.LogCaptureFixture) -> str:
    """All log messages, one a line."""
    return "\n".join(record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("value", "path", "requested"),
    [
        (None, "unfused", "default"),
        ("0", "unfused", "env"),
        ("false", "unfused", "env"),
        ("1", "fused", "env"),
        ("True", "fused", "env"),
    ],
)
def test_the_variable_chooses_the_path_and_the_log_proves_it(
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    value: str | None,
    path: str,
    requested: str,
) -> None:
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    register()
    assert MODULE not in sys.modules
    model = new_model()
    assert [layer.use_fused_mhc for layer in model.model.layers] == [path == "fused"] * 3
    line = PATH_LINE.search(messages(caplog))
    assert line is not None
    assert line.groupdict() == {
        "path": path,
        "requested": requested,
        "env": value or "unset",
        "vllm": "0.32.0",
        "layers": "3",
        "upstream": "unfused",
        "kernels": {
            "unfused": "MHCPreOp.forward_cpu,MHCPostOp.forward_cpu",
            "fused": "MHCPreOp.forward_cpu,MHCFusedPostPreOp.forward_cpu,MHCPostOp.forward_cpu",
        }[path],
    }

    model.forward(["x"])
    assert RAN_LINE.search(messages(caplog)) is None, "a dry run proves nothing"
    assert serve(model) == ["x", path, path, path]
    assert serve(model) == ["x", path, path, path]
    ran = RAN_LINE.findall(messages(caplog))
    assert ran == [(path, "3", "0") if path == "fused" else (path, "0", "3")]


@pytest.mark.parametrize("value", ["", " ", "2", "yes", "on", "fused", "-1"])
def test_a_value_that_is_neither_on_nor_off_stops_the_start(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(RuntimeError, match=f"{VARIABLE}={re.escape(repr(value))} is neither"):
        register()


def test_loading_twice_hooks_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    register()
    register()
    serve(new_model())
    register()
    serve(new_model())
    assert len(PATH_LINE.findall(messages(caplog))) == 2, "one line per model that is built"
    assert len(RAN_LINE.findall(messages(caplog))) == 1


def test_changing_the_choice_in_a_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    new_model()
    monkeypatch.setenv(VARIABLE, "1")
    with pytest.raises(RuntimeError, match="already set to unfused"):
        register()


def test_upstreams_own_choice_is_named_and_overruled(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    tree.replace(FILE, "HAS_TILELANG_MHC = False", "HAS_TILELANG_MHC = True")
    register()
    assert serve(new_model())[-1] == "unfused"
    assert "path=unfused requested=default" in messages(caplog)
    assert "upstream=fused" in messages(caplog)


@pytest.mark.parametrize(
    ("old", "new", "symbol"),
    [
        ("class DeepseekV4DecoderLayer", "class Layer", "DeepseekV4DecoderLayer.__init__"),
        ("self.use_fused_mhc = ", "self.fuse = ", "DeepseekV4DecoderLayer.__init__"),
        (
            "    def hc_pre(self",
            "        self.other = self.use_fused_mhc\n\n    def hc_pre(self",
            "DeepseekV4DecoderLayer.__init__",
        ),
        (
            "if not self.use_fused_mhc:",
            "if len(x) > 9 or not self.use_fused_mhc:",
            "DeepseekV4DecoderLayer.forward",
        ),
        (
            "return self._forward_unfused_post_pre(x, residual)",
            "return self._forward_fused_post_pre(x, residual)",
            "DeepseekV4DecoderLayer.forward",
        ),
        ("self.hc_post(self.hc_pre(x))", "self.hc_pre(x)", "._forward_unfused_post_pre"),
        ("self.mhc_fused_post_pre()", "pass", "._forward_fused_post_pre"),
        ("x = layer.hc_post(x)", "pass", "DeepseekV4Model.forward"),
        ("def hc_post(self, x):", "def hc_post(self, x, y=lambda s: s.use_fused_mhc):", "use_fus"),
        ("class DeepseekV4ForCausalLM", "class Top", "DeepseekV4ForCausalLM.__init__"),
    ],
)
@pytest.mark.parametrize("value", [None, "1"])
def test_unknown_code_stops_the_start_whether_set_or_not(
    tree: Tree,
    monkeypatch: pytest.MonkeyPatch,
    old: str,
    new: str,
    symbol: str,
    value: str | None,
) -> None:
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    if symbol == "DeepseekV4Model.forward":
        tree.replace(FILE, "                    layer.hc_post(x)", "                    pass")
    tree.replace(FILE, old, new)
    with pytest.raises(RuntimeError, match=rf"{re.escape(symbol)}.* of vLLM 0\.32\.0"):
        register()
    assert MODULE not in sys.modules


def test_a_missing_module_stops_the_start(tree: Tree) -> None:
    (tree.root / FILE).unlink()
    with pytest.raises(RuntimeError, match=r"cpu\.model of vLLM 0\.32\.0: the module is not there"):
        register()


def test_a_module_other_than_its_source_stops_the_import() -> None:
    cpu = importlib.import_module("kiln_vllm_mhc_switch.platforms.cpu")
    module = importlib.import_module(MODULE)
    del module.DeepseekV4DecoderLayer._forward_fused_post_pre
    setting = importlib.import_module("kiln_vllm_mhc_switch.setting").read({})
    with pytest.raises(RuntimeError, match=r"_forward_fused_post_pre of vLLM 9\.9"):
        cpu.hook(module, setting=setting, vllm_version="9.9")
    layer = module.DeepseekV4DecoderLayer(None, "")
    assert layer.use_fused_mhc is False


def test_a_flag_that_is_no_bool_stops_the_worker(tree: Tree) -> None:
    tree.replace(FILE, "HAS_TILELANG_MHC = False", 'HAS_TILELANG_MHC = ""')
    register()
    with pytest.raises(RuntimeError, match=r"use_fused_mhc of vLLM 0\.32\.0: it is ''"):
        new_model()


def disagree_by_flag(model: Any) -> None:
    """Change one layer behind the switch's back."""
    model.model.layers[1].use_fused_mhc = True


def disagree_by_call(model: Any) -> None:
    """Make one layer call the other path whatever its flag says."""
    layer = model.model.layers[2]
    layer.forward = layer._forward_fused_post_pre


@pytest.mark.parametrize("disagree", [disagree_by_flag, disagree_by_call])
def test_running_another_path_than_chosen_is_an_error(disagree: Callable[[Any], None]) -> None:
    register()
    model = new_model()
    disagree(model)
    with pytest.raises(RuntimeError, match=r"set to unfused .* ran fused:1,unfused:2"):
        serve(model)


def test_a_compiled_model_is_reported_as_unproven(caplog: pytest.LogCaptureFixture) -> None:
    register()
    model = new_model()
    compiler: Any = importlib.import_module("torch.compiler")
    compiler.compiling = True
    serve(model)
    assert RAN_LINE.search(messages(caplog)) is None
    assert "kiln-mhc: ran path=unproven chosen=unfused calls=fused:0,unfused:0" in messages(caplog)
    assert caplog.records[-1].levelno == logging.WARNING


def test_vllm_learns_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    register()
    register()
    assert importlib.import_module("vllm.envs").environment_variables[VARIABLE]() is True


def test_elsewhere_the_switch_is_inactive_and_says_so(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    tree.replace("vllm/platforms.py", "device_type = 'cpu'", "device_type = 'cuda'")
    register()
    assert "kiln-mhc: not active on this platform platform=cuda vllm=0.32.0" in messages(caplog)
    assert importlib.import_module("vllm.envs").environment_variables == {}
    assert serve(new_model())[-1] == "unfused"
    assert PATH_LINE.search(messages(caplog)) is None


def test_elsewhere_a_set_variable_stops_the_start(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.replace("vllm/platforms.py", "device_type = 'cpu'", "device_type = 'cuda'")
    monkeypatch.setenv(VARIABLE, "0")
    with pytest.raises(RuntimeError, match=r"does not switch vLLM 0\.32\.0 on the platform 'cuda'"):
        register()


def test_elsewhere_a_vllm_that_has_the_switch_is_left_alone(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tree.replace("vllm/platforms.py", "device_type = 'cpu'", "device_type = 'cuda'")
    tree.write("vllm/envs.py", f"environment_variables = {{{VARIABLE!r}: lambda: True}}\n")
    monkeypatch.setenv(VARIABLE, "1")
    register()
    assert "vLLM 0.32.0 has the switch itself" in messages(caplog)
