"""The command reference is what the commands say of themselves. After a change that is meant: pytest tests/golden --update-golden."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kiln.commands.reference import NEEDS, VERDICTS, reference
from tests.commands import every_command

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"


def test_the_reference_is_current(update_golden: bool) -> None:
    if update_golden:
        PAGE.write_text(reference(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == reference(), (
        "docs/commands.md is old: pytest tests/golden --update-golden"
    )


def test_it_is_the_same_on_any_terminal_and_in_any_locale() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kiln.commands.reference"],
        env={"COLUMNS": "40", "LC_ALL": "C", "PYTHONPATH": str(PAGE.parents[1]), "HOME": "/nonexistent"},
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode() == reference()


def test_every_command_is_in_it_with_its_usage_and_an_example() -> None:
    sections = reference().split("\n## ")[2:]
    named = {section.splitlines()[0]: section for section in sections}
    assert list(named) == [f"kiln {' '.join(words)}" for words in every_command()]
    for name, section in named.items():
        assert f"Usage: `{name}" in section
        assert f"\n{name}" in section.split("```sh")[1], f"{name} has no example"


@pytest.mark.parametrize("named", [VERDICTS, NEEDS], ids=["codes", "needs"])
def test_codes_and_needs_are_said_of_commands_that_are_there(named: dict[str, object]) -> None:
    assert sorted(set(named) - {" ".join(words) for words in every_command()}) == []


@pytest.mark.parametrize(
    ("command", "word"), [("verify", "61 `VerifyFailedError`, 62"), ("doctor", "42 `LackingError`")]
)
def test_verdicts_are_said(command: str, word: str) -> None:
    section = reference().split(f"\n## kiln {command}\n")[1].split("\n## ")[0]
    assert word in section
