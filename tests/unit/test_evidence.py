"""Which mHC path a log proves: the corpus of logs, and what may stand around a proof without changing the verdict."""

from __future__ import annotations

import json
import re
import tomllib
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiln.verify.checks import Outcome
from kiln.verify.evidence import Evidence, Worker, judge_path, read_evidence
from kiln.verify.logs import ENTRIES, LINES, PROCESSES, WIDTH, pieces

CORPUS = Path(__file__).resolve().parents[1] / "corpus" / "logs"
CASES: list[dict[str, Any]] = tomllib.loads((CORPUS / "cases.toml").read_text(encoding="utf-8"))["case"]
MODULE = "/usr/local/lib/python3.12/dist-packages/aiter/jit/module_mhc.so"
IMPORT = f"[aiter] import [module_mhc] under {MODULE}"
ENGINE = "(EngineCore pid=29) INFO Initializing a V1 LLM engine with config: tensor_parallel_size=1"
ONE = [ENGINE, f"(EngineCore pid=29) {IMPORT}"]
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def look(case: dict[str, Any], lines: Any) -> tuple[Evidence, Outcome]:
    evidence = read_evidence(
        lines,
        case.get("environment", {}),
        workers=case.get("workers", 0),
        tilelang_cache=case["cache"],
    )
    return evidence, judge_path(evidence, case["setting"], module_path=case.get("module-path", ""))


def lines_of(case: dict[str, Any]) -> list[str]:
    # As a container's log is read (kiln.containers.said).
    text = (CORPUS / case["file"]).read_bytes().decode(errors="replace")
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def judged(lines: Any, **changes: Any) -> Outcome:
    return look({"cache": "unknown", "setting": "aiter", **changes}, lines)[1]


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_every_log_of_the_corpus_is_judged_as_it_must_be(case: dict[str, Any]) -> None:
    evidence, outcome = look(case, lines_of(case))
    assert outcome.status == case["verdict"], outcome.summary
    assert case["says"] in outcome.summary
    assert "\x1b" not in json.dumps([outcome.summary, outcome.evidence, evidence.lines])


def test_the_corpus_is_whole() -> None:
    assert {case["file"] for case in CASES} == {path.name for path in CORPUS.glob("*.log")}
    assert len({case["file"] for case in CASES}) >= 24
    assert len({case["name"] for case in CASES}) == len(CASES)
    for setting in ("aiter", "tilelang"):
        assert {case["verdict"] for case in CASES if case["setting"] == setting} == {"pass", "fail", "error"}


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
@pytest.mark.parametrize(
    "dress",
    ["\x1b[0;36m{}\x1b[0m", "2026-06-02T10:00:00.123456789Z stderr F {}", "vllm-1  | {}", "{}\r", "99%|###| 1/2\r{}"],
    ids=["colour", "times", "compose", "carriage return", "progress bar"],
)
def test_what_stands_around_the_lines_changes_no_verdict(case: dict[str, Any], dress: str) -> None:
    lines = lines_of(case)
    outcome = look(case, [dress.format(line.rstrip("\n")) for line in lines])[1]
    plain = look(case, lines)[1]
    assert (outcome.status, outcome.summary) == (plain.status, plain.summary)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_an_outer_prefix_changes_no_verdict(case: dict[str, Any]) -> None:
    """The innermost prefix says who wrote; lines without one would get a writer, so they are left alone."""
    lines = lines_of(case)
    dressed = [
        f"(APIServer pid=1) {line}" if re.match(r"\((?:Engine|Worker|Ray)", COLOUR.sub("", line)) else line
        for line in lines
    ]
    assert look(case, dressed)[1].status == case["verdict"]


@given(case=st.sampled_from(CASES), data=st.data())
def test_colours_anywhere_change_no_verdict(case: dict[str, Any], data: st.DataObject) -> None:
    codes = st.lists(
        st.tuples(st.integers(0, 120), st.sampled_from(["\x1b[0m", "\x1b[0;36m", "\x1b[1;31m", "\x1b[K"])), max_size=4
    )
    dressed = []
    for line in (COLOUR.sub("", line) for line in lines_of(case)):
        # From the right: a code within a code is none that a terminal would understand.
        for place, code in sorted(data.draw(codes), reverse=True):
            line = line[:place] + code + line[place:] if place < len(line) else line
        dressed.append(line)
    assert look(case, dressed)[1].status == case["verdict"]


