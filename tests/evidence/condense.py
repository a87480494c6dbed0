"""Joins documents of scripts/check_mhc.py into one measured table: python tests/evidence/condense.py DRIVER VERSIONS DOCUMENT... > table.json"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    driver, versions, *names = sys.argv[1:]
    documents: list[dict[str, Any]] = [json.loads(Path(name).read_text(encoding="utf-8")) for name in names]
    first = documents[0]
    head = {"device": first["device"], "driver": driver, "versions": versions, "tolerance": first["tolerance"]}
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    cases = []
    for case in (case for document in documents for case in document["cases"]):
        where = {key: value for key, value in case["case"].items() if key != "seed"}
        worst = {name: float(f"{error:.3g}") for name, error in case["worst"].items()}
        kept = {key: case[key] for key in ("runs", "alarms", "taken", "seconds")}
        cases.append("  " + json.dumps({**where, "worst": worst, **kept}))
    print("{\n" + ",\n".join([*lines, ' "cases": [\n' + ",\n".join(cases) + "\n ]"]) + "\n}")


if __name__ == "__main__":
    main()
