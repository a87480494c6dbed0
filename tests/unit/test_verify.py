"""Verification: what the checks make of what they see, and what a report may let through."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import kiln.verify.static
from kiln.console import Console
from kiln.errors import KilnError, ModelError, VerifyFailedError, VerifyIncompleteError
from kiln.image import Setting
from kiln.levels import Scope
from kiln.model import Model, given_model
from kiln.render import Rendered
from kiln.verify import static
from kiln.verify.checks import Check, Outcome, Result, Subject, differing, failed, passed, run_checks
from kiln.verify.generate import agree, answers, generate_checks, known, path, rocm_path
from kiln.verify.report import good_report, judge, make_report, table, write_report
from kiln.verify.required import required_checks
from kiln.verify.run import bytecode
from kiln.verify.serve import LOG_LIMIT, Served
from kiln.workspace import Workspace

DIGEST = "sha256:" + "a" * 64
WHOLE = Scope()
PLAIN = Setting("default", "nothing set", (), "unfused")
FUSED = Setting("tilelang", "the opt-in", (("TOY_FUSED", "1"),), "fused")


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(tmp_path, "sha256:m", "made", {"parameters": 1, "min_margin": 2.0, "threshold": 1.0})


def answer(
    question: str, api: str = "completions", tokens: tuple[int, ...] = (1, 2, 3), **changes: Any
) -> dict[str, Any]:
    return {
        "id": question,
        "api": api,
        "expected": "x",
        "got": "x",
        "token_ids": list(tokens),
        "exact": True,
        **changes,
    }


def log_of(way: str) -> str:
    return f"INFO kiln-mhc: path={way} requested={way} env=1 platform=cpu vllm=0.32\nINFO kiln-mhc: ran path={way} calls=1\n"


def served(
    *given: dict[str, Any],
    setting: Setting = PLAIN,
    log: str | None = None,
    trouble: str = "",
    total: int | None = None,
) -> Served:
    document = {"answers": list(given), "total": len(given) if total is None else total}
    return Served(setting, document, log_of(setting.path) if log is None else log, trouble, 1.0)


def test_the_path_that_ran_is_proven_by_the_log() -> None:
    outcome = path(served(setting=FUSED))
    assert outcome.status == "pass"
    assert "ran path=fused" in outcome.summary
    assert outcome.evidence["lines"]


LOGS = Path(__file__).parents[1] / "corpus" / "logs"


@pytest.mark.parametrize(
    ("setting", "environment", "status"),
    [(PLAIN, {}, "pass"), (FUSED, {}, "fail"), (PLAIN, {"AITER_LOG_LEVEL": "ERROR"}, "error")],
    ids=["the path of the setting", "the other path", "a log that hides it"],
)
def test_on_rocm_the_log_is_judged_worker_by_worker(setting: Setting, environment: dict[str, str], status: str) -> None:
    log = (LOGS / "aiter-one-engine.log").read_text(encoding="utf-8")
    outcome = rocm_path(served(setting=setting, log=log, trouble="it died"), environment)
    assert outcome.status == status
    assert outcome.summary.endswith("it died") == (status != "pass")


@pytest.mark.parametrize(
    ("default", "opt_in"),
    [("aiter-unfused", "tilelang-fused"), ("aiter-fused", "tilelang-fused")],
    ids=["0.28", "0.29"],
)
def test_a_path_that_says_whose_kernels_is_judged_by_those_and_by_the_plugins_word(default: str, opt_in: str) -> None:
    start = "(EngineCore pid=29) INFO config: tensor_parallel_size=1"
    proofs = {
        default: "[aiter] import [module_mhc] under /usr/local/lib/python3.12/dist-packages/aiter/jit/module_mhc.so",
        opt_in: "TileLang begins to compile kernel `mhc_fused_tilelang` with `out_idx=None`",
    }

    def seen(wanted: str, ran: str, said: str) -> str:
        lines = [proofs[ran], *([f"kiln-mhc: path={said} requested=default"] if said else [])]
        log = "\n".join([start, *(f"(EngineCore pid=29) {line}" for line in lines)])
        return rocm_path(served(setting=Setting("any", "", (), wanted), log=log), {}).status

    for path_, other in ((default, opt_in), (opt_in, default)):
        assert seen(path_, path_, path_) == "pass"
        assert seen(path_, other, other) == "fail"
        # It obeyed, and the plugin did not load: nothing shows that the switch is there.
        assert seen(path_, path_, "") == "fail"
        assert seen(path_, path_, other) == "fail"


def test_on_rocm_what_hides_the_log_is_looked_for_in_the_image_and_the_setting(
    subject: Subject, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Mapping[str, str]] = []
    monkeypatch.setattr("kiln.verify.generate.serve", lambda _s, _m, setting: served(setting=setting))
    monkeypatch.setattr(
        "kiln.verify.generate.image_document", lambda *_: {"Config": {"Env": ["AITER_JIT_DIR=/x", "A=b=c"]}}
    )
    monkeypatch.setattr(
        "kiln.verify.generate.rocm_path", lambda _, environment: given.append(environment) or passed("seen")
    )
    on_rocm = replace(subject, pins=replace(subject.pins, target="rocm"))
    results = run_checks([c for c in generate_checks(on_rocm, model) if c.id.endswith(".path")], Console(quiet=True))
    assert {result.outcome.summary for result in results} == {"seen"}
    assert given == [{"AITER_JIT_DIR": "/x", "A": "b=c"}, {"AITER_JIT_DIR": "/x", "A": "b=c", "TOY_FUSED": "1"}]


@pytest.mark.parametrize(
    "dress",
    [
        "\x1b[0;36m(EngineCore pid=1)\x1b[0;0m {}",
        "(EngineCore pid=1) {}",
        "(APIServer pid=7) \x1b[32m{}\x1b[0m",
        "  {}  ",
    ],
)
def test_the_path_is_found_behind_prefixes_and_colours(dress: str) -> None:
    log = "\n".join(dress.format(line) for line in log_of("fused").splitlines())
    outcome = path(served(setting=FUSED, log=log))
    assert outcome.status == "pass"
    assert outcome.evidence["ran"] == ["fused"]
    assert "\x1b" not in outcome.summary


@pytest.mark.parametrize(
    ("log", "word"),
    [
        (log_of("unfused"), "ran unfused"),
        ("", "no line of the log"),
        (log_of("fused").splitlines()[0], "no line of the log"),
        (log_of("fused").splitlines()[1], "built nothing"),
        (log_of("fused") + log_of("unfused"), "ran fused, unfused"),
        (log_of("fused").splitlines()[0] + "\n" + log_of("unfused").splitlines()[1], "built fused, ran unfused"),
    ],
    ids=[
        "the other path",
        "no line",
        "built and never ran",
        "ran and never built",
        "both paths",
        "built one and ran the other",
    ],
)
def test_any_other_path_fails(log: str, word: str) -> None:
    outcome = path(served(setting=FUSED, log=log))
    assert outcome.status == "fail"
    assert word in outcome.summary


def test_all_answers_exact_pass() -> None:
    outcome = answers(served(answer("q1"), answer("q1", "chat"), answer("q2")))
    assert outcome.status == "pass"
    assert outcome.summary == "3 of 3 answers exact"


@pytest.mark.parametrize(
    ("run", "word"),
    [
        (served(answer("q1"), answer("q2", exact=False, got="y")), "q2 (completions): expected 'x', got 'y'"),
        (served(answer("q1"), answer("q2", exact="true")), "1 of 2 answers are wrong"),
        (served(answer("q1"), total=2), "1 of 2 answers came"),
        (served(), "0 of 0 answers came"),
        (served(answer("q1"), trouble="the server was killed for memory"), "killed for memory"),
        (replace(served(), document={}), "0 of None answers came"),
        (replace(served(), document={"answers": ["garbage"], "total": 1}), "0 of 1 answers came"),
    ],
    ids=[
        "one wrong",
        "exact is no truth value",
        "one missing",
        "none asked",
        "the server died",
        "no document",
        "garbage",
    ],
)
def test_anything_less_fails(run: Served, word: str) -> None:
    outcome = answers(run)
    assert outcome.status == "fail"
    assert word in outcome.summary


@pytest.mark.parametrize("operators", ["compiled", "pytorch"])
def test_the_evidence_says_whose_operators_ran(operators: str) -> None:
    log = f"(Worker pid=45) INFO [registration.py:147] kiln-cpu-shims: operators={operators} count=16 reason=x\n"
    log += "INFO kiln-cpu-shims: kernels=numpy names=a,b\nINFO kiln-cpu-shims: kernels=interpreted names=c reason=x\n"
    outcome = answers(served(answer("q1"), log=log))
    assert outcome.evidence["operators"] == operators
    assert outcome.evidence["kernels"] == ["interpreted", "numpy"]
    assert ("PyTorch operators in place of vLLM's" in outcome.summary) == (operators == "pytorch")


def test_a_log_that_was_cut_is_known_by_its_bytes() -> None:
    assert served(log="ä" * (LOG_LIMIT // 2)).flooded
    assert not served(log="a" * (LOG_LIMIT - 1)).flooded


def test_a_log_without_that_line_claims_no_operators() -> None:
    assert not {"operators", "kernels"} & answers(served(answer("q1"))).evidence.keys()


def test_settings_that_answer_alike_agree() -> None:
    outcome = agree([served(answer("q1"), answer("q2")), served(answer("q2"), answer("q1"), setting=FUSED)])
    assert outcome.status == "pass"
    assert outcome.evidence == {"answers": 2, "tokens": 6}


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (
            [answer("q1"), answer("q2", tokens=(1, 9, 3))],
            "q2 (completions): default and tilelang part at token 1: 2 against 9",
        ),
        ([answer("q1"), answer("q2", tokens=(1, 2))], "at token 2: 3 against the end"),
        (
            [answer("q1"), answer("q2", tokens=(1, 9, 3), tops=[[], [("b", -0.5), ("a", -0.6)], []])],
            "part at token 1: 2 against 9 ('b' -0.5000, 'a' -0.6000)",
        ),
        ([answer("q1")], "q2 (completions)"),
        ([answer("q1"), answer("q2", error="timed out")], "q2 (completions)"),
        ([], "tilelang gave no answers"),
    ],
    ids=["another token", "shorter", "with what was thought", "one missing", "one failed", "none"],
)
def test_the_first_divergence_is_named(other: list[dict[str, Any]], word: str) -> None:
    outcome = agree([served(answer("q1"), answer("q2")), served(*other, setting=FUSED)])
    assert outcome.status == "fail"
    assert word in outcome.summary


@pytest.mark.parametrize(
    ("margin", "threshold", "status"), [(2.0, 1.0, "pass"), (1.0, 1.0, "fail"), (0.5, 1.0, "fail"), (2.0, 0.0, "fail")]
)
def test_a_model_needs_a_margin_above_its_threshold(model: Model, margin: float, threshold: float, status: str) -> None:
    assert known(replace(model, made={"parameters": 1, "min_margin": margin, "threshold": threshold})).status == status


def test_nothing_is_claimed_of_a_model_of_the_users_own(model: Model) -> None:
    assert known(replace(model, made=None)).status == "skip"


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"answers\.json"):
        given_model(tmp_path)
    (tmp_path / "answers.json").write_text("[]")
    first = given_model(tmp_path).identity
    (tmp_path / "answers.json").write_text("[1]")
    assert given_model(tmp_path).identity != first


def test_a_check_that_raises_is_an_error_and_the_others_run() -> None:
    def broken() -> Outcome:
        raise LookupError("nobody there")

    results = run_checks(
        [Check("one", "static", "", broken), Check("two", "static", "", lambda: passed("fine"))], Console(quiet=True)
    )
    assert [result.outcome.status for result in results] == ["error", "pass"]
    assert "LookupError: nobody there" in results[0].outcome.summary


def test_the_required_checks_are_those_that_run(subject: Subject, model: Model, rendered: Rendered) -> None:
    checks = [*static.static_checks(subject), *generate_checks(subject, model)]
    ids = [check.id for check in checks]
    assert len(ids) == len(set(ids))
    # The switch need not be known where nothing of vLLM's own is in the image: a rehearsal.
    assert sorted(required_checks(rendered)) == sorted(set(ids) - {"model.known", "vllm.switch"})
    assert {check.level for check in checks} == {"static", "generate"}


def test_each_setting_is_served_once_and_checked_by_its_own_run(
    subject: Subject, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def serve(_subject: Subject, _model: Model, setting: Setting) -> Served:
        ran.append(setting.name)
        return served(answer("q1"), setting=setting)

    monkeypatch.setattr("kiln.verify.generate.serve", serve)
    results = run_checks(generate_checks(subject, model), Console(quiet=True))
    assert {result.id: result.outcome.status for result in results} == dict.fromkeys(
        [
            "model.known",
            "serve.default.answers",
            "serve.default.path",
            "serve.tilelang.answers",
            "serve.tilelang.path",
            "serve.agree",
        ],
        "pass",
    )
    assert ran == ["default", "tilelang"]
    assert (subject.workspace.state / "logs" / "serve-toy-serving-tilelang.log").read_text() == log_of("fused")


def test_the_first_setting_is_served_ahead_and_the_others_when_an_answer_is_asked_for(
    subject: Subject, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    class Ahead(ThreadPoolExecutor):
        def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            begun.append(args[-1].name)
            return super().submit(function, *args, **kwargs)

    monkeypatch.setattr("kiln.verify.generate.serve", lambda _s, _m, setting: served(answer("q1"), setting=setting))
    with Ahead(2) as ahead:
        known, *rest = generate_checks(subject, model, ahead)
        known.look()
        assert begun == ["default"]
        assert [check.look().status for check in rest] == ["pass"] * 5
    assert begun == ["default", "tilelang"]


def report_of(subject: Subject, *statuses: str, scope: Scope = WHOLE) -> dict[str, Any]:
    results = [
        Result(f"check.{number}", "static", "", Outcome(status, f"it is {status}\nsecond line"), 0.5)
        for number, status in enumerate(statuses)
    ]  # type: ignore[arg-type]
    return make_report(subject, results, {"app": "2.0"}, "sha256:m", datetime.now(UTC), scope)


@pytest.mark.parametrize(
    ("statuses", "error"),
    [
        (("pass", "fail"), VerifyFailedError),
        (("pass", "fail", "error"), VerifyFailedError),
        (("pass", "error"), VerifyIncompleteError),
        (("skip",), VerifyIncompleteError),
        ((), VerifyIncompleteError),
    ],
)
def test_what_is_not_good_is_raised(subject: Subject, statuses: tuple[str, ...], error: type[KilnError]) -> None:
    with pytest.raises(error) as caught:
        judge(report_of(subject, *statuses), "the report")
    for number, status in enumerate(statuses):
        assert (f"check.{number}: it is {status}" in caught.value.why) == (status in ("fail", "error"))


def test_a_skip_fails_where_its_level_is_required(subject: Subject) -> None:
    results = [
        Result("one", "static", "", passed("fine"), 0.1),
        Result("two", "ops", "", Outcome("skip", "no /dev/kfd"), 0.0),
    ]
    report = make_report(subject, results, {}, "", datetime.now(UTC))
    judge(report, "the report")
    judge(report, "the report", "static")
    for level in ("ops", "generate"):
        with pytest.raises(VerifyFailedError) as caught:
            judge(report, "the report", level)  # type: ignore[arg-type]
        assert f"1 of 2 checks were skipped, and --require {level} asks for them" in caught.value.what
        assert caught.value.why == "two: no /dev/kfd"


def test_a_report_of_fewer_levels_lies_beside_the_whole_one(subject: Subject) -> None:
    report = report_of(subject, "pass")
    assert write_report(subject.workspace, report).name == f"sha256-{'a' * 64}.json"
    for scope, name in (
        (Scope("static"), "-static"),
        (Scope("ops", "aiter"), "-ops-aiter"),
        (Scope(backend="tilelang"), "-tilelang"),
        (Scope("static", "both", "/a/model"), "-sha256-m-static"),
    ):
        report = make_report(subject, [], {}, "sha256:m", datetime.now(UTC), scope)
        assert write_report(subject.workspace, report).name == f"sha256-{'a' * 64}{name}.json"


@pytest.mark.parametrize("statuses", [("pass",), ("pass", "skip")])
def test_what_is_good_passes(subject: Subject, statuses: tuple[str, ...]) -> None:
    report = report_of(subject, *statuses)
    judge(report, "the report")
    assert report["summary"]["total"] == len(statuses)


def test_the_table_has_a_line_a_check(subject: Subject) -> None:
    lines = table(report_of(subject, "pass", "fail")).splitlines()
    assert [line.split()[:2] for line in lines] == [["pass", "check.0"], ["fail", "check.1"]]
    assert "second line" not in "".join(lines)
    assert table(report_of(subject)) == ""


def test_a_report_is_the_same_but_for_its_timing(subject: Subject) -> None:
    one, other = report_of(subject, "pass"), report_of(subject, "pass")
    del one["timing"], other["timing"]
    assert one == other


def test_a_report_is_good_for_its_digest_lock_and_checks_alone(toy: Workspace, subject: Subject) -> None:
    lock = subject.lock.sha256
    assert good_report(toy, DIGEST, lock, ["check.0"]) is None
    report = report_of(subject, "pass", "pass", "skip")
    file = write_report(toy, report)
    assert ":" not in file.name
    assert good_report(toy, DIGEST, lock, ["check.0", "check.1"]) == report
    assert good_report(toy, DIGEST, lock, ["check.0", "check.2"]) is None
    assert good_report(toy, DIGEST, lock, ["check.0", "check.9"]) is None
    assert good_report(toy, DIGEST, lock, []) is None
    assert good_report(toy, DIGEST, "0" * 64, ["check.0"]) is None
    assert good_report(toy, "sha256:" + "b" * 64, lock, ["check.0"]) is None


def test_a_report_under_another_digests_name_is_not_good(toy: Workspace, subject: Subject) -> None:
    file = write_report(toy, report_of(subject, "pass"))
    other = "sha256:" + "b" * 64
    file.rename(file.with_name(f"{other.replace(':', '-')}.json"))
    assert good_report(toy, other, subject.lock.sha256, ["check.0"]) is None


def test_a_report_with_another_model_lies_beside_and_does_not_count(toy: Workspace, subject: Subject) -> None:
    file = write_report(toy, report_of(subject, "pass", scope=Scope(model="/a/model")))
    assert good_report(toy, DIGEST, subject.lock.sha256, ["check.0"]) is None
    file.rename(file.with_name(f"{DIGEST.replace(':', '-')}.json"))
    assert good_report(toy, DIGEST, subject.lock.sha256, ["check.0"]) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"schema_version": 1, "subject": {}, "checks": []}'])
def test_a_damaged_report_is_none(toy: Workspace, subject: Subject, text: str) -> None:
    file = write_report(toy, report_of(subject, "pass"))
    file.write_text(text)
    assert good_report(toy, DIGEST, subject.lock.sha256, ["check.0"]) is None


def test_bytecode_is_kept_for_one_digest_alone(toy: Workspace, subject: Subject) -> None:
    built = subject.built
    (bytecode(toy, built) / "of").write_text("one")
    assert (bytecode(toy, built) / "of").read_text() == "one"
    other = replace(built, digest="sha256:" + "0" * 64)
    assert not (bytecode(toy, other) / "of").exists()
    assert not (bytecode(toy, built) / "of").exists()


def test_differences_are_told_a_line_each() -> None:
    assert differing({"a": 1, "b": 2}, {"b": 3, "c": 4}) == [
        "a: 1 is missing",
        "b: expected 2, found 3",
        "c: 4 is not expected",
    ]
    assert differing({"a": 1}, {"a": 1}) == []


def packages(debs: Mapping[str, str]) -> dict[str, Any]:
    """What scripts/inspect_image.py says of these packages."""
    return {"packages": {"looked": True, "packages": [[name, version] for name, version in sorted(debs.items())]}}


def test_the_locked_packages_pass(subject: Subject) -> None:
    assert static.debian(subject, packages({deb.name: deb.version for deb in subject.lock.debs})).status == "pass"


@pytest.mark.parametrize(
    ("doc", "status"),
    [
        (packages({}), "error"),
        (packages({"bash": "1"}), "fail"),
        ({}, "error"),
        ({"packages": {"looked": False, "why": "the disk is gone"}}, "error"),
    ],
)
def test_other_debian_packages_do_not_pass(subject: Subject, doc: dict[str, Any], status: str) -> None:
    assert static.debian(subject, doc).status == status


def described(subject: Subject) -> dict[str, Any]:
    """The image as the engine describes it when all is right."""
    environment = ["PATH=/usr/bin", *(f"{name}={value}" for name, value in subject.image.env)]
    config = {
        "Entrypoint": ["toy", "serve"],
        "Cmd": None,
        "User": "1000:1000",
        "WorkingDir": "/srv",
        "Env": environment,
        "Labels": dict(subject.labels),
    }
    return {"Os": "linux", "Architecture": "amd64", "Config": config}


def test_a_configuration_as_described_passes(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kiln.verify.static, "image_document", lambda *_: described(subject))
    assert static.config(subject).status == "pass"
    assert static.labels(subject).status == "pass"


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("User", "", "user"),
        ("Cmd", ["--help"], "command"),
        ("Env", ["PATH=/", "EXTRA=1"], "environment"),
        ("Entrypoint", ["sh"], "entry point"),
        ("WorkingDir", "/", "folder"),
    ],
)
def test_any_other_configuration_fails(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, key: str, value: Any, word: str
) -> None:
    found = described(subject)
    found["Config"][key] = value
    monkeypatch.setattr(kiln.verify.static, "image_document", lambda *_: found)
    outcome = static.config(subject)
    assert outcome.status == "fail"
    assert outcome.summary.startswith(f"{word}: expected")


def test_another_label_fails(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    found = described(subject)
    found["Config"]["Labels"]["io.kiln.lock.sha256"] = "0" * 64
    monkeypatch.setattr(kiln.verify.static, "image_document", lambda *_: found)
    assert static.labels(subject).status == "fail"


@pytest.mark.parametrize(("held", "status"), [(DIGEST, "pass"), ("sha256:" + "b" * 64, "fail"), (None, "fail")])
def test_the_engine_must_hold_the_very_digest(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, held: str | None, status: str
) -> None:
    monkeypatch.setattr(kiln.verify.static, "image_digest", lambda *_: held)
    assert static.digest(subject).status == status


def test_an_image_that_is_not_there_is_an_error_and_no_pass(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kiln.verify.static, "image_document", lambda *_: None)
    (result,) = run_checks([Check("image.config", "static", "", lambda: static.config(subject))], Console(quiet=True))
    assert result.outcome.status == "error"
    assert failed("x").status == "fail"
