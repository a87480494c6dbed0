"""Run one task of lm-eval against a server and write down what it found.

    PYTHONPATH=LM_EVAL python ask_lm_eval.py --settings settings.json --out result.json

``run_gate.py`` writes the settings and reads the result. lm-eval's own command line would first read
the thousands of tasks that it ships, and take longer for that than for a small task.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


def evaluate(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of the task, and for each filter which questions were right."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    task = settings["task"]
    found = simple_evaluate(
        model="local-completions",
        model_args=settings["model"],
        tasks=[task],
        num_fewshot=settings["few_shot"],
        gen_kwargs=settings["generation"],
        log_samples=True,
        # The interval is computed from the counts; lm-eval's own standard error needs no resampling either.
        bootstrap_iters=0,
        task_manager=TaskManager(include_path=settings["folder"], include_defaults=False),
    )
    right: dict[str, dict[str, float]] = {}
    for sample in found["samples"][task]:
        right.setdefault(sample["filter"], {})[str(sample["doc_id"])] = float(sample["exact_match"])
    return {
        "figures": {
            key: float(value)
            for key, value in found["results"][task].items()
            if key.startswith("exact_match,")
        },
        "few_shot": found["n-shot"][task],
        "questions": found["n-samples"][task],
        "lm_eval_version": version("lm_eval"),
        "task_version": found["versions"][task],
        "right": right,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Run one task of lm-eval.")
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    found = evaluate(json.loads(args.settings.read_text(encoding="utf-8")))
    args.out.write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
