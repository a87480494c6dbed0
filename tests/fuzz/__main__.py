"""``make fuzz``: a hundred thousand damaged documents; every one is read, or refused in Kiln's own words, in bounded time and memory.

python -m tests.fuzz [--runs N] [--seed N] [TARGET ...]
"""

from __future__ import annotations

import argparse
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from kiln.errors import KilnError
from tests.fuzz.targets import Target, targets

HANG_SECONDS = 10
MEMORY_LIMIT = 200 << 20


class HangError(Exception):
    """One document took too long."""


@dataclass
class Tally:
    """What came of one target's documents."""

    read: int = 0
    refused: int = 0
    slowest: float = 0.0


class EscapedError(Exception):
    """Something else than an error of Kiln's came out; the message has target, seed and traceback."""


def feed(name: str, target: Target, runs: int, seed: int) -> Tally:
    """Feed one target. Raises EscapedError at the first document that is neither read nor refused."""
    tally = Tally()
    for number in range(runs):
        began = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
        try:
            target(random.Random(f"{name} {seed} {number}"))  # noqa: S311 - a repeatable one is wanted
            tally.read += 1
        except KilnError:
            tally.refused += 1
        except BaseException as error:
            raise EscapedError(f"{name}, document {number} of seed {seed}:\n{traceback.format_exc()}") from error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        tally.slowest = max(tally.slowest, time.monotonic() - began)
    return tally


def alarm() -> None:
    """From now on a document that takes too long raises HangError."""

    def ring(*_: object) -> None:
        raise HangError(f"more than {HANG_SECONDS} s")

    signal.signal(signal.SIGALRM, ring)


def peak() -> int:
    """The most memory that this process held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    """Feed all targets and print what came of them: 0 all well, 1 not."""
    parser = argparse.ArgumentParser(prog="make fuzz", description="Feed Kiln's readers with damaged documents.")
    parser.add_argument("names", nargs="*", metavar="TARGET")
    parser.add_argument("--runs", type=int, default=100_000, metavar="N", help="documents in all (default 100000)")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    arguments = parser.parse_args()
    alarm()
    with tempfile.TemporaryDirectory() as folder:
        chosen = {name: one for name, one in targets(Path(folder)).items() if name in (arguments.names or [name])}
        each = -(-arguments.runs // max(len(chosen), 1))
        total = 0
        for name, target in chosen.items():
            try:
                tally = feed(name, target, each, arguments.seed)
            except EscapedError as error:
                print(error, file=sys.stderr)
                return 1
            total += each
            print(
                f"{name:14} {tally.read:7} read {tally.refused:7} refused   slowest {tally.slowest:.2f} s", flush=True
            )
    held = peak()
    print(f"{total} documents, no traceback, no hang; {held / 1e6:.0f} MB at most")
    return 0 if held <= MEMORY_LIMIT and total else 1


if __name__ == "__main__":
    sys.exit(main())
