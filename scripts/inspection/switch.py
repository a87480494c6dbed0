"""Who knows the variable that chooses the path to mHC."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from inspection.distributions import installed
from inspection.image import Image, NothingToSeeError
from inspection.sources import Code

SWITCH: Final = "VLLM_ROCM_USE_TILELANG_MHC"
PLUGIN: Final = "kiln-vllm-mhc-switch"
PLATFORMS: Final = ("cpu", "rocm")


def switch(image: Image) -> dict[str, Any]:
    """Who knows the variable that chooses the path: vLLM itself, or plugins (entry points of vLLM)."""
    code = Code(image.sites)
    start = code.file("vllm")
    if start is None:
        raise NothingToSeeError("vLLM is not installed")
    envs = start.parent / "envs.py"
    plugins = []
    for one in installed(image):
        for point in one.said.entry_points:
            if point.group == "vllm.general_plugins":
                module = code.file(point.value.partition(":")[0])
                ours = module is not None and one.name == PLUGIN
                broken = {name: _contract(module.parent, start.parent, name) if ours else "" for name in PLATFORMS}
                plugins.append({"distribution": one.name, "name": point.name, "target": point.value, "there": module is not None, "broken": broken})
    return {
        "variable": SWITCH,
        "vllm": image.shown(start.parent),
        "envs": envs.is_file(),
        "in_vllm": envs.is_file() and _defines(envs, SWITCH),
        "readers": sorted(image.shown(path) for path in _readers(start.parent)),
        "plugins": plugins,
    }


def _contract(plugin: Path, vllm: Path, platform: str) -> str:
    """What the plugin's own check of the sources it hooks on a platform says, in words; nothing where it knows them.

    It is run by itself, on files: it imports nothing but its own checks, and nothing of vLLM's.
    """
    program = "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); runpy.run_module('kiln_vllm_mhc_switch.contract', run_name='__main__', alter_sys=True)"
    done = subprocess.run(
        [sys.executable, "-I", "-B", "-c", program, str(plugin.parent), platform, str(vllm)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]


def _readers(vllm: Path) -> list[Path]:
    """vLLM's model code that asks for the variable: one that only envs.py knows chooses nothing."""
    found = []
    for folder in ("model_executor/layers", "model_executor/kernels", "models"):
        found += [path for path in (vllm / folder).rglob("*.py") if f".{SWITCH}" in path.read_text(encoding="utf-8", errors="replace")]
    return found


def _defines(path: Path, name: str) -> bool:
    """Whether a source has the name as a key of a dictionary or assigns to it: asking the environment for it defines nothing."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Dict) and any(isinstance(key, ast.Constant) and key.value == name for key in node.keys):
            return True
        stored = isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and isinstance(node.slice, ast.Constant)
        if stored and node.slice.value == name:
            return True
    return False
