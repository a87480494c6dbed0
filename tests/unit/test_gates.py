"""The gates: how image.toml says them, what is measured in which order, and what the judges make of good, bad and missing results."""

from __future__ import annotations

import json
import math
import re
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import kiln.verify.measure
from kiln.console import Console
from kiln.errors import PinsError, ResolveError
from kiln.gates import Accuracy, Cell, Gates, Sweep
from kiln.image import Setting, read_image
from kiln.model import Model
from kiln.pins import read_pins
from kiln.verify.checks import Outcome, Subject, run_checks
from kiln.verify.gates import accuracy, gate_checks, paired
from kiln.verify.measure import LoadRun, Measured, Measurements, balanced, lm_eval_folder, measure, read_run, seed_of
from kiln.verify.render.plot import read_plot
from kiln.verify.serve import Executed
from kiln.verify.throughput import baselines, judge_sweep
from kiln.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

RECORDED = Path(__file__).parents[1] / "corpus" / "gates"
PLAIN = Setting("default", "nothing set", (), "unfused")
FUSED = Setting("tilelang", "the opt-in", (("TOY_FUSED", "1"),), "fused")
GSM8K = Accuracy("gsm8k", "strict-match", 20, 1319, 256, 2048, 0.95, 0.01, 60)
SWEEP = Sweep((Cell(1024, 1024, 4), Cell(1024, 1024, 64)), 5, 2, 0.8, 3, 0.0, 0.02, 60, ())


def recorded(name: str) -> dict[str, Any]:
    """A document that scripts/run_gate.py wrote beside a real server."""
    document: dict[str, Any] = json.loads((RECORDED / name).read_text(encoding="utf-8"))
    return document


# image.toml


@pytest.mark.parametrize(
    ("stack", "image"),
    [
        ("cpu", "cpu-serving"),
        ("dsv4-mhc", "rocm-serving"),
        ("dsv4-mhc-upstream", "rocm-upstream-serving"),
    ],
)
def test_the_images_own_gates_are_sound(real: Workspace, stack: str, image: str) -> None:
    gates = read_image(real, read_pins(real, stack), image).gates
    assert gates is not None
    if image != "cpu-serving":
        assert (gates.accuracy.task, gates.accuracy.bound, gates.accuracy.few_shot) == ("gsm8k", 0.94, 20)
        assert gates.accuracy.concurrent >= 64
        assert [cell.name for cell in gates.sweep.cells] == [
            "1024/1024 C4",
            "1024/1024 C64",
            "8192/1024 C4",
            "8192/1024 C64",
        ]


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (("repeats = 3", "repeats = 2"), "verify.gates.sweep.repeats"),
        (("target = 1.0", "target = 0.3"), "verify.gates.accuracy"),
        (("target = 1.0", 'target = "1"'), "verify.gates.accuracy.target"),
        (("target = 1.0", "target = true"), "verify.gates.accuracy.target"),
        (("target = 1.0", "target = nan"), "verify.gates.accuracy.target"),
        (("margin = 0.5", "margin = 0"), "verify.gates.sweep.margin"),
        (('"16/8"', '"16x8"'), "verify.gates.sweep.workloads"),
        (('"16/8"', '"0/8"'), "verify.gates.sweep.workloads"),
        (("[1, 4]", "[1, 0]"), "verify.gates.sweep.concurrency"),
        (("[1, 4]", "[]"), "verify.gates.sweep"),
        (('task = "answers"', 'task = "gsm9k"'), "verify.gates.accuracy.task"),
        (("range-ratio = 0.5", "range-ratio = 1"), "verify.gates.sweep.range-ratio"),
        (("prompts-each = 2", "prompts-each = 0"), "verify.gates.sweep.prompts-each"),
        (("half-width = 0.4", "half-width = 0.4\nhalfwidth = 1"), "verify.gates.accuracy.halfwidth"),
    ],
)
def test_what_is_wrong_is_named(project_copy: Path, change: tuple[str, str], place: str) -> None:
    path = project_copy / "images" / "cpu-serving" / "image.toml"
    head, mark, text = path.read_text(encoding="utf-8").partition("[verify.gates]")
    assert change[0] in text
    path.write_text(head + mark + text.replace(*change), encoding="utf-8")
    workspace = Workspace(project_copy, project_copy / "state")
    with pytest.raises(PinsError) as caught:
        read_image(workspace, read_pins(workspace, "cpu"), "cpu-serving")
    assert re.search(rf"^{re.escape(place)}: ", caught.value.why, re.MULTILINE)


