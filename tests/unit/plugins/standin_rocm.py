"""vLLM's mHC code for ROCm in the shape that 0.30 has it, small: both ways through the model, and the tests that choose."""

from __future__ import annotations

LAYERS = """
import torch
from vllm._aiter_ops import is_aiter_found_and_supported
from vllm.platforms import current_platform
from vllm.utils.import_utils import has_tilelang


def _has_tilelang_mhc():
    if not has_tilelang():
        return False
    if current_platform.is_cuda():
        return True
    if current_platform.is_rocm():
        from vllm.platforms.rocm import on_gfx942
        return not on_gfx942()
    return False


HAS_TILELANG_MHC = _has_tilelang_mhc()
HAS_AITER_MHC = is_aiter_found_and_supported()
HAS_AITER_MHC_FUSED = bool(HAS_AITER_MHC)
HAS_AITER_MHC_PRE_NORM = bool(HAS_AITER_MHC)
HAS_AITER_MHC_FUSED_NORM = bool(HAS_AITER_MHC)


def _aiter_mhc_supported(residual, norm_weight, *, supports_norm):
    hidden_size, hc_mult = residual.shape[-1], residual.shape[-2]
    return HAS_AITER_MHC and hidden_size % 256 == 0 and hc_mult == 4 and (norm_weight is None or supports_norm)


class MHCPreOp:
    def forward_hip(self, residual, norm_weight=None):
        if _aiter_mhc_supported(residual, norm_weight, supports_norm=HAS_AITER_MHC_PRE_NORM):
            return torch.ops.vllm.mhc_pre_aiter(residual)
        elif HAS_TILELANG_MHC:
            return torch.ops.vllm.mhc_pre_tilelang(residual)
        else:
            return self.forward_native(residual)


class MHCPostOp:
    def forward_hip(self, x, residual):
        if _aiter_mhc_supported(residual, None, supports_norm=True):
            return torch.ops.vllm.mhc_post_aiter(x, residual)
        if HAS_TILELANG_MHC:
            return torch.ops.vllm.mhc_post_tilelang(x, residual)
        else:
            return self.forward_native(x, residual)


class MHCFusedPostPreOp:
    def forward_hip(self, x, residual, norm_weight=None):
        if HAS_AITER_MHC_FUSED and _aiter_mhc_supported(residual, norm_weight, supports_norm=HAS_AITER_MHC_FUSED_NORM):
            return torch.ops.vllm.mhc_fused_post_pre_aiter(x, residual)
        if HAS_TILELANG_MHC:
            return torch.ops.vllm.mhc_fused_post_pre_tilelang(x, residual)
        return self.forward_native(x, residual)
"""

MODEL = """
from vllm.model_executor.layers.mhc import (
    HAS_AITER_MHC, HAS_TILELANG_MHC, MHCFusedPostPreOp, MHCPostOp, MHCPreOp,
)


class DeepseekV4DecoderLayer:
    def __init__(self, config):
        self.hidden_size = config.hidden_size
        self.hc_mult = config.hc_mult
        self.mhc_pre = MHCPreOp()
        self.mhc_post = MHCPostOp()
        self.mhc_fused_post_pre = MHCFusedPostPreOp()
        use_aiter_mhc = HAS_AITER_MHC and self.hidden_size % 256 == 0 and self.hc_mult == 4
        self.use_fused_mhc = use_aiter_mhc or HAS_TILELANG_MHC
        self.fuse_mhc_rmsnorm = self.use_fused_mhc
        self.mono = config.mono

    def hc_pre(self, x):
        return self.mhc_pre(x)

    def hc_post(self, x, residual):
        return self.mhc_post(x, residual)

    def _forward_fused_post_pre(self, x, residual=None):
        x = self.hc_pre(x) if residual is None else self.mhc_fused_post_pre(x, residual)
        return self.mhc_fused_post_pre(x, residual), residual

    def _forward_unfused_post_pre(self, x, residual=None):
        return self.hc_post(self.hc_pre(x), x), None

    def forward(self, x, residual=None):
        if self.mono is not None:
            out = self.mono(self, x)
            if out is not None:
                return out
        if not self.use_fused_mhc:
            return self._forward_unfused_post_pre(x, residual)
        return self._forward_fused_post_pre(x, residual)


class DeepseekV4Model:
    def __init__(self, config):
        self.layers = [DeepseekV4DecoderLayer(config) for _ in range(2)]

    def modules(self):
        return [self, *self.layers]

    def forward(self, x):
        residual = None
        for layer in self.layers:
            x, residual = layer.forward(x, residual)
        if layer is not None and layer.use_fused_mhc:
            x = layer.hc_post(x, residual)
        return x
"""

MTP = """
class DeepSeekV4MultiTokenPredictorLayer:
    def forward(self, x):
        x, residual = self.mtp_block(x)
        if self.mtp_block.use_fused_mhc:
            x = self.mtp_block.hc_post(x, residual)
        return x
"""

ENVS = """
environment_variables = {}


def compile_factors():
    ignored = {"VLLM_PORT"}
    factors = {}
    for name, getter in environment_variables.items():
        if name not in ignored:
            factors[name] = getter()
    return factors
"""

FILES = {
    "vllm/envs.py": ENVS,
    "vllm/machine.py": "aiter, tilelang, arch = True, True, 'gfx950'\n",
    "vllm/_aiter_ops.py": "from vllm import machine\ndef is_aiter_found_and_supported(): return machine.aiter\n",
    "vllm/utils/__init__.py": "",
    "vllm/utils/import_utils.py": "from vllm import machine\ndef has_tilelang(): return machine.tilelang\n",
    "vllm/platforms/__init__.py": (
        "class Platform:\n"
        "    device_type = 'cuda'\n"
        "    def is_cpu(self): return False\n"
        "    def is_cuda(self): return False\n"
        "    def is_rocm(self): return True\n"
        "current_platform = Platform()\n"
    ),
    "vllm/platforms/rocm.py": (
        "from vllm import machine\n"
        "def on_gfx942(): return machine.arch == 'gfx942'\n"
        "def on_gfx950(): return machine.arch == 'gfx950'\n"
    ),
    "vllm/model_executor/__init__.py": "",
    "vllm/model_executor/layers/__init__.py": "",
    "vllm/model_executor/layers/mhc.py": LAYERS,
    "vllm/models/deepseek_v4/amd/__init__.py": "",
    "vllm/models/deepseek_v4/amd/model.py": MODEL,
    "vllm/models/deepseek_v4/amd/mtp.py": MTP,
}
