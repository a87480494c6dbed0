"""Mend ``KeyError: 'c1a'`` in vLLM's CPU metadata builder for DeepSeek V4.

``DeepseekSparseSWAMetadataBuilder.build`` (``vllm/v1/attention/backends/mla/sparse_swa.py``)
reads one tile-scheduler plan per layer type out of what ``build_tile_scheduler`` returns. The
CPU subclass (``vllm/models/deepseek_v4/cpu/cpu_mla.py``) returns a dictionary of its own that
was not extended when the types ``c1a`` and ``c2a`` came; seen in vLLM 0.30, 0.31 and 0.32. On a
CPU every plan is ``None`` (the planner is CUDA code), so the lacking keys mean ``None`` too.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any, Final

MODULE: Final = "vllm.models.deepseek_v4.cpu.cpu_mla"
CLASS: Final = "DeepseekV4CPUSparseSWAMetadataBuilder"
METHOD: Final = "build_tile_scheduler"
SYMBOL: Final = f"{MODULE}.{CLASS}.{METHOD}"

KNOWN: Final = frozenset({"_LAYER_TYPE_SWAONLY", "_LAYER_TYPE_C4A", "_LAYER_TYPE_C128A"})
LACKING: Final = {"_LAYER_TYPE_C1A": "c1a", "_LAYER_TYPE_C2A": "c2a"}

_MARK: Final = "__kiln_tile_scheduler__"

Plans = dict[str, Any]


class UnknownVllmCodeError(RuntimeError):
    """The vLLM code to mend is not the code this package knows."""

    def __init__(self, symbol: str, vllm_version: str, why: str) -> None:
        super().__init__(
            f"kiln-vllm-cpu-shims does not know this code: {symbol} of vLLM {vllm_version}: {why}. "
            f"It was written against vLLM 0.32.0. Use a vLLM it knows, or set VLLM_PLUGINS to "
            f"leave the plugin kiln_cpu_shims out."
        )


def needs_mending(source: str, vllm_version: str) -> bool:
    """Read the source of the CPU module: True for the known bug, False where it is mended.

    Mended means that the class inherits the method, or that its dictionary has the lacking
    keys. Raises :class:`UnknownVllmCodeError` for anything else, the class's absence included.
    """
    tree = ast.parse(source)
    builder = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == CLASS), None)
    if builder is None:
        raise UnknownVllmCodeError(f"{MODULE}.{CLASS}", vllm_version, "the class is not there")
    method = next(
        (n for n in builder.body if isinstance(n, ast.FunctionDef) and n.name == METHOD), None
    )
    if method is None:
        return False
    returns = [n for n in ast.walk(method) if isinstance(n, ast.Return)]
    if len(returns) != 1 or not isinstance(returns[0].value, ast.Dict):
        raise UnknownVllmCodeError(
            SYMBOL, vllm_version, "it does not return one dictionary display"
        )
    keys = {k.id if isinstance(k, ast.Name) else ast.unparse(k) for k in returns[0].value.keys if k}
    if keys >= LACKING.keys():
        return False
    if keys != KNOWN:
        raise UnknownVllmCodeError(SYMBOL, vllm_version, f"its keys are {', '.join(sorted(keys))}")
    values = returns[0].value.values
    if not all(isinstance(v, ast.Constant) and v.value is None for v in values):
        raise UnknownVllmCodeError(SYMBOL, vllm_version, "its plans are not all None")
    return True


def read_source(vllm_package: ModuleType, vllm_version: str) -> str:
    """The text of the CPU module, read from disk so that nothing heavy is imported.

    Raises :class:`UnknownVllmCodeError` where the installed vLLM has no such file.
    """
    relative = Path(*MODULE.split(".")[1:]).with_suffix(".py")
    for root in vllm_package.__path__:
        path = Path(root, relative)
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise UnknownVllmCodeError(MODULE, vllm_version, "the module is not there")


def mend(module: ModuleType) -> None:
    """Give the builder class in ``module`` the lacking plans. Does nothing the second time."""
    builder = getattr(module, CLASS)
    inner: Callable[..., Plans] = builder.__dict__[METHOD]
    if hasattr(inner, _MARK):
        return

    @wraps(inner)
    def build_tile_scheduler(self: object, *args: Any, **kwargs: Any) -> Plans:
        return dict.fromkeys(LACKING.values()) | inner(self, *args, **kwargs)

    setattr(build_tile_scheduler, _MARK, True)
    setattr(builder, METHOD, build_tile_scheduler)
