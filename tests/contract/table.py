"""The table of paths, what the facts gathered beforehand (read from the sources, never run) make one expect, and every difference with its reason."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tests.contract.dispatch import HIDDEN, SETTINGS, STREAMS
from tests.contract.sources import PROJECT, Release, releases

DOCUMENT = PROJECT / "docs" / "evidence" / "mhc-dispatch.md"
Cell = Mapping[str, Any]
Results = Mapping[str, Mapping[str, Any]]

DIFFERENCES = {
    "aiter-refuses-hc_mult": "0.25 to 0.28 take AITER's kernels for any number of streams. By its sources AITER ends with `hc_mult only supports 4` then; the path is as the facts say, the "
    "server would not start.",
    "mixed": "From 0.30 on each operator asks whether the AITER that is installed has its fused function and takes a norm. With an AITER from before v0.1.16 some operators fall "
    "through to TileLang's kernels or to PyTorch's, and others stay AITER's: a mixture that the facts did not tell of.",
    "fused-op-missing": "0.29 calls AITER's fused operator without asking whether the AITER that is installed has one. With an older one (before v0.1.16) the path is as the facts "
    "say, the call would fail.",
}


def run(release: Release) -> dict[str, Any]:
    """Every cell of one release, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-B", "-m", "tests.contract.dispatch", release.version, str(release.folder)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"vLLM {release.version}: {done.stderr.strip()[-2000:]}")
    return dict(json.loads(done.stdout))


def tabled() -> list[Release]:
    """The releases in the table: those that have a model of DeepSeek V4 for AMD by itself (0.21 has none)."""
    return [one for one in releases() if (one.folder / "models" / "deepseek_v4" / "amd" / "model.py").is_file()]


def expected(version: str, cell: Cell) -> str:
    """The path by the facts: tilelang before 0.25; since then AITER where it can, else TileLang but on gfx942, else PyTorch; and what the switch is to do."""
    release = _minor(version)
    switch = cell["switch"] if release >= 25 else ""
    if switch == "garbage":
        return "refused"
    tilelang = cell["tilelang"] and (cell["arch"] != "gfx942" or release < 24)
    if switch == "1":
        return "tilelang-fused" if tilelang else "refused"
    fits = cell["hidden"] % 256 == 0 and (cell["hc_mult"] == 4 or release < 29)
    if cell["aiter"] != "no" and release >= 25 and fits:
        return "aiter-fused" if release >= 29 else "aiter-unfused"
    return "tilelang-fused" if tilelang else "native-unfused"


def head(version: str, cell: Cell) -> str:
    """hc_head by the facts: TileLang's wherever its mHC is, else Triton's, never AITER's."""
    tilelang = cell["tilelang"] and (cell["arch"] != "gfx942" or _minor(version) < 24)
    return "hc_head_fused_kernel_tilelang" if tilelang else "hc_head_triton"


def difference(version: str, cell: Cell) -> str:
    """Why a cell is not what the facts make one expect, or what they leave out: a key of DIFFERENCES, "" for none, "unexplained"."""
    want, release = expected(version, cell), _minor(version)
    if cell["path"] == want:
        if want.startswith("aiter") and cell["hc_mult"] != 4:
            return "aiter-refuses-hc_mult"
        return "fused-op-missing" if want == "aiter-fused" and cell["aiter"] == "old" else ""
    old = cell["aiter"] == "old" and release >= 30 and want == "aiter-fused"
    return "mixed" if old and "+aiter-fused" in cell["path"] else "unexplained"


def document(results: Results) -> str:
    """The page."""
    cells = [(version, cell) for version, one in results.items() for part in ("rows", "old") for cell in one[part]]
    found = [difference(version, cell) for version, cell in cells]
    lines = [
        "# The paths that vLLM's mHC takes on ROCm, by running its own code",
        "",
        "Written by `make contract`; a test compares it. Every cell is a run of the real `layers/mhc.py`, `amd/model.py`, `amd/mtp.py`, `custom_op.py`,",
        "`platforms/rocm.py`, `_aiter_ops.py`, `import_utils.py` and `envs.py` of a release, with the plugin `vllm-mhc-switch` registered as vLLM does it (0.25 and later).",
        "Replaced at their boundaries: PyTorch, the GPU's driver, AITER, TileLang, attention, experts, configuration. A model of two layers is built and passed through;",
        "the path is named by the operators that were called, and by whether the last `hc_post` was deferred. No kernel ran and no GPU was there: this is who is called, not whether it is right.",
        "",
        f"{len(cells)} cells in {len(results)} releases, {found.count('unexplained')} of them unexplained; {sum(map(bool, found))} are explained below. In every cell where the plugin",
        "spoke, its log line named the path that was then taken; off, every call was what that vLLM makes without the plugin. `refused`: the server does not start, and the message says why. *The facts* are what was known before, read in the sources and never run.",
        "",
        "The fork (`5cb4ba95`) is not on PyPI, so `make contract` cannot fetch it; what was run of it, and from where, is [a page of its own](mhc-dispatch-fork.md).",
        "",
        "Columns: `VLLM_ROCM_USE_TILELANG_MHC` unset, `0`, `1`, `garbage`. Hidden size 640 is no multiple of 256. Before 0.25 there is nothing to switch: vLLM does not know the variable.",
    ]
    for versions, one in _alike(results, "rows"):
        lines += ["", f"## {_named(versions)}", "", *_table(one)]
    lines += ["", "## With an AITER that has no fused operator and takes no norm", ""]
    lines += [
        "As v0.1.14 is. vLLM's own images of these releases pin newer ones. Only where it differs from the tables above."
    ]
    for versions, one in _alike(results, "old"):
        differing = [cell for cell in one if difference(versions[-1], cell) in ("mixed", "fused-op-missing")]
        if differing:
            lines += ["", f"### {_named(versions)}", "", *_table(one, only=differing)]
    lines += ["", "## hc_head, the layers that draft, and the compile cache", ""]
    lines += [
        "In every cell `hc_head` is TileLang's where its mHC may be used, else Triton's, and never AITER's, whatever the switch says. The layer that drafts tokens (MTP) takes the",
        "same path as the model's, with its own deferred `hc_post`. `VLLM_ROCM_USE_TILELANG_MHC` is in what `compile_factors` of each release gives:",
        "",
        "| release | unset | 0 | 1 |",
        "| --- | --- | --- | --- |",
    ]
    for versions, keys in _alike(results, "keys"):
        lines.append(f"| {_named(versions)} | {' | '.join(keys[value] or 'not in it' for value in ('', '0', '1'))} |")
    lines += ["", "## Where this is not what the facts said", ""]
    for key, why in DIFFERENCES.items():
        lines.append(f"- **{key}** ({found.count(key)} cells). {why}")
    lines += [f"- {one}" for one in READ]
    return page(lines)


