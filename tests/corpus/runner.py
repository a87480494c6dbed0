"""Looking at the cases and judging what was said of them: the same for ``make corpus`` and for the tests."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Self

from kiln.verify.checks import Outcome
from kiln.verify.render.common import clean as harmless
from tests.corpus.cases import Case, CorpusError
from tests.corpus.images import Images
from tests.corpus.operators import Operators
from tests.corpus.processes import look_at_log, look_at_server, look_at_wheel

Look = Callable[[Case], Mapping[str, Outcome]]
# The image's containers keep both cores of a small machine busy; more at once would only wait for each other.
AT_ONCE = 2


@dataclass(frozen=True)
class Row:
    """One case and what came of it. ``trouble`` says why it did not end as it must, and is empty where it did."""

    kind: str
    base: str
    name: str
    clean: bool
    check: str
    status: str
    message: str
    seconds: float
    trouble: str

    @property
    def good(self) -> bool:
        """Whether the defect was caught by its check in so many words, or the clean variant was not blamed."""
        return not self.trouble


class Lookers:
    """Who looks at which kind of case; images and operators need the engine, and ask for it when the first of them comes."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self._cases = cases
        self._images: Images | None = None
        self._operators: Operators | None = None

    def prepare(self) -> None:
        """Find every base that the cases need. Raises CorpusError where one is not there, before anything is looked at."""
        missing = []
        for base in dict.fromkeys(case.base for case in self._cases if case.kind in ("image", "operator")):
            try:
                self.images.base(base)
            except CorpusError as error:
                missing.append(str(error))
        if missing:
            raise CorpusError("\n".join(missing))
        self._operators = (
            Operators(self.images, self._cases) if any(one.kind == "operator" for one in self._cases) else None
        )

    @contextmanager
    def working(self) -> Iterator[Self]:
        """Ready to look. With containers of ours, the state folder is held: another kiln would take them for what a killed run left, and remove them.

        Raises CorpusError as ``prepare`` does.
        """
        if not any(case.kind in ("image", "operator") for case in self._cases):
            yield self
            return
        with self.images.workspace.exclusive(lambda text: print(text, file=sys.stderr)):
            self.prepare()
            yield self

    @property
    def images(self) -> Images:
        """The bases in the engine."""
        if self._images is None:
            self._images = Images()
        return self._images

    def __call__(self, case: Case) -> Mapping[str, Outcome]:
        """What the checks say of a case."""
        if case.kind == "image":
            return self.images.look(case)
        if case.kind == "operator":
            assert self._operators is not None, "prepare() comes first"
            return self._operators.look(case)
        return {"log": look_at_log, "server": look_at_server, "wheel": look_at_wheel}[case.kind](case)


def judge(case: Case, outcomes: Mapping[str, Outcome]) -> tuple[str, Outcome | None]:
    """Why a case did not end as it must (nothing where it did), and the outcome that is worth showing."""
    if not outcomes:
        return f"there is no check {case.check}" if case.check else "no check looked at it", None
    if case.clean:
        return _not_blamed(case, outcomes)
    outcome = outcomes.get(case.check)
    if outcome is None:
        return f"there is no check {case.check}; there are {', '.join(sorted(outcomes))}", None
    if outcome.status != case.status:
        return f"not caught: {case.check} ended as {outcome.status}, not as {case.status}", outcome
    if case.says not in outcome.summary:
        return f"{case.check} does not say {case.says!r}", outcome
    return "", outcome


def _not_blamed(case: Case, outcomes: Mapping[str, Outcome]) -> tuple[str, Outcome | None]:
    for name, outcome in outcomes.items():
        if outcome.status in ("fail", "error"):
            return f"blamed by {name} ({outcome.status})", outcome
    lacking = [name for name in case.data.get("passes", []) if name not in outcomes or outcomes[name].status != "pass"]
    if lacking:
        return f"{', '.join(lacking)} did not pass", outcomes.get(lacking[0])
    passed = [outcome for outcome in outcomes.values() if outcome.status == "pass"]
    if not passed:
        return "no check passed, so nothing was looked at", next(iter(outcomes.values()))
    return "", passed[0] if len(outcomes) == 1 else Outcome("pass", f"{len(passed)} checks passed")


