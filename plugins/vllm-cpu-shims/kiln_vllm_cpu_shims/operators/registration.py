"""Put the PyTorch operators where vLLM looks for the compiled ones, if those are not there.

vLLM's Python reaches the compiled operators through ``torch.ops._C`` and, nearly always, through
the functions of ``vllm._custom_ops``, which loads the C++ library at its top. So what runs after
that module's import sees the library, and comes before every caller.
"""

from __future__ import annotations

import inspect
import logging
from importlib import import_module
from types import ModuleType
from typing import Any, Final

from kiln_vllm_cpu_shims.tile_scheduler import UnknownVllmCodeError

MODULE: Final = "vllm._custom_ops"
NAMESPACE: Final = "_C"

# Those that the CPU model of DeepSeek V4 calls with unquantized weights, with the signatures of
# vLLM 0.32.0, by the module here that has them. What else the compiled library has and the others
# lack, vLLM calls only on processors with AMX (weight_packed_linear, fused_experts_cpu) or for
# other models.
SCHEMAS: Final = {
    "mhc": (
        (
            "hc_pre_fused_cpu(Tensor x, Tensor hc_fn, Tensor hc_scale, Tensor hc_base, int hc_mult, "
            "int sinkhorn_iters, float rms_eps, float hc_eps) -> (Tensor, Tensor, Tensor)"
        ),
        "hc_post_fused_cpu(Tensor x, Tensor residual, Tensor post, Tensor comb) -> Tensor",
        (
            "hc_head_fused_cpu(Tensor x, Tensor hc_fn, Tensor hc_scale, Tensor hc_base, float hc_eps, "
            "float norm_eps) -> Tensor"
        ),
    ),
    "linear": (
        "convert_weight_packed(Tensor! weight) -> Tensor",
        "bmm_cpu(Tensor(a!) out, Tensor mat1, Tensor mat2, bool is_vnni, Tensor? scale) -> ()",
    ),
    "routing": (
        (
            "hash_topk_cpu(Tensor gating_output, Tensor tid2eid, int topk, str scoring_func, "
            "int num_fused_shared_experts, int num_experts, float routed_scaling_factor) "
            "-> (Tensor, Tensor)"
        ),
        (
            "biased_topk_cpu(Tensor hidden_states, Tensor gating_output, Tensor correction_bias, "
            "int topk, bool renormalize, str scoring_func, int num_fused_shared_experts, "
            "float? routed_scaling_factor, bool apply_routed_scaling_factor_on_output) "
            "-> (Tensor, Tensor)"
        ),
    ),
    "attention": (
        (
            "fused_qnorm_rope_kv_insert_cpu(Tensor q, Tensor kv, Tensor positions, "
            "Tensor(a!) swa_kv_cache_2d, Tensor slot_mapping, Tensor cos_sin_cache, "
            "int q_head_padded, float eps, int cache_block_size) -> Tensor"
        ),
        (
            "flash_mla_with_kvcache_cpu(Tensor(a!) out, Tensor q, Tensor window_cache_2d, "
            "Tensor window_slots, int window_block_size, Tensor compressed_cache_2d, "
            "Tensor compressed_slots, int compressed_block_size, Tensor attn_sink, float scale) -> ()"
        ),
        (
            "inverse_gptj_rope_o_proj_cpu(Tensor o, Tensor positions, Tensor cos_sin_cache, "
            "int rope_dim) -> Tensor"
        ),
    ),
    "compressor": (
        (
            "save_partial_states_cpu(Tensor kv, Tensor score, Tensor ape, Tensor positions, "
            "Tensor(a!) state_cache, Tensor slot_mapping) -> ()"
        ),
        (
            "compress_norm_rope_store_cpu(Tensor state_cache, Tensor gather_slots, Tensor positions, "
            "Tensor kv_slot_mapping, Tensor rms_norm_weight, float rms_norm_eps, "
            "Tensor cos_sin_cache, Tensor(a!) kv_cache_2d, int kv_cache_block_size, "
            "int compress_ratio) -> ()"
        ),
        (
            "compress_norm_rope_store_indexer_cpu(Tensor state_cache, Tensor gather_slots, "
            "Tensor positions, Tensor kv_slot_mapping, Tensor rms_norm_weight, float rms_norm_eps, "
            "Tensor cos_sin_cache, Tensor(a!) kv_cache_2d, int kv_cache_block_size, "
            "int compress_ratio) -> ()"
        ),
    ),
    "indexer": (
        (
            "fused_indexer_q_rope_quant_cpu(Tensor positions, Tensor index_q, "
            "Tensor index_q_cos_sin_cache, Tensor(a!) index_q_fp8, Tensor index_weights, "
            "float index_weights_softmax_scale, float index_weights_head_scale, "
            "Tensor(b!) index_weights_out) -> ()"
        ),
        (
            "fp8_paged_mqa_logits_cpu(Tensor q_fp8, Tensor kvcache_fp8, Tensor weight, "
            "Tensor seq_lens, Tensor page_table, int block_size, int max_seq_len) -> Tensor"
        ),
        (
            "topk_transform_512_cpu(Tensor scores, Tensor seq_lens, Tensor page_tables, "
            "Tensor(a!) out_page_indices, int page_size, Tensor(b!)? out_raw_indices) -> ()"
        ),
    ),
}
# vLLM calls this one through torch.ops alone.
WITHOUT_WRAPPER: Final = frozenset({"convert_weight_packed"})

