"""The attention: queries and keys into place, the attention itself, and its output turned back.

All heads share one key, which is the value too. Slots number the tokens of a paged cache (see
:mod:`.formats`): block times tokens a block, plus the place in the block; -1 is none.
"""

from __future__ import annotations

import torch

from kiln_vllm_cpu_shims.operators.formats import (
    HEAD_DIM,
    ROPE_DIM,
    TOKEN_BYTES,
    decode_tokens,
    encode_tokens,
    rotate,
    scatter,
)

# As many keys are looked at in one go: what bounds the memory of a long prefill.
KEYS_AT_ONCE = 1 << 15


def fused_qnorm_rope_kv_insert_cpu(
    q: torch.Tensor,
    kv: torch.Tensor,
    positions: torch.Tensor,
    swa_kv_cache_2d: torch.Tensor,
    slot_mapping: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    q_head_padded: int,
    eps: float,
    cache_block_size: int,
) -> torch.Tensor:
    """Normalize and rotate the queries; rotate the keys and put them into the window's cache.

    q: (tokens, heads, 512) bfloat16; kv: (tokens or more, 512) of q's type; positions: (tokens)
    int64; swa_kv_cache_2d: (blocks, bytes) uint8, written to; slot_mapping: (tokens to insert)
    int64; cos_sin_cache: (positions, 64) float32. Returns (tokens, q_head_padded, 512) of q's
    type, zero in the heads that q has not.
    """
    tokens, heads, dim = q.shape
    if dim != HEAD_DIM:
        raise ValueError(f"kiln-vllm-cpu-shims: the head dimension is {dim}, not {HEAD_DIM}")
    x = q.float()
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    out = q.new_zeros((tokens, q_head_padded, dim))
    out[:, :heads, :-ROPE_DIM] = x[..., :-ROPE_DIM].to(q.dtype)
    out[:, :heads, -ROPE_DIM:] = rotate(x[..., -ROPE_DIM:], positions, cos_sin_cache).to(q.dtype)

    inserted = (slot_mapping >= 0).nonzero().squeeze(1)
    if inserted.numel():
        slots = slot_mapping[inserted]
        x = kv[inserted].float()
        rope = rotate(x[:, -ROPE_DIM:], positions[inserted], cos_sin_cache)
        store_tokens(swa_kv_cache_2d, slots, cache_block_size, x[:, :-ROPE_DIM], rope)
    return out


def store_tokens(
    cache: torch.Tensor, slots: torch.Tensor, size: int, nope: torch.Tensor, rope: torch.Tensor
) -> None:
    """Put tokens into the attention's cache: nope (n, 448) and rope (n, 64), both float32."""
    data, scales = encode_tokens(nope, rope)
    scatter(cache, slots, size, 0, data)
    scatter(cache, slots, size, size * TOKEN_BYTES, scales)


def flash_mla_with_kvcache_cpu(
    out: torch.Tensor,
    q: torch.Tensor,
    window_cache_2d: torch.Tensor,
    window_slots: torch.Tensor,
    window_block_size: int,
    compressed_cache_2d: torch.Tensor,
    compressed_slots: torch.Tensor,
    compressed_block_size: int,
    attn_sink: torch.Tensor,
    scale: float,
) -> None:
    """Attend to the keys in the given slots of two caches, with one more logit a head: the sink.

    out: (tokens, heads, 512) bfloat16, written to; q: (tokens, heads, 512) bfloat16; caches:
    (blocks, bytes) uint8; slots: (tokens, keys) int64, keys may be 0 in the compressed ones;
    attn_sink: (heads) float32. A token without any valid slot gets zeros.
    """
    tokens, heads, _ = q.shape
    caches = [
        _used(window_cache_2d, window_slots, window_block_size),
        _used(compressed_cache_2d, compressed_slots, compressed_block_size),
    ]
    keys = torch.cat([keys for keys, _ in caches])
    # Both caches' keys in one table, the second's behind the first's.
    first = caches[0][0].shape[0]
    places = torch.cat(
        [caches[0][1], torch.where(caches[1][1] >= 0, caches[1][1] + first, -1)], dim=1
    )
    if not places.shape[1]:
        out.zero_()
        return
    step = max(1, KEYS_AT_ONCE // places.shape[1])
    sink = attn_sink.float().view(1, heads, 1)
    for start in range(0, tokens, step):
        part = slice(start, start + step)
        valid = places[part] >= 0
        k = keys[places[part].clamp(min=0)]
        logits = torch.bmm(q[part].float(), k.transpose(1, 2)) * scale
        logits = logits.masked_fill(~valid.unsqueeze(1), float("-inf"))
        logits = torch.cat((logits, sink.expand(logits.shape[0], -1, -1)), dim=-1)
        attended = torch.bmm(torch.softmax(logits, dim=-1)[..., :-1], k)
        # A sink of minus infinity leaves a token without keys nothing to divide by.
        out[part] = attended.masked_fill(~valid.any(-1).view(-1, 1, 1), 0.0).to(out.dtype)


def _used(cache: torch.Tensor, slots: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The keys that any token uses, each once, and where each token finds them.

    slots: (tokens, keys) int64. Returns the keys, (used, 512) float32, and their places, (tokens,
    columns that are valid for any token) int64 with -1 for none.
    """
    valid = (slots >= 0) & (slots < cache.shape[0] * size)
    columns = valid.any(0)
    slots, valid = slots[:, columns], valid[:, columns]
    used, inverse = torch.unique(slots[valid], return_inverse=True)
    places = torch.full_like(slots, -1)
    places[valid] = inverse
    return decode_tokens(cache, used, size), places


def inverse_gptj_rope_o_proj_cpu(
    o: torch.Tensor, positions: torch.Tensor, cos_sin_cache: torch.Tensor, rope_dim: int
) -> torch.Tensor:
    """The attention's output with the query's rotation undone.

    o: (tokens, heads, dim) bfloat16; positions: (tokens) int64; cos_sin_cache: (positions,
    rope_dim) float32. Returns (tokens, heads, dim) float32.
    """
    x = o.float()
    turned = rotate(x[..., -rope_dim:], positions, cos_sin_cache, inverse=True)
    return torch.cat((x[..., :-rope_dim], turned), dim=-1)
