"""A small vLLM that pins things the way vLLM's ROCm images do: invented, laid out like the real one, for tests that change a line of it."""

from __future__ import annotations

BASE = """\
ARG BASE_IMAGE=rocm/dev-ubuntu-22.04:7.2.3-complete
ARG TRITON_BRANCH="0f380657"
ARG TRITON_REPO="https://github.com/ROCm/triton.git"
ARG PYTORCH_BRANCH="d0c8b1f3" # release/2.11 as of some day
ARG PYTORCH_REPO="https://github.com/ROCm/pytorch.git"
ARG PYTORCH_VISION_BRANCH="v0.24.1"
ARG PYTORCH_VISION_REPO="https://github.com/pytorch/vision.git"
ARG PYTORCH_AUDIO_BRANCH="v2.9.0"
ARG PYTORCH_AUDIO_REPO="https://github.com/pytorch/audio.git"
ARG FA_BRANCH="0e60e394"
ARG FA_REPO="https://github.com/Dao-AILab/flash-attention.git"
ARG AITER_BRANCH="v0.1.16.post2"
ARG AITER_REPO="https://github.com/ROCm/aiter.git"
ARG MORI_BRANCH="v1.1.0"
ARG MORI_REPO="https://github.com/ROCm/mori.git"

FROM ${BASE_IMAGE} AS base
ENV AITER_ROCM_ARCH=gfx942;gfx950
ARG PYTHON_VERSION=3.12
RUN apt-get update && apt-get install -y git curl python${PYTHON_VERSION} strace
RUN pip install -U packaging 'cmake<4'

FROM base AS build_triton
ARG TRITON_BRANCH
ARG TRITON_REPO
RUN git clone ${TRITON_REPO}
# https://github.com/triton-lang/triton/pull/8991
RUN cd triton && git checkout ${TRITON_BRANCH} \\
    && git cherry-pick 555d04f

FROM base AS build_rest
ARG PYTORCH_BRANCH
ARG PYTORCH_VISION_BRANCH
ARG PYTORCH_AUDIO_BRANCH
ARG FA_BRANCH
ARG MORI_BRANCH
RUN git checkout ${PYTORCH_BRANCH}
RUN git checkout 2d73be3
RUN git checkout ${PYTORCH_VISION_BRANCH} && git checkout "$PYTORCH_AUDIO_BRANCH"; git checkout ${FA_BRANCH}
RUN git checkout ${MORI_BRANCH}

FROM base AS build_aiter
ARG AITER_BRANCH
ARG AITER_REPO
RUN git clone --recursive --branch ${AITER_BRANCH} ${AITER_REPO}
RUN PREBUILD_KERNELS=1 AITER_USE_SYSTEM_TRITON=1 python3 setup.py bdist_wheel
"""
SERVING = """\
ARG BASE_IMAGE=rocm/vllm-dev:base
FROM ${BASE_IMAGE} AS base
ARG NIXL_BRANCH="231d5675"
RUN git checkout ${NIXL_BRANCH}
"""
KERNELS = """\
set(DEFAULT_TRITON_KERNELS_TAG "v3.5.1")
set(TRITON_GIT "https://github.com/triton-lang/triton.git")
"""
COMMON = """\
regex # a comment
numpy
packaging>=22
Pillow
six>=1.16.0; python_version > '3.11'
never; platform_machine == "s390x"
mistral_common[image] >= 1.11.2
torch==2.11.0
"""
ROCM = """\
-r common.txt
packaging>=24.2,<30
runai-model-streamer[s3,gcs]==0.15.7
tilelang==0.1.10
apache-tvm-ffi==0.1.10
"""


def small_vllm() -> dict[str, bytes]:
    """Its files by their paths."""
    files = {
        "docker/Dockerfile.rocm_base": BASE,
        "docker/Dockerfile.rocm": SERVING,
        "cmake/external_projects/triton_kernels.cmake": KERNELS,
        "requirements/common.txt": COMMON,
        "requirements/rocm.txt": ROCM,
        "requirements/build/rocm.txt": "cmake>=3.26.1,<5\nodd-tool\n",
        "pyproject.toml": '[project]\nname = "vllm"\nrequires-python = ">=3.10,<3.15"\n',
        "PKG-INFO": "Metadata-Version: 2.4\nName: vllm\nVersion: 0.25.0\n\nabout\n",
    }
    return {path: text.encode() for path, text in files.items()}
