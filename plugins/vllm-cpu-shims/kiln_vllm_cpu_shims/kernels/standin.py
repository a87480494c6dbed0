"""The object that stands where an interpreted kernel stood."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

Grid = tuple[int, ...]
# Does what all programs of the grid do; the arguments stand in the namespace by the kernel's names.
Launch = Callable[[Grid, SimpleNamespace], None]


class NotCoveredError(Exception):
    """A launch of a kind that the stand-in leaves to the kernel; raised before it writes."""


class StandIn:
    """Launches like Triton's ``InterpretedFunction``: ``kernel[grid](*args, **kwargs)``.

    Whatever else is asked of it (``arg_names``, ``fn``, ``__name__``), the kernel answers.
    """

    def __init__(self, kernel: Any, launch: Launch) -> None:
        self.kernel, self.launch = kernel, launch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kernel, name)

    def __getitem__(self, grid: Grid | Callable[[dict[str, Any]], Grid]) -> Callable[..., None]:
        return lambda *args, **kwargs: self.run(*args, grid=grid, warmup=False, **kwargs)

    def warmup(self, *args: Any, grid: Any, **kwargs: Any) -> None:
        """Nothing: there is nothing to compile."""

    def run(self, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        """Launch; keywords that the kernel does not have (``num_warps``) go unused, as there."""
        if warmup:
            return
        names = self.kernel.arg_names
        bound = dict(zip(names, args, strict=False))
        given = {name: value for name, value in kwargs.items() if name in names}
        wrong = (bound.keys() & given.keys()) | (set(names) - bound.keys() - given.keys())
        if wrong or len(args) > len(names):
            raise TypeError(f"{self.kernel.__name__}: too many, twice or not given: {sorted(wrong)}")
        bound |= given
        sizes = grid(bound) if callable(grid) else grid
        try:
            self.launch(tuple(sizes), SimpleNamespace(**bound))
        except NotCoveredError:
            self.kernel[grid](*args, **kwargs)
