"""Runs scripts/check_mhc.py on a GPU of NVIDIA's against vLLM's own TileLang mHC kernels, without vLLM: TileLang serves CUDA as it serves ROCm.

    python tests/evidence/tilelang_on_gpu.py FOLDER [options of check_mhc.py]

FOLDER holds `vllm/model_executor/kernels/mhc` of vLLM's source (from its sdist). The few modules of vLLM that these files import are
replaced by what they need of them; the kernels and their wrappers are vLLM's, as they are.
"""

from __future__ import annotations

import runpy
import sys
import types
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[2]


def stub(name: str, **attributes: object) -> None:
    module = types.ModuleType(name)
    module.__dict__.update(attributes)
    module.__path__ = []  # type: ignore[attr-defined]
    sys.modules[name] = module


class Platform:
    """What the kernels ask of vLLM's platform: an NVIDIA GPU."""

    @staticmethod
    def is_cuda() -> bool:
        return True

    is_cuda_alike = is_cuda

    @staticmethod
    def is_rocm() -> bool:
        return False

    @staticmethod
    def is_arch_support_pdl() -> bool:
        return torch.cuda.get_device_capability()[0] >= 9


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    for package in ("vllm", "vllm.utils", "vllm.model_executor", "vllm.model_executor.kernels"):
        stub(package)
    stub("vllm.platforms", current_platform=Platform)
    stub("vllm.utils.import_utils", has_tilelang=lambda: True)
    stub("vllm.utils.math_utils", cdiv=lambda a, b: -(-a // b))
    stub("vllm.utils.torch_utils", direct_register_custom_op=lambda **_: None)
    # Without DeepGEMM the wrappers take TileLang's own GEMM, which is what they do on ROCm.
    stub("vllm.utils.deep_gemm", is_deep_gemm_supported=lambda: False, tf32_hc_prenorm_gemm=None)
    stub("vllm.model_executor.kernels.mhc")
    sys.modules["vllm.model_executor.kernels.mhc"].__path__ = [str(folder)]
    script = REPOSITORY / "scripts" / "check_mhc.py"
    sys.argv = [str(script), *sys.argv[2:]]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