def test_gates_compare_two_settings(project_copy: Path) -> None:
    path = project_copy / "images" / "cpu-serving" / "image.toml"
    path.write_text(path.read_text(encoding="utf-8") + '\n[verify.settings.third]\nabout = "x"\npath = "x"\n')
    workspace = Workspace(project_copy, project_copy / "state")
    with pytest.raises(PinsError) as caught:
        read_image(workspace, read_pins(workspace, "cpu"), "cpu-serving")
    assert "verify.gates: compare two settings" in caught.value.why


def test_the_lengths_are_those_that_vllm_draws() -> None:
    assert SWEEP.lengths(1024) == (204, 1844)
    assert SWEEP.lengths(8192) == (1638, 14746)


# Accuracy


def asked(good: int, of: int = 1319, **changes: Any) -> Measured:
    table = {str(number): float(number < good) for number in range(of)}
    result = {"right": {"strict-match": table}, "questions": {"effective": of}, "data_sha256": "d", "figures": {}}
    return Measured({**result, **changes}, seconds=1.0)


@pytest.mark.parametrize(
    ("right", "status", "word"),
    [
        (1270, "pass", "pass"),
        (1319, "pass", "pass"),
        (1252, "error", "cannot tell"),
        (1225, "error", "cannot tell"),
        (1213, "fail", "fail"),
        (0, "fail", "fail"),
    ],
)
def test_a_share_passes_fails_or_cannot_be_told(right: int, status: str, word: str) -> None:
    outcome = accuracy(asked(right), GSM8K)
    assert outcome.status == status
    assert outcome.summary.startswith(f"{word}: {right} of 1319 right")
    assert outcome.evidence["questions"] == 1319
    assert outcome.evidence["standard_error"] == pytest.approx(
        math.sqrt(right / 1319 * (1 - right / 1319) / 1319), abs=1e-6
    )
    assert ("It takes 4489 questions to tell 0.95 from 0.94" in outcome.summary) == (word == "cannot tell")


def test_better_than_the_target_is_not_wrong() -> None:
    assert accuracy(asked(round(0.99 * 1319)), GSM8K).status == "pass"


@pytest.mark.parametrize(
    ("given", "status", "words"),
    [
        (Measured(None, "no data: give a folder"), "error", "no answers: no data"),
        (Measured(None, "the server ended by itself", dead=True), "fail", "no answers: the server ended"),
        (asked(600, 660), "error", "660 questions were scored, and 1319 must be"),
        (asked(1319, questions={"effective": 1000}), "error", "1319 must be"),
        (asked(1319, questions=None), "error", "1319 must be"),
        (asked(1319, right={}), "error", "no answers as read by strict-match"),
        (asked(1319, right=None), "error", "no answers as read by strict-match"),
        (asked(1319, right={"strict-match": [1, 1]}), "error", "no answers as read by strict-match"),
        (
            asked(1319, right={"strict-match": {str(n): math.nan for n in range(1319)}}),
            "error",
            "neither 0 nor 1 but nan",
        ),
        (asked(1319, right={"strict-match": {str(n): 0.5 for n in range(1319)}}), "error", "neither 0 nor 1 but 0.5"),
        (asked(1319, right={"strict-match": {str(n): "1" for n in range(1319)}}), "error", "neither 0 nor 1 but '1'"),
    ],
)
def test_what_was_not_measured_is_no_pass(given: Measured, status: str, words: str) -> None:
    outcome = accuracy(given, GSM8K)
    assert (outcome.status, words in outcome.summary) == (status, True), outcome.summary
    other = paired({"default": asked(1319), "tilelang": given}, GSM8K, "default", "tilelang")
    assert other.status == "error"
    assert other.summary.startswith("tilelang: ")


def test_few_questions_are_judged_by_what_they_can_show(real: Workspace) -> None:
    gates = read_image(real, read_pins(real, "cpu"), "cpu-serving").gates
    assert gates is not None

    def of(right: int) -> Outcome:
        table = {str(number): float(number < right) for number in range(8)}
        return accuracy(Measured({"right": {"none": table}, "questions": {"effective": 8}}), gates.accuracy)

    assert [of(right).status for right in (8, 7, 1)] == ["pass", "error", "fail"]


