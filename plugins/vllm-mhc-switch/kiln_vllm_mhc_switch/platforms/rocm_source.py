"""What the ROCm hooks rely on in vLLM's sources, checked on their syntax trees.

It matches vLLM 0.25.0 to 0.33.0. The one thing that is switched is ``HAS_AITER_MHC`` of
``vllm/model_executor/layers/mhc.py``: where it is False, as on a machine without AITER, every
operator takes TileLang's kernel and the model its fused post+pre. So what is known is: the flag
is a module's constant, each way to an AITER kernel asks it, and the model asks nothing else.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from kiln_vllm_mhc_switch.platforms.sources import Function, Sources, calls, uses
from kiln_vllm_mhc_switch.setting import VARIABLE

LAYERS: Final = "vllm.model_executor.layers.mhc"
AMD: Final = "vllm.models.deepseek_v4.amd"
MODEL: Final = f"{AMD}.model"
MTP: Final = f"{AMD}.mtp"
ENVS: Final = "vllm.envs"
PLATFORM: Final = "vllm.platforms.rocm"
IMPORTS: Final = "vllm.utils.import_utils"

LAYER: Final = "DeepseekV4DecoderLayer"
STACK: Final = "DeepseekV4Model"
FLAG: Final = "use_fused_mhc"
AITER: Final = "HAS_AITER_MHC"
TILELANG: Final = "HAS_TILELANG_MHC"
# Constants that are False wherever HAS_AITER_MHC is; 0.30 brought the first three, 0.32 the last.
DERIVED: Final = (
    "HAS_AITER_MHC_FUSED",
    "HAS_AITER_MHC_PRE_NORM",
    "HAS_AITER_MHC_FUSED_NORM",
    "HAS_AITER_MHC_FUSED_POST_PRE_DELAYED_RMS_NORM",
)

_SUPPORTED: Final = "_aiter_mhc_supported"
_BLOCKS: Final = f"{AITER} and hidden_size % 256 == 0"
_BLOCKS_OF_4: Final = f"{_BLOCKS} and (hc_mult == 4)"
_POST: Final = (_BLOCKS, _BLOCKS_OF_4, f"{_SUPPORTED}(residual, None, supports_norm=True)")
_PRE: Final = (
    _BLOCKS,
    _BLOCKS_OF_4,
    f"{_SUPPORTED}(residual, norm_weight, supports_norm=HAS_AITER_MHC_PRE_NORM)",
)
_FUSED_NORM: Final = "(residual, norm_weight, supports_norm=HAS_AITER_MHC_FUSED_NORM)"
_FUSED: Final = (_BLOCKS_OF_4, f"HAS_AITER_MHC_FUSED and {_SUPPORTED}{_FUSED_NORM}")
_DELAYED_FLAG: Final = "HAS_AITER_MHC_FUSED_POST_PRE_DELAYED_RMS_NORM"
_DELAYED_NORM: Final = f"{_SUPPORTED}(residual, norm_weight, supports_norm=True)"
_DELAYED: Final = (
    f"{_DELAYED_FLAG} and x is None and (norm_weight is not None) and {_DELAYED_NORM}",
    f"x is None and norm_weight is None and {_SUPPORTED}(residual, None, supports_norm=False)",
)
_TILELANG_WAYS: Final = (
    ("not has_tilelang()", "False"),
    ("current_platform.is_cuda()", "True"),
    ("current_platform.is_rocm()", "not on_gfx942()"),
    ("", "False"),
)


@dataclass(frozen=True)
class Operator:
    """An operator of the layers: its method, the kernels' stem, and the ways to AITER's kernel."""

    method: str
    stem: str
    to_aiter: tuple[str, ...]
    may_lack_aiter: bool = False


PRE: Final = Operator("MHCPreOp.forward_hip", "mhc_pre", _PRE)
POST: Final = Operator("MHCPostOp.forward_hip", "mhc_post", _POST)
FUSED: Final = Operator(
    "MHCFusedPostPreOp.forward_hip", "mhc_fused_post_pre", _FUSED, may_lack_aiter=True
)
OPERATORS: Final = (PRE, POST, FUSED)
# DeepSeek V4.1's operator: it comes and goes with the releases, and obeys the same flag.
_DELAYED_METHOD: Final = "MHCPreDelayedOp.forward_hip"

_MODEL_CHOICES: Final = (
    {FLAG: f"{TILELANG} and (not ({AITER} and self.hidden_size % 256 == 0))"},
    {
        "use_aiter_mhc": f"{AITER} and self.hidden_size % 256 == 0 and (self.hc_mult == 4)",
        FLAG: f"use_aiter_mhc or {TILELANG}",
    },
)


_OWN: Final = {
    "mhc_pre": "MHCPreOp()",
    "mhc_post": "MHCPostOp()",
    "mhc_fused_post_pre": "MHCFusedPostPreOp()",
    "hidden_size": "config.hidden_size",
    "hc_mult": "config.hc_mult",
}


@dataclass(frozen=True)
class Branch:
    """One way through an operator: the test that leads there ("" for none), and the kernel."""

    test: str
    kernel: str


@dataclass(frozen=True)
class Known:
    """What was read of a vLLM that is known: the ways through its operators, its derived flags."""

    branches: dict[str, tuple[Branch, ...]]
    derived: tuple[str, ...]


def check(sources: Sources) -> Known:
    """Raise ``UnknownVllmCodeError`` unless mHC is dispatched as this package knows it."""
    derived = _check_flags(sources)
    branches = {one.stem: _check_operator(sources, one) for one in OPERATORS}
    _check_other_operators(sources)
    _check_layer(sources)
    _check_deferred(sources)
    _check_environment(sources)
    return Known(branches, derived)


def _check_flags(sources: Sources) -> tuple[str, ...]:
    """The two flags, what TileLang's depends on, and the flags that follow AITER's."""
    for name, value in (
        (AITER, "is_aiter_found_and_supported()"),
        (TILELANG, "_has_tilelang_mhc()"),
    ):
        found = ast.unparse(sources.assigned(LAYERS, name))
        if found != value:
            raise sources.unknown(LAYERS, name, f"it is {found}, not {value}")
    _check_tilelang(sources)
    # The hooks call these too.
    sources.function(IMPORTS, "has_tilelang")
    sources.function(PLATFORM, "on_gfx942")
    sources.function(PLATFORM, "on_gfx950")
    derived = []
    tree = sources.tree(LAYERS)
    loaded = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id.startswith("HAS_")}
    for name in sorted(loaded - {AITER, TILELANG}):
        sources.assigned(LAYERS, name)
        if name not in DERIVED:
            raise sources.unknown(LAYERS, name, "it is a flag that is not known")
        derived.append(name)
    if any(isinstance(n, ast.Name) and n.id == _SUPPORTED for n in ast.walk(tree)):
        match sources.function(LAYERS, _SUPPORTED).body:
            case [
                *_,
                ast.Return(value=ast.BoolOp(op=ast.And(), values=[ast.Name(id=name), *_])),
            ] if name == AITER:
                pass
            case _:
                raise sources.unknown(LAYERS, _SUPPORTED, f"it does not ask {AITER} first")
    return tuple(derived)


def _check_tilelang(sources: Sources) -> None:
    """TileLang's flag: False where it is not installed, and on ROCm where the GPU is a gfx942."""
    name = "_has_tilelang_mhc"
    ways: list[tuple[str, str]] = []
    for node in sources.function(LAYERS, name).body:
        match node:
            case ast.If(test=test, body=[*_, ast.Return(value=ast.expr() as value)], orelse=[]):
                ways.append((ast.unparse(test), ast.unparse(value)))
            case ast.Return(value=ast.expr() as value):
                ways.append(("", ast.unparse(value)))
            case _:
                ways.append((ast.unparse(node), ""))
    if ways != [*_TILELANG_WAYS]:
        shown = "; ".join(f"{value} if {test}" if test else value for test, value in ways)
        raise sources.unknown(LAYERS, name, f"it returns {shown}")


