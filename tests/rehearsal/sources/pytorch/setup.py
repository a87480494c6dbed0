"""Stand-in for PyTorch's setup.py: a library with GPU code for the archs that were asked for."""

import os
import shutil
from pathlib import Path

from setuptools import Distribution, setup

if not Path("hipified").is_file() or not Path("third_party/fbgemm/external/asmjit/README").is_file():
    raise SystemExit("the sources are not hipified, or a submodule of a submodule is missing")
if os.environ["USE_FLASH_ATTENTION"] != "0" or os.environ["USE_MEM_EFF_ATTENTION"] != "0":
    raise SystemExit("would download AOTriton now")
Path("torch/lib").mkdir(exist_ok=True)
both = os.environ["PYTORCH_ROCM_ARCH"] == "gfx942;gfx950"
shutil.copyfile("device-code/both.so" if both else "device-code/gfx942.so", "torch/lib/libtorch_hip.so")


class Binary(Distribution):
    def has_ext_modules(self):
        return True


setup(
    name="torch",
    version=os.environ["PYTORCH_BUILD_VERSION"],
    packages=["torch"],
    package_data={"torch": ["lib/*.so"]},
    distclass=Binary,
)