def test_the_settings_are_compared_question_by_question() -> None:
    worse = paired({"default": asked(1200), "tilelang": asked(1230)}, GSM8K, "default", "tilelang")
    assert worse.status == "fail"
    assert (worse.evidence["only_default"], worse.evidence["only_tilelang"]) == (0, 30)
    same = paired({"default": asked(1230), "tilelang": asked(1230)}, GSM8K, "default", "tilelang")
    assert same.status == "pass"
    better = paired({"default": asked(1250), "tilelang": asked(1230)}, GSM8K, "default", "tilelang")
    assert better.status == "pass"
    unsure = paired({"default": asked(1230), "tilelang": asked(1234)}, GSM8K, "default", "tilelang")
    assert unsure.status == "pass"
    unclear = replace(GSM8K, half_width=0.001)
    assert paired({"default": asked(1230), "tilelang": asked(1234)}, unclear, "default", "tilelang").status == "error"


def test_other_questions_are_not_compared() -> None:
    given = {"default": asked(1319), "tilelang": asked(1319, data_sha256="other")}
    outcome = paired(given, GSM8K, "default", "tilelang")
    assert (outcome.status, outcome.summary) == ("error", "the settings were not asked the same questions")


def test_what_lm_eval_really_said_is_read() -> None:
    document = recorded("questions-answers-vllm-cpu.json")
    small = replace(GSM8K, answer_filter="none", questions=0, target=1.0, half_width=0.4)
    outcome = accuracy(Measured(document["result"]), small)
    assert (outcome.status, outcome.evidence["right"], outcome.evidence["questions"]) == ("pass", 8, 8)
    gsm8k = recorded("questions-gsm8k-standin.json")
    outcome = accuracy(Measured(gsm8k["result"]), replace(GSM8K, questions=7))
    assert (outcome.status, outcome.evidence["right"]) == ("fail", 0)
    assert set(outcome.evidence["all_filters"]) == {"exact_match,strict-match", "exact_match,flexible-extract"}


# Throughput


def load_result(throughput: float, tpot: float, **changes: Any) -> dict[str, Any]:
    counted = {"completed": 20, "num_prompts": 20, "failed": 0}
    drawn = {"input_lens": [210, 1840], "output_lens": [220, 1830]}
    return {"output_throughput": throughput, "median_tpot_ms": tpot, **counted, **drawn, **changes}


def swept(
    default: Sequence[float], other: Sequence[float], sweep: Sweep = SWEEP, spoilt: Mapping[str, Any] | None = None
) -> Measurements:
    """Measurements with these throughputs, block by block, in every cell; the last run of the default is ``spoilt``."""
    found = Measurements(balanced(("default", "tilelang"), sweep.repeats))
    for block, name in found.order:
        value = (default if name == "default" else other)[block]
        for cell in sweep.cells:
            result = load_result(value, 1000 / value)
            if spoilt is not None and (block, name, cell) == (sweep.repeats - 1, "default", sweep.cells[-1]):
                result |= spoilt
            found.loads.append(LoadRun(block, name, cell, Measured(result, seconds=2.0)))
    return found


def judged(found: Measurements, sweep: Sweep = SWEEP, target: str = "rocm") -> Outcome:
    return judge_sweep(sweep, found, "default", "tilelang", target)


@pytest.mark.parametrize(
    ("default", "other", "status"),
    [
        ([91.0, 91.4, 91.2], [85.4, 85.5, 85.6], "pass"),
        ([85.4, 85.5, 85.6], [85.5, 85.4, 85.6], "pass"),
        ([85.4, 85.5, 85.6], [91.0, 91.4, 91.2], "fail"),
        # One run in three is slow: that is noise, and too much of it.
        ([91.0, 60.0, 91.2], [85.4, 85.5, 85.6], "error"),
        # A drift that both share is no noise.
        ([91.0, 70.0, 50.0], [85.0, 65.4, 46.7], "pass"),
    ],
)
def test_the_default_must_not_be_slower(default: list[float], other: list[float], status: str) -> None:
    outcome = judged(swept(default, other))
    assert outcome.status == status, outcome.summary
    words = {"pass": "pass", "fail": "fail", "error": "cannot tell"}
    assert outcome.summary.startswith(words[status])
    assert outcome.evidence["verdict"] == words[status]


