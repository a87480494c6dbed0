"""A small stand-in for vLLM, torch and Triton, so that the plugins run without any of them.

The stand-in has the code that the plugins hook, in the shape vLLM 0.32.0 has it, on disk and
importable; a test may replace parts of it before it imports anything.
"""

from __future__ import annotations

from pathlib import Path

PLUGINS = Path(__file__).parents[3] / "plugins"
PACKAGES = ("kiln_vllm_cpu_shims", "kiln_vllm_mhc_switch")
FAKED = ("vllm", "torch", "triton", *PACKAGES)

CPU_MLA = '''
from vllm.base import (
    _LAYER_TYPE_C4A,
    _LAYER_TYPE_C128A,
    _LAYER_TYPE_SWAONLY,
    DeepseekSparseSWAMetadataBuilder,
)


class DeepseekV4CPUSparseSWAMetadataBuilder(DeepseekSparseSWAMetadataBuilder):
    def build_tile_scheduler(self, num_decode_tokens):
        """All plans are None."""
        return {
            _LAYER_TYPE_SWAONLY: None,
            _LAYER_TYPE_C4A: None,
            _LAYER_TYPE_C128A: None,
        }
'''

BASE = """
_LAYER_TYPE_SWAONLY = "swaonly"
_LAYER_TYPE_C4A = "c4a"
_LAYER_TYPE_C128A = "c128a"
_LAYER_TYPE_C1A = "c1a"
_LAYER_TYPE_C2A = "c2a"


class DeepseekSparseSWAMetadataBuilder:
    def build(self):
        plans = self.build_tile_scheduler(3)
        return [plans[name] for name in ("swaonly", "c4a", "c128a", "c1a", "c2a")]

    def build_tile_scheduler(self, num_decode_tokens):
        return dict.fromkeys(("swaonly", "c4a", "c128a", "c1a", "c2a"))
"""

MODEL = '''
HAS_TILELANG_MHC = False
HAS_AITER_MHC = False


class Op:
    def __init__(self):
        self._forward_method = self.forward_cpu

    def __call__(self):
        return self._forward_method()

    def forward_cpu(self):
        pass


class MHCPreOp(Op):
    def forward_cpu(self):
        pass


class MHCPostOp(Op):
    def forward_cpu(self):
        pass


class MHCFusedPostPreOp(Op):
    def forward_cpu(self):
        pass


class DeepseekV4DecoderLayer:
    def __init__(self, config, prefix):
        self.hidden_size = 1280
        self.mhc_pre = MHCPreOp()
        self.mhc_post = MHCPostOp()
        self.mhc_fused_post_pre = MHCFusedPostPreOp()
        self.use_fused_mhc = HAS_TILELANG_MHC and not (
            HAS_AITER_MHC and self.hidden_size % 256 == 0
        )

    def hc_pre(self, x):
        return x

    def hc_post(self, x):
        return x

    def _forward_fused_post_pre(self, x, residual=None):
        if residual is None:
            x = self.hc_pre(x)
        else:
            self.mhc_fused_post_pre()
        return [*x, "fused"]

    def _forward_unfused_post_pre(self, x, residual=None):
        return [*self.hc_post(self.hc_pre(x)), "unfused"]

    def forward(self, x, residual=None):
        """One layer."""
        if not self.use_fused_mhc:
            return self._forward_unfused_post_pre(x, residual)
        return self._forward_fused_post_pre(x, residual)


class DeepseekV4Model:
    def __init__(self, config):
        self.layers = [DeepseekV4DecoderLayer(config, f"layers.{n}") for n in range(3)]

    def forward(self, x):
        for layer in self.layers:
            x = layer.forward(x)
            if False:
                if layer.use_fused_mhc:
                    layer.hc_post(x)
        if layer is not None and layer.use_fused_mhc:
            x = layer.hc_post(x)
        return x


class DeepseekV4ForCausalLM:
    def __init__(self, config=None):
        self.model = DeepseekV4Model(config)

    def modules(self):
        return [self, self.model, *self.model.layers]

    def forward(self, x):
        """The whole model."""
        return self.model.forward(x)
'''

