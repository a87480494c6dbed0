"""`kiln report`: every form from the command line, its exit codes, and files that are no reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
        (
            PASSED.read_text(encoding="utf-8").replace("{", '{"stack": "toy",', 1),
            "the key 'stack' is there more than once",
        ),
        ("\ud800", "no JSON document"),
        ("9" * 5000, "no JSON document"),
    ],
    ids=["empty", "deep", "list", "object", "edited by hand", "a key twice", "no text", "a number without end"],
)
def test_what_is_no_report_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    (tmp_path / "report.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    assert run(["report", str(tmp_path / "report.json")]) == 63
    shown = capsys.readouterr().err
    assert words in shown
    assert "kiln verify STACK" in shown


def test_a_report_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(tmp_path / "none.json")]) == 63
    assert "cannot be read" in capsys.readouterr().err


def test_a_file_that_is_too_large_is_not_read_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large = tmp_path / "report.json"
    with large.open("wb") as stream:
        stream.truncate(100 << 30)  # a sparse file: no disk, and no memory, would hold it
    assert run(["report", str(large)]) == 63
    assert "has more than 8 MiB" in capsys.readouterr().err


def test_the_largest_report_that_is_read_is_judged_in_little_memory(tmp_path: Path) -> None:
    """A document of the size that is just let in, made to take as much room as it can: some hundred megabytes, some seconds."""
    worst = tmp_path / "report.json"
    worst.write_bytes(b"[" + b"[]," * (5 << 19) + b"[]]")
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30));"
        "from kiln.cli import run; sys.exit(run(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "report", str(worst)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert (done.returncode, "is not array" in done.stderr or "is not object" in done.stderr) == (63, True), done.stderr


def test_only_a_command_that_reads_a_report_loads_the_validator(project: Path) -> None:
    code = "import sys, kiln.cli, kiln.verify.render.shape; sys.exit('jsonschema' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=project, check=False).returncode == 0