def page(lines: Iterable[str]) -> str:
    """Lines as a page: prose in lines of 150, tables and headings as they are."""
    out: list[str] = []
    for prose, group in itertools.groupby(lines, key=lambda line: bool(line) and line[0] not in "#|-"):
        members = list(group)
        out += textwrap.wrap(" ".join(members), 150, break_on_hyphens=False) if prose else members
    return "\n".join(_points(out)) + "\n"


def _points(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield from (
            textwrap.wrap(line, 150, subsequent_indent="  ", break_on_hyphens=False)
            if line.startswith("- ")
            else [line]
        )


# Of the reference's words, what the sources say otherwise; none changes a cell.
READ = (
    "The facts have `use_fused_mhc` = TileLang and not (AITER and hidden % 256 == 0) for 0.29 and later too. That is 0.25 to 0.28; since 0.29 it is AITER's (with `hc_mult == 4`) or TileLang's, for AITER's path is fused then. The cells are what the facts' table of section 3 says.",
    "`_aiter_mhc_supported` and `HAS_AITER_MHC_FUSED` are in `layers/mhc.py` since 0.30, not in `amd/model.py` since 0.33; the delayed pre (DeepSeek V4.1) came with 0.30, its fused norm on gfx950 with 0.32.",
    "`is_aiter_found_and_supported` asks `on_mi3xx()` up to 0.26 and `get_cdna_version() > 2` since 0.27: gfx942 and gfx950 as before, and gfx1250 beside them.",
    "`--monokernel` (0.33) takes decode steps past these operators. The switch refuses to be on beside it.",
)


def _table(cells: Iterable[Cell], only: list[Cell] | None = None) -> list[str]:
    by_key: dict[tuple[Any, ...], dict[str, str]] = {}
    wanted = {_key(cell) for cell in only} if only is not None else None
    for cell in cells:
        if wanted is None or _key(cell) in wanted:
            by_key.setdefault(_key(cell), {})[cell["switch"]] = cell["path"]
    lines = [
        "| AITER | TileLang | GPU | hidden | hc_mult | unset | 0 | 1 | garbage |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for key, paths in by_key.items():
        found, tilelang, *rest = key
        shown = [found, "yes" if tilelang else "no", *map(str, rest), *(paths[value] for value in SETTINGS)]
        lines.append(f"| {' | '.join(shown)} |")
    return lines


def _key(cell: Cell) -> tuple[Any, ...]:
    return tuple(cell[name] for name in ("aiter", "tilelang", "arch", "hidden", "hc_mult"))


def _alike(results: Results, part: str) -> list[tuple[list[str], Any]]:
    """Releases in a row whose paths are all the same, with those."""
    groups = itertools.groupby(results.items(), key=lambda item: _paths(item[1][part]))
    return [
        ([version for version, _ in members], members[0][1][part]) for members in (list(group) for _, group in groups)
    ]


def _paths(part: Any) -> Any:
    return part if isinstance(part, dict) else [(*_key(cell), cell["switch"], cell["path"]) for cell in part]


def _named(versions: list[str]) -> str:
    return f"vLLM {', '.join(versions)}"


def _minor(version: str) -> int:
    return int(version.split(".")[1])


def whole(cells: list[Cell]) -> bool:
    """Whether every combination is there, once."""
    combinations = [(*_key(cell)[1:], cell["switch"]) for cell in cells]
    tilelang_and_arch = itertools.product((True, False), ("gfx942", "gfx950"), HIDDEN, STREAMS, SETTINGS)
    each = {
        found: [(*_key(cell)[1:], cell["switch"]) for cell in cells if cell["aiter"] == found]
        for found in {cell["aiter"] for cell in cells}
    }
    wanted = sorted(tilelang_and_arch, key=str)
    return bool(combinations) and all(sorted(one, key=str) == wanted for one in each.values())