logger = logging.getLogger("vllm.kiln.cpu_shims")
# Keeps the definitions: they go when their library object goes.
_libraries: list[Any] = []


def name_of(schema: str) -> str:
    """The operator's name in its schema."""
    return schema.partition("(")[0]


def arguments_of(schema: str) -> list[str]:
    """The names of the arguments in a schema."""
    inside = schema.partition("(")[2].rpartition(" -> ")[0].rpartition(")")[0]
    return [argument.split()[-1] for argument in inside.split(", ")]


def check_callers(custom_ops: ModuleType, schemas: list[str], vllm_version: str) -> None:
    """Raise :class:`UnknownVllmCodeError` where vLLM calls an operator in a way not known here."""
    for schema in schemas:
        name = name_of(schema)
        if name in WITHOUT_WRAPPER:
            continue
        wrapper = getattr(custom_ops, name, None)
        if wrapper is None:
            raise UnknownVllmCodeError(f"{MODULE}.{name}", vllm_version, "it is not there")
        found = list(inspect.signature(wrapper).parameters)
        if found != arguments_of(schema):
            why = f"its arguments are {', '.join(found)}"
            raise UnknownVllmCodeError(f"{MODULE}.{name}", vllm_version, why)


def provide(custom_ops: ModuleType) -> None:
    """Register what the loaded library lacks, and log which operators will run.

    Called with ``vllm._custom_ops`` once it is imported. Does nothing the second time.
    """
    if _libraries:
        return
    import torch
    import vllm

    compiled = getattr(torch.ops, NAMESPACE)
    lacking = [
        (module, schema)
        for module, schemas in SCHEMAS.items()
        for schema in schemas
        if not hasattr(compiled, name_of(schema))
    ]
    total = sum(map(len, SCHEMAS.values()))
    if not lacking:
        logger.info("kiln-cpu-shims: operators=compiled count=%d", total)
        return
    check_callers(custom_ops, [schema for _, schema in lacking], str(vllm.__version__))
    library = torch.library.Library(NAMESPACE, "FRAGMENT")
    for module, schema in lacking:
        name = name_of(schema)
        library.define(schema)
        library.impl(name, getattr(import_module(f"{__package__}.{module}"), name), "CPU")
        torch.library.register_fake(f"{NAMESPACE}::{name}", _refusal(name), lib=library)
    _libraries.append(library)
    reason = (
        "library-lacks-them"
        if torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001 what vLLM asks
        else "processor-lacks-avx512-bf16"
    )
    logger.info("kiln-cpu-shims: operators=pytorch count=%d reason=%s", len(lacking), reason)


def _refusal(name: str) -> Any:
    """What a compiler gets that asks for the shapes of an operator's results."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError(
            f"kiln-vllm-cpu-shims: {name} is PyTorch code on this processor and cannot be "
            "compiled: start the server with --enforce-eager"
        )

    return refuse
