"""Python sources, read and not imported: what a name in them means."""

from __future__ import annotations

import ast
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

_DEPTH: Final = 12  # names that lead to names
_FOLLOWED: Final = re.compile(r"aiter|tilelang|mhc|(^|[._])hc_", re.IGNORECASE)  # of vLLM's names, those that may lead there


@dataclass
class Module:
    """A Python source: its names, each with all that is bound to it, and the modules that it takes every name of."""

    name: str
    path: Path
    package: bool
    tree: ast.Module
    names: dict[str, list[Any]] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Target:
    """What a name means. ``kind``: function, class, module, missing (its module is there and has no such name), absent (its
    package is not in the image), opaque (only running the program would tell). ``bound`` counts arguments given before."""

    kind: str
    dotted: str
    node: Any = None
    module: Any = None
    bound: int = 0
    keywords: tuple[str, ...] = ()


class Code:
    """The Python sources of an image; nothing is imported."""

    def __init__(self, sites: list[Path]) -> None:
        self.sites = sites
        self.operators: dict[str, tuple[Any, list[dict[str, list[Any]]], Module]] = {}
        self.module = cache(self._module)

    def file(self, name: str) -> Path | None:
        """The source of a module, by its dotted name."""
        for site in self.sites:
            base = site.joinpath(*name.split("."))
            for path in (base / "__init__.py", base.with_name(f"{base.name}.py")):
                if path.is_file():
                    return path
        return None

    def _module(self, name: str) -> Module | None:
        path = self.file(name)
        if path is None:
            return None
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError, RecursionError):
            return None
        module = Module(name, path, path.name == "__init__.py", tree)
        module.names = bindings(tree.body, module)
        return module

    def resolve(self, dotted: str, depth: int = 0) -> list[Target]:
        """What a dotted name means, module by module."""
        head, *rest = dotted.split(".")
        if head not in {"aiter", "tilelang", "vllm"}:
            return [Target("opaque", dotted)]  # the others' thousand sources would be read for nothing
        if self.file(head) is None:
            known = any((site / head).is_dir() for site in self.sites)  # without an __init__.py, or compiled
            return [Target("module" if known else "absent", head) if not rest else Target("opaque" if known else "absent", dotted)]
        if self.file(dotted):
            return [Target("module", dotted, module=self.module(dotted))]
        targets = [Target("module", head, module=self.module(head))]
        for name in rest:
            targets = [found for one in targets for found in self.attribute(one, name, depth + 1)]
        return targets

    def taken(self, base: str, name: str, depth: int = 0) -> list[Target]:
        """What ``from base import name`` takes: base is a module there, though its package may have a name of that kind as well."""
        if base.startswith("vllm") and not _FOLLOWED.search(f"{base}.{name}"):
            return [Target("opaque", f"{base}.{name}")]
        found = self.resolve(base, depth)
        if len(found) == 1 and found[0].kind == "module" and found[0].module:
            return self.name(found[0].module, name, depth + 1)
        return self.resolve(f"{base}.{name}", depth)

    def attribute(self, target: Target, name: str, depth: int) -> list[Target]:
        """What ``target.name`` means."""
        dotted = f"{target.dotted}.{name}"
        if depth > _DEPTH:
            return [Target("opaque", dotted)]
        if target.kind == "module" and target.module:
            return self.name(target.module, name, depth)
        if target.kind == "class":
            for one in target.node.body:
                if isinstance(one, ast.FunctionDef) and one.name == name:
                    return [Target("function", dotted, one, target.module, bound=_receiver(one))]
        return [Target(target.kind if target.kind in {"absent", "missing"} else "opaque", dotted)]

    def name(self, module: Module, name: str, depth: int) -> list[Target]:
        """What a module's name means."""
        dotted = f"{module.name}.{name}"
        if depth > _DEPTH:
            return [Target("opaque", dotted)]
        if name in module.names:
            return [found for one in module.names[name] for found in self.binding(one, [], module, dotted, depth + 1)]
        if module.package and self.file(dotted):
            return [Target("module", dotted, module=self.module(dotted))]
        for star in module.stars:
            other = self.module(star)
            found = self.name(other, name, depth + 1) if other else [Target("opaque", dotted)]
            if all(one.kind != "missing" for one in found):
                return found
        return [Target("opaque" if "__getattr__" in module.names else "missing", dotted)]

    def binding(self, one: Any, scopes: list[Any], module: Module, dotted: str, depth: int) -> list[Target]:
        """What one thing that is bound to a name means; a plain None that stands in for a failed import means nothing."""
        kind, value = one
        if kind in {"function", "class"}:
            return [Target(kind, dotted, value, module)]
        if kind == "import":
            return self.resolve(value, depth + 1)
        if kind == "from":
            return self.taken(*value, depth + 1)
        if kind == "value" and isinstance(value, ast.Constant) and value.value is None:
            return []
        return self.expression(value, scopes, module, depth + 1) if kind == "value" else [Target("opaque", dotted)]

    def expression(self, node: Any, scopes: list[Any], module: Module, depth: int = 0) -> list[Target]:
        """What an expression means where it stands."""
        text = ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else type(node).__name__
        if depth > _DEPTH:
            return [Target("opaque", text)]
        if text.startswith("torch.ops.vllm.") and text.removeprefix("torch.ops.vllm.") in self.operators:
            given, there, where = self.operators[text.removeprefix("torch.ops.vllm.")]
            return self.expression(given, there, where, depth + 1)
        if isinstance(node, ast.Name):
            return self._local(node.id, scopes, module, depth)
        if isinstance(node, ast.Attribute):
            bases = self.expression(node.value, scopes, module, depth + 1)
            return [found for one in bases for found in self.attribute(one, node.attr, depth + 1)]
        if isinstance(node, ast.Call):
            return self._made(node, scopes, module, depth)
        return [Target("opaque", text)]

    def _local(self, name: str, scopes: list[Any], module: Module, depth: int) -> list[Target]:
        for index in range(len(scopes) - 1, -1, -1):
            if name in scopes[index]:
                found = []
                for one in scopes[index][name]:
                    # A name that is made of itself means the one outside.
                    outer = scopes[: index + 1] if not (one[0] == "value" and _mentions(one[1], name)) else scopes[:index]
                    found += self.binding(one, outer, module, name, depth + 1)
                return found
        if name in module.names or module.stars:
            return self.name(module, name, depth + 1)
        return [Target("opaque", name)]

    def _made(self, node: ast.Call, scopes: list[Any], module: Module, depth: int) -> list[Target]:
        """Functions that calls give back: functools.partial(f, ...) and getattr(m, "name")."""
        called = ast.unparse(node.func)
        if called.endswith("partial") and node.args:
            keywords = tuple(one.arg for one in node.keywords if one.arg)
            return [
                Target(one.kind, one.dotted, one.node, one.module, one.bound + len(node.args) - 1, keywords)
                for one in self.expression(node.args[0], scopes, module, depth + 1)
            ]
        if called == "getattr" and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
            bases = self.expression(node.args[0], scopes, module, depth + 1)
            return [found for one in bases for found in self.attribute(one, str(node.args[1].value), depth + 1)]
        return [Target("opaque", called)]


