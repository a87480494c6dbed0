"""Measure a running server with a tool of somebody else's, and say what the tool found.

Runs inside the serving container, with the standard library alone, against the server on the
same host:

    python run_gate.py ready --seconds 600
    python run_gate.py questions --task gsm8k --data DIR --lm-eval DIR --few-shot 20 ...
    python run_gate.py questions --task answers --answers FILE --lm-eval DIR ...
    python run_gate.py load --input 1024 --output 1024 --concurrency 4 ...

``ready`` waits for ``/health`` and asks what is served. ``questions`` runs lm-eval's
local-completions; ``load`` runs ``vllm bench serve``. Neither is judged here: the caller reads the
JSON document on standard output, ``{"schema_version": 1, "result": {...} or null, "error": "..." or
null, "seconds": 1.2}``.

gsm8k is lm-eval's own task with the data read from files: ``train.jsonl`` and ``test.jsonl``, or a
copy of the data set's repository with ``main/train-*.parquet`` and ``main/test-*.parquet``. The task
``answers`` asks the questions of a checkpoint's ``answers.json`` and wants its answers to the letter.

Exit status: 0 the tool ended well and its result was read; 2 usage; 3 anything else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from ask_server import AskError, Server

SCHEMA_VERSION: Final = 1
TAIL_BYTES: Final = 6000
EXIT_OK: Final = 0
EXIT_NOTHING: Final = 3
TASK: Final = "kiln_gate"


class ToolError(Exception):
    """The tool gave no result; the message says why."""


def run_tool(command: Sequence[str], env: Mapping[str, str], seconds: float) -> None:
    """Run ``command`` for at most ``seconds``. Raises ToolError with its last words where it fails."""
    late = threading.Event()
    tail: deque[bytes] = deque(maxlen=64)
    with subprocess.Popen(
        command,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # A group of its own, so that what the tool starts is ended with it.
        start_new_session=True,
    ) as process:

        def end() -> None:
            late.set()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            assert process.stdout is not None
            for line in iter(partial(process.stdout.readline, TAIL_BYTES), b""):
                tail.append(line)
            code = process.wait()
        finally:
            timer.cancel()
    words = b"".join(tail)[-TAIL_BYTES:].decode(errors="replace").strip()
    if late.is_set():
        raise ToolError(f"{command[0]} did not end within {seconds:g} s; its last words:\n{words}")
    if code != 0:
        raise ToolError(f"{command[0]} ended with {code}; its last words:\n{words}")


def model_name(server: Server) -> str:
    """The name under which the server serves its model."""
    return str(server.ask_json("/v1/models")["data"][0]["id"])


def ready(args: argparse.Namespace) -> dict[str, Any]:
    """Wait for the server and ask what it is."""
    server = Server("127.0.0.1", args.port, 60)
    seconds = server.wait_until_ready(args.seconds)
    return {
        "ready_seconds": round(seconds, 3),
        "model": model_name(server),
        "vllm_version": str(server.ask_json("/version")["version"]),
    }


# Questions


def questions(args: argparse.Namespace) -> dict[str, Any]:
    """Have lm-eval ask the task's questions."""
    model = model_name(Server("127.0.0.1", args.port, 60))
    with tempfile.TemporaryDirectory(prefix="gate-") as name:
        folder = Path(name)
        asked = (
            write_answers_task(args, folder)
            if args.task == "answers"
            else write_gsm8k_task(args, folder)
        )
        settings = {
            "task": TASK,
            "folder": str(folder / "task"),
            "few_shot": args.few_shot,
            "model": {
                "model": model,
                "base_url": f"http://127.0.0.1:{args.port}/v1/completions",
                "num_concurrent": args.concurrent,
                "max_retries": 3,
                "timeout": max(60, int(args.seconds)),
                "tokenizer_backend": None,
                "max_length": 1 << 20,
            },
            # Tokenised by the server, without special tokens of its own: as lm-eval does where it tokenises.
            "generation": {"max_gen_toks": args.max_tokens, "add_special_tokens": False},
        }
        (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        command = [
            *(sys.executable, str(Path(__file__).with_name("ask_lm_eval.py"))),
            *("--settings", str(folder / "settings.json"), "--out", str(folder / "out.json")),
        ]
        env = {
            "PYTHONPATH": str(args.lm_eval),
            "HOME": name,
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        run_tool(command, env, args.seconds)
        found = json.loads((folder / "out.json").read_text(encoding="utf-8"))
        return {**found, "data_sha256": asked, "model": model, "task": args.task}


def write_answers_task(args: argparse.Namespace, folder: Path) -> str:
    """The questions of ``answers.json`` as a task of lm-eval; returns the sha256 of what is asked."""
    prompts = json.loads(args.answers.read_text(encoding="utf-8"))["prompts"]
    rows = [{"prompt": p["prompt"], "answer": p["answer"], "id": p["id"]} for p in prompts]
    data = folder / "answers.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    write_task(
        folder,
        {
            "task": TASK,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "output_type": "generate_until",
            "test_split": "test",
            "doc_to_text": "{{prompt}}",
            "doc_to_target": "{{answer}}",
            "target_delimiter": "",
            "metric_list": [
                {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
            ],
            # The answers end by themselves, and no text may end them before.
            "generation_kwargs": {"until": [], "do_sample": False, "temperature": 0.0},
            "filter_list": [{"name": "none", "filter": [{"function": "take_first"}]}],
            "metadata": {"version": 1.0},
        },
    )
    return sha256([data])


def write_gsm8k_task(args: argparse.Namespace, folder: Path) -> str:
    """lm-eval's gsm8k with its data from files; returns the sha256 of the test questions.

    Raises ToolError where the folder has none.
    """
    original = args.lm_eval / "lm_eval" / "tasks" / "gsm8k" / "gsm8k.yaml"
    kind, files = gsm8k_files(args.data)
    write_task(
        folder,
        {
            "include": str(original),
            "task": TASK,
            "dataset_path": kind,
            "dataset_name": None,
            "dataset_kwargs": {
                "data_files": {part: [str(path) for path in paths] for part, paths in files.items()}
            },
        },
    )
    return sha256(files["test"])


def gsm8k_files(data: Path | None) -> tuple[str, dict[str, list[Path]]]:
    """How the data is stored, and the files of each part. Raises ToolError where there are none."""
    if data is None or not data.is_dir():
        raise ToolError("no folder with gsm8k's data was given")
    for kind, pattern in (
        ("json", "{}.jsonl"),
        ("parquet", "main/{}-*.parquet"),
        ("parquet", "{}-*.parquet"),
    ):
        files = {part: sorted(data.glob(pattern.format(part))) for part in ("train", "test")}
        if all(files.values()):
            return kind, files
    raise ToolError(
        f"{data} holds neither train.jsonl and test.jsonl, nor main/train-*.parquet and main/test-*.parquet"
    )


def write_task(folder: Path, task: Mapping[str, Any]) -> None:
    """A task's file for lm-eval. JSON is YAML."""
    (folder / "task").mkdir()
    (folder / "task" / f"{TASK}.yaml").write_text(json.dumps(task), encoding="utf-8")


def sha256(paths: Sequence[Path]) -> str:
    """The sha256 over the bytes of the files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


# Load


def load(args: argparse.Namespace) -> dict[str, Any]:
    """Have ``vllm bench serve`` put its load on the server."""
    model = model_name(Server("127.0.0.1", args.port, 60))
    with tempfile.TemporaryDirectory(prefix="gate-") as name:
        command = [
            *("vllm", "bench", "serve", "--backend", "openai", "--endpoint", "/v1/completions"),
            *("--host", "127.0.0.1", "--port", str(args.port)),
            *("--model", str(args.model), "--served-model-name", model),
            *("--dataset-name", "random"),
            *("--random-input-len", str(args.input), "--random-output-len", str(args.output)),
            *("--random-range-ratio", args.range_ratio, "--seed", str(args.seed)),
            *("--max-concurrency", str(args.concurrency), "--request-rate", "inf"),
            *("--num-prompts", str(args.prompts), "--num-warmups", str(args.warmups)),
            *("--ignore-eos", "--temperature", "0", "--disable-tqdm"),
            *("--percentile-metrics", "ttft,tpot,itl,e2el"),
            *("--save-result", "--save-detailed", "--result-dir", name),
            *("--result-filename", "result.json", *args.more),
        ]
        run_tool(command, {"HOME": name}, args.seconds)
        path = Path(name) / "result.json"
        if not path.is_file():
            raise ToolError("vllm bench serve ended well and wrote no result")
        return read_load(json.loads(path.read_text(encoding="utf-8")))


def read_load(document: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of one run, and the lengths that were really drawn, without what each request said."""
    lists = ("input_lens", "output_lens")
    drawn = {key: [min(document[key]), max(document[key])] for key in lists if document.get(key)}
    figures = {key: value for key, value in document.items() if isinstance(value, (int, float, str))}
    errors = [error for error in document.get("errors", []) if error]
    return {**figures, **drawn, "errors": len(errors), "first_error": str(errors[0])[:400] if errors else ""}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Measure a running server.")
    what = parser.add_subparsers(dest="what", required=True)
    for name in ("ready", "questions", "load"):
        one = what.add_parser(name)
        one.add_argument("--port", type=int, default=8000)
        one.add_argument("--seconds", type=float, required=True)
    asked = what.choices["questions"]
    asked.add_argument("--task", choices=("answers", "gsm8k"), required=True)
    asked.add_argument("--lm-eval", type=Path, required=True)
    asked.add_argument("--answers", type=Path)
    asked.add_argument("--data", type=Path)
    for name in ("--few-shot", "--concurrent", "--max-tokens"):
        asked.add_argument(name, type=int, required=True)
    loaded = what.choices["load"]
    loaded.add_argument("--model", type=Path, required=True, help="the folder with the tokenizer")
    loaded.add_argument("--range-ratio", required=True)
    for name in ("--input", "--output", "--concurrency", "--prompts", "--warmups", "--seed"):
        loaded.add_argument(name, type=int, required=True)
    loaded.add_argument("more", nargs="*", help="more arguments for vllm bench serve, after --")
    args = parser.parse_args(argv)
    if args.what == "questions" and args.task == "answers" and args.answers is None:
        parser.error("--task answers needs --answers")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    args = parse(argv)
    began = time.monotonic()
    result, error = None, None
    try:
        result = {"ready": ready, "questions": questions, "load": load}[args.what](args)
    except (ToolError, AskError) as caught:
        error = f"{type(caught).__name__}: {caught}"
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as caught:
        error = f"what the tool wrote cannot be read: {caught!r}"
    seconds = round(time.monotonic() - began, 3)
    document = {"schema_version": SCHEMA_VERSION, "result": result, "error": error, "seconds": seconds}
    print(json.dumps(document, ensure_ascii=False))
    return EXIT_OK if error is None else EXIT_NOTHING


if __name__ == "__main__":
    sys.exit(main())
