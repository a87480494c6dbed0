"""Levels of reproducibility: what is claimed, what builds show, and when the one is more than the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kiln.errors import PinsError
from kiln.image import read_images
from kiln.lockentries import Unresolved
from kiln.lockfile import Lock
from kiln.pins import Pins, read_pins
from kiln.render import Rendered
from kiln.reproducible import LEVELS, NONE, below_claim, level_of, measured
from kiln.workspace import Workspace

ONE, TWO = "sha256:1", "sha256:2"


@pytest.mark.parametrize(
    ("digests", "builders", "same_content", "level"),
    [
        ([ONE, ONE], ["26", "26"], False, "same-digest"),
        ([ONE, ONE, ONE], ["26", "26", "28"], False, "across-builders"),
        ([ONE, ONE, TWO], ["26", "26", "28"], False, "same-digest"),
        ([ONE, TWO], ["26", "26"], False, "pure-render"),
        ([ONE, TWO], ["26", "26"], True, "same-content"),
        ([ONE, TWO, ONE], ["26", "26", "28"], False, "pure-render"),
    ],
)
def test_what_builds_show(digests: list[str], builders: list[str], same_content: bool, level: str) -> None:
    assert measured(digests, builders, same_content=same_content) == level


@pytest.mark.parametrize(
    ("claimed", "found", "across", "broken"),
    [
        ("across-builders", "same-digest", True, True),
        # One builder cannot show more, and does not deny it.
        ("across-builders", "same-digest", False, False),
        ("across-builders", "pure-render", False, True),
        ("same-digest", "same-content", False, True),
        ("same-digest", "across-builders", True, False),
        ("pure-render", "pure-render", True, False),
        (NONE, "pure-render", True, False),
    ],
)
def test_a_claim_is_broken_by_less(claimed: str, found: str, across: bool, broken: bool) -> None:
    assert below_claim(claimed, found, across=across) == broken


def test_nothing_is_claimed_of_what_is_not_resolved(toy: Workspace, toy_pins: Pins, toy_lock: Lock) -> None:
    (image,) = read_images(toy, toy_pins)
    name = image.components[0]
    assert level_of(image, name, toy_lock) == dict(image.reproducible)["default"]
    open_entry = Unresolved("git", name, "v1", "nobody answered")
    assert level_of(image, name, replace(toy_lock, unresolved=(open_entry,))) == NONE


def test_the_labels_say_what_is_claimed(rendered: Rendered) -> None:
    labels = dict(rendered.labels)
    for name in rendered.image.components:
        assert labels[f"io.kiln.component.{name}.reproducible"] == "same-digest"


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('default = "perfect"', "'perfect' is no level"),
        ('default = "same-digest"\nnobody = "same-digest"', "reproducible.nobody: is no component"),
        ("", "reproducible.default: is missing"),
    ],
)
def test_a_claim_that_says_nothing_is_refused(project_copy: Path, table: str, words: str) -> None:
    path = project_copy / "images" / "cpu-serving" / "image.toml"
    text = path.read_text()
    assert 'default = "across-builders"' in text
    path.write_text(text.replace('default = "across-builders"', table))
    workspace = Workspace(project_copy, project_copy / ".kiln")
    with pytest.raises(PinsError, match=words):
        read_images(workspace, read_pins(workspace, "cpu"))


def test_no_more_is_claimed_of_what_was_never_compiled(real: Workspace) -> None:
    stacks = [read_pins(real, stack) for stack in ("dsv4-mhc", "dsv4-mhc-upstream")]
    for image in (one for pins in stacks for one in read_images(real, pins)):
        order = list(LEVELS)
        assert {order.index(level) for _, level in image.reproducible} <= {order.index("pure-render")}
