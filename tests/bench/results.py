"""What a benchmark leaves: figures, each with every run, its median, and what it is compared with; as JSON and as a table."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 1


@dataclass(frozen=True)
class Runs:
    """One thing measured several times; ``about`` says what was done."""

    about: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass(frozen=True)
class Figure:
    """What was measured, in ``unit``, beside what it is compared with (or nothing), and the most memory that kiln itself held in any run.

    ``most`` is what the median, and ``most_ratio`` what the ratio should be at most, where somebody set one. ``facts`` are counts that were taken by the way.
    """

    name: str
    unit: str
    kiln: Runs
    other: Runs | None = None
    memory: int | None = None
    most: float | None = None
    most_ratio: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """Kiln's median as a part of the other's."""
        return self.kiln.median / self.other.median if self.other and self.other.median else None

    @property
    def met(self) -> bool | None:
        """Whether it is at most what it should be; None where nobody said what that is."""
        bounds = [(self.kiln.median, self.most), (self.ratio, self.most_ratio)]
        set_bounds = [(value, most) for value, most in bounds if most is not None]
        return all(value is not None and value <= most for value, most in set_bounds) if set_bounds else None

    def data(self) -> dict[str, Any]:
        """For programs."""

        def runs(one: Runs | None) -> dict[str, Any] | None:
            return one and {"about": one.about, "runs": list(one.values), "median": one.median}

        return {
            "name": self.name,
            "unit": self.unit,
            "kiln": runs(self.kiln),
            "compared": runs(self.other),
            "ratio": self.ratio,
            "memory": self.memory,
            "target": {"most": self.most, "most_ratio": self.most_ratio, "met": self.met},
            "facts": self.facts,
        }


def read_figure(data: dict[str, Any]) -> Figure:
    """A figure out of a document; what is computed is computed again."""
    kiln, other = (one and Runs(one["about"], tuple(one["runs"])) for one in (data["kiln"], data["compared"]))
    target = data["target"]
    return Figure(
        data["name"], data["unit"], kiln, other, data["memory"], target["most"], target["most_ratio"], data["facts"]
    )


@dataclass(frozen=True)
class Machine:
    """Where it was measured."""

    cpu: str
    cores: int
    memory: int
    kernel: str
    python: str
    engine: str
    buildx: str
    load: float

    @classmethod
    def here(cls, engine: str) -> Machine:
        """This machine, and how busy it was before."""
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text(encoding="ascii"))[1]
        buildx = subprocess.run(["docker", "buildx", "version"], capture_output=True, text=True, check=False).stdout
        return cls(
            re.search(r"model name\s*: (.*)", cpuinfo)[1],
            os.cpu_count() or 1,
            int(memory) * 1024,
            platform.release(),
            platform.python_version(),
            engine,
            (buildx.split() or [""])[1:2][0] if len(buildx.split()) > 1 else "",
            round(os.getloadavg()[0], 2),
        )


def document(figures: list[Figure], machine: Machine, commit: str, when: str) -> dict[str, Any]:
    """The whole benchmark, for programs."""
    return {
        "schema": SCHEMA,
        "commit": commit,
        "when": when,
        "machine": asdict(machine),
        "figures": [figure.data() for figure in figures],
    }


def read_document(path: Path) -> tuple[list[Figure], dict[str, Any]]:
    """The figures of a document, and the rest of it. Raises ValueError where it is none that this program reads."""
    data = json.loads(path.read_text(encoding="utf-8"))
    if data.get("schema") != SCHEMA:
        raise ValueError(f"{path}: schema {data.get('schema')!r}, and this reads {SCHEMA}")
    return [read_figure(figure) for figure in data["figures"]], data


def amount(value: float, unit: str) -> str:
    """A measured value for people."""
    if unit == "bytes":
        return f"{value / 1e6:,.3f} MB" if value < 1e6 else f"{value / 1e6:,.1f} MB"
    return f"{value:.2f} s"


def table(figures: list[Figure]) -> str:
    """The figures as a Markdown table."""
    lines = [
        "| figure | kiln | compared with | ratio | runs | kiln's memory | target |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for one in figures:
        other = amount(one.other.median, one.unit) if one.other else ""
        ratio = f"{one.ratio:.3f}" if one.ratio is not None else ""
        memory = f"{one.memory / 2**20:.0f} MiB" if one.memory is not None else ""
        runs = str(len(one.kiln.values)) + (f" / {len(one.other.values)}" if one.other else "")
        lines.append(
            f"| {one.name} | {amount(one.kiln.median, one.unit)} | {other} | {ratio} | {runs} | {memory} | {_target(one)} |"
        )
    return "\n".join(lines) + "\n"


def _target(figure: Figure) -> str:
    parts = [f"at most {amount(figure.most, figure.unit)}"] if figure.most is not None else []
    parts += [f"ratio at most {figure.most_ratio:g}"] if figure.most_ratio is not None else []
    return f"{', '.join(parts)}: {'met' if figure.met else 'missed'}" if parts else ""