# The wrappers of the operators that the CPU model of DeepSeek V4 calls; all but one have one.
CUSTOM_OPS = """
def hc_pre_fused_cpu(x, hc_fn, hc_scale, hc_base, hc_mult, sinkhorn_iters, rms_eps, hc_eps): ...
def hc_post_fused_cpu(x, residual, post, comb): ...
def hc_head_fused_cpu(x, hc_fn, hc_scale, hc_base, hc_eps, norm_eps): ...
def bmm_cpu(out, mat1, mat2, is_vnni, scale=None): ...
def hash_topk_cpu(
    gating_output, tid2eid, topk, scoring_func, num_fused_shared_experts, num_experts, routed_scaling_factor
): ...
def biased_topk_cpu(
    hidden_states, gating_output, correction_bias, topk, renormalize, scoring_func, num_fused_shared_experts,
    routed_scaling_factor, apply_routed_scaling_factor_on_output,
): ...
def fused_qnorm_rope_kv_insert_cpu(
    q, kv, positions, swa_kv_cache_2d, slot_mapping, cos_sin_cache, q_head_padded, eps, cache_block_size
): ...
def flash_mla_with_kvcache_cpu(
    out, q, window_cache_2d, window_slots, window_block_size, compressed_cache_2d, compressed_slots,
    compressed_block_size, attn_sink, scale,
): ...
def inverse_gptj_rope_o_proj_cpu(o, positions, cos_sin_cache, rope_dim): ...
def save_partial_states_cpu(kv, score, ape, positions, state_cache, slot_mapping): ...
def compress_norm_rope_store_cpu(
    state_cache, gather_slots, positions, kv_slot_mapping, rms_norm_weight, rms_norm_eps, cos_sin_cache, kv_cache_2d,
    kv_cache_block_size, compress_ratio,
): ...
def compress_norm_rope_store_indexer_cpu(
    state_cache, gather_slots, positions, kv_slot_mapping, rms_norm_weight, rms_norm_eps, cos_sin_cache, kv_cache_2d,
    kv_cache_block_size, compress_ratio,
): ...
def fused_indexer_q_rope_quant_cpu(
    positions, index_q, index_q_cos_sin_cache, index_q_fp8, index_weights, index_weights_softmax_scale,
    index_weights_head_scale, index_weights_out,
): ...
def fp8_paged_mqa_logits_cpu(q_fp8, kvcache_fp8, weight, seq_lens, page_table, block_size, max_seq_len): ...
def topk_transform_512_cpu(scores, seq_lens, page_tables, out_page_indices, page_size, out_raw_indices=None): ...
"""

# torch.library, as far as the operators' registration goes: what is defined appears in torch.ops._C.
TORCH_LIBRARY = """
from types import SimpleNamespace
namespace = SimpleNamespace()
libraries = []
class Library:
    def __init__(self, name, kind):
        self.name, self.kind, self.schemas, self.kernels, self.fakes = name, kind, [], {}, {}
        libraries.append(self)
    def define(self, schema):
        self.schemas.append(schema)
    def impl(self, name, kernel, key):
        assert any(schema.startswith(name + '(') for schema in self.schemas)
        assert not hasattr(namespace, name)
        self.kernels[name] = (kernel, key)
        setattr(namespace, name, kernel)
def register_fake(name, fake, lib):
    lib.fakes[name] = fake
"""

