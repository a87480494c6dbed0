"""The indexer: which of the compressed tokens each token attends to, where there are many."""

from __future__ import annotations

import torch

from kiln_vllm_cpu_shims.operators.formats import (
    FP8_MAX,
    INDEX_DIM,
    INDEX_SCALE_BYTES,
    SMALLEST,
    ceil_log2,
    gather,
    power_of_two,
    rotate,
    to_fp8,
)

TOPK = 512
# As many logits of one head are computed in one go: what bounds the memory of a long prefill.
LOGITS_AT_ONCE = 1 << 18


def fused_indexer_q_rope_quant_cpu(
    positions: torch.Tensor,
    index_q: torch.Tensor,
    index_q_cos_sin_cache: torch.Tensor,
    index_q_fp8: torch.Tensor,
    index_weights: torch.Tensor,
    index_weights_softmax_scale: float,
    index_weights_head_scale: float,
    index_weights_out: torch.Tensor,
) -> None:
    """Rotate the indexer's queries and round them to fp8; their scales go into the heads' weights.

    positions: (tokens) int64; index_q: (tokens, heads, 128) float32; index_q_cos_sin_cache:
    (positions, 64) float32; index_q_fp8: (tokens, heads, 128) float8_e4m3fn, written to;
    index_weights: (tokens, heads) float32; index_weights_out: the same, written to.
    """
    dim = index_q_cos_sin_cache.shape[-1]
    rope = rotate(index_q[..., -dim:], positions, index_q_cos_sin_cache)
    x = torch.cat((index_q[..., :-dim], rope.to(torch.bfloat16).float()), dim=-1)
    exponent = ceil_log2(x.abs().amax(-1, keepdim=True).clamp_(min=SMALLEST) / FP8_MAX)
    index_q_fp8.copy_(to_fp8(x, exponent))
    scaled = index_weights * power_of_two(exponent.squeeze(-1))
    index_weights_out.copy_(scaled * index_weights_softmax_scale * index_weights_head_scale)


def fp8_paged_mqa_logits_cpu(
    q_fp8: torch.Tensor,
    kvcache_fp8: torch.Tensor,
    weight: torch.Tensor,
    seq_lens: torch.Tensor,
    page_table: torch.Tensor,
    block_size: int,
    max_seq_len: int,
) -> torch.Tensor:
    """How much each query wants each of its compressed tokens.

    q_fp8: (queries, heads, 128) float8_e4m3fn; kvcache_fp8: (blocks, bytes) uint8, the indexer's
    layout; weight: (queries, heads) float32; seq_lens: (queries), how many tokens a query sees;
    page_table: (queries, blocks of a sequence). Returns (queries, max_seq_len) float32: the sum
    over the heads of weight * max(q . k, 0), minus infinity beyond what a query sees.
    """
    queries, heads, _ = q_fp8.shape
    out = torch.full((queries, max_seq_len), float("-inf"), dtype=torch.float32)
    if not queries or not max_seq_len:
        return out
    places = torch.arange(max_seq_len)
    lengths = seq_lens.long()
    step = max(1, LOGITS_AT_ONCE // max_seq_len)
    for start in range(0, queries, step):
        part = slice(start, start + step)
        seen = places < lengths[part].unsqueeze(1)
        row, place = seen.nonzero(as_tuple=True)
        pages = page_table[part][row, place // block_size].long()
        # Queries of one request share their keys: each is decoded once.
        used, inverse = torch.unique(pages * block_size + place % block_size, return_inverse=True)
        k = gather(kvcache_fp8, used, block_size, 0, INDEX_DIM)
        k = k.view(torch.float8_e4m3fn).float()
        first = block_size * INDEX_DIM
        scale = gather(kvcache_fp8, used, block_size, first, INDEX_SCALE_BYTES)
        k = k * scale.view(torch.float32)  # scales are positive, so they may go before the max
        q = q_fp8[part].float()
        logits = torch.zeros((q.shape[0], used.shape[0]), dtype=torch.float32)
        for head in range(heads):
            logits += weight[part, head].unsqueeze(1) * torch.relu(q[:, head] @ k.T)
        out[part][row, place] = logits[row, inverse]
    return out


def topk_transform_512_cpu(
    scores: torch.Tensor,
    seq_lens: torch.Tensor,
    page_tables: torch.Tensor,
    out_page_indices: torch.Tensor,
    page_size: int,
    out_raw_indices: torch.Tensor | None,
) -> None:
    """The 512 tokens with the highest scores, in no order; all of them where there are fewer.

    scores: (queries, tokens) float32; seq_lens: (queries), how many of the scores count;
    page_tables: (queries, pages); out_page_indices: (queries, 512 or more) int32, written to: the
    slots; out_raw_indices: the same, written to: the places in the sequence. -1 fills the rest.
    """
    width = scores.shape[1]
    lengths = seq_lens.long().clamp(0, width)
    chosen = torch.arange(TOPK).expand(scores.shape[0], TOPK)
    chosen = torch.where(chosen < lengths.unsqueeze(1), chosen, -1)
    longer = (lengths > TOPK).nonzero().squeeze(1)
    if longer.numel():
        unseen = torch.arange(width) >= lengths[longer].unsqueeze(1)
        chosen[longer] = scores[longer].masked_fill(unseen, float("-inf")).topk(TOPK).indices
    place = chosen.clamp(min=0)
    pages = page_tables.long().gather(1, place // page_size)
    slots = torch.where(chosen >= 0, pages * page_size + place % page_size, -1)
    out_page_indices[:, :TOPK] = slots.to(out_page_indices.dtype)
    if out_raw_indices is not None:
        out_raw_indices[:, :TOPK] = chosen.to(out_raw_indices.dtype)
