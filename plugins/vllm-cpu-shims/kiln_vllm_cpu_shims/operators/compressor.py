"""The compressor: every few tokens become one, in the attention's cache and in the indexer's.

The state cache is (blocks, tokens a block, 2 * width) float32: a token's values, then its scores.
Where the ratio is 4 the windows overlap: the width is twice the head dimension, the older half of
a window uses the first half of the width and the newer one the second.
"""

from __future__ import annotations

import torch

from kiln_vllm_cpu_shims.operators.attention import store_tokens
from kiln_vllm_cpu_shims.operators.formats import (
    FP8_MAX,
    HEAD_DIM,
    INDEX_DIM,
    ROPE_DIM,
    SMALLEST,
    ceil_log2,
    power_of_two,
    rotate,
    scatter,
    to_fp8,
)


def save_partial_states_cpu(
    kv: torch.Tensor,
    score: torch.Tensor,
    ape: torch.Tensor,
    positions: torch.Tensor,
    state_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """Put the tokens' values and scores into the state cache.

    kv, score: (tokens, width) float32; ape: (ratio, width) float32, added to the scores by the
    position in the window; positions: (tokens) int64; state_cache: written to; slot_mapping:
    (tokens) int64, -1 for none.
    """
    saved = (slot_mapping >= 0).nonzero().squeeze(1)
    slots = slot_mapping[saved]
    scores = score[saved] + ape[positions[saved] % ape.shape[0]]
    size = state_cache.shape[1]
    state_cache[slots // size, slots % size] = torch.cat((kv[saved], scores), dim=1)


def _compressed(
    state_cache: torch.Tensor,
    gather_slots: torch.Tensor,
    positions: torch.Tensor,
    kv_slot_mapping: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    ratio: int,
    dim: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """The compressed tokens that end at one of these tokens; None where none does.

    gather_slots: (tokens, window) int64, -1 for none. Each channel is a mean over the window,
    weighted by the softmax of that channel's scores; then RMSNorm. Returns the tokens, (n, dim)
    float32, the positions that they stand for, (n), and their slots, (n).
    """
    ends = (((positions + 1) % ratio == 0) & (kv_slot_mapping >= 0)).nonzero().squeeze(1)
    if not ends.numel():
        return None
    slots = gather_slots[ends]
    size, width = state_cache.shape[1], state_cache.shape[2] // 2
    place = slots.clamp(min=0)
    rows = state_cache[place // size, place % size]  # (n, window, 2 * width)
    values, scores = rows[..., :dim], rows[..., width : width + dim]
    if slots.shape[1] > ratio:
        newer = (torch.arange(slots.shape[1]) >= ratio).view(1, -1, 1)
        values = torch.where(newer, rows[..., dim : 2 * dim], values)
        scores = torch.where(newer, rows[..., width + dim : width + 2 * dim], scores)
    valid = (slots >= 0).unsqueeze(-1)
    # What a slot that is none holds may be no number at all.
    weights = torch.softmax(scores.masked_fill(~valid, float("-inf")), dim=1)
    x = (weights * values.masked_fill(~valid, 0.0)).sum(1)
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight
    return x, positions[ends] // ratio * ratio, kv_slot_mapping[ends]


def compress_norm_rope_store_cpu(
    state_cache: torch.Tensor,
    gather_slots: torch.Tensor,
    positions: torch.Tensor,
    kv_slot_mapping: torch.Tensor,
    rms_norm_weight: torch.Tensor,
    rms_norm_eps: float,
    cos_sin_cache: torch.Tensor,
    kv_cache_2d: torch.Tensor,
    kv_cache_block_size: int,
    compress_ratio: int,
) -> None:
    """Compress for the attention: into its cache, (blocks, bytes) uint8.

    gather_slots: (tokens, window) int64; positions, kv_slot_mapping: (tokens) int64;
    rms_norm_weight: (512) float32; cos_sin_cache: (positions, 64) float32.
    """
    found = _compressed(
        state_cache,
        gather_slots,
        positions,
        kv_slot_mapping,
        rms_norm_weight,
        rms_norm_eps,
        compress_ratio,
        HEAD_DIM,
    )
    if found is None:
        return
    x, at, slots = found
    rope = rotate(x[:, -ROPE_DIM:], at, cos_sin_cache)
    store_tokens(kv_cache_2d, slots, kv_cache_block_size, x[:, :-ROPE_DIM], rope)


def compress_norm_rope_store_indexer_cpu(
    state_cache: torch.Tensor,
    gather_slots: torch.Tensor,
    positions: torch.Tensor,
    kv_slot_mapping: torch.Tensor,
    rms_norm_weight: torch.Tensor,
    rms_norm_eps: float,
    cos_sin_cache: torch.Tensor,
    kv_cache_2d: torch.Tensor,
    kv_cache_block_size: int,
    compress_ratio: int,
) -> None:
    """Compress for the indexer: as :func:`compress_norm_rope_store_cpu`, with 128 channels."""
    found = _compressed(
        state_cache,
        gather_slots,
        positions,
        kv_slot_mapping,
        rms_norm_weight,
        rms_norm_eps,
        compress_ratio,
        INDEX_DIM,
    )
    if found is None:
        return
    x, at, slots = found
    rope = rotate(x[:, -ROPE_DIM:], at, cos_sin_cache)
    x = torch.cat((x[:, :-ROPE_DIM], rope), dim=1).to(torch.bfloat16).float()
    exponent = ceil_log2(x.abs().amax(-1, keepdim=True).clamp_(min=SMALLEST) / FP8_MAX)
    values = to_fp8(x, exponent).view(torch.uint8)
    scatter(kv_cache_2d, slots, kv_cache_block_size, 0, values)
    start = kv_cache_block_size * INDEX_DIM
    scale = power_of_two(exponent).view(torch.uint8)
    scatter(kv_cache_2d, slots, kv_cache_block_size, start, scale)
