"""Every command has a result for programs, and the manual says which."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest

from kiln.cli import cli, run
from kiln.workspace import Workspace
from tests.commands import every_command

COMMANDS = list(every_command())
ROW = re.compile(r"^\| `(?P<command>[^`]+)` \| (?P<document>\S.*) \|$", re.MULTILINE)


@pytest.fixture(scope="module")
def documented(project: Path) -> dict[str, str]:
    text = (project / "docs" / "json.md").read_text(encoding="utf-8")
    return {row["command"]: row["document"] for row in ROW.finditer(text)}


def test_the_manual_has_each_command_once_and_no_other(documented: dict[str, str]) -> None:
    assert sorted(documented) == sorted(" ".join(words) for words in COMMANDS)


def test_the_manual_says_of_each_whether_it_is_a_table_or_a_list(documented: dict[str, str]) -> None:
    assert [
        name for name, text in documented.items() if not text.startswith(("a table: ", "a list: ", "CycloneDX"))
    ] == []


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_takes_json_behind_its_name(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*words, "--help"]) == 0
    assert "--json" in capsys.readouterr().out


# Those that need no engine, and no network: their documents are looked at here, the others' by the tests of those commands.
OFFLINE = [
    ["advisories"],
    ["advisories", "cpu"],
    ["completion", "bash"],
    ["doctor", "cpu", "--for", "plan"],
    ["engine", "status"],
    ["engine", "down"],
    ["exit-codes"],
    ["lock", "cpu", "--check"],
    ["pins", "audit", "cpu"],
    ["pins", "bump", "torch", "--stack", "cpu", "--to", "2.13.0+cpu", "--dry-run"],
    ["pins", "verify", "cpu"],
    ["plan", "cpu"],
    ["render", "cpu", "--check"],
    ["report", "tests/golden/reports/passed.json"],
    ["sbom", "cpu"],
]


@pytest.mark.parametrize("words", OFFLINE, ids=" ".join)
@pytest.mark.parametrize("before", [True, False])
def test_what_is_printed_is_the_document_that_the_manual_names(
    real: Workspace,
    documented: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    before: bool,
) -> None:
    monkeypatch.chdir(real.root)
    place = ["--root", str(real.root), "--state", str(real.state)]
    assert run([*place, *(["--json", *words] if before else [*words, "--json"])]) == 0
    document = json.loads(capsys.readouterr().out)
    # `show` may be left out of `report show`.
    promised = documented.get(" ".join(words[:2])) or documented.get(words[0]) or documented[f"{words[0]} show"]
    if promised.startswith("a table"):
        assert next(iter(document.items())) == ("schema_version", 1)
    elif promised.startswith("a list"):
        assert isinstance(document, list)
    else:
        assert document["specVersion"] == "1.6"


def test_what_no_encoding_has_can_be_said_all_the_same(
    real: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The report of a server that wrote half a character."""
    path = real.root / "tests" / "golden" / "reports" / "failed.json"
    assert "\\ud800" in path.read_text(encoding="utf-8")
    assert run(["--json", "report", str(path)]) == 61
    assert json.loads(capsys.readouterr().out) == [json.loads(path.read_text(encoding="utf-8"))]


def test_without_json_people_are_spoken_to(real: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--root", str(real.root), "--state", str(real.state), "lock", "cpu", "--check"]) == 0
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(capsys.readouterr().out)


def test_asking_for_a_command_twice_adds_json_once() -> None:
    context = click.Context(cli)
    for _ in range(2):
        command = cli.get_command(context, "plan")
        assert command is not None
        assert sum("--json" in parameter.opts for parameter in command.params) == 1
