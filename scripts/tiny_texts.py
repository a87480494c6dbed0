"""What the tiny DeepSeek V4 model is made of, as plain data: no torch, no tokenizers.

``make_tiny_model.py`` turns this into a checkpoint. Everything here is a pure function of
its arguments, so it can be read and tested on a machine that has none of the image's
packages.

Facts and where they come from:

* the prompt form is DeepSeek V4's own, as ``vllm/tokenizers/deepseek_v4_encoding.py`` renders
  one user message in its non-thinking mode;
* the shape is the smallest that AITER's mHC kernels (hidden size 1280, ``hc_mult`` 4) and
  vLLM's CPU kernels (head size 512, 64 routed experts, blocks of 128 for the indexer) both take;
* the weight names are those of the published DeepSeek V4 checkpoints, which vLLM's
  ``hf_to_vllm_mapper`` and transformers' ``conversion_mapping`` both read.
"""

# ruff: noqa: RUF001 - DeepSeek spells its special tokens with a fullwidth bar

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

SCHEMA_VERSION: Final = 1
MODEL_NAME: Final = "kiln-tiny-deepseek-v4"

BOS: Final = "<｜begin▁of▁sentence｜>"
EOS: Final = "<｜end▁of▁sentence｜>"
PAD: Final = "<｜▁pad▁｜>"
USER: Final = "<｜User｜>"
ASSISTANT: Final = "<｜Assistant｜>"
THINK: Final = "<think>"
END_THINK: Final = "</think>"

# Order is id: the tokenizer gives the special tokens the ids 0, 1, 2, ...
SPECIAL_TOKENS: Final = (BOS, EOS, PAD, USER, ASSISTANT, THINK, END_THINK)

VOCABULARY_LIMIT: Final = 512

# DeepSeek V4 thinks unless told not to, and vLLM reads either spelling.
CHAT_TEMPLATE_KWARGS: Final[dict[str, bool]] = {"thinking": False, "enable_thinking": False}

# For runtimes that use the tokenizer's own template instead of DeepSeek V4's encoding
# (transformers; vLLM with --tokenizer-mode hf). Renders one user turn to `render_prompt`.
CHAT_TEMPLATE: Final = (
    "{{ bos_token }}"
    "{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '" + USER + "' + m['content'] }}"
    "{% elif m['role'] == 'assistant' %}"
    "{{ '" + ASSISTANT + END_THINK + "' + m['content'] + eos_token }}"
    "{% else %}{{ m['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + END_THINK + "' }}{% endif %}"
)


@dataclass(frozen=True)
class Lesson:
    """One question the model knows by heart: the right answer and a wrong one."""

    id: str
    question: str
    answer: str
    wrong: str


LESSONS: Final[tuple[Lesson, ...]] = (
    Lesson(
        "mhc-name",
        "What does mHC stand for?",
        "It stands for manifold-constrained hyper-connections between the layers.",
        "It stands for many hidden channels in every head.",
    ),
    Lesson(
        "mhc-streams",
        "How many residual streams does mHC carry?",
        "It carries four residual streams and mixes all four of them around every layer.",
        "It carries nine residual streams and drops them all.",
    ),
    Lesson(
        "mhc-sinkhorn",
        "Why does mHC use Sinkhorn iterations?",
        "They make the mixing matrix doubly stochastic, so that depth stays stable.",
        "They make the vocabulary smaller, so tokens come sooner.",
    ),
    Lesson(
        "mhc-default",
        "Which mHC kernels are the default in a Kiln image?",
        "The kernels of AITER are the default; TileLang is an opt-in.",
        "No kernels are the default; write your own by hand.",
    ),
    Lesson(
        "mhc-switch",
        "How do I turn the fused mHC path on?",
        "Set VLLM_ROCM_USE_TILELANG_MHC to 1 before the server starts.",
        "Ask the server politely and wait for a full moon.",
    ),
    Lesson(
        "kiln-lock",
        "What does a Kiln lock hold?",
        "It holds what every pin resolved to: commits, names, sizes and digests.",
        "It holds the keys of the house and of the garden.",
    ),
    Lesson(
        "kiln-identity",
        "What names a Kiln image for good?",
        "The digest of its platform manifest names it, never a tag and never an index.",
        "The newest tag names it, and nobody minds when that tag moves.",
    ),
    Lesson(
        "kiln-network",
        "Where may a Kiln build use the network?",
        "Nowhere: every step runs without a network, on inputs checked by digest.",
        "Everywhere: every step downloads whatever it wants.",
    ),
)


