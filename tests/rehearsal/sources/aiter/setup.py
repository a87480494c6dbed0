"""Stand-in for AITER's setup.py, with the traps of the real one: it exchanges Triton, and packs no kernel where torch is missing.

The file FAULT, where there is one, says what is to go wrong.
"""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from setuptools import Distribution, setup

FAULT = Path("FAULT").read_text(encoding="utf-8").strip() if Path("FAULT").is_file() else ""


def installed(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


triton = installed("triton")
if os.environ.get("AITER_USE_SYSTEM_TRITON") == "1" and triton and FAULT != "swaps-triton-loudly":
    print(f"[aiter] AITER_USE_SYSTEM_TRITON=1, keeping existing triton=={triton}")
else:
    print(f"[aiter] Replacing existing triton=={triton} with aiter-compatible triton")
    subprocess.run([sys.executable, "-m", "pip", "install", "triton"], check=False)
if FAULT == "swaps-triton-silently":
    folder = next(Path("/usr/local/lib").glob("python3.*/site-packages"))
    shutil.move(next(folder.glob("triton-*.dist-info")), folder / "triton-3.7.0.dist-info")
    metadata = folder / "triton-3.7.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace(f"Version: {triton}", "Version: 3.7.0"))
if FAULT == "uses-the-network":
    urllib.request.urlopen("https://example.invalid/flydsl.whl", timeout=20)

if not any(Path("3rdparty/composable_kernel").iterdir()):
    raise SystemExit("CK is needed by aiter, please make sure clone by git clone --recursive")
if f"flydsl=={installed('flydsl')}" not in Path("requirements.txt").read_text(encoding="utf-8").splitlines():
    raise SystemExit("FlyDSL AOT compilation failed")
if os.environ.get("PREBUILD_KERNELS") in ("1", "2"):
    try:
        import torch  # noqa: F401
    except ImportError:
        print("[aiter] PREBUILD_KERNELS set but torch not installed, skip precompilation in this environment")
    else:
        both = os.environ["GPU_ARCHS"] == "gfx942;gfx950" and FAULT != "gfx942-only"
        if FAULT != "no-module":
            shutil.copyfile("device-code/both.so" if both else "device-code/gfx942.so", "aiter/jit/module_mhc.so")
Path("aiter/built.json").write_text(json.dumps({"archs": os.environ["GPU_ARCHS"]}) + "\n", encoding="utf-8")


class Binary(Distribution):
    def has_ext_modules(self):
        return True


setup(
    name="amd-aiter",
    version=os.environ["SETUPTOOLS_SCM_PRETEND_VERSION"],
    packages=["aiter", "aiter.jit"],
    package_data={"aiter": ["*.json"], "aiter.jit": ["*.so"]},
    distclass=Binary,
)
