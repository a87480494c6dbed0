"""Run the real mHC dispatch of one release for every machine, model and setting, and say which path it took.

python -m tests.contract.dispatch VERSION FOLDER    one JSON list; FOLDER is that release's package vllm

A cell is a run: the plugin is registered as vLLM does it, vLLM's own model of two layers is built and passed through, and the operators that were
called say what the path was. What the plugin's log line claims must be the same.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.contract.standins import Answers, Inner, Machine, Tensor, World

VARIABLE = "VLLM_ROCM_USE_TILELANG_MHC"
SETTINGS = ("", "0", "1", "garbage")
# AITER's kernels take multiples of 256; 640 is none. 4096 is DeepSeek V4 Flash's.
HIDDEN = (4096, 640)
STREAMS = (4, 2)
LAYERS = 2
_LINE = re.compile(
    r"kiln-mhc: path=(\S+) requested=(\S+) env=(\S+) platform=rocm vllm=(\S+) layers=(\d+) kernels=(\S+) because=(\S+)$"
)
_PLUGINS = Path(__file__).parents[2] / "plugins" / "vllm-mhc-switch"


def machines(aiters: tuple[str, ...] = ("yes", "no")) -> Iterator[Machine]:
    """Every machine of the table."""
    for found, tilelang, arch in itertools.product(aiters, (True, False), ("gfx942", "gfx950")):
        yield Machine(found, tilelang, arch)


def rows(
    version: str,
    folder: Path,
    aiters: tuple[str, ...] = ("yes", "no"),
    *,
    plugin: bool = True,
    settings: tuple[str, ...] = SETTINGS,
) -> list[dict[str, Any]]:
    """Every cell of one release; without the plugin, what that vLLM does by itself."""
    found = []
    for machine, value in itertools.product(machines(aiters), settings):
        with chosen(VARIABLE, value), World(folder, version, machine) as world:
            first = {"aiter": machine.aiter, "tilelang": machine.tilelang, "arch": machine.arch, "switch": value}
            refused = _register() if plugin else ""
            for hidden, streams in itertools.product(HIDDEN, STREAMS):
                cell = {**first, "hidden": hidden, "hc_mult": streams}
                found.append(
                    {**cell, "path": "refused", "why": refused}
                    if refused
                    else {**cell, **run(world, hidden, streams, plugin=plugin)}
                )
    return found


def run(world: World, hidden: int, streams: int, *, plugin: bool, drafts: bool = True) -> dict[str, Any]:
    """Build a model and pass through it: the path by the operators called, and what the plugin's line says."""
    with _logged() as lines:
        config = _config(hidden, streams)
        model = _parts("vllm.models.deepseek_v4.amd.model").DeepseekV4Model(vllm_config=config, prefix="model")
    # EagleModelMixin's: no layer's output is wanted beside the last.
    model.aux_hidden_state_layers = ()
    world.recorder.called.clear()
    returned: list[Any] = []
    for layer in model.layers:
        layer.forward = _noting(layer.forward, returned)
    model.forward(Tensor(3), Tensor(3), None, inputs_embeds=Tensor(3, hidden))
    called = list(world.recorder.called)
    fused = {one[1] is not None for one in returned}
    if len(fused) != 1 or len(returned) != LAYERS:
        raise AssertionError(f"layers that disagree: {called}")
    makers = dict.fromkeys(_maker(one) for one in called if not one.startswith("hc_head"))
    path = f"{'+'.join(makers)}-{'fused' if fused.pop() else 'unfused'}"
    draft = _draft(world, hidden, streams) if drafts else []
    cell = {"path": path, "called": called, "draft": draft}
    if not plugin:
        return cell
    said = [match.groups() for line in lines if (match := _LINE.match(line))]
    return {
        **cell,
        "said": said[0][0] if len(said) == 1 else f"{len(said)} lines",
        "kernels": said[0][5] if said else "",
    }