def test_one_slow_cell_is_enough() -> None:
    found = swept([91.0, 91.4, 91.2], [85.4, 85.5, 85.6])
    slow = SWEEP.cells[1]
    for place, run in enumerate(found.loads):
        if run.cell == slow and run.setting == "default":
            found.loads[place] = replace(run, measured=Measured(load_result(50 + run.block / 10, 20.0)))
    outcome = judged(found)
    assert outcome.status == "fail"
    assert [cell["verdict"] for cell in outcome.evidence["cells"]] == ["pass", "fail"]


def test_a_longer_time_a_token_is_slower_too() -> None:
    found = swept([91.0, 91.4, 91.2], [91.1, 91.3, 91.2])
    for place, run in enumerate(found.loads):
        if run.setting == "default":
            throughput = (run.measured.result or {})["output_throughput"]
            found.loads[place] = replace(run, measured=Measured(load_result(throughput, 15.0 + run.block / 100)))
    assert judged(found).status == "fail"


def test_what_an_image_tolerates_is_no_failure() -> None:
    sweep = replace(SWEEP, tolerance=0.5, margin=0.5)
    slower = swept([85.4, 85.5, 85.6], [91.0, 91.4, 91.2], sweep)
    assert judged(slower, sweep).status == "pass"
    assert judged(swept([40.0, 40.1, 40.2], [91.0, 91.4, 91.2], sweep), sweep).status == "fail"


@pytest.mark.parametrize(
    ("spoilt", "status", "words"),
    [
        ({"output_throughput": math.nan}, "error", "output_throughput is nan"),
        ({"output_throughput": 0}, "error", "output_throughput is 0"),
        ({"median_tpot_ms": -1.0}, "error", "median_tpot_ms is -1.0"),
        ({"median_tpot_ms": "fast"}, "error", "median_tpot_ms is 'fast'"),
        ({"median_tpot_ms": True}, "error", "median_tpot_ms is True"),
        ({"median_tpot_ms": math.inf}, "error", "median_tpot_ms is inf"),
        ({"failed": 3, "completed": 17, "first_error": "500"}, "fail", "3 requests failed"),
        ({"completed": 19}, "error", "19 of 20 requests are counted"),
        ({"completed": 0, "num_prompts": 0}, "error", "0 of 0 requests are counted"),
    ],
)
def test_figures_that_are_none_are_not_compared(spoilt: dict[str, Any], status: str, words: str) -> None:
    outcome = judged(swept([91.0, 91.4, 91.2], [85.4, 85.5, 85.6], spoilt=spoilt))
    assert (outcome.status, words in outcome.summary) == (status, True), outcome.summary


@pytest.mark.parametrize("dead", [True, False])
def test_a_run_that_crashed_is_named(dead: bool) -> None:
    found = swept([91.0, 91.4, 91.2], [85.4, 85.5, 85.6])
    found.loads[3] = replace(found.loads[3], measured=Measured(None, "the words", dead=dead))
    outcome = judged(found)
    assert outcome.status == ("fail" if dead else "error")
    assert outcome.summary == "tilelang, 1024/1024 C64, run 1: the words"


def test_a_run_that_is_missing_is_no_pass() -> None:
    found = swept([91.0, 91.4, 91.2], [85.4, 85.5, 85.6])
    del found.loads[-1]
    assert judged(found).status == "error"
    assert judged(Measurements(())).status == "error"


def test_the_evidence_says_how_it_was_measured() -> None:
    evidence = judged(swept([91.0, 91.4, 91.2], [85.4, 85.5, 85.6])).evidence
    assert evidence["order"][:4] == [
        "default (block 1)",
        "tilelang (block 1)",
        "tilelang (block 2)",
        "default (block 2)",
    ]
    assert evidence["load"]["lengths_drawn_from"] == {"1024": "[204, 1844] tokens, less a tokenizer's special tokens"}
    cell = evidence["cells"][0]
    assert cell["drawn"] == {"input_lens": [210, 1840], "output_lens": [220, 1830]}
    assert cell["default"]["output_tokens_per_second"] == 91.2
    low, high = cell["throughput_change"]["interval"]
    assert low < cell["throughput_change"]["value"] < high
    wider = cell["throughput_change"]["interval_for_failing"]
    assert wider[0] < low < high < wider[1]
    json.dumps(evidence, allow_nan=False)


