"""The driver half of the backend: names the CPU as a target while the interpreter is on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

Benchmarker = Callable[..., Sequence[float]]


class InterpreterDriver(DriverBase):  # type: ignore[misc] # Triton has no types
    """Answers what Triton asks of a driver when kernels are interpreted on the host."""

    @classmethod
    def is_active(cls) -> bool:
        """Whether the interpreter is on; off, this package must not pass for a device."""
        return bool(knobs.runtime.interpret)

    def map_python_to_cpp_type(self, ty: str) -> NoReturn:
        """Raises ``RuntimeError``: only a compiled launcher needs C++ types."""
        raise RuntimeError(f"no C++ type for {ty!r}: this Triton backend only interprets")

    def get_current_target(self) -> GPUTarget:
        """The target ``cpu``, with no architecture and single-thread warps."""
        return GPUTarget("cpu", "", 1)

    def get_active_torch_device(self) -> Any:
        """torch's CPU device."""
        import torch

        return torch.device("cpu")

    def get_benchmarker(self) -> Benchmarker:
        """What the autotuner times kernels with: see :func:`time_once`."""
        return time_once


def time_once(
    kernel_call: Callable[[], object], *, quantiles: Sequence[float] | None = None, **_: object
) -> list[float]:
    """Milliseconds of one run, once per wanted quantile.

    One run, because an interpreted kernel takes long and its timings only rank configurations
    that all run the same interpreter.
    """
    start = time.perf_counter()
    kernel_call()
    elapsed = (time.perf_counter() - start) * 1e3
    return [elapsed] * len(quantiles or (0.5,))