def _check_operator(sources: Sources, operator: Operator) -> tuple[Branch, ...]:
    function = sources.function(LAYERS, operator.method)
    found = branches(function)
    rest = (Branch(TILELANG, f"{operator.stem}_tilelang"), Branch("", "forward_native"))
    known: list[tuple[Branch, ...]] = [
        (Branch(test, f"{operator.stem}_aiter"), *rest) for test in operator.to_aiter
    ]
    if operator.may_lack_aiter:
        known.append(rest)
    if found not in known:
        raise sources.unknown(
            LAYERS,
            operator.method,
            f"it takes {_shown(found)}; known are {' or '.join(map(_shown, known))}",
        )
    if "residual" not in [one.arg for one in function.args.args]:
        raise sources.unknown(LAYERS, operator.method, "it has no parameter residual")
    return found


def _check_other_operators(sources: Sources) -> None:
    """Nothing else in the module leads to an AITER kernel, but for V4.1's operator as known."""
    classes = [node for node in sources.tree(LAYERS).body if isinstance(node, ast.ClassDef)]
    for node in classes:
        for inner in (one for one in node.body if isinstance(one, ast.FunctionDef)):
            name = f"{node.name}.{inner.name}"
            if name in {one.method for one in OPERATORS}:
                continue
            for branch in branches(inner):
                if branch.kernel.endswith("_aiter") and (
                    name != _DELAYED_METHOD or branch.test not in _DELAYED
                ):
                    why = f"it takes {branch.kernel} where {branch.test or 'nothing'} is asked"
                    raise sources.unknown(LAYERS, name, why)


