"""What the CPU hooks rely on in ``vllm/models/deepseek_v4/cpu/model.py``, checked on its source.

The check is on the syntax tree, not on a checksum: a release that moves other lines stays
known, one that chooses the path elsewhere does not. It matches vLLM 0.32.0.
"""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType
from typing import Final

from kiln_vllm_mhc_switch.errors import UnknownVllmCodeError

MODULE: Final = "vllm.models.deepseek_v4.cpu.model"
LAYER: Final = "DeepseekV4DecoderLayer"
MODEL: Final = "DeepseekV4Model"
TOP: Final = "DeepseekV4ForCausalLM"
FLAG: Final = "use_fused_mhc"
FUSED: Final = "_forward_fused_post_pre"
UNFUSED: Final = "_forward_unfused_post_pre"


def read_source(vllm_package: ModuleType, vllm_version: str) -> str:
    """The text of the model's module, read from disk so that nothing heavy is imported.

    Raises :class:`UnknownVllmCodeError` where the installed vLLM has no such file.
    """
    relative = Path(*MODULE.split(".")[1:]).with_suffix(".py")
    for root in vllm_package.__path__:
        path = Path(root, relative)
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise UnknownVllmCodeError(MODULE, vllm_version, "the module is not there")


def check_source(source: str, vllm_version: str) -> None:
    """Raise :class:`UnknownVllmCodeError` unless the path is chosen as this package knows it.

    Known means: a decoder layer stores its choice once, in ``use_fused_mhc`` in ``__init__``;
    its ``forward`` reads it to call one of the two methods, and the model's ``forward`` reads it
    to apply the deferred ``hc_post``; nothing else reads or writes it.
    """
    checker = _Checker(ast.parse(source), vllm_version)
    checker.check()


class _Checker:
    """One look at one syntax tree; every complaint names the symbol it is about."""

    def __init__(self, tree: ast.Module, vllm_version: str) -> None:
        self._tree, self._version = tree, vllm_version

    def check(self) -> None:
        init = self._method(LAYER, "__init__")
        if len(self._flags(init, ast.Store)) != 1 or self._flags(init, ast.Load):
            raise self._unknown(f"{LAYER}.__init__", f"does not store {FLAG} once and leave it")
        self._check_dispatch(self._method(LAYER, "forward"))
        self._check_calls(UNFUSED, {"hc_pre", "hc_post"}, {"mhc_fused_post_pre"})
        self._check_calls(FUSED, {"hc_pre", "mhc_fused_post_pre"}, {"hc_post"})
        deferred = self._method(MODEL, "forward")
        if "hc_post" not in self._calls(deferred) or not self._flags(deferred, ast.Load):
            raise self._unknown(f"{MODEL}.forward", "does not apply the deferred hc_post")
        self._method(TOP, "__init__")
        self._method(TOP, "forward")
        elsewhere = len(self._flags(self._tree, (ast.Store, ast.Load, ast.Del)))
        elsewhere -= 2 + len(self._flags(deferred, ast.Load))
        if elsewhere or self._flags(deferred, ast.Store):
            raise self._unknown(FLAG, "is used in places that are not known")

    def _check_dispatch(self, forward: ast.FunctionDef) -> None:
        """``if not self.use_fused_mhc: return <unfused>(...)`` and then ``return <fused>(...)``."""
        body = [n for n in forward.body if not _is_docstring(n)]
        match body:
            case [
                ast.If(
                    test=ast.UnaryOp(
                        op=ast.Not(),
                        operand=ast.Attribute(value=ast.Name(id="self"), attr=flag),
                    ),
                    body=[ast.Return(value=ast.Call(func=ast.Attribute(attr=unfused)))],
                    orelse=[],
                ),
                ast.Return(value=ast.Call(func=ast.Attribute(attr=fused))),
            ] if (flag, unfused, fused) == (FLAG, UNFUSED, FUSED):
                return
        raise self._unknown(f"{LAYER}.forward", f"does not choose by {FLAG} alone")

    def _check_calls(self, name: str, needed: set[str], foreign: set[str]) -> None:
        calls = self._calls(self._method(LAYER, name))
        if not needed <= calls or foreign & calls:
            raise self._unknown(f"{LAYER}.{name}", f"calls {', '.join(sorted(calls)) or 'nothing'}")

    def _method(self, class_name: str, name: str) -> ast.FunctionDef:
        for node in self._tree.body:
            if isinstance(node, ast.ClassDef) and node.name == class_name:
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef) and inner.name == name:
                        return inner
        raise self._unknown(f"{class_name}.{name}", "it is not there")

    def _unknown(self, symbol: str, why: str) -> UnknownVllmCodeError:
        return UnknownVllmCodeError(f"{MODULE}.{symbol}", self._version, why)

    @staticmethod
    def _calls(node: ast.AST) -> set[str]:
        """Names of the methods called on anything below ``node``."""
        return {
            n.func.attr
            for n in ast.walk(node)
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)
        }

    @staticmethod
    def _flags(
        node: ast.AST, context: type[ast.expr_context] | tuple[type[ast.expr_context], ...]
    ) -> list[ast.Attribute]:
        """Uses of the flag below ``node`` in the given contexts."""
        return [
            n
            for n in ast.walk(node)
            if isinstance(n, ast.Attribute) and n.attr == FLAG and isinstance(n.ctx, context)
        ]


def _is_docstring(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
