"""Stand-in for torchaudio's setup.py."""

import os

import torch  # noqa: F401 - the real one is built against it
from setuptools import setup

setup(name="torchaudio", version=os.environ["BUILD_VERSION"], packages=["torchaudio"])
