"""The parts of the model maker that need no torch."""

# ruff: noqa: RUF001 - DeepSeek spells its special tokens with a fullwidth bar

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class Characters:
    """A stand-in tokenizer: one id per character."""

    def encode(self, text: str) -> SimpleNamespace:
        """As ``tokenizers.Tokenizer.encode``."""
        return SimpleNamespace(ids=[ord(character) for character in text])


def findings(make_tiny_model: ModuleType, **changes: Any) -> Any:
    """Good findings, changed."""
    good = {"margins": {"a": 5.0, "b": 9.0}, "standard": {"a": 5.0}, "rounding": 1.0, "wrong": ()}
    return make_tiny_model.Findings(**(good | changes))


def test_teaching_ends_every_answer_with_eos(make_tiny_model: ModuleType, tiny_texts: ModuleType) -> None:
    right = make_tiny_model.teach(Characters(), wrong=False)
    wrong = make_tiny_model.teach(Characters(), wrong=True)
    eos = tiny_texts.SPECIAL_TOKENS.index(tiny_texts.EOS)
    for lesson, one, other in zip(tiny_texts.LESSONS, right, wrong, strict=True):
        assert one.id == other.id == lesson.id
        assert one.prompt == other.prompt
        assert (one.text, other.text) == (lesson.answer, lesson.wrong)
        assert one.answer == [*map(ord, lesson.answer), eos]
        assert other.answer != one.answer


def test_good_needs_every_answer_and_the_margin(make_tiny_model: ModuleType) -> None:
    assert findings(make_tiny_model).threshold == make_tiny_model.SAFETY
    assert findings(make_tiny_model).good
    assert not findings(make_tiny_model, wrong=("a",)).good
    assert not findings(make_tiny_model, margins={"a": 4.0, "b": 9.0}).good
    assert not findings(make_tiny_model, rounding=1.25).good
    assert not findings(make_tiny_model, margins={"a": float("nan")}).good


def test_answers_document(make_tiny_model: ModuleType, tiny_texts: ModuleType) -> None:
    standard = make_tiny_model.teach(Characters(), wrong=False)
    margins = {lesson.id: 1.23456 for lesson in tiny_texts.LESSONS}
    document = make_tiny_model.answers_document(standard, margins)
    assert json.loads(json.dumps(document)) == document
    assert document["schema_version"] == 1
    assert document["chat_template_kwargs"] == {"thinking": False, "enable_thinking": False}
    first, lesson = document["prompts"][0], tiny_texts.LESSONS[0]
    assert first == {
        "id": lesson.id,
        "prompt": tiny_texts.render_prompt(lesson.question),
        "messages": [{"role": "user", "content": lesson.question}],
        "answer": lesson.answer,
        "token_ids": standard[0].answer,
        "margin": 1.2346,
    }


def test_json_files_end_in_a_newline_and_keep_their_letters(make_tiny_model: ModuleType, tmp_path: Path) -> None:
    make_tiny_model.write_json(tmp_path / "x.json", {"bos": "<｜begin▁of▁sentence｜>"})
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == ('{\n  "bos": "<｜begin▁of▁sentence｜>"\n}\n')


def test_result_is_one_json_line(
    make_tiny_model: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: dict[str, Any] = {}

    def make(out: Path, **options: Any) -> dict[str, Any]:
        seen.update(options, out=out)
        return {"steps": 20}

    monkeypatch.setattr(make_tiny_model, "make", make)
    assert make_tiny_model.main(["--out", "d", "--seed", "3", "--wrong-answers"]) == 0
    assert json.loads(capsys.readouterr().out) == {"steps": 20}
    assert seen["out"] == Path("d")
    assert (seen["seed"], seen["wrong"]) == (3, True)
    assert seen["max_steps"] > 0
    assert seen["max_seconds"] > 0


def test_a_model_that_is_not_good_enough_fails_with_the_reason(
    make_tiny_model: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def make(out: Path, **options: Any) -> dict[str, Any]:
        raise make_tiny_model.NotGoodEnoughError("the smallest lead is 0.1")

    monkeypatch.setattr(make_tiny_model, "make", make)
    assert make_tiny_model.main(["--out", "d"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "the smallest lead is 0.1" in captured.err


@pytest.mark.parametrize("argv", [[], ["--out", "d", "--max-steps", "0"], ["--out", "d", "x"]])
def test_usage_errors(make_tiny_model: ModuleType, argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        make_tiny_model.main(argv)
    assert caught.value.code == 2
