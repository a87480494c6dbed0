"""``make corpus``: look at every case, print the table, and end with 1 where a defect was not caught or a clean variant blamed.

python -m tests.corpus [--json] [--at-once N] [WORD ...]
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from types import FrameType

from tests.corpus.cases import CorpusError, read_corpus
from tests.corpus.runner import AT_ONCE, Lookers, Row, chosen, counts, document, run_cases, shown


def main(argv: list[str] | None = None) -> int:
    """Run it and return the exit code: 0 all is as it must be, 1 something is not, 2 the corpus could not be looked at."""
    parser = argparse.ArgumentParser(
        prog="make corpus", description="Look at images, wheels, logs, servers and operators with one defect each."
    )
    parser.add_argument(
        "words", nargs="*", metavar="WORD", help="only cases with this in kind/base/name, or of this check"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    parser.add_argument("--list", action="store_true", help="name the cases and look at none")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, metavar="N")
    arguments = parser.parse_args(argv)
    # A container or an image of ours must not outlive us because somebody ended us politely.
    signal.signal(signal.SIGTERM, _end)
    began = time.monotonic()
    try:
        cases = chosen(read_corpus(), arguments.words)
        if arguments.list:
            print("\n".join(f"{case.path}  {case.check or '(clean)'}" for case in cases))
            return 0
        widths = (
            max(len(case.name) for case in cases),
            max(len(case.base) for case in cases),
            max(len(case.check or "(clean)") for case in cases),
        )
        with Lookers(cases).working() as look:
            rows = [_told(row, widths, quiet=arguments.json) for row in run_cases(cases, look, arguments.at_once)]
    except CorpusError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    seconds, found = round(time.monotonic() - began, 1), counts(rows)
    if arguments.json:
        print(json.dumps(document(rows, seconds), indent=2, ensure_ascii=False))
    else:
        print(
            f"\ndefects caught {found['caught']} of {found['defects']}, clean variants not blamed {found['not_blamed']} of {found['clean']}, {seconds} s"
        )
    return 0 if all(row.good for row in rows) else 1


def _told(row: Row, widths: tuple[int, int, int], *, quiet: bool) -> Row:
    if not quiet:
        print(shown(row, widths), flush=True)
    return row


def _end(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
