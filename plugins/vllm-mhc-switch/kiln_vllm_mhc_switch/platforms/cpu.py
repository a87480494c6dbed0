"""The switch on vLLM's CPU platform.

A decoder layer of ``vllm/models/deepseek_v4/cpu/model.py`` has both paths and a flag:

* off, unfused: ``hc_pre``, sublayer, ``hc_post``, for attention and feed-forward each;
* on, fused: the post step of one sublayer and the pre step of the next are one operator
  (``MHCFusedPostPreOp``), and the last ``hc_post`` is deferred to the end of the model.

vLLM sets the flag from whether TileLang's kernels are there, which on a CPU they never are. The
hooks set it from the switch right after a layer is built, and then keep account: one log line
says what the built model has, another what its first real forward pass did.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial, wraps
from types import ModuleType
from typing import Any, Final

from kiln_vllm_mhc_switch.errors import UnknownVllmCodeError, WrongPathError
from kiln_vllm_mhc_switch.platforms import cpu_source
from kiln_vllm_mhc_switch.post_import import when_imported
from kiln_vllm_mhc_switch.setting import Setting, path_name

# vLLM's log handler takes records of loggers below "vllm".
logger = logging.getLogger("vllm.kiln.mhc")

_STATE: Final = "__kiln_mhc_switch__"

# The operators each path goes through, by the layer's attribute names.
_OPERATORS: Final = {
    "unfused": ("mhc_pre", "mhc_post"),
    "fused": ("mhc_pre", "mhc_fused_post_pre", "mhc_post"),
}


@dataclass
class State:
    """What the hooks of one process know: the choice, and the account of the first forward."""

    setting: Setting
    vllm_version: str
    upstream: set[str] = field(default_factory=set)
    calls: dict[str, int] = field(default_factory=lambda: {"unfused": 0, "fused": 0})
    proven: bool = False


def matches(platform: Any) -> bool:
    """Whether vLLM's ``current_platform`` is the CPU."""
    return bool(platform.is_cpu())


def install(setting: Setting, vllm_package: ModuleType, vllm_version: str) -> None:
    """Check the model's source now; hook the model when it is imported.

    Raises :class:`UnknownVllmCodeError` where the source is not what this module knows.
    """
    cpu_source.check_source(cpu_source.read_source(vllm_package, vllm_version), vllm_version)
    when_imported(cpu_source.MODULE, partial(hook, setting=setting, vllm_version=vllm_version))


def hook(module: ModuleType, *, setting: Setting, vllm_version: str) -> None:
    """Put the hooks on the classes of the imported ``module``; does nothing the second time.

    Raises :class:`WrongPathError` where the second time asks for another path, and
    :class:`UnknownVllmCodeError` where a class or a method is missing after all.
    """
    earlier: State | None = getattr(module, _STATE, None)
    if earlier is not None:
        if earlier.setting.fused != setting.fused:
            raise WrongPathError(
                f"the mHC path was already set to {earlier.setting.path} in this process "
                f"({earlier.setting.shown}), and cannot become {setting.path} ({setting.shown})"
            )
        return
    state = State(setting, vllm_version)
    layer = _class(module, cpu_source.LAYER, vllm_version)
    top = _class(module, cpu_source.TOP, vllm_version)
    wrappers = (
        (layer, "__init__", partial(_choosing, state)),
        (layer, cpu_source.UNFUSED, partial(_counting, state, "unfused")),
        (layer, cpu_source.FUSED, partial(_counting, state, "fused")),
        (top, "__init__", partial(_announcing, state, layer)),
        (top, "forward", partial(_proving, state)),
    )
    for owner, name, _ in wrappers:
        if not callable(owner.__dict__.get(name)):
            symbol = f"{cpu_source.MODULE}.{owner.__name__}.{name}"
            raise UnknownVllmCodeError(symbol, vllm_version, "it is not there")
    for owner, name, wrapper in wrappers:
        setattr(owner, name, wrapper(owner.__dict__[name]))
    setattr(module, _STATE, state)


def _class(module: ModuleType, name: str, vllm_version: str) -> type:
    found = getattr(module, name, None)
    if not isinstance(found, type):
        raise UnknownVllmCodeError(f"{cpu_source.MODULE}.{name}", vllm_version, "it is not a class")
    return found