def run_case(case: Case, look: Look) -> Row:
    """Look at one case. What goes wrong while looking is that case's trouble, and the others are looked at all the same."""
    began = time.monotonic()
    try:
        trouble, outcome = judge(case, look(case))
    except Exception as error:  # noqa: BLE001 - whatever it was, the row must say so
        trouble, outcome = f"could not look: {type(error).__name__}: {error}", None
    seconds = outcome.timing.get("operators") if outcome else None
    return Row(
        case.kind,
        case.base,
        case.name,
        case.clean,
        case.check,
        outcome.status if outcome else "none",
        _line(outcome.summary if outcome else "", case.says),
        round(time.monotonic() - began if seconds is None else seconds, 1),
        harmless(trouble),
    )


def _line(summary: str, says: str) -> str:
    """The line of a message that has the words, or its first."""
    lines = [harmless(line) for line in summary.splitlines() if line.strip()]
    first = says.splitlines()[0] if says else ""
    return next((line for line in lines if first and first in line), lines[0] if lines else "")


def run_cases(cases: Sequence[Case], look: Look, at_once: int = AT_ONCE) -> Iterator[Row]:
    """The rows in the cases' order, each as soon as it and those before it are there."""
    with ThreadPoolExecutor(at_once) as pool:
        jobs = [pool.submit(run_case, case, look) for case in cases]
        try:
            for job in jobs:
                yield job.result()
        finally:
            for job in jobs:
                job.cancel()


def chosen(cases: Iterable[Case], words: Sequence[str]) -> list[Case]:
    """The cases whose path (kind/base/name) or check has one of the words; without words, all. Raises CorpusError where none has."""
    found = [case for case in cases if not words or any(word in case.path or word == case.check for word in words)]
    if not found:
        raise CorpusError(f"no case has {' or '.join(words)} in its kind, base, name or check")
    return found


def sample(cases: Iterable[Case], each: int = 2) -> list[Case]:
    """The cases that tell most a second: of the images', whose files are read for every row, ``each`` of a base and a check, far apart; the others all."""
    cases = list(cases)
    alike: defaultdict[tuple[str, str], list[Case]] = defaultdict(list)
    for case in cases:
        if case.kind == "image":
            alike[case.base, case.check].append(case)
    taken = {one.path for rows in alike.values() for one in rows[:: max(1, len(rows) // each)][:each]}
    return [case for case in cases if case.kind != "image" or case.path in taken]


def counts(rows: Sequence[Row]) -> dict[str, int]:
    """How many there are of each, and how many ended as they must."""
    defects, clean = [row for row in rows if not row.clean], [row for row in rows if row.clean]
    return {
        "defects": len(defects),
        "caught": sum(row.good for row in defects),
        "clean": len(clean),
        "not_blamed": sum(row.good for row in clean),
    }


def shown(row: Row, widths: tuple[int, int, int]) -> str:
    """One line of the table, and below it what is wrong with it."""
    what, base, check = widths
    mark = "ok" if row.good else "WRONG"
    text = (
        f"{mark:5}  {row.kind:8}  {row.base:{base}}  {row.name:{what}}  {row.check or '(clean)':{check}}  {row.status:5}"
        f"  {row.seconds:5.1f} s  {row.message[:120]}"
    )
    return text.rstrip() if row.good else f"{text.rstrip()}\n       {row.trouble}"


def document(rows: Sequence[Row], seconds: float) -> dict[str, Any]:
    """All of it as data."""
    return {
        "schema_version": 1,
        "rows": [{**asdict(row), "good": row.good} for row in rows],
        **counts(rows),
        "seconds": seconds,
    }
