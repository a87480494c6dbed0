"""Stand-in for torchvision's setup.py: without FORCE_CUDA and without a GPU it builds for the CPU alone and says nothing."""

import os
import shutil

import torch  # noqa: F401 - the real one is built against it
from setuptools import Distribution, setup

if os.environ.get("FORCE_CUDA") == "1":
    both = os.environ["PYTORCH_ROCM_ARCH"] == "gfx942;gfx950"
    shutil.copyfile("device-code/both.so" if both else "device-code/gfx942.so", "torchvision/_C.so")
else:
    shutil.copyfile("device-code/host_only.so", "torchvision/_C.so")


class Binary(Distribution):
    def has_ext_modules(self):
        return True


setup(
    name="torchvision",
    version=os.environ["BUILD_VERSION"],
    packages=["torchvision"],
    package_data={"torchvision": ["*.so"]},
    distclass=Binary,
)
