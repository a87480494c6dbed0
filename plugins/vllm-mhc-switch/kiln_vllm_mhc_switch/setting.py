"""The variable: reading it, and making vLLM know it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from kiln_vllm_mhc_switch.errors import BadSettingError

VARIABLE: Final = "VLLM_ROCM_USE_TILELANG_MHC"

_ON: Final = frozenset({"1", "true"})
_OFF: Final = frozenset({"0", "false"})


@dataclass(frozen=True)
class Setting:
    """What the environment asked for: ``raw`` is the variable's text, ``None`` if unset."""

    raw: str | None

    @property
    def fused(self) -> bool:
        """Whether the fused path is wanted; off unless asked for."""
        return self.raw is not None and self.raw.strip().lower() in _ON

    @property
    def path(self) -> str:
        """The wanted path, as log lines name it."""
        return path_name(self.fused)

    @property
    def requested(self) -> str:
        """Who chose: ``default`` or ``env``."""
        return "default" if self.raw is None else "env"

    @property
    def shown(self) -> str:
        """The variable and its value, as log lines name them."""
        return f"{VARIABLE}:{'unset' if self.raw is None else self.raw.strip()}"


def path_name(fused: bool) -> str:
    """``fused`` or ``unfused``."""
    return "fused" if fused else "unfused"


def read(environ: Mapping[str, str]) -> Setting:
    """Read the variable. Raises :class:`BadSettingError` unless unset, 0, 1, true or false.

    An empty value is refused too: it is what a template with a missing name leaves behind.
    """
    raw = environ.get(VARIABLE)
    if raw is not None and raw.strip().lower() not in _ON | _OFF:
        raise BadSettingError(
            f"{VARIABLE}={raw!r} is neither on nor off: set it to 1 or true for the fused mHC "
            f"path, to 0 or false for the default, or leave it unset"
        )
    return Setting(raw)


Getters = MutableMapping[str, Callable[[], Any]]

_MARK: Final = "__kiln_mhc_variable__"


def known_to_vllm(getters: Getters) -> bool:
    """Whether vLLM has the variable of its own accord, as the fork with the switch does."""
    getter = getters.get(VARIABLE)
    return getter is not None and not hasattr(getter, _MARK)


def make_known(getters: Getters, setting: Setting) -> None:
    """Add the variable to ``vllm.envs.environment_variables``, once.

    Then vLLM does not call it unknown, passes it to remote workers, and keys its compile cache
    with it: the two paths are different graphs, and must not be taken for each other.
    """
    if VARIABLE in getters:
        return

    def getter() -> bool:
        return setting.fused

    setattr(getter, _MARK, True)
    getters[VARIABLE] = getter
