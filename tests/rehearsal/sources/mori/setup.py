"""Stand-in for MORI's setup.py."""

import os
import shutil
from pathlib import Path

from setuptools import Distribution, setup

if os.environ.get("MORI_SKIP_PRECOMPILE") != "1":
    raise SystemExit("would start a compiler in the background now")
if not Path("3rdparty/spdlog/README").is_file() or any(Path("3rdparty/spdk").iterdir()):
    raise SystemExit("spdlog is missing, or spdk is there although it is left out")
shutil.copyfile("device-code/host_only.so", "python/mori/libmori_pybinds.so")


class Binary(Distribution):
    def has_ext_modules(self):
        return True


setup(
    name="amd_mori",
    version="1.0.0",
    package_dir={"": "python"},
    packages=["mori"],
    package_data={"mori": ["*.so"]},
    distclass=Binary,
)
