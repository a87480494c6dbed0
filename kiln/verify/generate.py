"""Generation checks: with every mHC setting, the server answers exactly what the model was trained on, and the log proves
which mHC path ran."""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from dataclasses import replace
from typing import Any

from kiln.engine import image_document
from kiln.image import Image, Setting
from kiln.model import Model
from kiln.verify.checks import Check, Outcome, Subject, errored, failed, passed
from kiln.verify.evidence import judge_path, read_evidence
from kiln.verify.serve import LOG_LIMIT, Served, serve, tail

# Written by plugins/vllm-mhc-switch: the path that the built model has, and the one that its first real forward pass took.
BUILT = re.compile(r"kiln-mhc: path=(\S+) requested=(\S+) env=(\S+) platform=(\S+) vllm=(\S+)")
RAN = re.compile(r"kiln-mhc: ran path=(\S+) calls=(\S+)")
# Written by plugins/vllm-cpu-shims: whose operators of DeepSeek V4 the CPU model calls, vLLM's compiled ones or ours in PyTorch.
OPERATORS = re.compile(r"kiln-cpu-shims: operators=(compiled|pytorch)")
# And how Triton's kernels ran: interpreted, or in numpy.
KERNELS = re.compile(r"kiln-cpu-shims: kernels=(\w+)")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_PREFIX = re.compile(r"^\((?:EngineCore|Worker|APIServer)[^)]*\) ?")


def generate_checks(subject: Subject, model: Model, ahead: Executor | None = None) -> list[Check]:
    """The checks of every setting of the image, and that the settings agree.

    ``ahead`` serves the first setting at once, while other checks look, and the others together when these are done; without it a server starts
    when the first check asks for it.
    """
    runs = _Runs(subject, model, ahead)
    checks = [
        Check(
            "model.known",
            "generate",
            "the checkpoint is one whose answers are known, with a margin that survives rounding",
            lambda: known(model),
        )
    ]
    settings = subject.image.settings
    for setting in settings:
        checks += _setting_checks(runs, setting)
    if len(settings) > 1:
        checks.append(
            Check(
                "serve.agree",
                "generate",
                "all settings give the same tokens for every question",
                lambda: agree([runs.of(setting) for setting in settings]),
            )
        )
    return checks


def unserved_checks(image: Image, lacking: str) -> list[Check]:
    """The same checks on a machine that cannot serve with the image, each with the reason.

    A machine that builds ROCm images has no GPU as a rule: there they are skipped.
    """
    outcome = Outcome("skip", lacking)
    ids = [f"serve.{setting.name}.{what}" for setting in image.settings for what in ("answers", "path")]
    return [Check(name, "generate", lacking, lambda: outcome) for name in ids]


def _setting_checks(runs: _Runs, setting: Setting) -> list[Check]:
    return [
        Check(
            f"serve.{setting.name}.answers",
            "generate",
            f"every answer is exactly the trained one ({setting.about})",
            lambda: answers(runs.of(setting)),
        ),
        Check(
            f"serve.{setting.name}.path",
            "generate",
            f"the log proves that the {setting.path} mHC path ran",
            lambda: proven_path(runs.subject, runs.of(setting)),
        ),
    ]


class _Runs:
    """One server run a setting: begun ahead, or when the first check asks for it."""

    def __init__(self, subject: Subject, model: Model, ahead: Executor | None) -> None:
        self.subject, self._model = subject, model
        self._served: dict[str, Served] = {}
        self._ahead = ahead
        self._begun: dict[str, Future[Served]] = {}
        self._begin(subject.image.settings[:1])

    def _begin(self, settings: tuple[Setting, ...]) -> None:
        for setting in settings:
            if self._ahead and setting.name not in self._begun:
                self._begun[setting.name] = self._ahead.submit(serve, self.subject, self._model, setting)

    def of(self, setting: Setting) -> Served:
        self._begin(self.subject.image.settings)
        if setting.name not in self._served:
            begun = self._begun.get(setting.name)
            self._served[setting.name] = begun.result() if begun else serve(self.subject, self._model, setting)
            folder = self.subject.workspace.state / "logs"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"serve-{self.subject.image.name}-{setting.name}.log").write_text(
                self._served[setting.name].log, encoding="utf-8"
            )
        return self._served[setting.name]


def known(model: Model) -> Outcome:
    """What the tiny model's maker measured. A model of the user's own is taken at its word."""
    if model.made is None:
        return Outcome(
            "skip", "the model was given, not made here; nothing is known of its margins", {"model": model.identity}
        )
    made = model.made
    if not made["min_margin"] > made["threshold"] > 0:
        return failed(
            f"the smallest lead of a right token is {made['min_margin']}, not above {made['threshold']}",
            model=model.identity,
            made=made,
        )
    return passed(
        f"{made['parameters'] / 1e6:.1f} M parameters; smallest lead {made['min_margin']}, needed {made['threshold']}",
        model=model.identity,
        origin=model.origin,
        made=made,
    )


