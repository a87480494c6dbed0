"""The runner itself: what is not caught, blamed wrongly, or named wrongly must show, and end as 1."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from kiln.verify.checks import Outcome
from tests.corpus import __main__ as program
from tests.corpus.cases import Case, CorpusError, read_corpus
from tests.corpus.runner import Lookers, Row, chosen, counts, run_case, run_cases, sample, shown

DEFECT = Case("image", "toy", "a defect", "files.clean", "setuid")
CLEAN = Case("image", "toy", "a clean one")


def ran(case: Case, **outcomes: Outcome) -> Row:
    return run_case(case, lambda _: {name.replace("_", "."): outcome for name, outcome in outcomes.items()})


def test_a_defect_is_caught_by_its_check_in_its_words() -> None:
    row = ran(DEFECT, files_clean=Outcome("fail", "first\nmine: is setuid\nlast"))
    assert (row.good, row.trouble, row.message) == (True, "", "mine: is setuid")


@pytest.mark.parametrize(
    ("outcome", "trouble"),
    [
        (Outcome("pass", "9 files"), "not caught: files.clean ended as pass, not as fail"),
        (Outcome("skip", "no reason"), "not caught: files.clean ended as skip, not as fail"),
        (Outcome("error", "could not look: setuid"), "not caught: files.clean ended as error, not as fail"),
        (Outcome("fail", "something else"), "files.clean does not say 'setuid'"),
    ],
    ids=["pass", "skip", "error", "other words"],
)
def test_a_defect_that_is_not_caught_is_said(outcome: Outcome, trouble: str) -> None:
    row = ran(DEFECT, files_clean=outcome)
    assert (row.good, row.trouble) == (False, trouble)


def test_another_check_that_fails_catches_nothing() -> None:
    row = ran(DEFECT, files_clean=Outcome("pass", "9 files"), image_config=Outcome("fail", "setuid"))
    assert not row.good


def test_a_check_that_must_be_blind_is_caught_as_blind() -> None:
    blind = Case("log", "aiter", "silenced", "serve.default.path", "silences", "error")
    assert ran(blind, serve_default_path=Outcome("error", "AITER_LOG_LEVEL silences")).good
    assert not ran(blind, serve_default_path=Outcome("fail", "AITER_LOG_LEVEL silences")).good


def test_an_unknown_check_is_said_with_those_that_are_there() -> None:
    row = ran(Case("image", "toy", "x", "files.cleen", "setuid"), files_clean=Outcome("fail", "setuid"))
    assert row.trouble == "there is no check files.cleen; there are files.clean"
    assert ran(Case("image", "toy", "x", "files.cleen", "setuid")).trouble == "there is no check files.cleen"


def test_a_clean_variant_is_not_blamed_and_was_looked_at() -> None:
    assert ran(CLEAN, one=Outcome("pass", "a"), two=Outcome("skip", "b")).good
    blamed = ran(CLEAN, one=Outcome("pass", "a"), two=Outcome("fail", "b"))
    assert (blamed.trouble, blamed.message) == ("blamed by two (fail)", "b")
    assert ran(CLEAN, one=Outcome("error", "a")).trouble == "blamed by one (error)"
    assert ran(CLEAN, one=Outcome("skip", "a")).trouble == "no check passed, so nothing was looked at"
    assert ran(CLEAN).trouble == "no check looked at it"


def test_a_clean_variant_must_pass_what_it_names() -> None:
    case = Case("image", "toy", "x", data={"passes": ["vllm.calls"]})
    assert ran(case, vllm_calls=Outcome("pass", "a")).good
    assert ran(case, vllm_calls=Outcome("skip", "a"), one=Outcome("pass", "b")).trouble == "vllm.calls did not pass"


def test_what_breaks_while_looking_is_that_cases_trouble() -> None:
    def look(case: Case) -> dict[str, Outcome]:
        if case is DEFECT:
            raise ValueError("no such file")
        return {"one": Outcome("pass", "a")}

    rows = list(run_cases([DEFECT, CLEAN], look))
    assert [row.good for row in rows] == [False, True]
    assert rows[0].trouble == "could not look: ValueError: no such file"
    assert counts(rows) == {"defects": 1, "caught": 0, "clean": 1, "not_blamed": 1}
    assert shown(rows[0], (10, 5, 5)).endswith("could not look: ValueError: no such file")


def test_cases_are_chosen_by_words_of_their_names_and_by_their_check() -> None:
    assert chosen([DEFECT, CLEAN], ["clean one"]) == [CLEAN]
    assert chosen([DEFECT, CLEAN], ["files.clean"]) == [DEFECT]
    assert chosen([DEFECT, CLEAN], []) == [DEFECT, CLEAN]
    with pytest.raises(CorpusError, match="no case has nothing"):
        chosen([DEFECT], ["nothing"])


def test_a_sample_has_every_check_of_every_base_and_all_that_is_cheap() -> None:
    cases = read_corpus()
    taken = sample(cases)
    assert {(case.kind, case.base, case.check) for case in taken} == {
        (case.kind, case.base, case.check) for case in cases
    }
    assert [case for case in taken if case.kind != "image"] == [case for case in cases if case.kind != "image"]
    assert len([case for case in taken if case.kind == "image"]) < len([c for c in cases if c.kind == "image"]) / 2
    assert sample([DEFECT, CLEAN], each=1) == [DEFECT, CLEAN]
    five = [replace(DEFECT, name=str(number)) for number in range(5)]
    assert [case.name for case in sample(five)] == ["0", "2"]
    assert sample(five[:1]) == five[:1]


def wrong_corpus(folder: Path, text: str) -> str:
    (folder / "one.toml").write_text(text)
    with pytest.raises(CorpusError) as raised:
        read_corpus(folder)
    return str(raised.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('kind = "picture"\nbase = "x"', "kind 'picture' is unknown"),
        ('kind = "image"\nbase = "x"\n[[defects]]\nname = "a"', "defects is unknown"),
        ('kind = "image"\nbase = "x"\n[[clean]]\nname = "a"\nshel = "true"', "a: shel is unknown"),
        (
            'kind = "image"\nbase = "x"\n[[defect]]\nname = "a"\ncheck = "b"',
            "a defect names its check, and what that says",
        ),
        ('kind = "image"\nbase = "x"\n[[clean]]\nname = "a"\ncheck = "b"', "a: check is unknown"),
        ('kind = "image"\nbase = "x"\n[[clean]]\nname = "a"\n[[clean]]\nname = "a"', "image/x/a: is there twice"),
        ('kind = "image"', "KeyError: 'base'"),
    ],
)
def test_a_corpus_that_is_wrong_is_refused(tmp_path: Path, text: str, said: str) -> None:
    assert said in wrong_corpus(tmp_path, text)


def test_the_corpus_is_as_large_as_it_must_be() -> None:
    cases = read_corpus()
    assert len([case for case in cases if not case.clean]) >= 40
    assert len([case for case in cases if case.clean]) >= 15
    for kind in ("image", "operator", "server", "log", "wheel"):
        assert {case.clean for case in cases if case.kind == kind} == {True, False}
    assert len([case for case in cases if case.kind == "image" and not case.clean]) >= 25


@pytest.mark.parametrize(("good", "code", "words"), [(True, 0, "caught 1 of 1"), (False, 1, "caught 0 of 1")])
def test_the_program_ends_as_its_rows_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], good: bool, code: int, words: str
) -> None:
    outcome = Outcome("fail" if good else "pass", "setuid")
    monkeypatch.setattr(program, "read_corpus", lambda: [DEFECT])
    monkeypatch.setattr(Lookers, "working", lambda look: nullcontext(look))
    monkeypatch.setattr(Lookers, "__call__", lambda *_: {"files.clean": outcome})
    assert program.main([]) == code
    assert words in capsys.readouterr().out
    assert program.main(["--json"]) == code
    said = json.loads(capsys.readouterr().out)
    assert (said["defects"], said["caught"], said["rows"][0]["good"]) == (1, int(good), good)


def test_a_base_that_is_not_there_is_said_with_what_makes_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def missing(_: Lookers) -> Iterator[None]:
        raise CorpusError("cpu-serving is not in the engine as the pins are now: run `make image STACK=cpu` first")
        yield

    monkeypatch.setattr(Lookers, "working", missing)
    assert program.main([]) == 2
    assert "make image STACK=cpu" in capsys.readouterr().err
    assert program.main(["no such case"]) == 2
