"""The switch on vLLM's ROCm platform, for releases 0.25 to 0.33.

Those take AITER's mHC kernels wherever AITER can run, and know no way off them. The switch sets
``HAS_AITER_MHC`` of the layers' module, and the flags that follow it, to False as soon as that
module is imported, thus before any model's. That is what vLLM itself finds where AITER is not
installed: every operator takes TileLang's kernel, the model TileLang's fused post+pre with the
``hc_post`` deferred as its own code does it. Nothing else of AITER (attention, MoE) is touched.

Off, nothing is changed. On or off, a line in the log names the path that the built model has.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial, wraps
from types import ModuleType, SimpleNamespace
from typing import Any, Final

from kiln_vllm_mhc_switch import setting as settings
from kiln_vllm_mhc_switch.errors import CannotSwitchError, UnknownVllmCodeError, WrongPathError
from kiln_vllm_mhc_switch.platforms import rocm_source
from kiln_vllm_mhc_switch.platforms.rocm_source import AITER, FLAG, LAYERS, MODEL, Known
from kiln_vllm_mhc_switch.platforms.sources import Sources
from kiln_vllm_mhc_switch.post_import import when_imported
from kiln_vllm_mhc_switch.setting import Setting

# vLLM's log handler takes records of loggers below "vllm".
logger = logging.getLogger("vllm.kiln.mhc")

TILELANG_FUSED: Final = "tilelang-fused"
_STATE: Final = "__kiln_mhc_switch__"


@dataclass
class State:
    """What the hooks of one process know: the choice, the code's ways, what vLLM had found."""

    setting: Setting
    vllm_version: str
    known: Known
    found: dict[str, Any] = field(default_factory=dict)


def matches(platform: Any) -> bool:
    """Whether vLLM's ``current_platform`` is ROCm."""
    return bool(platform.is_rocm())


def install(setting: Setting, vllm_package: ModuleType, vllm_version: str) -> None:
    """Check vLLM's sources now; set the flags and hook the model when they are imported.

    A vLLM that has the switch itself is left alone. Raises :class:`UnknownVllmCodeError` where
    the source is not what this module knows, and :class:`CannotSwitchError` where the variable
    asks for TileLang and it is not there, or wrong on this GPU.
    """
    from vllm import envs

    if settings.known_to_vllm(envs.environment_variables):
        logger.info(
            "kiln-mhc: not active, vLLM %s has the switch itself platform=rocm", vllm_version
        )
        return
    known = rocm_source.check(Sources.of_package(vllm_package.__path__, vllm_version))
    if setting.fused:
        _refuse_where_wrong(setting, vllm_version)
    state = State(setting, vllm_version, known)
    when_imported(LAYERS, partial(choose, state=state))
    when_imported(MODEL, partial(hook, state=state))


def _refuse_where_wrong(setting: Setting, vllm_version: str) -> None:
    from vllm.platforms.rocm import on_gfx942
    from vllm.utils.import_utils import has_tilelang

    asked = f"{setting.shown.replace(':', '=')} asks for TileLang's mHC kernels"
    if on_gfx942():
        raise CannotSwitchError(
            f"{asked}, and on gfx942 (MI300, MI325) they give wrong results (vLLM issue 45698, pull "
            f"request 45931), so vLLM {vllm_version} does not use them there: unset the variable"
        )
    if not has_tilelang():
        raise CannotSwitchError(
            f"{asked}, and vLLM {vllm_version} finds no tilelang that it can use on this GPU: "
            f"install the release that this vLLM's requirements name, or unset the variable"
        )


def choose(module: ModuleType, *, state: State) -> None:
    """Set the flags of the imported layers' module as the switch says; idempotent.

    Raises :class:`WrongPathError` where an earlier call in this process chose otherwise, and
    :class:`UnknownVllmCodeError` where a flag is no bool after all.
    """
    earlier: State | None = getattr(module, _STATE, None)
    if earlier is not None:
        if earlier.setting.fused != state.setting.fused:
            raise WrongPathError(
                f"the mHC path of this process was chosen with {earlier.setting.shown}, and cannot "
                f"be chosen anew with {state.setting.shown}"
            )
        state.found = earlier.found
        return
    for name in (AITER, rocm_source.TILELANG, *state.known.derived):
        value = getattr(module, name, None)
        if not isinstance(value, bool):
            symbol = f"{LAYERS}.{name}"
            raise UnknownVllmCodeError(symbol, state.vllm_version, f"it is {value!r}, not a bool")
        state.found[name] = value
    if state.setting.fused:
        for name in (AITER, *state.known.derived):
            setattr(module, name, False)
    setattr(module, _STATE, state)