def _mentions(node: Any, name: str) -> bool:
    return any(isinstance(one, ast.Name) and one.id == name for one in ast.walk(node))


def _receiver(function: ast.FunctionDef) -> int:
    """How many arguments a method has before those of a call."""
    return 0 if any(isinstance(one, ast.Name) and one.id == "staticmethod" for one in function.decorator_list) else 1


def bindings(body: list[Any], module: Module, arguments: ast.arguments | None = None) -> dict[str, list[Any]]:
    """The names that a body binds, those of the functions and classes in it left out."""
    names: dict[str, list[Any]] = {}
    if arguments:
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        names |= {one.arg: [("opaque", None)] for one in every if one}
    todo = deque(body)
    while todo:
        node = todo.popleft()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            # An overload is for the type checker; what runs comes behind it.
            if not any(ast.unparse(one).rpartition(".")[2] == "overload" for one in node.decorator_list):
                names.setdefault(node.name, []).append((kind, node))
            continue
        for name, bound in _bound(node, module):
            names.setdefault(name, []).append(bound)
        if not isinstance(node, ast.Lambda):
            todo += ast.iter_child_nodes(node)
    return names


def _imported(node: Any, module: Module) -> Iterator[tuple[str, Any]]:
    if isinstance(node, ast.Import):
        for one in node.names:
            first = one.name.partition(".")[0]
            yield (one.asname, ("import", one.name)) if one.asname else (first, ("import", first))
        return
    base = absolute(node, module)
    for one in node.names:
        if one.name == "*":
            module.stars.append(base)
        else:
            yield one.asname or one.name, ("from", (base, one.name))


def _bound(node: Any, module: Module) -> Iterator[tuple[str, Any]]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from _imported(node, module)
    elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
        yield node.targets[0].id, ("value", node.value)
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
        yield node.target.id, ("value", node.value)
    elif isinstance(node, ast.Assign | ast.For | ast.AugAssign | ast.NamedExpr | ast.withitem):
        where = node.targets if isinstance(node, ast.Assign) else [getattr(node, "optional_vars", None) or getattr(node, "target", None)]
        for one in (found for target in where if target for found in ast.walk(target)):
            if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store):
                yield one.id, ("opaque", None)


def absolute(node: ast.ImportFrom, module: Module) -> str:
    """The dotted name of the module that ``from ... import`` takes from."""
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    parts = parts[: len(parts) - node.level + (1 if module.package else 0)]
    return ".".join([*parts, *([node.module] if node.module else [])])
