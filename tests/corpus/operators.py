"""Operators: vLLM's own, out of the image, with one thing wrong in each, before the very check that judges the image's."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kiln.containers import container, wait
from kiln.verify.checks import Outcome
from kiln.verify.ops import EMULATED, ON_PROCESSOR, RACES, judge_operators
from tests.corpus.cases import HERE, Case
from tests.corpus.images import Images

SECONDS = 240


class Operators:
    """The operators of one base. All are judged in one container, when the first is asked for: loading vLLM takes longer than judging."""

    def __init__(self, images: Images, cases: Sequence[Case]) -> None:
        self._images = images
        self._cases = [case for case in cases if case.kind == "operator"]
        self._lock = threading.Lock()
        self._found: dict[str, dict[str, Any]] = {}
        self._trouble: Exception | None = None

    def look(self, case: Case) -> dict[str, Outcome]:
        """What the check of the case says; for a clean variant that is the check of the image's operators."""
        with self._lock:
            if not self._found and self._trouble is None:
                try:
                    self._found = self._run()
                except Exception as error:  # noqa: BLE001 - it is every case's trouble, and must not be looked for once for each
                    self._trouble = error
        if self._trouble is not None:
            raise self._trouble
        found = self._found[case.name]
        check = _check(case)
        try:
            return {check: judge_operators(json.loads(found["said"]), found["code"])}
        except (ValueError, KeyError, TypeError) as error:
            return {
                check: Outcome(
                    "error", f"check_mhc.py ended with {found['code']} and no document ({type(error).__name__})"
                )
            }

    def _run(self) -> dict[str, dict[str, Any]]:
        subject = self._images.base(self._cases[0].base)
        given = [
            {"name": one.name, "edits": one.data["edits"], "arguments": _arguments(_check(one))} for one in self._cases
        ]
        with tempfile.TemporaryDirectory(prefix="kiln-corpus-") as folder:
            (Path(folder) / "cases.json").write_text(json.dumps(given), encoding="utf-8")
            (Path(folder) / "wrong_operators.py").write_bytes((HERE / "wrong_operators.py").read_bytes())
            with container(
                subject.client,
                subject.built.reference,
                entrypoint=["python3"],
                command=["/kiln/corpus/wrong_operators.py", "/kiln/corpus/cases.json"],
                mounts={subject.workspace.root / "scripts": "/kiln/scripts", Path(folder): "/kiln/corpus"},
                # On a machine that is busy, threads wait for each other longer than they compute.
                env={"OMP_NUM_THREADS": "1"},
                memory=subject.image.memory,
                read_only=True,
            ) as started:
                ended = wait(started, SECONDS)
        if ended.code != 0:
            raise LookupError(f"wrong_operators.py ended with {ended.code}: {ended.stderr.strip()[-600:]}")
        return dict(json.loads(ended.stdout))


def _check(case: Case) -> str:
    return case.check or "ops.torch"


def _arguments(check: str) -> list[str]:
    """What kiln.verify.ops gives the script for this check."""
    if check == "ops.race":
        return [*(word for name in RACES for word in ("--backend", name)), *EMULATED]
    return ["--backend", check.removeprefix("ops."), *ON_PROCESSOR]
