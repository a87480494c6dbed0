"""The table of what `kiln pins derive` reads out of the releases' own files: docs/evidence/derived-pins.md."""

from __future__ import annotations

import re

from kiln.vllmfiles import given_revision
from kiln.vllmpins import Said, read_said
from tests.contract.sources import PROJECT, Release

DOCUMENT = PROJECT / "docs" / "evidence" / "derived-pins.md"
COLUMNS = (
    "release", "file", "base", "python", "archs", "triton, and picks", "pytorch", "vision", "audio", "FA", "AITER", "MORI",
    "kernels of vLLM", "tilelang", "tvm-ffi", "system triton",
)  # fmt: skip


def said(release: Release) -> Said:
    """What the files of a release say."""
    return read_said(given_revision(release.pins_folder, "").read)


def row(release: Release) -> str:
    """The release's line of the table."""
    found = said(release)
    refs = {name: source.ref.text for name, source in found.sources.items()}
    picks = [pick.text.removeprefix("https://github.com/") for pick in found.sources["triton"].picks]
    kernels = found.kernels.git.text.removeprefix("https://github.com/") + " " + found.kernels.ref.text[:12]

    def wheel(name: str) -> str:
        return found.needs[name].text.removeprefix(f"{name}==") if name in found.needs else "-"

    cells = (
        release.version,
        found.base.where.partition(":")[0].removeprefix("docker/Dockerfile."),
        found.base.text.removeprefix("rocm/"),
        found.python.text,
        found.archs.text,
        ", ".join([refs["triton"], *picks]),
        *(refs[name] for name in ("torch", "torchvision", "torchaudio", "flash-attention", "aiter", "mori")),
        kernels,
        wheel("tilelang"),
        wheel("apache-tvm-ffi"),
        "yes" if any("AITER_USE_SYSTEM_TRITON=1" in line for line in found.beside) else "no",
    )
    return f"| {' | '.join(cells)} |"


def beside(release: Release) -> str:
    """What upstream builds beside, in one line."""
    lines = "\n".join(said(release).beside)
    built = [f"{name} {ref[:12]}" for name, ref in re.findall(r"builds (\w+) at (\w+),", lines)]
    other = [f"{ref[:12]} in stage {stage}" for ref, stage in re.findall(r"checks out (\w+) in stage (\w+),", lines)]
    layout = [
        f"another layout in {line.split()[0]} {line[line.index('(') : line.index(')') + 1]}"
        for line in lines.splitlines()
        if "another layout" in line
    ]
    return "; ".join([*layout, ", ".join([*built, *other])])


def document(releases: list[Release]) -> str:
    """The page."""
    lines = [
        "# What vLLM's releases pin for their ROCm images, read from their own files",
        "",
        "Written by `pytest tests/contract/test_derived.py --update-golden` after `make contract`; a test compares it. Each line is what `kiln pins derive`",
        "(docs/derive.md) reads out of the source distribution of that release, fetched by the checksum in tests/contract/releases.toml. Nothing here was built.",
        "`file` is the Dockerfile that was read; `system triton` whether upstream builds AITER with `AITER_USE_SYSTEM_TRITON=1`.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|" + " --- |" * len(COLUMNS),
        *map(row, releases),
        "",
        "## What these images have beside, and no component of Kiln's stands for",
        "",
    ]
    lines += [f"- {one.version}: {beside(one)}" for one in releases]
    return "\n".join(lines) + "\n"
