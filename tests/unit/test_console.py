"""What is seen while Kiln works: on a terminal (a real one, made by the kernel), in a CI job's, in a file, and by somebody who wants no colour."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from kiln import process
from kiln.cli import run
from kiln.errors import HostError
from kiln.gitrun import Repository
from kiln.workspace import Workspace

SPEAKING = """
from kiln.console import Console
console = Console()
console.step("begins")
console.progress("half of it")
console.note("a detail")
"""


def spoken(*, terminal: bool, **env: str) -> str:
    """What a person sees of a console whose stderr is a terminal, or a pipe."""
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "NO_COLOR", "TERM")}
    environment = {**kept, "PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "xterm", **env}
    ours, theirs = pty.openpty() if terminal else os.pipe()
    child = subprocess.Popen([sys.executable, "-c", SPEAKING], env=environment, stderr=theirs)
    os.close(theirs)
    said = b""
    try:
        while piece := os.read(ours, 4096):
            said += piece
    except OSError:
        pass  # how a terminal says that nobody is at its other end any more
    finally:
        os.close(ours)
    assert child.wait(timeout=30) == 0
    return said.decode().replace("\r\n", "\n")


def test_a_terminal_gets_bold_and_a_line_that_renews_itself() -> None:
    said = spoken(terminal=True)
    assert "\x1b[1mkiln\x1b[0m 00:00 begins\n" in said
    assert "\r\x1b[K           half of it" in said


def test_no_color_takes_the_colour_and_leaves_the_line_that_renews_itself() -> None:
    said = spoken(terminal=True, NO_COLOR="1")
    assert "\x1b[1m" not in said
    assert "half of it" in said


@pytest.mark.parametrize(
    ("terminal", "env"), [(False, {}), (True, {"CI": "true"}), (True, {"TERM": "dumb"})], ids=["pipe", "ci", "dumb"]
)
def test_elsewhere_lines_are_plain(terminal: bool, env: dict[str, str]) -> None:
    assert spoken(terminal=terminal, **env) == "kiln 00:00 begins\n           a detail\n"


def test_ci_set_to_false_is_no_ci() -> None:
    assert "half of it" in spoken(terminal=True, CI="false")


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(process, "told", [lines.append])
    return lines


def test_a_program_that_runs_is_told_of_with_its_end_and_its_time(heard: list[str]) -> None:
    assert process.run(["sh", "-c", "exit 3"]).code == 3
    began, over = heard
    assert began == "run   sh -c 'exit 3'"
    assert over.startswith("      sh ended with 3 after 0.")


def test_one_that_is_broken_off_is_said_to_be(heard: list[str]) -> None:
    with pytest.raises(HostError, match="did not finish"):
        process.run(["sleep", "60"], timeout=0.2)
    assert "sleep was broken off after" in heard[-1]


def test_passwords_in_addresses_are_not_told(heard: list[str]) -> None:
    process.run(["true", "--index=https://me:secret@one.example/simple"])
    assert heard[0] == "run   true --index=https://one.example/simple"


def test_git_is_told_of_in_the_words_that_matter(heard: list[str], tmp_path: Path) -> None:
    Repository(tmp_path / "x.git").ready()
    assert heard[0].startswith(f"run   git --git-dir={tmp_path}/x.git init --bare")
    assert "git ended with 0" in heard[1]


def test_verbose_is_for_one_run_alone(real: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--root", str(real.root), "--state", str(real.state)]
    assert run([*place, "--verbose", "doctor", "dsv4-mhc", "--for", "lock"]) in (0, 42)
    said = capsys.readouterr()
    assert "run   git --version" in said.err
    assert "run   " not in said.out
    assert run([*place, "doctor", "dsv4-mhc", "--for", "lock"]) in (0, 42)
    assert "run   " not in capsys.readouterr().err
