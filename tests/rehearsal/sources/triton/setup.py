"""Stand-in for Triton's setup.py: takes LLVM and the JSON library from where it is told, and will not build without."""

import os
from pathlib import Path

from setuptools import setup

if os.environ.get("TRITON_OFFLINE_BUILD") != "1" or os.environ.get("TRITON_BUILD_PROTON") != "OFF":
    raise SystemExit("would download LLVM and CUDA's tools now")
for variable, file in (("LLVM_SYSPATH", "bin/mlir-opt"), ("JSON_SYSPATH", "include/nlohmann/json.hpp")):
    if not (Path(os.environ[variable]) / file).is_file():
        raise SystemExit(f"{variable} has no {file}")
fixes = Path("python/triton/fixes.py").read_text(encoding="utf-8")
if "8991" not in fixes or "9541" not in fixes:
    raise SystemExit("the two picked fixes are not in this source")
setup(
    name="triton",
    version="3.6.0",
    package_dir={"": "python"},
    packages=["triton", "triton.backends", "triton.backends.amd"],
)
