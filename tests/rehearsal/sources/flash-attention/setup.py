"""Stand-in for flash-attention's setup.py: looks for somebody else's wheel on the network unless it is told to build."""

import os
import shutil
import urllib.request

import torch  # noqa: F401 - the real one is built against it
from setuptools import Distribution, setup

if os.environ.get("FLASH_ATTENTION_FORCE_BUILD") != "TRUE":
    urllib.request.urlretrieve("https://example.invalid/flash_attn.whl", "flash_attn.whl")
both = os.environ["GPU_ARCHS"] == "gfx942;gfx950"
os.makedirs("built", exist_ok=True)
shutil.copyfile("device-code/both.so" if both else "device-code/gfx942.so", "built/flash_attn_2_cuda.so")


class Binary(Distribution):
    def has_ext_modules(self):
        return True


setup(
    name="flash_attn",
    version="2.8.3",
    packages=["flash_attn", ""],
    package_dir={"flash_attn": "flash_attn", "": "built"},
    package_data={"": ["*.so"]},
    distclass=Binary,
)
