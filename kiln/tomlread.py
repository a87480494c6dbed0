"""Reading the TOML files that people write: every problem at once, each with the place it stands at."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from kiln.errors import PinsError

T = TypeVar("T")


class Problems:
    """Collects what is wrong with one file, so that a person sees all of it in one go."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.found: list[str] = []

    def add(self, where: str, what: str) -> None:
        """Note that ``where`` (a dotted key) is wrong, and how."""
        self.found.append(f"{where}: {what}")

    def raise_if_any(self) -> None:
        """Raise PinsError naming everything that was noted, if anything was."""
        if self.found:
            raise PinsError(
                f"{self.source} has {len(self.found)} problem{'s' if len(self.found) > 1 else ''}",
                why="\n".join(self.found),
                fix=f"edit {self.source}; the format is described in docs/pins.md",
            )


class Table:
    """A TOML table whose keys are asked for one by one; a key that nobody asked for is a problem (usually a typing slip)."""

    def __init__(self, data: Mapping[str, Any], where: str, problems: Problems) -> None:
        self._data = dict(data)
        self._asked: set[str] = set()
        self.where = where
        self.problems = problems

    def _take(self, key: str, kind: type[T], described: str, default: T | None) -> T:
        self._asked.add(key)
        value = self._data.get(key)
        if value is None:
            if default is None:
                self.problems.add(self._at(key), f"missing; give {described}")
                return kind()
            return default
        # bool is an int to Python, but not to the person who wrote it.
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            self.problems.add(self._at(key), f"is {value!r}; give {described}")
            return kind() if default is None else default
        return value

    def text(self, key: str, default: str | None = None, *, check: Callable[[str], str | None] | None = None) -> str:
        """The string at ``key``; ``check`` returns what is wrong with it, or None."""
        value = self._take(key, str, "a string", default)
        if check and key in self._data and isinstance(self._data[key], str) and (wrong := check(value)):
            self.problems.add(self._at(key), wrong)
        return value

    def number(self, key: str, default: int | None = None) -> int:
        """The integer at ``key``."""
        return self._take(key, int, "a whole number", default)

    def numbers(self, key: str) -> tuple[int, ...]:
        """The list of positive integers at ``key``."""
        value = self._take(key, list, "a list of whole numbers", None)
        wrong = [item for item in value if not isinstance(item, int) or isinstance(item, bool) or item < 1]
        if wrong:
            self.problems.add(self._at(key), f"holds {wrong[0]!r}; give whole numbers above 0 only")
        return tuple(item for item in value if item not in wrong)

    def fraction(self, key: str) -> float:
        """The number from 0 to 1 at ``key``."""
        self._asked.add(key)
        value = self._data.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            missing = "missing" if value is None else f"is {value!r}"
            self.problems.add(self._at(key), f"{missing}; give a number from 0 to 1")
            return 0.0
        return float(value)

    def flag(self, key: str) -> bool:
        """The boolean at ``key``; false where it is left out."""
        self._asked.add(key)
        value = self._data.get(key, False)
        if not isinstance(value, bool):
            self.problems.add(self._at(key), f"is {value!r}; give true or false")
        return value is True

    def texts(self, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """The list of strings at ``key``."""
        value = self._take(key, list, "a list of strings", None if default is None else list(default))
        wrong = [item for item in value if not isinstance(item, str)]
        if wrong:
            self.problems.add(self._at(key), f"holds {wrong[0]!r}; give strings only")
        return tuple(item for item in value if isinstance(item, str))

    def raw(self, key: str) -> Any:
        """Whatever stands at ``key``, or None."""
        self._asked.add(key)
        return self._data.get(key)

    def table(self, key: str, *, required: bool = True) -> Table:
        """The table at ``key`` (an empty one where it may be left out)."""
        value = self._take(key, dict, "a table", None if required else {})
        return Table(value, self._at(key), self.problems)

    def strings(self, key: str) -> dict[str, str]:
        """The table of strings at ``key``, in the file's order; empty where it is left out."""
        table = self.table(key, required=False)
        return {name: table.text(name) for name in table.names()}

    @property
    def data(self) -> dict[str, Any]:
        """All that stands in this table, asked for or not."""
        return dict(self._data)

    def names(self) -> list[str]:
        """The keys of this table, in the file's order."""
        return list(self._data)

    def done(self) -> None:
        """Note every key that nobody asked for."""
        for key in sorted(self._data.keys() - self._asked):
            known = ", ".join(sorted(self._asked))
            self.problems.add(self._at(key), f"unknown key; known here: {known}")

    def _at(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key


def read_table(path: Path, shown: str, problems: Problems) -> Table:
    """The TOML file at ``path`` as a table. Raises PinsError where it is missing or is not TOML."""
    try:
        data = tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError:
        raise PinsError(f"{shown} does not exist", fix="see docs/pins.md for what it must hold") from None
    # Not TOML, not text, a number of thousands of digits, or brackets within brackets without end.
    except (ValueError, RecursionError) as error:
        raise PinsError(f"{shown} is not TOML", why=str(error), fix=f"edit {shown}") from error
    return Table(data, "", problems)