def hook(module: ModuleType, *, state: State) -> None:
    """Put the hooks on the classes of the imported model; does nothing the second time."""
    if hasattr(module, _STATE):
        return
    layer, stack = (_class(module, name, state) for name in (rocm_source.LAYER, rocm_source.STACK))
    import vllm.model_executor.layers.mhc as layers

    # Names that a module took from another one before the choice was made keep their values.
    if getattr(module, AITER, None) is not getattr(layers, AITER):
        raise WrongPathError(
            f"{MODEL} of vLLM {state.vllm_version} was imported before kiln_mhc_switch could choose "
            f"the mHC path: load the plugin first, as vLLM does"
        )
    setattr(layer, "__init__", _checking(state, layers, layer.__init__))  # noqa: B010
    setattr(stack, "__init__", _announcing(state, layers, layer, stack.__init__))  # noqa: B010
    setattr(module, _STATE, state)


def _class(module: ModuleType, name: str, state: State) -> Any:
    found = getattr(module, name, None)
    if not isinstance(found, type) or not callable(found.__dict__.get("__init__")):
        raise UnknownVllmCodeError(f"{MODEL}.{name}", state.vllm_version, "it is not such a class")
    return found


Method = Callable[..., Any]


def _checking(state: State, layers: ModuleType, inner: Method) -> Method:
    """Around a layer's ``__init__``, whoever builds it: with the switch on it is TileLang's."""

    @wraps(inner)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        inner(self, *args, **kwargs)
        if not state.setting.fused:
            return
        path = path_of(self, layers, state.known)[0]
        if path != TILELANG_FUSED:
            raise WrongPathError(
                f"{state.setting.shown} asks for the mHC path {TILELANG_FUSED}, but a layer of vLLM "
                f"{state.vllm_version} was built for {path}"
            )
        if getattr(self, "mono", None) is not None:
            raise WrongPathError(
                f"{state.setting.shown} asks for TileLang's mHC kernels, but with --monokernel decode "
                f"steps of vLLM {state.vllm_version} do not go through them: leave one of the two out"
            )

    return init


def _announcing(state: State, layers: ModuleType, layer: type, inner: Method) -> Method:
    """Around the model's ``__init__``: log the path that its layers have, and what decided it."""

    @wraps(inner)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        inner(self, *args, **kwargs)
        built = [one for one in self.modules() if isinstance(one, layer)]
        ways = list(dict.fromkeys(path_of(one, layers, state.known) for one in built))
        logger.info(
            "kiln-mhc: path=%s requested=%s env=%s platform=rocm vllm=%s layers=%d kernels=%s "
            "because=aiter:%s,tilelang:%s,arch:%s,hidden:%s,hc_mult:%s",
            ",".join(path for path, _ in ways) or "none",
            state.setting.requested,
            state.setting.shown,
            state.vllm_version,
            len(built),
            ",".join(dict.fromkeys(one for _, kernels in ways for one in kernels)) or "none",
            "off" if state.setting.fused else _yes(state.found[AITER]),
            _yes(state.found[rocm_source.TILELANG]),
            _arch(),
            _values(built, "hidden_size"),
            _values(built, "hc_mult"),
        )

    return init


def path_of(layer: Any, layers: ModuleType, known: Known) -> tuple[str, tuple[str, ...]]:
    """The path that a built layer has, and the kernels it goes through.

    vLLM's own tests of its operators are evaluated, with its own flags, for a tensor of the
    layer's shape. A path is named ``tilelang-fused`` or ``aiter-unfused``; one that goes through
    the kernels of two, ``aiter+tilelang-fused``; the PyTorch reference is ``native``.
    """
    fused = bool(getattr(layer, FLAG))
    norm = object() if fused and getattr(layer, "fuse_mhc_rmsnorm", False) else None
    # The norm is handed to the operators that make the next sublayer's input, never to post.
    order = (("mhc_pre", norm), ("mhc_fused_post_pre", norm), ("mhc_post", None))
    kernels = tuple(
        _kernel(stem, weight, layer, layers, known)
        for stem, weight in order
        if fused or stem != "mhc_fused_post_pre"
    )
    makers = dict.fromkeys(one.rpartition("_")[2] for one in kernels)
    return f"{'+'.join(makers)}-{settings.path_name(fused)}", kernels


def _kernel(stem: str, norm: object, layer: Any, layers: ModuleType, known: Known) -> str:
    shape = (1, layer.hc_mult, layer.hidden_size)
    given = {
        "residual": SimpleNamespace(shape=shape),
        "hidden_size": layer.hidden_size,
        "hc_mult": layer.hc_mult,
        "norm_weight": norm,
    }
    for branch in known.branches[stem]:
        # Text of the installed vLLM, and one of the few forms that rocm_source knows.
        if not branch.test or eval(branch.test, vars(layers), given):  # noqa: S307
            return branch.kernel.replace("forward", stem)
    raise AssertionError(stem)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _arch() -> str:
    from vllm.platforms.rocm import on_gfx942, on_gfx950

    return "gfx942" if on_gfx942() else "gfx950" if on_gfx950() else "other"


def _values(built: Iterable[Any], name: str) -> str:
    return "/".join(sorted({str(getattr(one, name)) for one in built})) or "none"