# Triton's interpreter, as far as it is looked at and launched.
INTERPRETER = """
from dataclasses import dataclass
@dataclass(frozen=True)
class InterpreterOptions:
    arch: str = "interpreted"
    sanitize_overflow: bool = True
class InterpreterBuilder:
    def __init__(self):
        self.options = InterpreterOptions()
interpreter_builder = InterpreterBuilder()
class InterpretedFunction:
    def __init__(self, fn):
        self.fn = fn
        self.__name__ = fn.__name__
        self.arg_names = fn.__code__.co_varnames[: fn.__code__.co_argcount]
    def __getitem__(self, grid):
        return lambda *args, **kwargs: self.fn(*args, **{k: v for k, v in kwargs.items() if k in self.arg_names})
"""

FILES = {
    "vllm/__init__.py": '__version__ = "0.32.0"\n',
    "vllm/envs.py": "environment_variables = {}\n",
    "vllm/platforms.py": (
        "class Platform:\n"
        "    device_type = 'cpu'\n"
        "    def is_cpu(self): return self.device_type == 'cpu'\n"
        "    def is_rocm(self): return False\n"
        "current_platform = Platform()\n"
    ),
    "vllm/forward_context.py": (
        "from types import SimpleNamespace\n"
        "current = None\n"
        "def is_forward_context_available(): return current is not None\n"
        "def get_forward_context(): return SimpleNamespace(attn_metadata=current)\n"
    ),
    "vllm/base.py": BASE,
    "vllm/models/__init__.py": "",
    "vllm/models/deepseek_v4/__init__.py": "",
    "vllm/models/deepseek_v4/cpu/__init__.py": "",
    "vllm/models/deepseek_v4/cpu/cpu_mla.py": CPU_MLA,
    "vllm/models/deepseek_v4/cpu/model.py": MODEL,
    "vllm/_custom_ops.py": CUSTOM_OPS,
    "torch/__init__.py": (
        "from types import SimpleNamespace\n"
        "from torch import compiler, library\n"
        "def device(name): return ('device', name)\n"
        "ops = SimpleNamespace(_C=library.namespace)\n"
        "cpu = SimpleNamespace(_is_avx512_bf16_supported=lambda: False)\n"
    ),
    "torch/library.py": TORCH_LIBRARY,
    "torch/nn/__init__.py": "",
    "torch/nn/functional.py": "linear = softplus = None\n",
    "torch/compiler.py": "compiling = False\ndef is_compiling(): return compiling\n",
    "triton/__init__.py": "",
    "triton/knobs.py": ("from types import SimpleNamespace\nruntime = SimpleNamespace(interpret=True)\n"),
    "triton/runtime/__init__.py": "",
    "triton/runtime/interpreter.py": INTERPRETER,
    "triton/backends/__init__.py": "backends = {}\n",
    "triton/backends/compiler.py": (
        "from abc import ABC, abstractmethod\n"
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\n"
        "class GPUTarget:\n"
        "    backend: str\n"
        "    arch: str\n"
        "    warp_size: int\n"
        "class BaseBackend(ABC):\n"
        "    def __init__(self, target):\n"
        "        self.target = target\n"
        "        assert self.supports_target(target)\n"
        + "".join(
            f"    @abstractmethod\n    def {name}(self, *a): ...\n"
            for name in ("hash", "parse_options", "add_stages", "load_dialects", "get_module_map")
        )
    ),
    "triton/backends/driver.py": (
        "from abc import ABC, abstractmethod\n"
        "class DriverBase(ABC):\n"
        + "".join(
            f"    @abstractmethod\n    def {name}(self, *a): ...\n"
            for name in (
                "is_active",
                "map_python_to_cpp_type",
                "get_current_target",
                "get_active_torch_device",
                "get_benchmarker",
            )
        )
    ),
}


class Tree:
    """The stand-in's files, for tests that change them before anything is imported."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: str) -> None:
        """Write one file of the stand-in."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")

    def replace(self, path: str, old: str, new: str) -> None:
        """Replace text that must be in the file."""
        text = (self.root / path).read_text(encoding="utf-8")
        assert old in text
        self.write(path, text.replace(old, new))
