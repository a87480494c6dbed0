"""Reports of cells become one: whole, the same in any order, and never better than what the cells said."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiln.ci import Cell, read_cells
from kiln.cli import run
from kiln.errors import ReportInvalidError, UsageError
from kiln.verify.merge import READABLE, Handed, chosen, hand_in, merge, name_of
from kiln.verify.render.common import verdict
from kiln.verify.render.html import html
from kiln.verify.render.junit import junit
from kiln.verify.render.markdown import markdown
from kiln.verify.render.shape import validate
from kiln.verify.report import skipped

PASSED = json.loads((Path(__file__).parents[1] / "golden" / "reports" / "passed.json").read_text(encoding="utf-8"))
IMAGE, STACK = PASSED["subject"]["image"], PASSED["stack"]
OURS, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64
BACKENDS = {"default": "aiter", "tilelang": "tilelang", "both": "both"}
STATIC = Cell(STACK, IMAGE, "amd64", "both", "static", gpu=False, seconds=60)
DEFAULT = Cell(STACK, IMAGE, "gfx942", "default", "generate", gpu=True, seconds=60)
BOTH = Cell(STACK, IMAGE, "gfx950", "both", "generate", gpu=True, seconds=60)
GATES = Cell(STACK, IMAGE, "gfx950", "both", "gates", gpu=True, seconds=60, own_model=True)
CELLS = (STATIC, DEFAULT, BOTH)


def report(cell: Cell, digest: str = OURS, hour: int = 1, own_model: bool = False, **statuses: str) -> dict[str, Any]:
    """A report as the cell would make it: every check of the invented one, passed but for ``statuses``."""
    made: dict[str, Any] = copy.deepcopy(PASSED)
    made["subject"]["manifest_digest"] = digest
    made["scope"] = {"level": cell.level, "backend": BACKENDS[cell.setting], "own_model": own_model}
    made["environment"]["gpu"] = [cell.arch] * 8 if cell.gpu else None
    made["timing"] |= {f"{one}_at": f"2026-11-25T{hour:02}:00:00+00:00" for one in ("started", "finished")}
    for check in made["checks"]:
        check["status"] = statuses.get(check["id"].replace(".", "_"), "pass")
    counted = [check["status"] for check in made["checks"]]
    made["summary"] |= {status: counted.count(status) for status in ("pass", "fail", "error", "skip")}
    assert validate(made) == []
    return made


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Handed]:
    """A report in the folder of a cell, handed in."""

    def written(content: dict[str, Any] | str, folder: str = "any", name: str = IMAGE) -> Handed:
        file = tmp_path / folder / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return hand_in(file)

    return written


def merged(*handed: Handed, cells: tuple[Cell, ...] = CELLS, digest: str = OURS) -> dict[str, Any]:
    document = merge(handed, cells, IMAGE, digest)
    assert validate(document) == []
    return document


def cell_of(document: dict[str, Any], cell: Cell | str) -> tuple[str, str]:
    name = cell if isinstance(cell, str) else cell.id
    (check,) = [check for check in document["checks"] if check["id"] == f"cell.{name}"]
    assert document["cells"][name]["status"] == check["status"]
    return check["status"], check["summary"]


def test_where_every_cell_passed_the_whole_passed(write: Callable[..., Handed]) -> None:
    handed = [write(report(cell), cell.id) for cell in CELLS]
    found = merged(*handed)
    assert verdict(found).status == "pass"
    assert {name: one["status"] for name, one in found["cells"].items()} == dict.fromkeys((c.id for c in CELLS), "pass")
    assert [one["report"] for one in found["cells"].values()] == [one.sha256 for one in handed]
    assert found["scope"] == {"level": "generate", "backend": "both", "own_model": False}
    # The cells of a node see the same GPUs.
    assert found["environment"]["gpu"] == ["gfx942"] * 8 + ["gfx950"] * 8
    assert len(found["checks"]) == len(PASSED["checks"]) + len(CELLS) + 1


def test_a_cell_that_did_not_report_is_an_error_and_never_absent(write: Callable[..., Handed]) -> None:
    found = merged(write(report(STATIC)), write(report(BOTH), "both"))
    assert cell_of(found, DEFAULT) == ("error", "no report of this cell")
    assert found["cells"][DEFAULT.id] == {"status": "error", "required": True, "report": None, "older": []}
    assert verdict(found).word == "incomplete"


def test_a_cell_that_failed_fails_the_whole_and_its_evidence_is_kept(write: Callable[..., Handed]) -> None:
    (name, *_) = [check["id"] for check in PASSED["checks"]]
    bad = report(BOTH, **{name.replace(".", "_"): "fail"})
    bad["checks"][0] |= {"summary": "wrong here", "evidence": {"seen": "this"}}
    found = merged(write(report(STATIC)), write(report(DEFAULT), "default"), write(bad, "both"))
    assert verdict(found).status == "fail"
    assert cell_of(found, BOTH)[0] == "fail"
    (check,) = [check for check in found["checks"] if check["id"] == name]
    assert check["summary"] == f"wrong here ({BOTH.id})"
    assert check["evidence"]["seen"] == "this"
    assert set(check["evidence"]["cells"]) == {cell.id for cell in CELLS}


def test_a_report_of_another_digest_does_not_count_and_both_are_named(write: Callable[..., Handed]) -> None:
    stale = write(report(DEFAULT, digest=OTHER), DEFAULT.id)
    found = merged(write(report(STATIC)), write(report(BOTH), "both"), stale)
    status, said = cell_of(found, DEFAULT)
    assert status == "error"
    assert "no report of this cell" in said
    assert OURS in said
    assert OTHER in said


def test_a_stale_report_beside_a_good_one_is_named_and_changes_nothing(write: Callable[..., Handed]) -> None:
    stale = write(report(DEFAULT, digest=OTHER, hour=9), "old")
    status, said = cell_of(merged(*[write(report(cell), cell.id) for cell in CELLS], stale), DEFAULT)
    assert status == "pass"
    assert f"not counted: old/{IMAGE}.json is of {OTHER}" in said


@pytest.mark.parametrize(("first", "second", "status"), [("fail", "pass", "pass"), ("pass", "fail", "fail")])
def test_of_two_reports_of_a_cell_the_newer_counts_and_both_are_named(
    write: Callable[..., Handed], first: str, second: str, status: str
) -> None:
    name = PASSED["checks"][0]["id"].replace(".", "_")
    old = write(report(DEFAULT, hour=1, **{name: first}), "one")
    new = write(report(DEFAULT, hour=2, **{name: second}), "two")
    found = merged(new, old, cells=(DEFAULT,))
    assert cell_of(found, DEFAULT)[0] == status
    assert f"one/{IMAGE}.json" in cell_of(found, DEFAULT)[1]
    assert f"two/{IMAGE}.json" in cell_of(found, DEFAULT)[1]
    assert found["cells"][DEFAULT.id] | {"status": ""} == {
        "status": "",
        "required": True,
        "report": new.sha256,
        "older": [old.sha256],
    }


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({**PASSED, "summary": {}}), "\x00" * 20])
def test_a_report_that_cannot_be_read_is_an_error_of_the_cell_in_whose_folder_it_lies(
    write: Callable[..., Handed], text: str
) -> None:
    found = merged(write(report(STATIC)), write(report(BOTH), "both"), write(text, DEFAULT.id))
    status, said = cell_of(found, DEFAULT)
    assert status == "error"
    assert f"{DEFAULT.id}/{IMAGE}.json is no report" in said
    # Though another report of the cell is whole: which of the two is newer nobody knows.
    found = merged(*[write(report(cell), cell.setting) for cell in CELLS], write(text, DEFAULT.id))
    assert cell_of(found, DEFAULT)[0] == "error"


def test_a_broken_file_of_no_cell_that_can_be_told_is_an_error_too(write: Callable[..., Handed]) -> None:
    found = merged(*[write(report(cell), cell.id) for cell in CELLS], write("{", "anywhere"))
    (check,) = [check for check in found["checks"] if check["id"] == READABLE]
    assert check["status"] == "error"
    assert "anywhere/" in check["summary"]
    assert verdict(found).status == "error"


def test_a_cell_whose_machine_had_no_gpu_looked_at_nothing(write: Callable[..., Handed]) -> None:
    landed = report(DEFAULT)
    landed["environment"]["gpu"] = None
    found = merged(write(landed, DEFAULT.id), write(report(STATIC)), cells=(STATIC, DEFAULT))
    status, said = cell_of(found, DEFAULT)
    assert status == "error"
    assert f"is of {IMAGE}-amd64-default-generate" in said


def test_a_skip_that_the_cell_does_not_allow_is_an_error(write: Callable[..., Handed]) -> None:
    name = next(check["id"] for check in PASSED["checks"] if check["level"] == "static")
    found = merged(write(report(DEFAULT, **{name.replace(".", "_"): "skip"})), cells=(DEFAULT,))
    status, said = cell_of(found, DEFAULT)
    assert status == "error"
    assert name in said


def test_the_tiny_checkpoint_does_not_stand_for_real_weights(write: Callable[..., Handed]) -> None:
    tiny = write(report(GATES), GATES.id)
    found = merged(tiny, cells=(GATES,))
    assert cell_of(found, GATES)[0] == "error"
    assert cell_of(found, f"{GATES.id}-tiny")[0] == "pass"
    assert cell_of(merged(write(report(GATES, own_model=True), GATES.id), cells=(GATES,)), GATES)[0] == "pass"


def test_a_given_checkpoint_of_unknown_margins_is_no_skip_of_the_machine() -> None:
    made = report(DEFAULT, own_model=True)
    made["checks"][0] |= {"id": "model.known", "level": "generate", "status": "skip"}
    assert skipped(made, "generate") == []
    made["scope"]["own_model"] = False
    assert len(skipped(made, "generate")) == 1


def test_one_that_says_something_else_of_the_same_digest_does_not_count(write: Callable[..., Handed]) -> None:
    liar = report(BOTH)
    liar["lock"]["sha256"] = "f" * 64
    for check in liar["checks"]:
        check["evidence"].pop("labels", None)
    found = merged(write(report(STATIC)), write(report(DEFAULT), "default"), write(liar, "both"))
    status, said = cell_of(found, BOTH)
    assert status == "error"
    assert "made from something else" in said


def test_a_cell_that_nobody_asked_for_is_in_it_too(write: Callable[..., Handed]) -> None:
    name = PASSED["checks"][0]["id"].replace(".", "_")
    found = merged(write(report(STATIC)), write(report(DEFAULT, **{name: "fail"}), "more"), cells=(STATIC,))
    assert cell_of(found, DEFAULT)[0] == "fail"
    assert found["cells"][DEFAULT.id]["required"] is False
    assert verdict(found).status == "fail"


def test_a_merged_report_is_not_merged_again(write: Callable[..., Handed]) -> None:
    whole = merged(*[write(report(cell), cell.id) for cell in CELLS])
    assert "is a merged report" in write(whole, "again").problem


@given(st.permutations(range(5)))
def test_the_order_of_the_files_makes_no_difference(order: list[int]) -> None:
    made = [report(STATIC), report(DEFAULT), report(DEFAULT, hour=2), report(BOTH, digest=OTHER)]
    handed = [Handed(f"{n}.json", "", one, f"{n}" * 64) for n, one in enumerate(made)]
    handed.append(Handed("4.json", BOTH.id, None, problem="4.json is no report"))
    assert json.dumps(merged(*[handed[n] for n in order])) == json.dumps(merged(*handed))


def test_a_merged_report_whose_cells_were_edited_is_refused(write: Callable[..., Handed]) -> None:
    found = merged(write(report(STATIC)))
    found["cells"][DEFAULT.id]["status"] = "pass"
    assert any("report.cells" in line for line in validate(found))
    del found["cells"][DEFAULT.id]
    assert any("report.cells" in line for line in validate(found))


def test_every_form_shows_the_cells(write: Callable[..., Handed]) -> None:
    found = merged(write(report(STATIC)))
    for text in (junit(found), markdown(found), html(found)):
        assert f"cell.{DEFAULT.id}" in text
        assert "no report of this cell" in text
    assert html(found).index(f"cell.{DEFAULT.id}") < html(found).index(PASSED["checks"][0]["id"] + "<")


def test_whose_report_it_is_must_be_said_where_there_are_several(write: Callable[..., Handed]) -> None:
    ours, other = write(report(STATIC)), write(report(DEFAULT, digest=OTHER), "other")
    assert chosen([ours]) == (IMAGE, OURS)
    with pytest.raises(UsageError, match="2 digests") as caught:
        chosen([ours, other])
    assert OURS in caught.value.why
    assert OTHER in caught.value.why
    assert chosen([ours, other], digest=OTHER) == (IMAGE, OTHER)
    second = report(STATIC)
    second["subject"]["image"] = "second"
    assert chosen([ours, write(second, "second")], image="second") == ("second", OURS)
    with pytest.raises(UsageError, match="2 images"):
        chosen([ours, write(second, "second")])
    with pytest.raises(ReportInvalidError, match="no report speaks of"):
        chosen([ours], digest=OTHER)
    with pytest.raises(ReportInvalidError, match="no report to merge"):
        chosen([write("{", "broken")])


def test_a_report_is_named_as_its_cell_is() -> None:
    assert [name_of(report(cell)) for cell in CELLS] == [cell.id for cell in CELLS]


def test_the_command_merges_by_the_matrix_that_was_printed(
    project: Path, write: Callable[..., Handed], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix, out = tmp_path / "matrix.json", tmp_path / "merged.json"
    assert run(["--root", str(project), "-q", "ci", "matrix", "cpu", "--json"]) == 0
    matrix.write_text(capsys.readouterr().out)
    assert read_cells(matrix)[0].id == "cpu-serving-amd64-static"
    cpu = report(Cell("cpu", "cpu-serving", "amd64", "both", "static", gpu=False, seconds=1))
    cpu["subject"]["image"], cpu["stack"], cpu["subject"]["platform"] = "cpu-serving", "cpu", "linux/amd64"
    write(cpu, "cell")
    words = ["report", "merge", str(tmp_path / "cell" / f"{IMAGE}.json"), "--out", str(out)]
    assert run([*words, "--matrix", str(matrix)]) == 62
    shown = capsys.readouterr().out
    assert "error  cell.cpu-serving-amd64-generate" in shown
    assert "pass   cell.cpu-serving-amd64-static" in shown
    document = json.loads(out.read_text())
    assert len(document["cells"]) == len(read_cells(matrix))
    assert run(["report", str(out)]) == 62
    # Without a matrix nothing is required beyond what is there.
    assert run(words) == 0


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"matrix": {"include": []}}', '{"matrix": {"include": [{"id": "x"}]}}']
)
def test_what_is_no_matrix_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "matrix.json").write_text(text)
    with pytest.raises(UsageError, match="is no matrix"):
        read_cells(tmp_path / "matrix.json")


def test_a_cell_that_was_edited_in_the_matrix_is_refused(tmp_path: Path) -> None:
    row = {**DEFAULT.data(), "id": "something-else"}
    (tmp_path / "matrix.json").write_text(json.dumps({"matrix": {"include": [row]}}))
    with pytest.raises(UsageError, match="is no matrix"):
        read_cells(tmp_path / "matrix.json")
