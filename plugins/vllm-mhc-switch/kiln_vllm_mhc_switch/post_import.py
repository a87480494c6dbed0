"""Run a function on a module as soon as it is imported, without importing it.

vLLM loads its plugins in every process, and most of them never need the model's code: importing
it there would cost seconds and memory (and on a GPU could initialise the device before a fork).
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

Hook = Callable[[ModuleType], None]


class _Loader(importlib.abc.Loader):
    """Loads as the module's own loader does, then runs the hook on the finished module."""

    def __init__(self, inner: importlib.abc.Loader, hook: Hook) -> None:
        self._inner, self._hook = inner, hook

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module keeps its own loader: what reads its source later must not see this one.
        module.__loader__ = self._inner
        if module.__spec__ is not None:
            module.__spec__.loader = self._inner
        self._inner.exec_module(module)
        self._hook(module)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module through the other finders and puts :class:`_Loader` around its loader."""

    def __init__(self, name: str, hook: Hook) -> None:
        self.name, self._hook = name, hook
        self._asking = False

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        # Another finder of this kind, for the same module, asks back.
        if fullname != self.name or self._asking:
            return None
        self._asking = True
        try:
            specs = (finder.find_spec(fullname, path, target) for finder in sys.meta_path)
            spec = next(filter(None, specs), None)
        finally:
            self._asking = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._hook)
        return spec


def when_imported(name: str, hook: Hook) -> None:
    """Call ``hook`` with the module ``name``: now if it is imported, else when it will be.

    What the hook raises comes out of the import. The hook may run more than once (a second
    call of this function, a failed import tried again), so it must be idempotent.
    """
    module = sys.modules.get(name)
    if module is not None:
        hook(module)
        return
    sys.meta_path.insert(0, _Finder(name, hook))
