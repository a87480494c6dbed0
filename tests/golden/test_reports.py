"""What two invented reports look like in every form, byte by byte. After a change that is meant: pytest tests/golden --update-golden."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kiln.verify.render.annotations import annotations
from kiln.verify.render.html import html
from kiln.verify.render.junit import junit
from kiln.verify.render.markdown import markdown
from kiln.verify.render.shape import validate

REPORTS = Path(__file__).parent / "reports"
PINS = Path(__file__).parent / "toy" / "pins" / "toy.toml"
FORMS: dict[str, Callable[[dict[str, Any]], str]] = {
    "xml": junit,
    "md": markdown,
    "annotations.txt": lambda report: "".join(
        f"{line}\n" for line in annotations(report, PINS.read_text(encoding="utf-8"), "pins/toy.toml")
    ),
    "html": html,
}


def read(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((REPORTS / f"{name}.json").read_text(encoding="utf-8"))
    return document


def compare(file: Path, text: str, update: bool) -> None:
    if update:
        file.write_text(text, encoding="utf-8", newline="\n")
    assert file.read_text(encoding="utf-8") == text, f"{file.name} changed; if that is meant: --update-golden"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["passed", "failed"])
def test_a_report_looks_as_it_always_did(name: str, form: str, update_golden: bool) -> None:
    compare(REPORTS / f"{name}.{form}", FORMS[form](read(name)), update_golden)


def test_two_reports_on_one_page(update_golden: bool) -> None:
    compare(REPORTS / "both.html", html(read("passed"), others=[read("failed")]), update_golden)


@pytest.mark.parametrize("name", ["passed", "failed"])
def test_the_invented_reports_have_the_shape_of_real_ones(name: str) -> None:
    assert validate(read(name)) == []
