"""What of an image is looked at: the levels of checks, and the mHC settings. Apart from the checks, so that the command line costs no SDK."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Level: TypeAlias = Literal["static", "ops", "generate", "gates"]
# Each asks more of the machine than the one before: a container, arithmetic, a server, hours of a server.
LEVELS: tuple[Level, ...] = ("static", "ops", "generate", "gates")
# What is made where nothing else is asked for: the gates need real weights, and their report lies beside the image's.
DEFAULT: Level = "generate"

Backend: TypeAlias = Literal["aiter", "tilelang", "both"]
BACKENDS: tuple[Backend, ...] = ("aiter", "tilelang", "both")
# The setting of image.toml that takes each backend: AITER's is what operators get who set nothing.
SETTING_OF = {"aiter": "default", "tilelang": "tilelang"}


@dataclass(frozen=True)
class Scope:
    """How much of an image one verification looks at, and the checkpoint it is served with: ``tiny``, ``tiny-wrong`` or a folder."""

    level: Level = DEFAULT
    backend: Backend = "both"
    model: str = "tiny"
