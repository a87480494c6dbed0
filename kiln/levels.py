"""What of an image is looked at: the levels of checks, and the mHC settings. Apart from the checks, so that the command line costs no SDK."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Level: TypeAlias = Literal["static", "ops", "generate"]
# Each asks more of the machine than the one before: a container, arithmetic, a server.
LEVELS: tuple[Level, ...] = ("static", "ops", "generate")

Backend: TypeAlias = Literal["aiter", "tilelang", "both"]
BACKENDS: tuple[Backend, ...] = ("aiter", "tilelang", "both")
# The setting of image.toml that takes each backend: AITER's is what operators get who set nothing.
SETTING_OF = {"aiter": "default", "tilelang": "tilelang"}


@dataclass(frozen=True)
class Scope:
    """How much of an image one verification looks at, and the checkpoint it is served with: ``tiny``, ``tiny-wrong`` or a folder."""

    level: Level = LEVELS[-1]
    backend: Backend = "both"
    model: str = "tiny"

    @property
    def whole(self) -> bool:
        """Whether a report of this scope speaks for the image: every level, every setting, the checkpoint that is made for it."""
        return self == Scope()
