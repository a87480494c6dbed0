"""Stand-in for vLLM's setup.py."""

import os
import shutil
from pathlib import Path

import torch  # noqa: F401 - the real one is built against it
from setuptools import Distribution, setup

if os.environ["VLLM_TARGET_DEVICE"] != "rocm" or os.environ.get("VLLM_USE_PRECOMPILED"):
    raise SystemExit("this is not the build that the recipe asks for")
both = os.environ["PYTORCH_ROCM_ARCH"] == "gfx942;gfx950"
shutil.copyfile("device-code/both.so" if both else "device-code/gfx942.so", "vllm/_rocm_C.abi3.so")
shutil.copytree(os.environ["TRITON_KERNELS_SRC_DIR"], Path("vllm/third_party/triton_kernels"))


class Binary(Distribution):
    def has_ext_modules(self):
        return True


setup(
    name="vllm",
    version=os.environ["VLLM_VERSION_OVERRIDE"],
    packages=["vllm", "vllm.third_party.triton_kernels"],
    package_data={"vllm": ["*.so"]},
    entry_points={"console_scripts": ["vllm = vllm:main"]},
    distclass=Binary,
)
