"""What can stop a server's start here; every message says what to do."""

from __future__ import annotations


class SwitchError(RuntimeError):
    """Base of this package's errors."""


class BadSettingError(SwitchError):
    """The variable has a value that is neither on nor off."""


class NotActiveHereError(SwitchError):
    """The variable is set on a platform where this switch cannot act."""


class CannotSwitchError(SwitchError):
    """The variable asks for kernels that are not there, or known to be wrong on this GPU."""


class UnknownVllmCodeError(SwitchError):
    """The vLLM code that would be switched is not the code this package knows."""

    def __init__(self, symbol: str, vllm_version: str, why: str) -> None:
        super().__init__(
            f"kiln-vllm-mhc-switch does not know this code: {symbol} of vLLM {vllm_version}: "
            f"{why}. It knows vLLM 0.25 to 0.33 on ROCm, 0.30 to 0.33 on a CPU. Use one of those, or set "
            f"VLLM_PLUGINS to leave the plugin kiln_mhc_switch out."
        )


class WrongPathError(SwitchError):
    """The model took, or was built for, another path than the one that was chosen."""
