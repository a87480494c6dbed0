"""vLLM's modules as syntax trees, read from disk so that nothing of them is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kiln_vllm_mhc_switch.errors import UnknownVllmCodeError

Function = ast.FunctionDef


@dataclass
class Sources:
    """The modules of one vLLM, found below the folders of its package.

    ``replaced`` has the text of modules that are to be taken in the place of those on disk, and
    ``seen`` what was asked for: the symbols that whoever read them relies on.
    """

    folders: tuple[Path, ...]
    version: str
    replaced: dict[str, str] = field(default_factory=dict)
    seen: list[tuple[str, str]] = field(default_factory=list)
    _trees: dict[str, ast.Module] = field(default_factory=dict)

    @classmethod
    def of_package(cls, package_path: Iterable[str], version: str) -> Sources:
        """Those of an imported ``vllm``, by its ``__path__``."""
        return cls(tuple(Path(one) for one in package_path), version)

    def tree(self, module: str) -> ast.Module:
        """The tree of a module; raises :class:`UnknownVllmCodeError` where there is none."""
        if module not in self._trees:
            text = self.replaced.get(module)
            path = self._file(module)
            if text is None and path is None:
                raise UnknownVllmCodeError(module, self.version, "the module is not there")
            if text is None and path is not None:
                text = path.read_text(encoding="utf-8")
            try:
                self._trees[module] = ast.parse(text or "")
            except SyntaxError as error:
                raise UnknownVllmCodeError(module, self.version, f"not Python: {error}") from error
        return self._trees[module]

    def below(self, package: str) -> list[str]:
        """The names of the modules that lie directly in a package."""
        relative = Path(*package.split(".")[1:])
        return sorted(
            {
                f"{package}.{path.stem}"
                for folder in self.folders
                for path in (folder / relative).glob("*.py")
                if path.stem != "__init__"
            }
        )

    def function(self, module: str, name: str) -> Function:
        """A function, or a method as ``Class.method``; raises where it is not there, once."""
        self.saw(module, name)
        owner, _, method = name.rpartition(".")
        body: list[ast.stmt] = self.tree(module).body
        if owner:
            classes = [n for n in body if isinstance(n, ast.ClassDef) and n.name == owner]
            body = classes[0].body if len(classes) == 1 else []
        found = [n for n in body if isinstance(n, ast.FunctionDef) and n.name == method]
        if len(found) != 1:
            raise self.unknown(module, name, "it is not there")
        return found[0]

    def assigned(self, module: str, name: str) -> ast.expr:
        """What a module assigns to a name, at its top level and once; raises where it does not."""
        self.saw(module, name)
        values = [value for target, value in _assignments(self.tree(module).body) if target == name]
        stores = [
            n
            for n in ast.walk(self.tree(module))
            if isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Store)
        ]
        if len(values) != 1 or len(stores) != 1:
            raise self.unknown(module, name, "it is not assigned at the top of the module, once")
        return values[0]

    def imported(self, module: str, origin: str, name: str) -> None:
        """Raise unless a module takes a name from another one, under that name."""
        self.saw(module, name)
        for node in self.tree(module).body:
            if not isinstance(node, ast.ImportFrom) or node.module != origin or node.level:
                continue
            if any(one.name == name and one.asname is None for one in node.names):
                return
        raise self.unknown(module, name, f"it is not imported from {origin}")

    def saw(self, module: str, name: str) -> None:
        """Note that a symbol is relied on."""
        if (module, name) not in self.seen:
            self.seen.append((module, name))

    def unknown(self, module: str, symbol: str, why: str) -> UnknownVllmCodeError:
        """The error for a symbol that is not what is known."""
        return UnknownVllmCodeError(f"{module}.{symbol}", self.version, why)

    def _file(self, module: str) -> Path | None:
        relative = Path(*module.split(".")[1:]).with_suffix(".py")
        return next((f / relative for f in self.folders if (f / relative).is_file()), None)


def _assignments(body: Iterable[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            yield node.target.id, node.value


def calls(node: ast.AST) -> set[str]:
    """Names of the methods called on anything below ``node``."""
    return {
        n.func.attr
        for n in ast.walk(node)
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)
    }


def uses(node: ast.AST, name: str, *contexts: type[ast.expr_context]) -> int:
    """How often an attribute or a variable of that name is used below ``node``."""
    return sum(
        isinstance(n.ctx, contexts)
        for n in ast.walk(node)
        if (isinstance(n, ast.Attribute) and n.attr == name)
        or (isinstance(n, ast.Name) and n.id == name)
    )