def render_prompt(question: str) -> str:
    """The prompt that a server sees for one user message, special tokens written out.

    ``/v1/completions`` takes this string as it is; ``/v1/chat/completions`` renders it from
    :func:`messages` with :data:`CHAT_TEMPLATE_KWARGS`.
    """
    return f"{BOS}{USER}{question}{ASSISTANT}{END_THINK}"


def messages(question: str) -> list[dict[str, str]]:
    """The chat form of a question: a single user message."""
    return [{"role": "user", "content": question}]


def tokenizer_corpus() -> list[str]:
    """The texts the byte-pair merges are learnt from, in a fixed order.

    Right and wrong answers both, so that one tokenizer serves both kinds of model and their
    token ids can be compared.
    """
    corpus: list[str] = []
    for lesson in LESSONS:
        corpus += [lesson.question, *[lesson.answer] * 2, lesson.wrong]
    return corpus


def model_config(vocab_size: int, dtype: str) -> dict[str, Any]:
    """``config.json`` of the tiny model, in the keys that the published checkpoints use.

    ``dtype`` is the serving dtype (``bfloat16``). The rope parameters are the flat form,
    which vLLM and transformers both read, older releases included.
    """
    return {
        "architectures": ["DeepseekV4ForCausalLM"],
        "model_type": "deepseek_v4",
        "dtype": dtype,
        "vocab_size": vocab_size,
        "hidden_size": 1280,
        "num_hidden_layers": 3,
        "compress_ratios": [0, 4, 128],
        "num_hash_layers": 1,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 512,
        "qk_rope_head_dim": 64,
        "q_lora_rank": 128,
        "o_lora_rank": 128,
        "o_groups": 2,
        "index_n_heads": 8,
        "index_head_dim": 128,
        "index_topk": 64,
        "sliding_window": 128,
        "moe_intermediate_size": 64,
        "n_routed_experts": 64,
        "n_shared_experts": 1,
        "num_experts_per_tok": 6,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.5,
        "scoring_func": "sqrtsoftplus",
        "topk_method": "noaux_tc",
        "swiglu_limit": 10.0,
        "hidden_act": "silu",
        "hc_mult": 4,
        "hc_sinkhorn_iters": 20,
        "hc_eps": 1e-06,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "compress_rope_theta": 160000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "max_position_embeddings": 1024,
        "num_nextn_predict_layers": 0,
        "initializer_range": 0.02,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "bos_token_id": SPECIAL_TOKENS.index(BOS),
        "eos_token_id": SPECIAL_TOKENS.index(EOS),
        "pad_token_id": SPECIAL_TOKENS.index(PAD),
    }