@given(
    case=st.sampled_from(CASES),
    noise=st.lists(st.text(alphabet="abc []`()=:-|%\t\u2588\ufffd", max_size=60), max_size=30),
    data=st.data(),
)
def test_other_lines_change_no_verdict(case: dict[str, Any], noise: list[str], data: st.DataObject) -> None:
    lines = lines_of(case)
    if "log-more" in case["name"] or case["file"] == "empty.log":
        lines += noise  # a line without a prefix belongs to the one before it there
    else:
        for line in noise:
            lines.insert(data.draw(st.integers(0, len(lines))), line + "\n")
    if case["file"] != "empty.log":
        assert look(case, lines)[1].status == case["verdict"]


WORDS = st.sampled_from(
    [
        "(Worker_TP0 pid=41) ",
        "(EngineCore pid=7) ",
        "[aiter] ",
        IMPORT,
        "start build [module_mhc]",
        "finish build [module_mhc], cost 1.2.3s",
        "TileLang begins to compile kernel `",
        "mhc_fused_tilelang",
        "`",
        "tensor_parallel_size=",
        "world size ",
        "\u0664",
        "9" * 40,
        "\r",
        "\n",
        "\x1b[",
        "\x1b[31m",
        "(Worker\u00b2 pid=\u00b2) ",
        "kiln-mhc: path=",
        "\ud800",
        "\x00",
        "waiting for baton release at x/lock_module_mhc",
        "[pid=1 pname=x] ",
        "[aiter INFO] 2026-06-02 10:00:00.1 - p:1 - f:1 - g",
        "import [module_m",
        "\u2028",
        "\x85",
    ]
)


@given(
    lines=st.lists(st.one_of(st.text(), st.lists(WORDS).map("".join))),
    setting=st.sampled_from(["aiter", "tilelang"]),
    cache=st.sampled_from(["empty", "known", "unknown"]),
)
def test_reading_never_raises(lines: list[str], setting: Any, cache: Any) -> None:
    evidence = read_evidence(lines, {}, tilelang_cache=cache)
    outcome = judge_path(evidence, setting)
    assert outcome.status in ("pass", "fail", "error")
    shown = json.dumps([outcome.summary, outcome.evidence, evidence.lines], ensure_ascii=False)
    shown.encode()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", "".join(text for _, text in evidence.lines))


def noise(number: int) -> Iterator[str]:
    """Lines of the worst kind: each of another process, and each a proof."""
    yield ENGINE
    for index in range(number):
        yield f"(Worker_TP{index} pid={index}) [aiter] start build [module_mhc] {index} (EngineCore pid={index % 7}) {IMPORT}{index}"


def test_memory_has_a_bound() -> None:
    peaks = []
    for number in (3_000, 12_000):
        tracemalloc.start()
        evidence = read_evidence(noise(number), {})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(evidence.workers) <= PROCESSES
        assert any(f"more than {PROCESSES} processes" in line for line in evidence.hidden)
    assert peaks[1] < 1.2 * peaks[0] < 12 << 20


