"""The dispatch of the fork that has the switch itself, where its two files are at hand.

python -m tests.contract.fork FOLDER    FOLDER is the package vllm of a checkout of that commit; writes the page with its table

The commit is on no package index, so ``make contract`` cannot fetch it. What decides in it is two files; the others of ``standins.REAL`` are stand-ins
here, the variables' defaults and values among them as the facts have them (``1`` and ``true`` are on; both are off by default).
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from kiln.store import write_whole
from tests.contract.dispatch import HIDDEN, SETTINGS, STREAMS, VARIABLE, chosen, run
from tests.contract.sources import CACHE, PROJECT
from tests.contract.standins import Machine, Module, World
from tests.contract.table import page

COMMIT = "5cb4ba95c75842e01af97b5d8c03b67048fb3a97"
FILES = {
    "model_executor/layers/mhc.py": "940a0e0a0bcf54f887c48c1999305ad7f58de90bfbf21320e2714e00091e3b51",
    "models/deepseek_v4/amd/model.py": "f43f28d11ed6e602de6cb88cfb0534fc91da5d36d700aead019adf77c0510a41",
}
FOLDER = CACHE / COMMIT / "vllm"
DOCUMENT = PROJECT / "docs" / "evidence" / "mhc-dispatch-fork.md"
MASTER = "VLLM_ROCM_USE_AITER"


class HipOperator(Module):
    """``CustomOp`` on ROCm: what is called is ``forward_hip``."""

    @staticmethod
    def register(_name: str) -> Any:
        return lambda cls: cls

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward_hip(*args, **kwargs)


def there() -> bool:
    """Whether both files are in the cache, with these checksums."""
    paths = {FOLDER / name: sha256 for name, sha256 in FILES.items()}
    return all(
        path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256 for path, sha256 in paths.items()
    )


def rows() -> list[dict[str, Any]]:
    """Every cell: whether AITER is there is nothing that the fork asks, so its own variable for that stands in its place."""
    found = []
    for master, tilelang, arch, switch in itertools.product(("", "1"), (True, False), ("gfx942", "gfx950"), SETTINGS):
        machine = Machine("yes", tilelang, arch)
        extra = {
            "vllm.envs": {"__getattr__": lambda name: os.environ.get(name, "").lower() in ("1", "true")},
            "vllm.utils.import_utils": {"has_tilelang": lambda machine=machine: machine.tilelang},
            "vllm.model_executor.custom_op": {"CustomOp": HipOperator},
        }
        with chosen(VARIABLE, switch), chosen(MASTER, master), World(FOLDER, COMMIT[:8], machine, extra=extra) as world:
            importlib.import_module("vllm.model_executor.layers.mhc")
            for hidden, streams in itertools.product(HIDDEN, STREAMS):
                cell = {
                    "master": master,
                    "tilelang": tilelang,
                    "arch": arch,
                    "hidden": hidden,
                    "hc_mult": streams,
                    "switch": switch,
                }
                found.append({**cell, **run(world, hidden, streams, plugin=False, drafts=False)})
    return found


def expected(cell: dict[str, Any]) -> str:
    """The path by the facts: AITER's with ``VLLM_ROCM_USE_AITER=1`` and the switch not on, else TileLang's, else PyTorch's; the GPU is not asked."""
    if cell["master"] and cell["switch"] != "1":
        if cell["hidden"] % 256 == 0:
            return "aiter-unfused"
        return "tilelang-unfused" if cell["tilelang"] else "native-unfused"
    return "tilelang-fused" if cell["tilelang"] else "native-unfused"


def document(cells: list[dict[str, Any]]) -> str:
    """The page."""
    wrong = sum(cell["path"] != expected(cell) for cell in cells)
    lines = [
        "# The paths that the fork's mHC takes, by running its own code",
        "",
        f"Fangzhou-Ai/vllm at `{COMMIT}`, which has `{VARIABLE}` itself; made as [the table of upstream's releases](mhc-dispatch.md) is, without the plugin.",
        "Real here: `layers/mhc.py` and `amd/model.py`. The commit is on no package index and its repository was not reached. The text of these two files was read in an index",
        "of public repositories, at that commit, which names lengths and no checksums; they were put on disk by making their differences to 0.22.1's and have exactly those lengths",
        "(12202 and 37265 characters). So the checksums in `tests/contract/fork.py` are ours: whoever has the commit should run `python -m tests.contract.fork FOLDER`, which compares.",
        "`envs.py`, `import_utils.py` and `custom_op.py` are stand-ins; `amd/mtp.py` was not there, and drafting was not run.",
        "",
        f"{len(cells)} cells, {wrong} of them not as the facts say. The fork does not ask whether AITER can be imported, which GPU it is, or how many streams there are.",
        "",
        f"| {MASTER} | TileLang | GPU | hidden | hc_mult | unset | 0 | 1 | garbage |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    by_key: dict[tuple[Any, ...], dict[str, str]] = {}
    for cell in cells:
        key = (
            cell["master"] or "unset",
            "yes" if cell["tilelang"] else "no",
            cell["arch"],
            cell["hidden"],
            cell["hc_mult"],
        )
        by_key.setdefault(key, {})[cell["switch"]] = cell["path"]
    for key, paths in by_key.items():
        lines.append(f"| {' | '.join(map(str, key))} | {' | '.join(paths[value] for value in SETTINGS)} |")
    lines += [
        "",
        "- `garbage` is off and nobody says so; upstream with the plugin refuses it.",
        "- With the switch on, or without `VLLM_ROCM_USE_AITER=1`, gfx942 takes TileLang's mHC, which is wrong there (vLLM issue 45698). The plugin refuses that on upstream.",
        "- `tilelang-unfused`: AITER's way through the model with a hidden size that AITER does not take; the operators fall through, as the facts say.",
    ]
    return page(lines)


def main() -> int:
    """Take the two files from a checkout, compare them, and write the page."""
    source = Path(sys.argv[1])
    for name, sha256 in FILES.items():
        if (found := hashlib.sha256((source / name).read_bytes()).hexdigest()) != sha256:
            print(f"error: {name} has the sha256 {found}, and tests/contract/fork.py has {sha256}", file=sys.stderr)
            return 1
        (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, FOLDER / name)
    write_whole(DOCUMENT, document(rows()))
    print(f"wrote {DOCUMENT.relative_to(PROJECT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
