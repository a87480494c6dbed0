"""The levels of checks. Apart from the checks, so that the command line costs no SDK."""

from __future__ import annotations

from typing import Literal, TypeAlias

Level: TypeAlias = Literal["static", "ops", "generate"]
# Each asks more of the machine than the one before: a container, arithmetic, a server.
LEVELS: tuple[Level, ...] = ("static", "ops", "generate")
