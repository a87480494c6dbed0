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
# What that plugin hooks.
HOOKED: Final = ("models", "deepseek_v4", "cpu", "model.py")


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
                broken = _contract(module.parent, start.parent) if module and one.name == PLUGIN else ""
                plugins.append({"distribution": one.name, "name": point.name, "target": point.value, "there": module is not None, "broken": broken})
    return {
        "variable": SWITCH,
        "vllm": image.shown(start.parent),
        "envs": envs.is_file(),
        "in_vllm": envs.is_file() and _defines(envs, SWITCH),
        "readers": sorted(image.shown(path) for path in _readers(start.parent)),
        "plugins": plugins,
    }


def _contract(plugin: Path, vllm: Path) -> str:
    """What the plugin's own check of the source it hooks says, in words; nothing where it knows that source.

    Its checking module is run by itself, on text: it imports nothing but its own errors, and nothing of vLLM's.
    """
    source = vllm.joinpath(*HOOKED)
    if not source.is_file():
        return f"{'/'.join(HOOKED)} is not in this vLLM"
    program = "import sys; sys.path.insert(0, sys.argv[1]); from kiln_vllm_mhc_switch.platforms import cpu_source; cpu_source.check_source(sys.stdin.read(), 'in the image')"
    done = subprocess.run(
        [sys.executable, "-I", "-B", "-c", program, str(plugin.parent)],
        input=source.read_text(encoding="utf-8"),
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
