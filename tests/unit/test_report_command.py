"""`kiln report`: every form from the command line, its exit codes, and files that are no reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kiln.cli import run

REPORTS = Path(__file__).parents[1] / "golden" / "reports"
PASSED, FAILED = REPORTS / "passed.json", REPORTS / "failed.json"


def test_a_terminal_gets_the_table_and_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(PASSED)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("@")[1] == json.loads(PASSED.read_text())["subject"]["manifest_digest"]
    assert lines[-1].startswith("passed: ")


@pytest.mark.parametrize("form", ["junit", "markdown", "annotations", "html"])
def test_a_form_is_written_to_a_file_as_it_would_be_printed(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    words = ["--root", str(project), "report", str(FAILED), "--format", form]
    assert run(words) == 61
    printed = capsys.readouterr().out
    out = tmp_path / "form"
    assert run([*words, "--out", str(out)]) == 61
    assert out.read_text(encoding="utf-8") == printed
    assert printed


def test_a_page_shows_several_reports_and_no_other_form_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(PASSED), str(FAILED), "--format", "html"]) == 61
    capsys.readouterr()
    assert run(["report", str(PASSED), str(PASSED)]) == 2
    assert "2 reports" in capsys.readouterr().err


def test_json_is_the_reports_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--json", "report", str(PASSED)]) == 0
    assert json.loads(capsys.readouterr().out) == [json.loads(PASSED.read_text())]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no JSON document"),
        ("[" * 100_000, "no JSON document"),
        ("[]", "is not a report"),
        ("{}", "is not a report"),
        (PASSED.read_text(encoding="utf-8").replace('"pass"', '"fail"', 1), "is not a report"),
    ],
    ids=["empty", "deep", "list", "object", "edited by hand"],
)
def test_what_is_no_report_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    (tmp_path / "report.json").write_text(text, encoding="utf-8")
    assert run(["report", str(tmp_path / "report.json")]) == 63
    shown = capsys.readouterr().err
    assert words in shown
    assert "kiln verify STACK" in shown


def test_a_report_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(tmp_path / "none.json")]) == 63
    assert "cannot be read" in capsys.readouterr().err