def _draft(world: World, hidden: int, streams: int) -> list[str]:
    """What one step of the layer that drafts tokens calls: its deferred ``hc_post`` is its own affair."""
    layer = _parts("vllm.models.deepseek_v4.amd.mtp").DeepSeekV4MultiTokenPredictorLayer(
        _config(hidden, streams), Answers(), "model.layers.2"
    )
    layer.h_proj.forward = lambda x: _Sum(*x.shape)
    world.recorder.called.clear()
    layer.forward(Tensor(3), Tensor(3), Tensor(3, streams * hidden), inputs_embeds=Tensor(3, hidden))
    return list(world.recorder.called)


class _Sum(Tensor):
    """A tensor that keeps its shape when another is added."""

    def __add__(self, other: Any) -> Tensor:
        return Tensor(*self.shape)


def _parts(name: str) -> Any:
    """The real module, with what has no say in mHC replaced in it: attention, experts, the fused input norm."""
    module: Any = importlib.import_module(name)
    for part in ("DeepseekV4ROCMAiterMLAAttention", "DeepseekV4Attention", "DeepseekV4MoE", "SharedHead"):
        if hasattr(module, part):
            setattr(module, part, Inner)
    for part in ("fused_mtp_input_rmsnorm", "_FUSED_MTP_INPUT_RMSNORM_KERNEL"):
        setattr(module, part, _input_norm)
    return module


def _input_norm(embeds: Tensor, positions: Any, previous: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return embeds, previous


def _config(hidden: int, streams: int) -> Any:
    model = Answers(
        hidden_size=hidden,
        hc_mult=streams,
        rms_norm_eps=1e-6,
        hc_eps=1e-6,
        hc_sinkhorn_iters=20,
        num_hidden_layers=LAYERS,
        vocab_size=512,
        index_topk=64,
    )
    draft = Answers(
        draft_model_config=Answers(hf_config=model), use_eagle=lambda: False, uses_draft_model=lambda: False
    )
    kernels = Answers(monokernel=False, moe_backend="auto", enable_jit_warmup=False)
    return Answers(
        model_config=Answers(hf_config=model),
        speculative_config=draft,
        kernel_config=kernels,
        scheduler_config=Answers(max_num_batched_tokens=8),
    )


def _noting(inner: Any, returned: list[Any]) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        returned.append(inner(*args, **kwargs))
        return returned[-1]

    return forward


def _maker(operator: str) -> str:
    made = operator.rpartition("_")[2]
    return "native" if made == "torch" else made


def _register() -> str:
    """What vLLM does with the plugin; the message where it refuses to go on."""
    try:
        importlib.import_module("kiln_vllm_mhc_switch.plugin").register()
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"
    return ""


@contextlib.contextmanager
def chosen(variable: str, value: str) -> Iterator[None]:
    """With a variable set, or unset where the value is empty."""
    os.environ.pop(variable, None)
    if value:
        os.environ[variable] = value
    try:
        yield
    finally:
        os.environ.pop(variable, None)


@contextlib.contextmanager
def _logged() -> Iterator[list[str]]:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("vllm.kiln.mhc")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


def compile_key(version: str, folder: Path, value: str, *, plugin: bool = True) -> dict[str, Any]:
    """What that release makes the key of its compile cache of, by its own ``compile_factors``, with the switch set so."""
    with chosen(VARIABLE, value), World(folder, version, Machine("yes", True, "gfx950")):
        if plugin and (refused := _register()):
            raise AssertionError(refused)
        factors = importlib.import_module("vllm.envs").compile_factors()
        return {name: repr(made) for name, made in factors.items()}


def main() -> None:
    """Print the rows of one release, and with an AITER from before the fused operator."""
    version, folder = sys.argv[1], Path(sys.argv[2])
    sys.path.insert(0, str(_PLUGINS))
    supported = tuple(int(part) for part in version.split(".")[:2]) >= (0, 25)
    document = {
        "rows": rows(version, folder, plugin=supported),
        "old": rows(version, folder, ("old",), plugin=supported),
        # What that vLLM does by itself: with the switch off it must be the same.
        "bare": rows(version, folder, plugin=False, settings=("",)),
        "keys": {
            value: compile_key(version, folder, value, plugin=supported).get(VARIABLE) for value in ("", "0", "1")
        },
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
