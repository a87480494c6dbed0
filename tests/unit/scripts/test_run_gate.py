"""Running the gates' tools beside a server: what the tools are asked, and that no trouble of theirs looks like a result."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.unit.scripts.test_ask_server import standing_in


@pytest.fixture
def gate(run_gate: ModuleType, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the script against a stand-in that is healthy; returns the exit status and the document."""

    def run(*words: str) -> tuple[int, dict[str, Any]]:
        with standing_in(lambda handler: handler.send(b"{}", 404)) as server:
            code = run_gate.main([words[0], f"--port={server.server_address[1]}", *words[1:]])
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert document["schema_version"] == 1
        return code, document

    return run


LOAD = ["--seconds=20", "--model=/m", "--range-ratio=0.8", "--input=16", "--output=8", "--concurrency=4"]
LOAD += ["--prompts=8", "--warmups=2", "--seed=3"]


def program(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A ``vllm`` of the test's own, first on the PATH."""
    path = folder / "vllm"
    path.write_text(
        f"#!{sys.executable}\nimport json, sys, time, os\nfrom pathlib import Path\n{text}\n", encoding="utf-8"
    )
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


BENCH = """
args = sys.argv[1:]
said = dict(zip(args, args[1:]))
result = {"output_throughput": 9.5, "median_tpot_ms": 2.5, "completed": 8, "failed": 0, "num_prompts": 8, "label": None}
result |= {"input_lens": [5, 9, 7], "output_lens": [1, 3, 2], "errors": ["", "", "500"], "generated_texts": ["secret"] * 3, "argv": args}
result["seen"] = " ".join(args)
Path(said["--result-dir"], said["--result-filename"]).write_text(json.dumps(result))
"""


def test_a_server_says_what_it_is(gate: Any) -> None:
    code, document = gate("ready", "--seconds=5")
    assert code == 0
    assert document["result"] | {"ready_seconds": 0} == {"ready_seconds": 0, "model": "tiny", "vllm_version": "0.32.0"}


def test_a_server_that_never_comes_is_an_error(run_gate: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_gate.main(["ready", "--port=1", "--seconds=0.6"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert document["result"] is None
    assert "not ready within 0.6 s" in document["error"]


def test_the_load_is_what_was_asked_for(gate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, monkeypatch, BENCH)
    code, document = gate("load", *LOAD, "--", "--tokenizer-mode", "deepseek_v4")
    assert (code, document["error"]) == (0, None)
    result = document["result"]
    assert (result["output_throughput"], result["input_lens"], result["output_lens"]) == (9.5, [5, 9], [1, 3])
    assert (result["errors"], result["first_error"]) == (1, "500")
    assert "generated_texts" not in result
    for words in (
        "bench serve --backend openai",
        "--served-model-name tiny",
        "--dataset-name random --random-input-len 16 --random-output-len 8 --random-range-ratio 0.8 --seed 3",
        "--max-concurrency 4 --request-rate inf --num-prompts 8 --num-warmups 2 --ignore-eos",
        "--tokenizer-mode deepseek_v4",
    ):
        assert words in result["seen"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("print('the last word'); sys.exit(7)", "ended with 7; its last words:\nthe last word"),
        ("pass", "ended well and wrote no result"),
        (BENCH + "Path(said['--result-dir'], 'result.json').write_text('{')", "cannot be read"),
        (BENCH + "Path(said['--result-dir'], 'result.json').write_text('[1]')", "cannot be read"),
        ("sys.stdout.write('x' * 5_000_000); sys.exit(1)", "ended with 1"),
    ],
)
def test_a_tool_that_fails_gives_no_result(
    gate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    program(tmp_path, monkeypatch, text)
    code, document = gate("load", *LOAD)
    assert (code, document["result"]) == (3, None)
    assert words in document["error"]
    assert len(document["error"]) < 10_000


def test_a_tool_that_hangs_is_ended_with_its_children(
    gate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "alive"
    program(
        tmp_path, monkeypatch, f"if os.fork() == 0:\n  time.sleep(3)\n  Path({str(mark)!r}).touch()\ntime.sleep(60)"
    )
    began = time.monotonic()
    code, document = gate("load", "--seconds=1", *LOAD[1:])
    assert (code, document["result"]) == (3, None)
    assert "did not end within 1 s" in document["error"]
    assert time.monotonic() - began < 20
    time.sleep(3)
    assert not mark.exists()


# Questions


@pytest.fixture
def lm_eval(tmp_path: Path) -> Path:
    """A stand-in for lm-eval that answers with what it was asked."""
    folder = tmp_path / "lm-eval"
    (folder / "lm_eval" / "tasks").mkdir(parents=True)
    (folder / "lm_eval-0.4.13.dist-info").mkdir()
    (folder / "lm_eval-0.4.13.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: lm_eval\nVersion: 0.4.13\n"
    )
    (folder / "lm_eval" / "tasks" / "__init__.py").write_text(
        "class TaskManager:\n    def __init__(self, include_path, include_defaults):\n"
        "        assert not include_defaults\n        self.folder = include_path\n"
    )
    (folder / "lm_eval" / "__init__.py").write_text(
        "import json, os, pathlib\n"
        "def simple_evaluate(**asked):\n"
        "    manager = asked.pop('task_manager')\n"
        "    task = json.loads(pathlib.Path(manager.folder, 'kiln_gate.yaml').read_text())\n"
        "    said = json.dumps([asked, task, os.environ['HF_HUB_OFFLINE'], os.environ['HF_DATASETS_OFFLINE']])\n"
        "    samples = [{'filter': 'none', 'doc_id': n, 'exact_match': n % 2} for n in range(3)]\n"
        "    return {'samples': {'kiln_gate': samples}, 'n-shot': {'kiln_gate': said},\n"
        "        'results': {'kiln_gate': {'exact_match,none': 1 / 3, 'exact_match_stderr,none': 'N/A', 'alias': 'x'}},\n"
        "        'n-samples': {'kiln_gate': {'effective': 3}}, 'versions': {'kiln_gate': 1.0}}\n"
    )
    return folder


def questions(lm_eval: Path, *words: str) -> list[str]:
    told = ["--few-shot=20", "--concurrent=64", "--max-tokens=48", "--seconds=60"]
    return ["questions", f"--lm-eval={lm_eval}", *told, *words]


def test_the_checkpoints_own_answers_are_asked(gate: Any, lm_eval: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.json"
    answers.write_text(
        json.dumps({"prompts": [{"id": "a", "prompt": "<User>Why?", "answer": "So."}]}), encoding="utf-8"
    )
    code, document = gate(*questions(lm_eval, "--task=answers", f"--answers={answers}"))
    assert (code, document["error"]) == (0, None)
    result = document["result"]
    assert result["right"] == {"none": {"0": 0.0, "1": 1.0, "2": 0.0}}
    assert (result["figures"], result["lm_eval_version"]) == ({"exact_match,none": 1 / 3}, "0.4.13")
    asked, task, *offline = json.loads(result["few_shot"])
    assert asked["model_args"]["base_url"].endswith("/v1/completions")
    assert (asked["model_args"]["num_concurrent"], asked["num_fewshot"]) == (64, 20)
    assert asked["gen_kwargs"] == {"max_gen_toks": 48, "add_special_tokens": False}
    assert (task["target_delimiter"], task["generation_kwargs"]["until"]) == ("", [])
    assert offline == ["1", "1"]


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (("train.jsonl", "test.jsonl"), "json"),
        (("main/train-00000-of-00001.parquet", "main/test-00000-of-00001.parquet"), "parquet"),
    ],
)
def test_gsm8k_is_lm_evals_own_with_data_from_files(
    gate: Any, lm_eval: Path, tmp_path: Path, files: tuple[str, ...], kind: str
) -> None:
    for name in files:
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text("{}\n")
    code, document = gate(*questions(lm_eval, "--task=gsm8k", f"--data={tmp_path / 'data'}"))
    assert (code, document["error"]) == (0, None)
    _, task, *_ = json.loads(document["result"]["few_shot"])
    assert task == {
        "include": str(lm_eval / "lm_eval" / "tasks" / "gsm8k" / "gsm8k.yaml"),
        "task": "kiln_gate",
        "dataset_path": kind,
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {"train": [str(tmp_path / "data" / files[0])], "test": [str(tmp_path / "data" / files[1])]}
        },
    }


@pytest.mark.parametrize("missing", ["test.jsonl", "train.jsonl", "the folder"])
def test_data_that_is_not_there_is_an_error(gate: Any, lm_eval: Path, tmp_path: Path, missing: str) -> None:
    data = tmp_path / "data"
    if missing != "the folder":
        data.mkdir()
        (data / ("train.jsonl" if missing == "test.jsonl" else "test.jsonl")).write_text("{}\n")
    code, document = gate(*questions(lm_eval, "--task=gsm8k", f"--data={data}"))
    assert (code, document["result"]) == (3, None)
    assert ("no folder with gsm8k's data" if missing == "the folder" else "holds neither") in document["error"]


def test_an_lm_eval_that_breaks_is_an_error_with_its_last_words(gate: Any, lm_eval: Path, tmp_path: Path) -> None:
    (lm_eval / "lm_eval" / "__init__.py").write_text("raise RuntimeError('the server refused')")
    answers = tmp_path / "answers.json"
    answers.write_text('{"prompts": []}', encoding="utf-8")
    code, document = gate(*questions(lm_eval, "--task=answers", f"--answers={answers}"))
    assert (code, document["result"]) == (3, None)
    assert "the server refused" in document["error"]


def test_answers_that_are_none_are_an_error(gate: Any, lm_eval: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.json"
    answers.write_text('{"prompts": [{"id": "a"}]}', encoding="utf-8")
    code, document = gate(*questions(lm_eval, "--task=answers", f"--answers={answers}"))
    assert (code, document["result"]) == (3, None)
    assert "KeyError" in document["error"]


def test_the_task_answers_needs_answers(run_gate: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        run_gate.main(questions(tmp_path, "--task=answers"))
    assert caught.value.code == 2
