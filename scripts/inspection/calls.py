"""The calls that vLLM makes on the way to mHC, against the signatures of what is installed."""

from __future__ import annotations

import ast
import re
from typing import Any, Final

from inspection.image import Image, NothingToSeeError
from inspection.sources import Code, Module, Target, absolute, bindings

# What takes a function and does not call it, or gives it back so that the call is seen.
_HARMLESS: Final = re.compile(r"(^|\.)(direct_register_custom_op|partial|getattr|hasattr|callable|isinstance|signature)$")
_CALLED: Final = re.compile(r"(^|_)(mhc|hc)_|_mhc\b", re.IGNORECASE)
_SPEAKS: Final = re.compile(rb"mhc|\bhc_(?:head|prenorm|pre|post)")


def fits(call: ast.Call, target: Target, scope: dict[str, list[Any]]) -> tuple[str, str]:
    """Whether a call's arguments fit a function's parameters: ``fits``, ``misfit`` or ``unknown``, and why."""
    arguments = target.node.args
    positional = [one.arg for one in (*arguments.posonlyargs, *arguments.args)][target.bound :]
    only = len(arguments.posonlyargs) - target.bound
    given, sure = _given(call, scope)
    named = [one for one in call.keywords if one.arg]
    sure = sure and len(named) == len(call.keywords)
    if given > len(positional) and not arguments.vararg:
        return "misfit", f"{given} arguments by position, it takes {len(positional)}"
    taken = set(positional[:given])
    for one in (str(one.arg) for one in named):
        if one in taken:
            return "misfit", f"argument {one} is given twice"
        accepted = one in positional[max(only, 0) :] or one in [two.arg for two in arguments.kwonlyargs]
        if not accepted and not arguments.kwarg:
            return "misfit", f"it has no argument {one}"
        taken.add(one)
    if not sure:
        return "unknown", "how many arguments * or ** stand for is known only when it runs"
    optional = {one.arg for one in (*arguments.posonlyargs, *arguments.args)[-len(arguments.defaults) :]} if arguments.defaults else set()
    optional |= {one.arg for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default}
    every = [*positional, *(one.arg for one in arguments.kwonlyargs)]
    missing = [one for one in every if one not in taken | optional | set(target.keywords)]
    return ("misfit", f"argument {', '.join(missing)} is not given") if missing else ("fits", "")


def _given(call: ast.Call, scope: dict[str, list[Any]]) -> tuple[int, bool]:
    """How many arguments a call gives by position; a tuple that was written out just before is counted."""
    count, sure = 0, True
    for one in call.args:
        if not isinstance(one, ast.Starred):
            count += 1
            continue
        value: Any = one.value
        if isinstance(value, ast.Name):
            bound = scope.get(value.id, [])
            value = bound[0][1] if len(bound) == 1 and bound[0][0] == "value" else None
        if isinstance(value, ast.Tuple | ast.List) and not any(isinstance(each, ast.Starred) for each in value.elts):
            count += len(value.elts)
        else:
            sure = False
    return count, sure


