"""Copies of a module in which one symbol is gone or has another name: what a release of tomorrow may do to the switch."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

RENAMED = "_renamed"


def mutations(source: str, symbol: str) -> Iterator[tuple[str, str]]:
    """What may become of a symbol (``name`` or ``Class.name``): how, and the module's text then."""
    yield "removed", _defined(source, symbol, None)
    yield "renamed where it is defined", _defined(source, symbol, symbol.rpartition(".")[2] + RENAMED)
    yield "renamed everywhere in the module", _everywhere(source, symbol.rpartition(".")[2])


def _defined(source: str, symbol: str, new: str | None) -> str:
    """The module with the symbol's definition under another name, or without it."""
    tree = ast.parse(source)
    owner, _, name = symbol.rpartition(".")
    bodies = [one for one in tree.body if isinstance(one, ast.ClassDef) and one.name == owner] if owner else [tree]
    found = sum(_in(body, name, new) for body in bodies)
    if not found and owner:
        found = sum(_in_methods(body, name, new) for body in bodies)
    if found != 1:
        raise AssertionError(f"{symbol} is defined {found} times")
    return ast.unparse(tree)


def _in(owner: ast.AST, name: str, new: str | None) -> int:
    """Change what defines the name directly in a module or class; how many places that were."""
    kept: list[ast.stmt] = []
    found = 0
    for node in owner.body:  # type: ignore[attr-defined]
        change = _definition(node, name)
        found += change is not None
        if change is None or change(new):
            kept.append(node)
    owner.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return found


def _in_methods(owner: ast.AST, name: str, new: str | None) -> int:
    """Change ``self.name = …`` in the methods of a class."""
    found = 0
    for method in owner.body:  # type: ignore[attr-defined]
        for node in list(getattr(method, "body", [])):
            target = node.targets[0] if isinstance(node, ast.Assign) else None
            if isinstance(target, ast.Attribute) and target.attr == name:
                found += 1
                if new is None:
                    method.body.remove(node)
                else:
                    target.attr = new
    return found


def _definition(node: ast.stmt, name: str) -> Callable[[str | None], bool] | None:
    """How to rename what a statement defines (True: keep the statement), or None where it defines another name."""

    def renamed(owner: ast.AST, attribute: str) -> Callable[[str | None], bool]:
        def change(new: str | None) -> bool:
            setattr(owner, attribute, new)
            return new is not None

        return change

    if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
        return renamed(node, "name")
    targets = (
        [node.target]
        if isinstance(node, ast.AnnAssign) and node.value
        else node.targets
        if isinstance(node, ast.Assign)
        else []
    )
    for target in targets:
        if isinstance(target, ast.Name) and target.id == name:
            return renamed(target, "id")
    if isinstance(node, ast.ImportFrom):
        for alias in node.names:
            if alias.name == name:
                return _alias(node, alias)
    return None


def _alias(node: ast.ImportFrom, alias: ast.alias) -> Callable[[str | None], bool]:
    def change(new: str | None) -> bool:
        if new is None:
            node.names.remove(alias)
        else:
            alias.name = new
        return bool(node.names)

    return change


class _Renamer(ast.NodeTransformer):
    """Every definition, use and import of a name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def generic_visit(self, node: ast.AST) -> ast.AST:
        for field in ("id", "attr", "name"):
            if getattr(node, field, None) == self._name:
                setattr(node, field, self._name + RENAMED)
        return super().generic_visit(node)


def _everywhere(source: str, name: str) -> str:
    return ast.unparse(_Renamer(name).visit(ast.parse(source)))
