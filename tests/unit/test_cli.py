"""The command line: exit codes, messages that help, and help itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kiln.cli import run
from kiln.errors import DiskFullError, InterruptedByUserError, KilnError, error_classes
from kiln.workspace import Workspace
from tests.commands import every_command

COMMANDS = list(every_command())


def test_the_commands_are_those_that_are_documented() -> None:
    assert {" ".join(words) for words in COMMANDS} >= {
        "lock",
        "fetch",
        "render",
        "plan",
        "build",
        "verify",
        "image",
        "engine up",
        "engine status",
        "engine down",
        "exit-codes",
        "report show",
        "report merge",
    }


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_help_has_an_example_that_can_be_typed(
    project: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert run(["--root", str(project), *words, "--help"]) == 0
    assert f"Example: kiln {' '.join(words)}" in capsys.readouterr().out


def test_help_needs_no_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["image", "--help"]) == 0
    assert "Example: kiln image cpu" in capsys.readouterr().out


STABLE = {
    "KilnError": 1,
    "UsageError": 2,
    "PinsError": 10,
    "LockMissingError": 11,
    "LockStaleError": 12,
    "LockInvalidError": 13,
    "ResolveError": 14,
    "FetchError": 20,
    "HashMismatchError": 21,
    "StoreDamagedError": 22,
    "DiskFullError": 23,
    "RenderError": 30,
    "RenderStaleError": 31,
    "HostError": 40,
    "EngineError": 41,
    "BuildError": 50,
    "ModelError": 60,
    "VerifyFailedError": 61,
    "VerifyIncompleteError": 62,
    "InterruptedByUserError": 130,
}


def test_exit_codes_never_change_their_meaning() -> None:
    codes = {cls.__name__: cls.exit_code for cls in error_classes()}
    assert {name: codes.get(name) for name in STABLE} == STABLE


def test_exit_codes_are_unique_and_explained() -> None:
    codes = [cls.exit_code for cls in error_classes()]
    assert len(codes) == len(set(codes))
    assert 0 not in codes
    assert all((cls.__doc__ or "").splitlines()[0].endswith(".") for cls in error_classes())


def test_the_documented_exit_codes_are_the_real_ones(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--root", str(project), "exit-codes"]) == 0
    assert capsys.readouterr().out.strip() in (project / "docs" / "exit-codes.md").read_text(encoding="utf-8")


def test_a_message_says_what_why_and_what_to_do() -> None:
    assert (
        str(KilnError("it broke", why="one\n\ntwo", fix="mend it"))
        == "error: it broke\n\n  one\n\n  two\n\nwhat to do:\n  mend it"
    )
    assert str(KilnError("it broke")) == "error: it broke"
    assert "KILN_STATE" in str(DiskFullError("full"))


def fails(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str]:
    """Run a command that fails; returns its code and message. Nothing may be printed as a result."""
    code = run(["--quiet", *map(str, words)])
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    return code, said.err


def test_an_unknown_stack_is_code_2(project_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = fails(capsys, "--root", project_copy, "image", "nope")
    assert code == 2
    assert "error: there is no stack 'nope'" in said
    assert "cpu" in said


@pytest.mark.parametrize("words", [["no-such-command"], ["lock"], ["lock", "cpu", "--no-such-option"]])
def test_a_slip_of_the_fingers_is_code_2(project: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    code, said = fails(capsys, "--root", project, *words)
    assert code == 2
    assert "Usage: kiln" in said


def test_a_folder_that_is_no_project_is_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = fails(capsys, "--root", tmp_path, "plan", "cpu")
    assert code == 2
    assert "is not a Kiln project" in said
    assert "--root" in said


COMMANDS_WITH_A_LOCK = [
    ["render", "cpu"],
    ["plan", "cpu"],
    ["fetch", "cpu"],
    ["build", "cpu"],
    ["verify", "cpu"],
    ["image", "cpu"],
    ["lock", "cpu", "--check"],
]


@pytest.mark.parametrize("words", COMMANDS_WITH_A_LOCK, ids=" ".join)
def test_nothing_is_done_without_a_lock(
    project_copy: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    (project_copy / "pins" / "cpu.lock.toml").unlink()
    code, said = fails(capsys, "--root", project_copy, *words)
    assert code == 11
    assert "what to do:\n  kiln lock cpu" in said


@pytest.mark.parametrize("words", COMMANDS_WITH_A_LOCK, ids=" ".join)
def test_nothing_is_done_with_a_stale_lock(
    project_copy: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    pins = project_copy / "pins" / "cpu.toml"
    pins.write_text(pins.read_text().replace("triton==3.9.0", "triton==3.9.1"))
    code, said = fails(capsys, "--root", project_copy, *words)
    assert code == 12
    assert "kiln lock cpu" in said


def test_a_lock_that_somebody_broke_is_code_13(project_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = project_copy / "pins" / "cpu.lock.toml"
    lock.write_text(lock.read_text().replace('\nsha256 = "', '\nsha256 = "x', 1))
    code, said = fails(capsys, "--root", project_copy, "plan", "cpu")
    assert code == 13
    assert "is not a lock that kiln wrote" in said
    assert "kiln lock cpu" in said


def test_wrong_pins_are_code_10(project_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pins = project_copy / "pins" / "cpu.toml"
    pins.write_text(pins.read_text().replace("triton==3.9.0", "triton>=3.9.0"))
    code, said = fails(capsys, "--root", project_copy, "plan", "cpu")
    assert code == 10
    assert "components.triton.wheels" in said


def test_rendered_files_that_were_edited_are_code_31(project_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (project_copy / "images" / "cpu-serving" / "Dockerfile").open("a") as stream:
        stream.write("RUN curl\n")
    code, said = fails(capsys, "--root", project_copy, "render", "cpu", "--check")
    assert code == 31
    assert "-RUN curl" in said


def test_the_committed_files_are_what_renders(real: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--root", str(real.root), "--state", str(real.state), "render", "cpu", "--check"]) == 0


def test_the_committed_lock_is_current(real: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--root", str(real.root), "--state", str(real.state), "--json", "lock", "cpu", "--check"]) == 0
    assert json.loads(capsys.readouterr().out)["current"] is True


def test_plan_says_every_component_and_its_key(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--root", str(project), "--json", "plan", "cpu"]) == 0
    components = json.loads(capsys.readouterr().out)["cpu-serving"]["components"]
    assert list(components) == ["torch", "triton", "vllm-needs", "vllm", "transformers", "plugins"]
    assert len({component["key"] for component in components.values()}) == len(components)


def test_a_project_is_found_from_a_folder_inside_it(
    project_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project_copy / "plugins" / "vllm-name")
    assert run(["plan", "cpu"]) == 0
    assert Workspace.find().root == project_copy


def test_nothing_is_written_by_what_only_looks(project_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(project_copy.rglob("*"))
    for words in (["plan", "cpu"], ["lock", "cpu", "--check"], ["render", "cpu", "--check"]):
        assert run(["--root", str(project_copy), *words]) == 0
    assert sorted(project_copy.rglob("*")) == before


def test_an_interruption_is_code_130(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Workspace, "pins_file", stop)
    code, said = fails(capsys, "--root", project, "plan", "cpu")
    assert code == InterruptedByUserError.exit_code == 130
    assert "run the same command again" in said


def test_a_defect_is_code_1_and_leaves_its_traceback_in_a_file(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fall(*_args: object) -> None:
        raise ZeroDivisionError("nobody thought of that")

    monkeypatch.setattr(Workspace, "pins_file", fall)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, said = fails(capsys, "--root", project, "plan", "cpu")
    assert code == 1
    assert "ZeroDivisionError: nobody thought of that" in said
    (crash,) = tmp_path.glob("kiln-crash-*.txt")
    assert "Traceback" in crash.read_text()
    assert str(crash) in said


def test_a_second_kiln_is_told_whom_it_waits_for_and_leftovers_go(toy: Workspace) -> None:
    left = toy.state / "store" / "tmp-killed"
    left.mkdir(parents=True)
    said: list[str] = []
    with toy.exclusive(said.append):
        assert not left.exists()
    with toy.exclusive(said.append):
        pass
    assert said == []
