"""``make bench``: measure, print the table, and leave results.json and plot.svg.

python -m tests.bench [--runs N] [--folder DIR] [--out DIR] [--also FILE] [--publish] [FIGURE ...]
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from kiln.console import Console
from kiln.store import write_whole
from tests.bench.docs import write_docs
from tests.bench.figures import FIGURES
from tests.bench.lab import PROJECT, BenchError, Lab
from tests.bench.plot import draw
from tests.bench.results import Figure, Machine, document, read_document, table


def main(argv: list[str] | None = None) -> int:
    """Run it and return the exit code: 0 measured, 1 not. A figure that misses its target is said, and is no failure."""
    parser = argparse.ArgumentParser(prog="make bench", description="Measure kiln beside what one would do by hand.")
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"only these: {', '.join(FIGURES)}")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="how often each is measured (default 5)")
    parser.add_argument("--folder", type=Path, default=PROJECT / ".kiln" / "bench", help="where engine and store lie")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the results go (default: that folder)")
    parser.add_argument(
        "--also", type=Path, action="append", default=[], metavar="FILE", help="take figures of another results.json in"
    )
    parser.add_argument("--publish", action="store_true", help="write docs/benchmarks.md and what it shows, too")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.figures) - set(FIGURES):
        parser.error(f"no such figure: {', '.join(sorted(unknown))}")
    if arguments.runs < 1:
        parser.error("--runs must be at least 1")
    signal.signal(signal.SIGTERM, _end)
    also = [figure for file in arguments.also for figure in read_document(file)[0]]
    lab = Lab(arguments.folder, arguments.runs, Console())
    machine = Machine.here("")
    figures: list[Figure] = []
    failed = False
    try:
        for found in _measure(lab, tuple(arguments.figures) or tuple(FIGURES)):
            figures += found
    except BenchError as error:
        # What was measured before it, in an hour maybe, is not thrown away.
        print(f"error: {error}", file=sys.stderr)
        failed = True
    finally:
        machine = replace(machine, engine=lab.engine.version if "engine" in vars(lab) else "")
        lab.close()
    figures += also
    if not figures:
        return 1
    when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    data = document(figures, machine, _commit(), when)
    out = arguments.out or arguments.folder
    write_whole(out / "results.json", json.dumps(data, indent=2) + "\n")
    write_whole(out / "plot.svg", draw(figures, f"{machine.cpu}, {machine.cores} cores"))
    if arguments.publish and not failed:
        write_docs(data)
    print(table(figures), end="")
    return int(failed)


def _measure(lab: Lab, names: tuple[str, ...]) -> Iterator[list[Figure]]:
    for name, measure in FIGURES.items():
        if name in names:
            lab.console.step(f"measuring {name}, {lab.runs} runs")
            yield measure(lab)


def _commit() -> str:
    words = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def _end(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
