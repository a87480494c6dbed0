"""Stand-in for Triton's setup.py: takes LLVM and the JSON library from where it is told, and will not build without."""

import json
import os
import re
from pathlib import Path

from setuptools import setup

if os.environ.get("TRITON_OFFLINE_BUILD") != "1" or os.environ.get("TRITON_BUILD_PROTON") != "OFF":
    raise SystemExit("would download LLVM and CUDA's tools now")
for variable, file in (("LLVM_SYSPATH", "bin/mlir-opt"), ("JSON_SYSPATH", "include/nlohmann/json.hpp")):
    if not (Path(os.environ[variable]) / file).is_file():
        raise SystemExit(f"{variable} has no {file}")
wants = json.loads(Path("wants.json").read_text(encoding="utf-8"))
if re.findall(r"FIX_(\d+) = 1", Path("python/triton/fixes.py").read_text(encoding="utf-8")) != wants["fixes"]:
    raise SystemExit(f"the fixes in this source are not the picked ones: {wants['fixes']}")
setup(
    name="triton",
    version=wants["version"],
    package_dir={"": "python"},
    packages=["triton", "triton.backends", "triton.backends.amd"],
)