def _check_layer(sources: Sources) -> None:
    """The model's layer: it stores its choice once, made of the two flags, and goes by it."""
    for name in (AITER, TILELANG, *(one.method.partition(".")[0] for one in OPERATORS)):
        sources.imported(MODEL, LAYERS, name)
    init = sources.function(MODEL, f"{LAYER}.__init__")
    stored = dict(_stored(init))
    for name, value in _OWN.items():
        sources.saw(MODEL, f"{LAYER}.{name}")
        if stored.get(name) != value:
            raise sources.unknown(MODEL, f"{LAYER}.{name}", f"it is not {value}")
    sources.saw(MODEL, f"{LAYER}.{FLAG}")
    if not any(known.items() <= stored.items() for known in _MODEL_CHOICES):
        raise sources.unknown(MODEL, f"{LAYER}.{FLAG}", f"it is {stored.get(FLAG, 'not there')}")
    tree = sources.tree(MODEL)
    if uses(tree, AITER, ast.Load) != uses(init, AITER, ast.Load):
        raise sources.unknown(MODEL, AITER, f"it is asked outside {LAYER}.__init__")
    if uses(tree, FLAG, ast.Store) != 1:
        raise sources.unknown(MODEL, f"{LAYER}.{FLAG}", "it is not stored once")
    for name, needed, foreign in (
        ("hc_pre", {"mhc_pre"}, {"mhc_post", "mhc_fused_post_pre"}),
        ("hc_post", {"mhc_post"}, {"mhc_pre", "mhc_fused_post_pre"}),
        ("_forward_unfused_post_pre", {"hc_pre", "hc_post"}, {"mhc_fused_post_pre"}),
        ("_forward_fused_post_pre", {"hc_pre", "mhc_fused_post_pre"}, {"hc_post"}),
    ):
        called = calls(sources.function(MODEL, f"{LAYER}.{name}"))
        if not needed <= called or foreign & called:
            why = f"it calls {', '.join(sorted(called)) or 'nothing'}"
            raise sources.unknown(MODEL, f"{LAYER}.{name}", why)
    _check_forward(sources)


