"""Who knows the variable that chooses the path to mHC."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, Final

from inspection.distributions import installed
from inspection.image import Image, NothingToSeeError
from inspection.sources import Code

SWITCH: Final = "VLLM_ROCM_USE_TILELANG_MHC"


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
                there = code.file(point.value.partition(":")[0]) is not None
                plugins.append({"distribution": one.name, "name": point.name, "target": point.value, "there": there})
    return {
        "variable": SWITCH,
        "vllm": image.shown(start.parent),
        "envs": envs.is_file(),
        "in_vllm": envs.is_file() and _defines(envs, SWITCH),
        "plugins": plugins,
    }


def _defines(path: Path, name: str) -> bool:
    """Whether a source has the name as a key of a dictionary or assigns to it: asking the environment for it defines nothing."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Dict) and any(isinstance(key, ast.Constant) and key.value == name for key in node.keys):
            return True
        stored = isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and isinstance(node.slice, ast.Constant)
        if stored and node.slice.value == name:
            return True
    return False
