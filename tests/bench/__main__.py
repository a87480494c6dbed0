"""``make bench``: measure, print the table, and leave results.json and plot.svg.

python -m tests.bench [--runs N] [--folder DIR] [--out DIR] [--also FILE] [--publish] [FIGURE ...]
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from kiln.console import Console
from kiln.store import write_whole
from tests.bench.docs import write_docs
from tests.bench.figures import BUILDS, NAMES, SINGLE, builds
from tests.bench.lab import PROJECT, BenchError, Lab
from tests.bench.plot import draw
from tests.bench.results import Figure, Machine, document, read_document, table


def main(argv: list[str] | None = None) -> int:
    """Run it and return the exit code: 0 measured, 1 not. A figure that misses its target is said, and is no failure."""
    parser = argparse.ArgumentParser(prog="make bench", description="Measure kiln beside what one would do by hand.")
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"only these: {', '.join(NAMES)}")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="how often each is measured (default 5)")
    parser.add_argument("--folder", type=Path, default=PROJECT / ".kiln" / "bench", help="where engine and store lie")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the results go (default: that folder)")
    parser.add_argument(
        "--also", type=Path, action="append", default=[], metavar="FILE", help="take figures of another results.json in"
    )
    parser.add_argument("--publish", action="store_true", help="write docs/benchmarks.md and what it shows, too")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.figures) - set(NAMES):
        parser.error(f"no such figure: {', '.join(sorted(unknown))}")
    if arguments.runs < 1:
        parser.error("--runs must be at least 1")
    signal.signal(signal.SIGTERM, _end)
    also = [figure for file in arguments.also for figure in read_document(file)[0]]
    lab = Lab(arguments.folder, arguments.runs, Console())
    machine = Machine.here("")
    try:
        figures = [*_measure(lab, tuple(arguments.figures) or NAMES), *also]
        machine = _with_engine(machine, lab)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        lab.close()
    when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    data = document(figures, machine, _commit(), when)
    out = arguments.out or arguments.folder
    write_whole(out / "results.json", json.dumps(data, indent=2) + "\n")
    write_whole(out / "plot.svg", draw(figures, f"{machine.cpu}, {machine.cores} cores"))
    if arguments.publish:
        write_docs(data)
    print(table(figures), end="")
    return 0


def _measure(lab: Lab, names: tuple[str, ...]) -> list[Figure]:
    figures: list[Figure] = []
    for name, measure in SINGLE.items():
        if name in names:
            lab.console.step(f"measuring {name}, {lab.runs} runs")
            figures += measure(lab)
    if wanted := frozenset(BUILDS) & frozenset(names):
        figures += builds(lab, wanted)
    return figures


def _with_engine(machine: Machine, lab: Lab) -> Machine:
    from dataclasses import replace

    return replace(machine, engine=lab.engine.version if "engine" in lab.__dict__ else "")


def _commit() -> str:
    words = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def _end(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
