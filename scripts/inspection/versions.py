"""Versions and the clauses that allow them, as PEP 440 says, without ``packaging``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

_VERSION: Final = re.compile(
    r"\s*v?(?:(?P<epoch>[0-9]+)!)?(?P<release>[0-9]+(?:\.[0-9]+)*)"
    r"(?:[-_.]?(?P<pre>alpha|beta|preview|pre|a|b|c|rc)[-_.]?(?P<pre_n>[0-9]*))?"
    r"(?P<post>-(?P<post_1>[0-9]+)|[-_.]?(?:post|rev|r)[-_.]?(?P<post_n>[0-9]*))?"
    r"(?P<dev>[-_.]?dev[-_.]?(?P<dev_n>[0-9]*))?"
    r"(?:\+(?P<local>[a-z0-9]+(?:[-_.][a-z0-9]+)*))?\s*$",
    re.IGNORECASE,
)
_SPEC: Final = re.compile(r"\s*(===|==|~=|!=|<=|>=|<|>)\s*(\S+)\s*$")
_LAST: Final = (2, 0)  # behind every other key of its place
_FIRST: Final = (-1, 0)


@dataclass(frozen=True)
class Version:
    """A version that compares as PEP 440 says."""

    epoch: int
    release: tuple[int, ...]
    pre: tuple[int, int] | None
    post: int | None
    dev: int | None
    local: tuple[tuple[int, int, str], ...]

    @classmethod
    def of(cls, text: str) -> Version:
        """Read one. Raises ValueError where it is none."""
        found = _VERSION.match(text)
        if not found:
            raise ValueError(f"{text!r} is no version")
        pre = found["pre"] and {"a": 0, "alpha": 0, "b": 1, "beta": 1}.get(found["pre"].lower(), 2)
        parts = re.split(r"[-_.]", found["local"].lower()) if found["local"] else []
        return cls(
            int(found["epoch"] or 0),
            tuple(int(one) for one in found["release"].split(".")),
            None if found["pre"] is None else (int(pre), int(found["pre_n"] or 0)),
            None if found["post"] is None else int(found["post_1"] or found["post_n"] or 0),
            None if found["dev"] is None else int(found["dev_n"] or 0),
            tuple((1, int(one), "") if one.isdigit() else (0, 0, one) for one in parts),
        )

    @property
    def public(self) -> tuple[Any, ...]:
        """What orders it, its local part left out: 1.0.dev1 < 1.0a1 < 1.0 < 1.0.post1."""
        release = self.release
        while len(release) > 1 and not release[-1]:
            release = release[:-1]
        before = self.pre is None and self.post is None and self.dev is not None
        pre = _FIRST if before else _LAST if self.pre is None else self.pre
        return self.epoch, release, pre, -1 if self.post is None else self.post, *self._dev

    @property
    def _dev(self) -> tuple[int, int]:
        return (1, 0) if self.dev is None else (0, self.dev)

    def padded(self, length: int) -> tuple[int, ...]:
        """The release with zeros up to ``length`` numbers, cut there."""
        return (*self.release, *([0] * length))[:length]


def allows(spec: str, text: str) -> bool:
    """Whether one clause such as ``>=1.2`` lets a version in (PEP 440; pre-releases count, as for ``pip check``)."""
    clause = _SPEC.match(spec)
    if not clause:
        raise ValueError(f"{spec!r} is no clause of a version")
    operator, wanted = clause[1], clause[2]
    if operator == "===":
        return text.strip().lower() == wanted.lower()
    found = Version.of(text)
    if wanted.endswith(".*") and operator in {"==", "!="}:
        given = Version.of(wanted[:-2])
        same = (found.epoch, found.padded(len(given.release))) == (given.epoch, given.release)
        return same == (operator == "==")
    return _compares(operator, found, Version.of(wanted))


def _compares(operator: str, found: Version, given: Version) -> bool:
    if operator in {"==", "!="}:
        same = found.public == given.public and (not given.local or found.local == given.local)
        return same == (operator == "==")
    if operator == "~=":
        upto = len(given.release) - 1
        same = (found.epoch, found.padded(upto)) == (given.epoch, given.release[:upto])
        return upto > 0 and found.public >= given.public and same
    if operator in {"<=", ">="}:
        return found.public <= given.public if operator == "<=" else found.public >= given.public
    width = max(len(found.release), len(given.release))
    base = (found.epoch, found.padded(width)) == (given.epoch, given.padded(width))
    if operator == "<":
        early = found.pre is not None or found.dev is not None
        late = given.pre is not None or given.dev is not None
        return found.public < given.public and not (early and not late and base)
    if base and (found.local or (found.post is not None and given.post is None)):
        return False
    return found.public > given.public
