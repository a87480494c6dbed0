"""The compiler half of the backend: present, and compiling nothing."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NoReturn

from triton.backends.compiler import BaseBackend, GPUTarget


class InterpreterOnly(BaseBackend):  # type: ignore[misc] # Triton has no types
    """Stands where a compiler would; a kernel that reaches it was not interpreted."""

    @staticmethod
    def supports_target(target: GPUTarget) -> bool:
        """True for the target that the driver beside this module reports."""
        return bool(target.backend == "cpu")

    def hash(self) -> str:
        """Identity for Triton's cache keys; there is no toolchain to name."""
        return "kiln-interpreter-only"

    def parse_options(self, options: dict[str, Any]) -> NoReturn:  # noqa: ARG002 - Triton's signature
        """Raises ``RuntimeError``: Triton asks for options only to compile."""
        self._refuse()

    def add_stages(self, stages: dict[str, Any], options: object, language: object) -> NoReturn:  # noqa: ARG002 - Triton's signature
        """Raises ``RuntimeError``: there are no compiler stages."""
        self._refuse()

    def load_dialects(self, context: object) -> None:
        """No dialects to load."""

    def get_module_map(self) -> dict[str, ModuleType]:
        """No device-specific modules."""
        return {}

    @staticmethod
    def _refuse() -> NoReturn:
        raise RuntimeError(
            "a Triton kernel was about to be compiled for the CPU, but this backend only offers "
            "Triton's interpreter: set TRITON_INTERPRET=1 before the process starts"
        )
