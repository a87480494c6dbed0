"""Completion as shells ask for it: a variable of the environment, the words so far, names from the project's own files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kiln.cli import run
from kiln.workspace import Workspace


def kiln(folder: Path, *words: str, **env: str) -> str:
    """What kiln prints as a program of its own, from ``folder``."""
    done = subprocess.run(
        [sys.executable, "-m", "kiln", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **env},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


def offered(folder: Path, *words: str) -> list[str]:
    """What is offered for the last of the words, as bash asks: one "type,value" a line."""
    said = kiln(
        folder,
        COMP_WORDS=" ".join(["kiln", *words]),
        COMP_CWORD=str(len(words)),
        _KILN_COMPLETE="bash_complete",
    )
    return [line for line in said.splitlines() if line]


def test_commands_and_options_complete(project_copy: Path) -> None:
    assert "plain,report" in offered(project_copy, "rep")
    assert "plain,status" in offered(project_copy, "engine", "s")
    assert "plain,--level" in offered(project_copy, "verify", "cpu", "--l")


@pytest.mark.parametrize(
    "command", ["image", "plan", "build", "lock", "fetch", "advisories", "doctor", "verify", "repro"]
)
def test_stacks_complete(project_copy: Path, command: str) -> None:
    assert offered(project_copy, command, "d") == ["plain,dsv4-mhc", "plain,dsv4-mhc-upstream"]
    assert {"plain,cpu", "plain,dsv4-mhc"} <= set(offered(project_copy, command, ""))


def test_images_complete_to_those_of_the_stack_that_was_typed(project_copy: Path) -> None:
    assert offered(project_copy, "build", "dsv4-mhc", "--image", "") == ["plain,rocm-base", "plain,rocm-serving"]
    assert offered(project_copy, "build", "cpu", "--image", "") == ["plain,cpu-serving"]
    assert offered(project_copy, "verify", "--as", "cpu/") == ["plain,cpu/cpu-serving"]


def test_components_complete_to_a_choice(project_copy: Path) -> None:
    assert offered(project_copy, "plan", "dsv4-mhc", "--set", "tor") == [
        "plain,torch=",
        "plain,torchaudio=",
        "plain,torchvision=",
    ]
    assert offered(project_copy, "lock", "dsv4-mhc", "--accept-moved", "ai") == ["plain,aiter"]


def test_advisories_and_purposes_complete(project_copy: Path) -> None:
    assert "plain,aiter-mhc-race" in offered(project_copy, "image", "dsv4-mhc", "--allow-advisory", "aiter")
    assert offered(project_copy, "doctor", "--for", "verify-g") == ["plain,verify-generate"]


def test_cells_complete_by_the_job_files_that_are_there(project: Path) -> None:
    assert offered(project, "ci", "verify", "rocm-base-") == ["plain,rocm-base-amd64-static"]


def test_reports_and_built_images_complete_by_what_lies_in_the_state_folder(project_copy: Path) -> None:
    state = project_copy / ".kiln"
    (state / "reports").mkdir(parents=True)
    (state / "reports" / "sha256-abc.json").touch()
    (state / "builds").mkdir()
    (state / "builds" / "x.json").write_text(json.dumps({"reference": "kiln/cpu-serving:0123"}))
    assert offered(project_copy, "report", ".k") == ["file,.k", "plain,.kiln/reports/sha256-abc.json"]
    assert offered(project_copy, "diff", "kiln/") == ["file,kiln/", "plain,kiln/cpu-serving:0123"]
    assert "plain,kiln/cpu-serving:0123" in offered(project_copy, "verify", "k")


def test_what_cannot_be_read_is_passed_over_in_silence(project_copy: Path, tmp_path: Path) -> None:
    (project_copy / "pins" / "cpu.toml").write_text("this is no toml")
    assert offered(project_copy, "build", "cpu", "--image", "") == []
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert offered(elsewhere, "image", "") == []


def test_another_project_is_read_where_root_names_one(project_copy: Path, toy: Workspace) -> None:
    assert offered(project_copy, "--root", str(toy.root), "image", "") == ["plain,toy"]


def test_the_other_shells_protocols_say_the_same(project_copy: Path) -> None:
    zsh = kiln(project_copy, COMP_WORDS="kiln image d", COMP_CWORD="2", _KILN_COMPLETE="zsh_complete")
    assert zsh.split("\n")[:2] == ["plain", "dsv4-mhc"]
    fish = kiln(project_copy, COMP_WORDS="kiln image d", COMP_CWORD="d", _KILN_COMPLETE="fish_complete")
    assert fish.split("\n")[:2] == ["plain,dsv4-mhc", "plain,dsv4-mhc-upstream"]


def test_bash_completes_with_the_script_that_is_printed(project_copy: Path, tmp_path: Path) -> None:
    """Bash itself: it loads the script and calls the function that the script registered, as at a press of the key."""
    program = tmp_path / "bin" / "kiln"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m kiln "$@"\n')
    program.chmod(0o755)
    asked = (
        "source <(kiln completion bash); complete -p kiln; COMP_WORDS=(kiln image d); COMP_CWORD=2; "
        '_kiln_completion kiln; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "--noprofile", "-c", asked],
        cwd=project_copy,
        env={
            **os.environ,
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    registered, *found = done.stdout.splitlines()
    assert registered.endswith("-F _kiln_completion kiln")
    assert found == ["dsv4-mhc", "dsv4-mhc-upstream"]


@pytest.mark.parametrize(
    ("shell", "mark"), [("bash", "complete -o"), ("zsh", "#compdef kiln"), ("fish", "complete --no-files")]
)
def test_each_shell_gets_its_script(capsys: pytest.CaptureFixture[str], shell: str, mark: str) -> None:
    assert run(["completion", shell]) == 0
    assert mark in capsys.readouterr().out
    assert run(["--json", "completion", shell]) == 0
    assert mark in json.loads(capsys.readouterr().out)["script"]


def test_an_unknown_shell_is_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", "tcsh"]) == 2
    assert "bash" in capsys.readouterr().err
