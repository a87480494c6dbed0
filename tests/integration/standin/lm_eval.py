"""A stand-in for lm-eval: asks the server each question of the task, as the task file says, and compares the answers."""

import json
import sys
import types
import urllib.request
from pathlib import Path


class TaskManager:
    """Where the task's file is."""

    def __init__(self, include_path, include_defaults):
        self.folder = Path(include_path)


sys.modules["lm_eval.tasks"] = types.ModuleType("lm_eval.tasks")
sys.modules["lm_eval.tasks"].TaskManager = TaskManager


def simple_evaluate(*, tasks, model_args, task_manager, num_fewshot, **_):
    """Ask, and compare."""
    (name,) = tasks
    task = json.loads((task_manager.folder / f"{name}.yaml").read_text())
    samples = []
    for number, line in enumerate(Path(task["dataset_kwargs"]["data_files"]["test"]).read_text().splitlines()):
        row = json.loads(line)
        body = json.dumps({"prompt": row["prompt"], "model": model_args["model"]}).encode()
        with urllib.request.urlopen(model_args["base_url"], body) as response:  # noqa: S310 - loopback
            text = json.load(response)["choices"][0]["text"]
        samples.append({"filter": "none", "doc_id": number, "exact_match": float(text == row["answer"])})
    return {
        "samples": {name: samples},
        "results": {name: {"exact_match,none": sum(s["exact_match"] for s in samples) / len(samples)}},
        "n-shot": {name: num_fewshot},
        "n-samples": {name: {"effective": len(samples)}},
        "versions": {name: 1.0},
    }