def test_the_plots_can_be_drawn() -> None:
    plots = judged(swept([91.0, 91.4, 91.2], [85.4, 85.5, 85.6])).evidence["plots"]
    drawn = [read_plot(one["plot"]) for one in plots]
    assert [plot.y.label for plot in drawn if plot] == ["tokens/s", "ms"]
    for plot in drawn:
        assert plot is not None
        assert plot.left_out == 0
        assert [series.name for series in plot.series] == ["default", "tilelang"]
        assert [[point.x for point in series.points] for series in plot.series] == [[4, 64], [4, 64]]
        assert all(point.low <= point.y <= point.high for series in plot.series for point in series.points)  # type: ignore[operator]


def test_published_figures_stand_beside_a_gpus_and_no_processors() -> None:
    found = swept([91.0, 91.4, 91.2], [85.4, 85.5, 85.6])
    on_gpu = judged(found).evidence
    assert on_gpu["cells"][0]["published"][0]["default"] == 91.22
    assert on_gpu["published"][0]["caveats"]
    on_cpu = judged(found, target="cpu").evidence
    assert "published" not in on_cpu
    assert "published" not in on_cpu["cells"][0]


def test_the_published_percentages_are_those_of_the_figures() -> None:
    (entry,) = baselines("rocm")
    gains = [round(100 * (cell["default"] / cell["tilelang"] - 1), 1) for cell in entry["cells"]]
    tpot = [round(100 * (cell["default_tpot_ms"] / cell["tilelang_tpot_ms"] - 1), 1) for cell in entry["cells"]]
    assert gains == [6.8, 4.7, 6.3, 7.2]
    assert tpot == [-6.1, -4.4, -6.2, -6.5]


def test_what_vllm_bench_really_said_is_read() -> None:
    cell = Cell(16, 8, 4)
    sweep = replace(SWEEP, cells=(cell,), tolerance=0.5, margin=0.5)
    result = recorded("load-vllm-cpu.json")["result"]
    runs = [LoadRun(block, name, cell, Measured(result)) for block in range(3) for name in ("default", "tilelang")]
    outcome = judged(Measurements((), loads=runs), sweep, "cpu")
    assert outcome.status == "pass"
    assert outcome.evidence["cells"][0]["throughput_change"]["value"] == 0


# Measuring


def test_the_order_is_balanced() -> None:
    order = balanced(("a", "b"), 4)
    assert "".join(name for _, name in order) == "abbaabba"
    assert [block for block, _ in order] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_no_two_loads_of_one_server_are_the_same() -> None:
    assert len({seed_of(block, cell) for block in range(20) for cell in range(20)}) == 400


@pytest.mark.parametrize(
    ("done", "ending", "words", "dead"),
    [
        (Executed(3, '{"result": null, "error": "ToolError: vllm ended with 1"}', ""), "", "vllm ended with 1", False),
        (Executed(0, "no JSON at all", "Killed"), "", "Killed", False),
        (Executed(0, '{"result": null}', ""), "", "ended with 0 and no result", False),
        (Executed(0, '{"result": [1]}', ""), "", "ended with 0 and no result", False),
        (Executed(0, "[1, 2]", ""), "", "ended with 0 and no result", False),
        (Executed(None, "", ""), "", "did not end within 65 s", False),
        (Executed(0, '{"result": {"a": 1}}', ""), "ended by itself with exit code 9", "exit code 9", True),
        (Executed(None, "", ""), "was killed for using too much memory", "too much memory", True),
    ],
)
def test_a_run_without_a_result_says_why(done: Executed, ending: str, words: str, dead: bool) -> None:
    found = read_run(done, ending, "load", 5, lambda: "the last line")
    assert found.result is None
    assert words in found.trouble
    assert found.dead == dead
    assert ("the last line" in found.trouble) == dead


