"""AITER's compiled module for mHC: the GPUs that it has code for, and its name."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import elf

from inspection.image import SMALL, Image
from inspection.loader import read_library


def mhc_module(image: Image) -> dict[str, Any]:
    """aiter/jit/module_mhc.so: the GPUs that it has code for, and whether Python would load it under its name."""
    package = next((site / "aiter" for site in image.sites if (site / "aiter").is_dir()), None)
    if package is None:
        return {"aiter": False}
    path = package / "jit" / "module_mhc.so"
    found: dict[str, Any] = {"aiter": True, "path": image.shown(path), "there": path.is_file()}
    if not path.is_file():
        found["instead"] = sorted(one.name for one in path.parent.glob("*mhc*")) if path.parent.is_dir() else []
        return found
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(SMALL):
            digest.update(piece)
    found |= {"sha256": digest.hexdigest(), "size": path.stat().st_size}
    try:
        defined = read_library(str(path)).defined
        found["init"] = sorted(one.decode() for one in defined if one in {b"PyInit_module_mhc", b"pybind11_init_module_mhc"})
        # AITER calls some modules without pybind11, through ctypes: then the functions themselves are exported.
        found["exported"] = sorted(one.decode() for one in defined if re.fullmatch(rb"(aiter_)?mhc_\w+", one))
        found["code"] = [{"named": one.named, "processor": one.processor} for one in elf.code_objects(path)]
    except elf.ElfError as error:
        found["trouble"] = str(error)
        found["cannot_look"] = isinstance(error, elf.CannotLookError)
    return found