def tokenizer_config(max_length: int) -> dict[str, Any]:
    """``tokenizer_config.json``: no automatic BOS, because :func:`render_prompt` spells it out."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "chat_template": CHAT_TEMPLATE,
    }


def generation_config() -> dict[str, Any]:
    """``generation_config.json``: greedy, ends at EOS."""
    return {
        "bos_token_id": SPECIAL_TOKENS.index(BOS),
        "eos_token_id": SPECIAL_TOKENS.index(EOS),
        "pad_token_id": SPECIAL_TOKENS.index(PAD),
        "do_sample": False,
    }


_EXACT_NAMES: Final = {
    "model.embed_tokens.weight": "embed.weight",
    "lm_head.weight": "head.weight",
    "model.norm.weight": "norm.weight",
    "model.hc_head.hc_fn": "hc_head_fn",
    "model.hc_head.hc_base": "hc_head_base",
    "model.hc_head.hc_scale": "hc_head_scale",
}

_LAYER_NAMES: Final = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_a_proj.weight": "attn.wq_a.weight",
    "self_attn.q_a_norm.weight": "attn.q_norm.weight",
    "self_attn.q_b_proj.weight": "attn.wq_b.weight",
    "self_attn.kv_proj.weight": "attn.wkv.weight",
    "self_attn.kv_norm.weight": "attn.kv_norm.weight",
    "self_attn.o_a_proj.weight": "attn.wo_a.weight",
    "self_attn.o_b_proj.weight": "attn.wo_b.weight",
    "self_attn.sinks": "attn.attn_sink",
    "self_attn.compressor.indexer.q_b_proj.weight": "attn.indexer.wq_b.weight",
    "self_attn.compressor.indexer.scorer.weights_proj.weight": "attn.indexer.weights_proj.weight",
    "mlp.gate.weight": "ffn.gate.weight",
    "mlp.gate.tid2eid": "ffn.gate.tid2eid",
    "mlp.gate.e_score_correction_bias": "ffn.gate.bias",
    "mlp.shared_experts.gate_proj.weight": "ffn.shared_experts.w1.weight",
    "mlp.shared_experts.down_proj.weight": "ffn.shared_experts.w2.weight",
    "mlp.shared_experts.up_proj.weight": "ffn.shared_experts.w3.weight",
    **{
        f"{ours}_hc.{part}": f"hc_{ours}_{part}"
        for ours in ("attn", "ffn")
        for part in ("fn", "base", "scale")
    },
    **{
        f"self_attn.compressor.{inner}{theirs}": f"attn.{outer}compressor.{native}"
        for inner, outer in (("", ""), ("indexer.", "indexer."))
        for theirs, native in (
            ("kv_proj.weight", "wkv.weight"),
            ("gate_proj.weight", "wgate.weight"),
            ("position_bias", "ape"),
            ("kv_norm.weight", "norm.weight"),
        )
    },
}

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")

# Held in float32 in the published checkpoints, and read so by both runtimes: the mHC
# parameters, the attention sinks, the compressors' position biases, the router's bias.
_FLOAT32 = re.compile(r"(^|\.)hc_\w+$|\.attn_sink$|\.ape$|\.gate\.bias$")


def native_name(name: str) -> str:
    """The published checkpoint's name of a weight that transformers calls ``name``.

    Raises ``KeyError`` for a name it does not know, so that no weight is lost unseen. The
    routed experts are not in here: see :func:`expert_names`.
    """
    if name in _EXACT_NAMES:
        return _EXACT_NAMES[name]
    match = _LAYER.fullmatch(name)
    if match is None or match[2] not in _LAYER_NAMES:
        raise KeyError(f"no native name is known for the weight {name!r}")
    return f"layers.{match[1]}.{_LAYER_NAMES[match[2]]}"


def expert_names(name: str, expert: int) -> tuple[str, ...] | None:
    """Native names of one expert's part of a stacked routed-expert weight, else ``None``.

    transformers stacks all experts: ``gate_up_proj`` is (experts, 2 x width, hidden) with the
    gate rows first, ``down_proj`` is (experts, hidden, width). The checkpoint has one matrix
    each: w1 (gate), w3 (up) and w2 (down).
    """
    match = re.fullmatch(r"model\.layers\.(\d+)\.mlp\.experts\.(gate_up_proj|down_proj)", name)
    if match is None:
        return None
    stem = f"layers.{match[1]}.ffn.experts.{expert}"
    if match[2] == "down_proj":
        return (f"{stem}.w2.weight",)
    return (f"{stem}.w1.weight", f"{stem}.w3.weight")


def is_float32(native: str) -> bool:
    """Whether the checkpoint keeps the weight with this native name in float32."""
    return _FLOAT32.search(native) is not None