def answers(served: Served) -> Outcome:
    """Every question answered exactly, through completions and chat, alone and in a batch."""
    document = served.document
    given = [answer for answer in document.get("answers", []) if isinstance(answer, dict)]
    exact = [answer for answer in given if answer.get("exact") is True]
    evidence: dict[str, Any] = {
        "env": dict(served.setting.env),
        "vllm": document.get("vllm_version"),
        "exact": len(exact),
        "total": document.get("total"),
        "answers": [
            {key: answer.get(key) for key in ("id", "api", "expected", "got", "token_ids", "exact", "error")}
            for answer in given
        ],
    }
    if operators := OPERATORS.search(served.log):
        evidence["operators"] = operators.group(1)
    if kernels := sorted(set(KERNELS.findall(served.log))):
        evidence["kernels"] = kernels
    if served.trouble:
        return Outcome("fail", f"no full set of answers: {served.trouble}", evidence, served.timing)
    if not given or document.get("total") != len(given):
        return Outcome("fail", f"{len(given)} of {document.get('total')} answers came", evidence, served.timing)
    wrong = [answer for answer in given if answer.get("exact") is not True]
    if wrong:
        shown = "\n".join(
            f"{answer.get('id')} ({answer.get('api')}): expected {answer.get('expected')!r}, got {answer.get('got')!r}"
            for answer in wrong[:8]
        )
        return Outcome("fail", f"{len(wrong)} of {len(given)} answers are wrong\n{shown}", evidence, served.timing)
    stand_in = "; PyTorch operators in place of vLLM's compiled ones" if evidence.get("operators") == "pytorch" else ""
    return Outcome("pass", f"{len(exact)} of {len(given)} answers exact{stand_in}", evidence, served.timing)


def environment(subject: Subject, setting: Setting) -> dict[str, str]:
    """The variables that a server ran with: the image's own, those of the images below it among them, then the setting's."""
    document = image_document(subject.engine, subject.built.reference) or {}
    given = (document.get("Config") or {}).get("Env") or []
    return {**dict(item.split("=", 1) for item in given), **dict(setting.env)}


def proven_path(subject: Subject, served: Served) -> Outcome:
    """The path that a server's log proves; a log that is not whole proves none."""
    if served.flooded:
        return errored(
            f"the server wrote more than {LOG_LIMIT >> 20} MiB of log, and what would prove its path may be lost in that; its last lines read:\n"
            + tail(served.log)
        )
    return rocm_path(served, environment(subject, served.setting)) if subject.pins.target == "rocm" else path(served)


def path(served: Served) -> Outcome:
    """The path that the log names, both as built and as run, against the one that this setting must take."""
    lines = [_PREFIX.sub("", _ANSI.sub("", line)) for line in served.log.splitlines()]
    built = sorted({match.group(1) for line in lines if (match := BUILT.search(line))})
    ran = sorted({match.group(1) for line in lines if (match := RAN.search(line))})
    proof = sorted({match.group(0) for line in lines if (match := RAN.search(line) or BUILT.search(line))})
    wanted = served.setting.path
    evidence = {"expected": wanted, "built": built, "ran": ran, "lines": proof}
    if not ran:
        return failed(
            f"no line of the log says which mHC path ran (expected {wanted})"
            + (f"\n{served.trouble}" if served.trouble else ""),
            **evidence,
        )
    if built != [wanted] or ran != [wanted]:
        return failed(
            f"expected the {wanted} path; the log says built {', '.join(built) or 'nothing'}, ran {', '.join(ran)}",
            **evidence,
        )
    return passed(f"{wanted}: {proof[-1]}", **evidence)


def rocm_path(served: Served, environment: Mapping[str, str]) -> Outcome:
    """The path that the log of a server on ROCm proves, worker by worker: AITER's own module, or TileLang's kernels and no AITER module."""
    # Every setting is served in a container of its own, so TileLang starts without a cache: a worker that is silent compiled nothing.
    evidence = read_evidence(served.log.split("\n"), environment, tilelang_cache="empty")
    path = served.setting.path
    # A path that says whose kernels it takes is one that the plugin names; both vLLM's default and the opt-in may be fused then.
    outcome = judge_path(
        evidence, "tilelang" if path in ("fused", "tilelang-fused") else "aiter", named=path if "-" in path else ""
    )
    if outcome.status == "pass" or not served.trouble:
        return outcome
    return replace(outcome, summary=f"{outcome.summary}\n{served.trouble}")


def agree(runs: list[Served]) -> Outcome:
    """The same tokens for every question and API, whatever the setting; else the first divergence, with what each setting thought there."""
    tables = []
    for run in runs:
        table = {
            (answer["id"], answer["api"]): answer
            for answer in run.document.get("answers", [])
            if not answer.get("error")
        }
        if not table:
            return failed(f"the setting {run.setting.name} gave no answers to compare")
        tables.append(table)
    first, *others = tables
    for run, other in zip(runs[1:], others, strict=True):
        for key in sorted(first.keys() | other.keys()):
            one, two = first.get(key, {}), other.get(key, {})
            if _tokens(one) != _tokens(two):
                return failed(
                    f"{key[0]} ({key[1]}): {runs[0].setting.name} and {run.setting.name} part{_first_difference(one, two)}",
                    **{runs[0].setting.name: _tokens(one), run.setting.name: _tokens(two)},
                )
    tokens = sum(len(found) for answer in first.values() if isinstance(found := _tokens(answer), list))
    return passed(
        f"{len(first)} answers, {tokens} tokens, the same with {' and '.join(run.setting.name for run in runs)}",
        answers=len(first),
        tokens=tokens,
    )


def _tokens(answer: Mapping[str, Any]) -> list[int] | str | None:
    return answer.get("token_ids") or answer.get("got")


def _first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    left, right = _tokens(one), _tokens(other)
    if not isinstance(left, list) or not isinstance(right, list):
        return f": {left!r} against {right!r}"
    place = next(
        (index for index, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
    )
    return f" at token {place}: {_thought(one, left, place)} against {_thought(other, right, place)}"


def _thought(answer: Mapping[str, Any], tokens: list[int], place: int) -> str:
    """The token at a place, and the two best with their log probabilities where the server told them."""
    taken = str(tokens[place]) if place < len(tokens) else "the end"
    tops = answer.get("tops")
    if not isinstance(tops, list) or place >= len(tops):
        return taken
    return f"{taken} ({', '.join(f'{token!r} {value:.4f}' for token, value in tops[place])})"
