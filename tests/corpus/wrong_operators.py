"""Runs inside the image: vLLM's own operators with one thing changed in their source, each judged by scripts/check_mhc.py as it stands.

    wrong_operators.py CASES.json      [{"name": ..., "edits": [{"file": ..., "old": ..., "new": ...}], "arguments": [...]}, ...]

One JSON document on standard output: by name the exit code of check_mhc.py and what it printed. vLLM is loaded once; each case is judged in a
process that is forked from here, so that none sees another's operators.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import tempfile
import traceback
import types
from pathlib import Path
from typing import Any

SCRIPTS = "/kiln/scripts"
OPERATORS = "vllm.model_executor.kernels.mhc.torch"


def edited(source: str, edits: list[dict[str, str]], file: str) -> str:
    """A source with its exchanges made; what is exchanged must be there."""
    for one in edits:
        if one["file"] == file:
            if one["old"] not in source:
                raise ValueError(f"{file} has no {one['old']!r}")
            source = source.replace(one["old"], one["new"])
    return source


def put(name: str, path: str, source: str) -> Any:
    """Make a module of a source and have every import find it."""
    module = types.ModuleType(name)
    module.__file__ = path
    sys.modules[name] = module
    exec(compile(source, path, "exec"), module.__dict__)  # noqa: S102 - the source is the image's own, with our exchanges
    return module


def judge(case: dict[str, Any], sources: dict[str, tuple[str, str]]) -> int:
    """Run check_mhc.py's main on the case's operators; its exit code."""
    for file, name in (("operators", OPERATORS), ("check_mhc", "check_mhc")):
        path, source = sources[file]
        module = put(name, path, edited(source, case["edits"], file))
    sys.argv = ["check_mhc.py", *case["arguments"]]
    return int(module.main())


def main() -> int:
    """Judge every case and print the document."""
    cases = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    operators = importlib.import_module(OPERATORS)
    sources = {
        "operators": (str(operators.__file__), Path(str(operators.__file__)).read_text(encoding="utf-8")),
        "check_mhc": (f"{SCRIPTS}/check_mhc.py", Path(SCRIPTS, "check_mhc.py").read_text(encoding="utf-8")),
    }
    found = {}
    for case in cases:
        with tempfile.TemporaryFile("w+") as printed:
            child = os.fork()
            if not child:
                code = 3
                try:
                    os.dup2(printed.fileno(), 1)
                    code = judge(case, sources)
                except BaseException:  # noqa: BLE001 - whatever it was, the case was not judged
                    traceback.print_exc()
                finally:
                    with contextlib.suppress(OSError):
                        sys.stderr.flush()
                    os._exit(code)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            printed.seek(0)
            found[case["name"]] = {"code": code, "said": printed.read()}
    print(json.dumps(found), file=told, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
