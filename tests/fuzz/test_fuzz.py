"""A few damaged documents of every kind in every run of the tests; ``make fuzz`` feeds a hundred thousand."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from kiln.errors import PinsError
from tests.fuzz.__main__ import EscapedError, alarm, feed
from tests.fuzz.targets import targets

NAMES = (
    "pins",
    "pins cpu",
    "lock",
    "lock cpu",
    "advisories",
    "report",
    "image layout",
    "cache entry",
    "releases",
    "attestations",
    "index page",
    "bundle",
    "configuration",
    "vLLM's files",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_document_is_read_or_refused(tmp_path: Path, name: str) -> None:
    alarm()
    tally = feed(name, targets(tmp_path)[name], 60, 7)
    assert tally.read + tally.refused == 60
    # Damage that nobody notices would prove nothing.
    assert tally.refused >= 10


def test_every_target_is_tried(tmp_path: Path) -> None:
    assert tuple(targets(tmp_path)) == NAMES


def test_what_escapes_is_named() -> None:
    def bad(random_: random.Random) -> object:
        raise (PinsError("meant") if random_.random() < 0.5 else KeyError("not meant"))

    with pytest.raises(EscapedError, match="KeyError"):
        feed("bad", bad, 50, 1)