class Calls:
    """The calls of one source that matter here."""

    def __init__(self, image: Image, code: Code, module: Module) -> None:
        self.image, self.code, self.module = image, code, module
        self.found: list[dict[str, Any]] = []

    def look(self) -> list[dict[str, Any]]:
        """Go through the whole source."""
        self._body(self.module.tree, [], "", guarded=False)
        return sorted(self.found, key=lambda one: one["line"])

    def _body(self, node: Any, scopes: list[Any], inside: str, *, guarded: bool) -> None:
        for child in ast.iter_child_nodes(node):
            caught = guarded or (isinstance(node, ast.Try) and child in node.body and _catches_import(node))
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                # Decorators and defaults are outside of it; its body is inside.
                self._body(ast.Module([*child.decorator_list, child.args], []), scopes, inside, guarded=caught)
                inner = [*scopes, bindings(child.body, self.module, child.args)]
                self._body(ast.Module(child.body, []), inner, f"{inside}.{child.name}".lstrip("."), guarded=False)
                continue
            if isinstance(child, ast.Call):
                self._call(child, scopes, inside)
            elif isinstance(child, ast.ImportFrom):
                self._import(child, inside, guarded=caught)
            name = f"{inside}.{child.name}".lstrip(".") if isinstance(child, ast.ClassDef) else inside
            self._body(child, scopes, name, guarded=caught)

    def _import(self, node: ast.ImportFrom, inside: str, *, guarded: bool) -> None:
        """A name that is imported and is not there; where ImportError is caught, its absence was thought of."""
        base = absolute(node, self.module)
        for one in node.names:
            for target in self.code.taken(base, one.name) if one.name != "*" else ():
                if target.kind == "missing" and _matters(target.dotted):
                    self._add(node, inside, target.dotted, "guarded" if guarded else "misfit", self._lacking(target.dotted))

    def _call(self, call: ast.Call, scopes: list[Any], inside: str) -> None:
        scope = scopes[-1] if scopes else self.module.names
        for target in self.code.expression(call.func, scopes, self.module):
            if _matters(target.dotted):
                verdict, why = self._judge(call, target, scope)
                self._add(call, inside, target.dotted, verdict, why)
        known = isinstance(call.func, ast.Name | ast.Attribute) and _HARMLESS.search(ast.unparse(call.func))
        for given in [] if known else [*call.args, *(one.value for one in call.keywords)]:
            if isinstance(given, ast.Name | ast.Attribute):
                for target in self.code.expression(given, scopes, self.module):
                    if target.kind in {"function", "absent"} and _matters(target.dotted) and target.dotted.startswith("aiter."):
                        self._add(call, inside, target.dotted, "unknown", f"it is handed to {ast.unparse(call.func)[:80]}")

    def _judge(self, call: ast.Call, target: Target, scope: dict[str, list[Any]]) -> tuple[str, str]:
        if target.kind == "function":
            return fits(call, target, scope)
        if target.kind == "class":
            made = [one for one in target.node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
            if made:
                return fits(call, Target("function", target.dotted, made[0], target.module, bound=1), scope)
            return "unknown", "it is a class without an __init__ of its own"
        if target.kind == "missing":
            return "misfit", self._lacking(target.dotted)
        if target.kind == "absent":
            return "absent", f"{target.dotted.partition('.')[0]} is not installed"
        return "unknown", "what it is is known only when it runs"

    def _lacking(self, dotted: str) -> str:
        """The last module on the way that is there, and what it lacks."""
        there, _, rest = dotted.rpartition(".")
        while there and self.code.file(there) is None:
            there, _, first = there.rpartition(".")
            rest = f"{first}.{rest}"
        path = self.code.file(there)
        return f"{self.image.shown(path) if path else there} has no {rest}"

    def _add(self, node: Any, inside: str, callee: str, verdict: str, why: str) -> None:
        file = self.image.shown(self.module.path)
        self.found.append({"file": file, "line": node.lineno, "in": inside, "callee": callee, "verdict": verdict, "why": why})


def _catches_import(node: ast.Try) -> bool:
    caught = " ".join(ast.unparse(one.type) if one.type else "Exception" for one in node.handlers)
    return bool(re.search(r"\b(ImportError|ModuleNotFoundError|Exception|AttributeError)\b", caught))


def _matters(dotted: str) -> bool:
    """Whether a callee is one of mHC's: AITER's, TileLang itself, or one of vLLM's own on the way there."""
    package, _, rest = dotted.partition(".")
    return (package == "aiter" and "mhc" in rest) or package == "tilelang" or (package == "vllm" and bool(_CALLED.search(dotted.rpartition(".")[2])))


def calls(image: Image) -> dict[str, Any]:
    """Every call that vLLM makes on the way to AITER's and TileLang's mHC, against the signatures of what is installed."""
    code = Code(image.sites)
    start = code.file("vllm")
    if start is None:
        raise NothingToSeeError("vLLM is not installed")
    modules = []
    for path in sorted(start.parent.rglob("*.py")):
        content = path.read_bytes()
        if (b"aiter" in content or b"tilelang" in content) and _SPEAKS.search(content):
            name = ".".join(path.relative_to(start.parent.parent).with_suffix("").parts).removesuffix(".__init__")
            module = code.module(name)
            if module is None:
                raise NothingToSeeError(f"{image.shown(path)} is no Python source that this Python reads")
            modules.append(module)
    for module in modules:
        _operators(code, module)
    found = [one for module in modules for one in Calls(image, code, module).look()]
    return {
        "installed": {name: code.file(name) is not None for name in ("aiter", "tilelang")},
        "files": [image.shown(module.path) for module in modules],
        "calls": found,
    }


def _operators(code: Code, module: Module) -> None:
    """The operators that vLLM registers with torch: torch.ops.vllm.NAME is the function that was given."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("direct_register_custom_op"):
            given = {one.arg: one.value for one in node.keywords} | dict(zip(("op_name", "op_func"), node.args, strict=False))
            name = given.get("op_name")
            if isinstance(name, ast.Constant) and "op_func" in given:
                code.operators[str(name.value)] = (given["op_func"], [], module)
