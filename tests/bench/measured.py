"""Run kiln as ``python -m kiln`` does, and write the most memory that this process itself ever held: ``python measured.py FILE WORD ...``.

The kernel's count for children (``ru_maxrss`` after wait) would take in BuildKit's client and what the parent held before it became kiln; the high-water
mark in /proc is this program's alone.
"""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path


def peak() -> int:
    """The bytes of this process at their highest."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)[1]) * 1024


if __name__ == "__main__":
    file, *words = sys.argv[1:]
    sys.argv = ["kiln", *words]
    try:
        runpy.run_module("kiln", run_name="__main__", alter_sys=True)
    finally:
        Path(file).write_text(str(peak()), encoding="ascii")