class Standin:
    """Stands in for a server; ``says`` gives run_gate.py's result for what is asked."""

    def __init__(self, says: Any, asked: list[list[str]], path: str) -> None:
        self._says, self._asked, self._ended, self._path = says, asked, "", path

    def execute(self, command: list[str], seconds: float) -> Executed:
        self._asked.append(command[2:])
        said = self._says(command[2:])
        if said == "die":
            self._ended = "ended by itself with exit code 9"
            return Executed(None, "", "")
        return Executed(0, json.dumps({"result": said, "error": None, "seconds": 1.0}), "")

    def ending(self) -> str:
        return self._ended

    def log(self) -> str:
        return f"kiln-mhc: path={self._path} requested=x env=x platform=x vllm=x\nkiln-mhc: ran path={self._path} calls=1\nthe last line"


READY = {"ready_seconds": 1.0, "vllm_version": "0.1", "model": "m"}
SMALL = replace(GSM8K, task="answers", answer_filter="none", questions=0, target=1.0, half_width=0.4)
GATES = Gates((), 1 << 30, 5, SMALL, SWEEP)


@pytest.fixture
def job(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the gates with servers that are stood in for; returns what the checks found, and what was asked of which server."""

    def run(
        says: Any = None,
        *,
        settings: tuple[Setting, ...] = (PLAIN, FUSED),
        gates: Gates = GATES,
        paths: Callable[[int, Setting], str] = lambda _, setting: setting.path,
        **more: Any,
    ) -> Any:
        started: list[tuple[str, list[list[str]]]] = []

        def answer(setting: str, command: list[str]) -> Any:
            if command[0] == "ready":
                return READY
            if command[0] == "questions":
                table = {str(n): 1.0 for n in range(8)}
                return {"right": {"none": table}, "questions": {"effective": 8}, "data_sha256": "d", "figures": {}}
            return load_result(90.0, 11.0)

        @contextmanager
        def serving(_: Subject, __: Path, setting: Setting, **___: Any) -> Iterator[Standin]:
            commands: list[list[str]] = []
            started.append((setting.name, commands))
            yield Standin(
                lambda command: (says or answer)(setting.name, command), commands, paths(len(started), setting)
            )

        monkeypatch.setattr(kiln.verify.measure, "serving", serving)
        monkeypatch.setattr(kiln.verify.measure, "lm_eval_folder", lambda *_: tmp_path)
        model = Model(tmp_path, "m", "given", None)
        chosen = replace(subject, image=replace(subject.image, settings=settings))
        checks = gate_checks(chosen, model, gates, **more)
        results = run_checks(checks, Console(quiet=True))
        return {result.id: result.outcome for result in results}, started

    run.answer = READY  # type: ignore[attr-defined]
    return run


def test_one_job_serves_both_settings_in_turn(job: Any) -> None:
    found, started = job()
    assert {name: outcome.status for name, outcome in found.items()} == dict.fromkeys(
        (
            *("gates.answers.default", "gates.answers.tilelang", "gates.path.default", "gates.path.tilelang"),
            *("gates.answers.paired", "gates.throughput"),
        ),
        "pass",
    )
    assert found["gates.path.tilelang"].summary.startswith("3 servers, fused: ")
    assert [name for name, _ in started] == ["default", "tilelang", "tilelang", "default", "default", "tilelang"]
    whats = [[command[0] for command in commands] for _, commands in started]
    assert whats[0] == whats[1] == ["ready", "questions", "load", "load"]
    assert whats[2:] == [["ready", "load", "load"]] * 4
    loads = [[command for command in commands if command[0] == "load"] for _, commands in started]
    assert loads[0] == loads[1] != loads[2] == loads[3]
    assert "--prompts=320" in loads[0][1]
    assert "--warmups=128" in loads[0][1]


def test_one_server_on_another_path_spoils_what_was_measured(job: Any) -> None:
    found, _ = job(paths=lambda number, setting: "unfused" if number == 6 else setting.path)
    assert found["gates.path.default"].status == "pass"
    assert found["gates.path.tilelang"].status == "fail"
    assert found["gates.path.tilelang"].summary.startswith("1 of 3 servers: expected the fused path; the log says")


def test_a_setting_whose_server_dies_is_not_served_again(job: Any) -> None:
    def says(setting: str, command: list[str]) -> Any:
        if command[0] == "ready":
            return READY
        if setting == "tilelang":
            return "die"
        return load_result(90.0, 11.0) if command[0] == "load" else {}

    found, started = job(says)
    assert [name for name, _ in started].count("tilelang") == 1
    assert found["gates.answers.tilelang"].status == "fail"
    assert found["gates.throughput"].status == "fail"
    assert "exit code 9" in found["gates.throughput"].summary


def test_a_server_that_is_never_ready_fails(job: Any) -> None:
    found, started = job(lambda *_: None)
    assert len(started) == 2
    proven = {"gates.path.default", "gates.path.tilelang"}
    assert {found[name].status for name in found.keys() - {"gates.answers.paired", *proven}} == {"fail"}
    assert found["gates.answers.paired"].status == "error"


def test_without_data_no_question_is_asked_and_the_load_is_measured(job: Any) -> None:
    found, started = job(gates=replace(GATES, accuracy=GSM8K))
    for name in ("default", "tilelang", "paired"):
        assert found[f"gates.gsm8k.{name}"].status == "error"
        assert "no data: give a folder" in found[f"gates.gsm8k.{name}"].summary
    assert found["gates.throughput"].status == "pass"
    assert not [command for _, commands in started for command in commands if command[0] == "questions"]


def test_without_what_serving_needs_all_is_skipped(job: Any) -> None:
    found, started = job(lacking="no GPU here")
    assert {(outcome.status, outcome.summary) for outcome in found.values()} == {("skip", "no GPU here")}
    assert len(found) == 6
    assert started == []


def test_one_setting_alone_is_asked_and_compared_with_nothing(job: Any) -> None:
    found, started = job(settings=(PLAIN,), unserved={"tilelang": "unsafe here"})
    assert {name: outcome.status for name, outcome in found.items()} == {
        "gates.answers.default": "pass",
        "gates.answers.tilelang": "skip",
        "gates.path.default": "pass",
        "gates.answers.paired": "skip",
        "gates.throughput": "skip",
    }
    assert found["gates.answers.tilelang"].summary == "unsafe here"
    assert "compares two settings, and default is served" in found["gates.throughput"].summary
    assert [[command[0] for command in commands] for _, commands in started] == [["ready", "questions"]]


def test_no_setting_at_all_is_no_error(job: Any) -> None:
    found, started = job(settings=(), unserved={"default": "unsafe", "tilelang": "unsafe"})
    assert {outcome.status for outcome in found.values()} == {"skip"}
    assert started == []


def test_trouble_with_the_engine_is_met_once(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []

    def breaks(*_: Any) -> Measurements:
        tries.append(1)
        raise OSError("no engine")

    monkeypatch.setattr("kiln.verify.gates.measure", breaks)
    chosen = replace(subject, image=replace(subject.image, settings=(PLAIN, FUSED)))
    results = run_checks(gate_checks(chosen, Model(tmp_path, "m", "x", None), GATES), Console(quiet=True))
    assert {result.outcome.status for result in results} == {"error"}
    assert len(tries) == 1


def test_lm_eval_is_installed_once_whole_or_not_at_all(real: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = read_pins(real, "cpu")
    given: list[tuple[str, str]] = []

    def install(requirements: Path, target: Path, *, python: str, glibc: str) -> None:
        given.append((python, glibc))
        (target / "half").write_text("x")
        if len(given) == 1:
            raise ResolveError("no index")
        assert requirements.is_file()

    monkeypatch.setattr(kiln.verify.measure, "install_locked", install)
    with pytest.raises(ResolveError):
        lm_eval_folder(real, pins)
    folder = lm_eval_folder(real, pins)
    assert (folder / "half").is_file()
    assert lm_eval_folder(real, pins) == folder
    assert given == [(pins.python, pins.glibc)] * 2


def test_an_lm_eval_that_cannot_be_had_is_an_error_of_the_questions(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def install(*_: Any) -> Path:
        raise ResolveError("no index", why="x")

    @contextmanager
    def serving(*_: Any, **__: Any) -> Iterator[Standin]:
        yield Standin(lambda command: READY if command[0] == "ready" else load_result(90.0, 11.0), [], "unfused")

    monkeypatch.setattr(kiln.verify.measure, "lm_eval_folder", install)
    monkeypatch.setattr(kiln.verify.measure, "serving", serving)
    chosen = replace(subject, image=replace(subject.image, settings=(PLAIN, FUSED)))
    found = measure(chosen, tmp_path, GATES, None)
    assert {name: one.result for name, one in found.questions.items()} == {"default": None, "tilelang": None}
    assert "lm-eval could not be installed" in found.questions["default"].trouble
    assert len(found.loads) == 12