def _check_forward(sources: Sources) -> None:
    """``if not self.use_fused_mhc: return <unfused>(...)``, then ``return <fused>(...)``.

    Since 0.33 a layer's decode kernel (``self.mono``) may take a step before that; the hooks refuse
    to run beside one.
    """
    forward = sources.function(MODEL, f"{LAYER}.forward")
    body = [
        n
        for n in forward.body
        if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))
    ]
    if (
        body
        and isinstance(body[0], ast.If)
        and ast.unparse(body[0].test) == "self.mono is not None"
    ):
        body = body[1:]
    match body:
        case [
            ast.If(test=test, body=[ast.Return(value=ast.Call(func=unfused))], orelse=[]),
            ast.Return(value=ast.Call(func=fused)),
        ] if (ast.unparse(test), ast.unparse(unfused), ast.unparse(fused)) == (
            f"not self.{FLAG}",
            "self._forward_unfused_post_pre",
            "self._forward_fused_post_pre",
        ):
            return
    raise sources.unknown(MODEL, f"{LAYER}.forward", f"it does not choose by {FLAG} alone")


def _check_deferred(sources: Sources) -> None:
    """Whoever calls layers applies the deferred ``hc_post`` by their flag."""
    sources.function(MODEL, f"{STACK}.__init__")
    wanted = {MODEL: f"{STACK}.forward", MTP: "DeepSeekV4MultiTokenPredictorLayer.forward"}
    if f"{AMD}.dspark" in sources.below(AMD):
        wanted[f"{AMD}.dspark"] = "DSparkDeepseekV4Model.forward"
    for module, name in wanted.items():
        function = sources.function(module, name)
        asked = any(
            isinstance(n, ast.If) and uses(n.test, FLAG, ast.Load) and "hc_post" in calls(n)
            for n in function.body
        )
        if not asked or _unasked(function.body):
            raise sources.unknown(module, name, f"it does not apply the deferred hc_post by {FLAG}")


def _unasked(body: Iterable[ast.stmt]) -> bool:
    """Whether ``hc_post`` is called anywhere without the flag being asked before."""
    for node in body:
        inner = [n for name in ("body", "orelse") for n in getattr(node, name, [])]
        if isinstance(node, ast.If) and uses(node.test, FLAG, ast.Load):
            continue
        if inner and _unasked(inner):
            return True
        if not inner and "hc_post" in calls(node):
            return True
    return False


def _check_environment(sources: Sources) -> None:
    """The key of the compile cache is made of every variable that vLLM knows."""
    sources.assigned(ENVS, "environment_variables")
    factors = sources.function(ENVS, "compile_factors")
    loops = [ast.unparse(n.iter) for n in ast.walk(factors) if isinstance(n, ast.For)]
    if "environment_variables.items()" not in loops:
        raise sources.unknown(
            ENVS, "compile_factors", "it does not go through environment_variables"
        )
    if any(isinstance(n, ast.Constant) and n.value == VARIABLE for n in ast.walk(factors)):
        raise sources.unknown(ENVS, "compile_factors", f"it leaves {VARIABLE} out")


def branches(function: Function) -> tuple[Branch, ...]:
    """The ways through an operator, in order: ``torch.ops.vllm`` kernels and ``forward_native``."""
    return tuple(_ways(function.body, ()))


def _ways(body: Iterable[ast.stmt], tests: tuple[str, ...]) -> Iterator[Branch]:
    for statement in body:
        if isinstance(statement, ast.If):
            yield from _ways(statement.body, (*tests, ast.unparse(statement.test)))
            yield from _ways(statement.orelse, tests)
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name == "self.forward_native" or name.startswith("torch.ops.vllm."):
                    yield Branch(" and ".join(tests), name.rpartition(".")[2])


def _stored(function: Function) -> Iterator[tuple[str, str]]:
    """Variables and attributes of ``self`` that a method assigns, and the expressions' text."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
            if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
                yield target.attr, ast.unparse(node.value)
            elif isinstance(target, ast.Name):
                yield target.id, ast.unparse(node.value)


def _shown(found: Iterable[Branch]) -> str:
    return (
        "; ".join(f"{one.kernel} if {one.test}" if one.test else one.kernel for one in found)
        or "nothing"
    )
