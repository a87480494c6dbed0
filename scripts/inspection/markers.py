"""Environment markers, as PEP 508 says, without ``packaging``."""

from __future__ import annotations

import os
import platform
import re
import sys
from typing import Final

from inspection.versions import allows

_TOKEN: Final = re.compile(r"\s*(\(|\)|'[^']*'|\"[^\"]*\"|===|==|~=|!=|<=|>=|<|>|[a-z_.]+)", re.IGNORECASE)


def marker_holds(marker: str, environment: dict[str, str]) -> bool:
    """Whether a marker holds (PEP 508). Raises ValueError where it cannot be read."""
    tokens: list[str] = []
    place = 0
    while marker[place:].strip():
        token = _TOKEN.match(marker, place)
        if not token:
            raise ValueError(f"{marker!r} is no marker")
        tokens.append(token[1])
        place = token.end()
    holds, rest = _either(tokens, environment)
    if rest:
        raise ValueError(f"{marker!r} is no marker")
    return holds


def _either(tokens: list[str], environment: dict[str, str]) -> tuple[bool, list[str]]:
    holds, tokens = _both(tokens, environment)
    while tokens and tokens[0] == "or":
        other, tokens = _both(tokens[1:], environment)
        holds = holds or other
    return holds, tokens


def _both(tokens: list[str], environment: dict[str, str]) -> tuple[bool, list[str]]:
    holds, tokens = _single(tokens, environment)
    while tokens and tokens[0] == "and":
        other, tokens = _single(tokens[1:], environment)
        holds = holds and other
    return holds, tokens


def _single(tokens: list[str], environment: dict[str, str]) -> tuple[bool, list[str]]:
    if tokens[:1] == ["("]:
        holds, tokens = _either(tokens[1:], environment)
        if tokens[:1] != [")"]:
            raise ValueError("a parenthesis of a marker is not closed")
        return holds, tokens[1:]
    if tokens[1:3] == ["not", "in"]:
        tokens = [tokens[0], "not in", *tokens[3:]]
    if len(tokens) < 3:
        raise ValueError("a marker ends too early")
    left, operator, right = tokens[:3]
    version = any(one.startswith("python_") and one.endswith("version") for one in (left, right))
    left, right = _value(left, environment), _value(right, environment)
    return _marked(left, operator, right, version=version), tokens[3:]


def _value(token: str, environment: dict[str, str]) -> str:
    if token[0] in "'\"":
        return token[1:-1]
    if token.replace(".", "_") not in environment:
        raise ValueError(f"{token!r} is no variable of a marker")
    return environment[token.replace(".", "_")]


def _marked(left: str, operator: str, right: str, *, version: bool) -> bool:
    if operator in {"in", "not in"}:
        return (left in right) == (operator == "in")
    if version:
        return allows(operator + right, left)
    answers = {"==": left == right, "!=": left != right, "<": left < right, ">": left > right}
    answers |= {"<=": left <= right, ">=": left >= right}
    if operator not in answers:
        raise ValueError(f"{operator!r} compares no texts")
    return answers[operator]


def marker_environment(extra: str = "") -> dict[str, str]:
    """The variables of markers, as this Python has them."""
    full = platform.python_version()
    return {
        "implementation_name": sys.implementation.name,
        "implementation_version": full,
        "os_name": os.name,
        "platform_machine": platform.machine(),
        "platform_release": platform.release(),
        "platform_system": platform.system(),
        "platform_version": platform.version(),
        "platform_python_implementation": platform.python_implementation(),
        "python_full_version": full,
        "python_version": ".".join(platform.python_version_tuple()[:2]),
        "sys_platform": sys.platform,
        "extra": extra,
    }