def test_short_lines_keep_nothing() -> None:
    tracemalloc.start()
    read_evidence(("(Worker_TP0 pid=1) INFO a line\n" for _ in range(10_000)), {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_more_processes_than_are_looked_at_are_no_pass() -> None:
    lines = [*ONE, *(f"(Worker pid={pid}) hello" for pid in range(100, 100 + PROCESSES))]
    assert judged(lines).status == "error"


def test_a_whole_log_in_one_string_is_numbered_alike() -> None:
    assert (
        read_evidence(["\n".join(ONE)], {})
        == read_evidence(ONE, {})
        == read_evidence([f"{line}\n" for line in ONE], {})
    )


def test_evidence_has_the_lines_and_who_wrote_them() -> None:
    evidence = read_evidence(ONE, {"AITER_LOG_LEVEL": "INFO"}, tilelang_cache="empty")
    assert evidence.workers == (Worker("EngineCore pid=29", imported=(MODULE,), at=(("imported", 2),)),)
    assert evidence.lines == ((2, ONE[1]),)
    assert (evidence.expected_workers, evidence.hidden) == (1, ())


def test_a_worker_is_its_pid_and_has_its_last_name() -> None:
    lines = ["(Worker pid=41) tensor_parallel_size=1", f"(Worker_TP0 pid=41) {IMPORT}", "(Worker pid=41) bye"]
    assert [worker.name for worker in read_evidence(lines, {}).workers] == ["Worker_TP0 pid=41"]


def test_build_seconds_are_told_and_timed() -> None:
    lines = [
        *ONE,
        "(EngineCore pid=29) start build [module_mhc]",
        "(EngineCore pid=29) finish build [module_mhc], cost 40.5s",
    ]
    outcome = judged(lines)
    assert "EngineCore pid=29, line 3" in outcome.summary
    assert outcome.timing == {"build": 40.5}
    assert any(line.startswith("4: ") for line in outcome.evidence["lines"])


def test_a_pass_is_the_same_whatever_the_pids() -> None:
    other = [line.replace("pid=29", "pid=977") for line in ["hello", *ONE]]
    assert judged(ONE).status == "pass"
    one, two = judged(ONE), judged(other)
    assert one.evidence == two.evidence
    assert "lines" not in one.evidence


def test_all_that_is_wrong_is_told() -> None:
    lines = [
        ENGINE,
        "Installing triton via x",
        "(EngineCore pid=29) start build [module_mhc]",
        f"(EngineCore pid=29) {IMPORT}x",
    ]
    summary = judged(lines, **{"module-path": "/elsewhere/module_mhc.so"}).summary
    for word in ("line 2: AITER's setup", "line 3: compiled", f"line 4: loaded {MODULE}"):
        assert word in summary


@pytest.mark.parametrize(
    "text",
    [
        "import [module_mhc_tune] under /a/module_mhc_tune.so",
        "import [module_mha_fwd] under /a/module_mha_fwd.so",
        "start build [module_rmsnorm] under /a",
        "waiting for baton release at /a/lock_module_mhc_tune",
        "TileLang begins to compile kernel `hc_head_fuse_tilelang` with `out_idx=None`",
        "TileLang begins to compile kernel `main`",
        "Warming up DeepSeek V4 mHC TileLang kernels for token sizes: [1]",
        "DeepSeek V4 mHC TileLang warmup finished in 1.0 s",
        "type hints mismatch, override to --> mhc_pre(residual: torch.Tensor)",
        "kiln-mhc: not active, vLLM 0.22 has the switch itself platform=rocm",
        "kiln-mhc: ran path=unproven chosen=fused calls=fused:0,unfused:0 platform=rocm",
    ],
)
def test_what_proves_nothing_is_no_proof(text: str) -> None:
    line = f"(EngineCore pid=29) {text}"
    assert judged([*ONE, line]).status == "pass"
    assert judged([ENGINE, line]).status == "fail"
    assert look({"cache": "empty", "setting": "tilelang"}, [ENGINE, line])[1].status == "fail"


@pytest.mark.parametrize(
    ("path", "setting", "agrees"),
    [
        ("aiter-unfused", "aiter", True),
        ("aiter-fused", "aiter", True),
        ("tilelang-fused", "aiter", False),
        ("tilelang-unfused", "aiter", False),
        ("native-unfused", "aiter", False),
        ("aiter+tilelang-fused", "aiter", False),
        ("tilelang-fused", "tilelang", True),
        ("tilelang-unfused", "tilelang", False),
        ("aiter-fused", "tilelang", False),
        ("aiter-fused,tilelang-fused", "tilelang", False),
    ],
)
def test_the_plugin_names_whose_kernels_a_model_has(path: str, setting: str, agrees: bool) -> None:
    said = f"(EngineCore pid=29) kiln-mhc: path={path} requested=default env=X:unset platform=rocm vllm=0.33.0"
    proof = (
        IMPORT if setting == "aiter" else "TileLang begins to compile kernel `mhc_fused_tilelang` with `out_idx=None`"
    )
    outcome = look({"cache": "empty", "setting": setting}, [ENGINE, f"(EngineCore pid=29) {proof}", said])[1]
    assert outcome.status == ("pass" if agrees else "fail")
    assert agrees or f"the plugin says path={path}, not {setting}'s" in outcome.summary


SAYS = "kiln-mhc: path={} requested=default env=X:unset platform=rocm vllm=0.28.0"
TWO = [
    "(EngineCore pid=29) INFO Initializing a V1 LLM engine with config: tensor_parallel_size=2",
    *(f"(Worker_TP{rank} pid={41 + rank}) {IMPORT}" for rank in (0, 1)),
]


@pytest.mark.parametrize(
    ("lines", "environment", "status", "says"),
    [
        (
            [f"(Worker_TP{rank} pid={41 + rank}) {SAYS.format('aiter-unfused')}" for rank in (0, 1)],
            {},
            "pass",
            "calls it",
        ),
        # The target's model and the one that drafts tokens: a line each.
        (
            [f"(Worker_TP{rank} pid={41 + rank}) {SAYS.format('aiter-unfused')}" for rank in (0, 1, 0, 1)],
            {},
            "pass",
            "calls it aiter-unfused",
        ),
        ([f"(Worker_TP0 pid=41) {SAYS.format('aiter-unfused')}"], {}, "fail", "Worker_TP1 pid=42: no line `kiln-mhc"),
        ([], {}, "fail", "Worker_TP0 pid=41, Worker_TP1 pid=42"),
        (
            [f"(Worker_TP{rank} pid={41 + rank}) {SAYS.format('aiter-fused')}" for rank in (0, 1)],
            {},
            "fail",
            "path=aiter-fused, not aiter-unfused",
        ),
        ([SAYS.format("aiter-unfused")] * 2, {}, "error", "cannot be told apart"),
        ([], {"VLLM_LOGGING_LEVEL": "ERROR"}, "error", "VLLM_LOGGING_LEVEL=ERROR"),
        ([], {"VLLM_CONFIGURE_LOGGING": "0"}, "error", "VLLM_CONFIGURE_LOGGING=0"),
    ],
    ids=["both", "twice", "one did not load it", "none", "another path", "nameless", "silenced", "not configured"],
)
def test_where_the_switch_is_the_plugins_it_must_have_spoken_in_every_worker(
    lines: list[str], environment: dict[str, str], status: str, says: str
) -> None:
    evidence = read_evidence([*TWO, *lines], environment, tilelang_cache="empty")
    outcome = judge_path(evidence, "aiter", named="aiter-unfused")
    assert outcome.status == status, outcome.summary
    assert says in outcome.summary
    # Without that demand its lines may be missing, and a path of AITER's kernels is one.
    assert judge_path(evidence, "aiter").status == "pass"


def test_names_come_from_the_line_before_only() -> None:
    header = "[aiter INFO] 2026-06-02 10:01:00.123 - VllmWorker-0:57 - /a/core.py:581 - get_module_custom_op"
    assert [(piece.name, piece.pid) for piece in pieces([header, "one", "two"])] == [
        ("", ""),
        ("VllmWorker-0", "57"),
        ("", ""),
    ]


def test_a_prefix_says_more_than_the_line_before() -> None:
    header = "(Worker_TP0 pid=41) [aiter INFO] 2026-06-02 10:01:00.123 - VllmWorker-0:999 - /a/core.py:581 - f"
    assert [piece.name for piece in pieces([header, "one"])] == ["Worker_TP0", "Worker_TP0"]


def test_a_carriage_return_ends_a_piece_and_not_its_line() -> None:
    found = [
        (piece.number, piece.name, piece.text) for piece in pieces(["(Worker pid=1) one\rtwo\r(Worker pid=2) three"])
    ]
    assert found == [(1, "Worker", "one"), (1, "Worker", "two"), (1, "Worker", "three")]


def test_processes_of_two_nodes_may_share_a_pid() -> None:
    lines = [ENGINE.replace("=1", "=2"), *(f"(RayWorkerWrapper pid=7, ip=10.0.0.{node}) {IMPORT}" for node in (1, 2))]
    assert judged(lines).status == "pass"


def test_what_is_kept_has_a_limit() -> None:
    lines = [ENGINE, *["Replacing existing"] * 999, *["import [module_m"] * 999]
    lines += [f"(Worker pid={pid}) start build [module_mhc] kiln-mhc: path={'x' * 9999}" for pid in range(999)]
    evidence = read_evidence(lines, {})
    assert len(evidence.lines) == LINES
    assert max(len(text) for _, text in evidence.lines) == WIDTH
    assert max(len(line) for worker in evidence.workers for line in worker.kiln) == WIDTH
    assert len(evidence.swaps) == len(evidence.torn) == ENTRIES