Method = Callable[..., Any]


def _choosing(state: State, inner: Method) -> Method:
    """Around the layer's ``__init__``: set the flag to what the switch says."""

    @wraps(inner)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        inner(self, *args, **kwargs)
        theirs = getattr(self, cpu_source.FLAG, None)
        if not isinstance(theirs, bool):
            symbol = f"{cpu_source.MODULE}.{cpu_source.LAYER}.{cpu_source.FLAG}"
            raise UnknownVllmCodeError(symbol, state.vllm_version, f"it is {theirs!r}, not a bool")
        state.upstream.add(path_name(theirs))
        setattr(self, cpu_source.FLAG, state.setting.fused)

    return init


def _counting(state: State, path: str, inner: Method) -> Method:
    """Around one of the two paths: count its calls until the first real forward is done."""
    import torch

    is_compiling = torch.compiler.is_compiling

    @wraps(inner)
    def forward_path(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Not while a graph is traced: the count would become part of the graph.
        if not is_compiling() and not state.proven:
            state.calls[path] += 1
        return inner(self, *args, **kwargs)

    return forward_path


def _announcing(state: State, layer: type, inner: Method) -> Method:
    """Around the top model's ``__init__``: log the path that its layers have."""

    @wraps(inner)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        inner(self, *args, **kwargs)
        layers = [m for m in self.modules() if isinstance(m, layer)]
        paths = {path_name(getattr(m, cpu_source.FLAG)) for m in layers}
        if paths - {state.setting.path}:
            raise WrongPathError(
                f"the mHC path was set to {state.setting.path} ({state.setting.shown}), but the "
                f"model of vLLM {state.vllm_version} has layers with the path {sorted(paths)}"
            )
        logger.info(
            "kiln-mhc: path=%s requested=%s env=%s platform=cpu vllm=%s layers=%d upstream=%s "
            "kernels=%s",
            ",".join(sorted(paths)) or "none",
            state.setting.requested,
            state.setting.shown,
            state.vllm_version,
            len(layers),
            ",".join(sorted(state.upstream)) or "none",
            ",".join(_kernels(layers, state.setting.path)) or "none",
        )

    return init


def _kernels(layers: Iterable[Any], path: str) -> list[str]:
    """The methods that the path's operators dispatch to in these layers, as ``Class.method``."""
    found: list[str] = []
    for layer in layers:
        for name in _OPERATORS[path]:
            method = getattr(getattr(layer, name), "_forward_method", None)
            kernel = getattr(method, "__qualname__", "unknown")
            if kernel not in found:
                found.append(kernel)
    return found


def _proving(state: State, inner: Method) -> Method:
    """Around the top model's ``forward``: after the first real pass, log which path ran.

    A pass without attention metadata is one of vLLM's dry runs, which answer nobody.
    """
    from vllm.forward_context import get_forward_context, is_forward_context_available

    @wraps(inner)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if state.proven:
            return inner(self, *args, **kwargs)
        state.calls.update(unfused=0, fused=0)
        result = inner(self, *args, **kwargs)
        if is_forward_context_available() and get_forward_context().attn_metadata:
            _prove(state)
        return result

    return forward


def _prove(state: State) -> None:
    """Log what the counts say; raise :class:`WrongPathError` if it is not what was chosen."""
    state.proven = True
    ran = {path for path, count in state.calls.items() if count}
    counts = ",".join(f"{path}:{count}" for path, count in sorted(state.calls.items()))
    chosen = state.setting.path
    if ran - {chosen}:
        raise WrongPathError(
            f"the mHC path was set to {chosen} ({state.setting.shown}), but vLLM "
            f"{state.vllm_version} ran {counts}"
        )
    if not ran:
        logger.warning(
            "kiln-mhc: ran path=unproven chosen=%s calls=%s platform=cpu (the model is compiled: "
            "its layers cannot be watched; --enforce-eager shows them)",
            chosen,
            counts,
        )
        return
    logger.info("kiln-mhc: ran path=%s calls=%s platform=cpu", chosen, counts)
