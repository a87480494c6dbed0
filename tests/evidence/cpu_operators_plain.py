"""DeepSeek V4's CPU operators once more, token by token in float64 and from their definitions: what the others are compared with.

The functions have the names and arguments of the operators. Nothing here is shared with plugins/vllm-cpu-shims: fp8 is rounded by looking
for the nearest value in a table, exponents are found by counting, and caches are read and written byte range by byte range.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

POST_MULTIPLIER = 2.0
NOPE, ROPE, GROUP = 448, 64, 64
TOKEN, SCALES = NOPE + 2 * ROPE, 8
INDEX = 128
TOPK = 512


def _fp8_value(byte: int) -> float:
    """The value of an e4m3 byte: 4 bits of exponent with bias 7, 3 of mantissa, no infinities."""
    exponent, mantissa = byte >> 3 & 15, byte & 7
    value = math.ldexp(mantissa / 8, -6) if exponent == 0 else math.ldexp(1 + mantissa / 8, exponent - 7)
    return -value if byte & 128 else value


# Every value but the two that are no numbers, in order; a byte that is odd has an odd mantissa.
_VALUES = torch.tensor([_fp8_value(byte) for byte in range(127)], dtype=torch.float64)
_BYTES = torch.tensor([_fp8_value(byte) if byte & 127 != 127 else math.nan for byte in range(256)], dtype=torch.float64)


def to_bytes(x: Tensor) -> Tensor:
    """The e4m3 bytes nearest to x; of two that are as near, the even one."""
    size = x.abs().clamp(max=448.0)
    above = torch.searchsorted(_VALUES, size).clamp(max=126)
    below = (above - 1).clamp(min=0)
    up, down = _VALUES[above] - size, size - _VALUES[below]
    byte = torch.where((up < down) | ((up == down) & (above % 2 == 0)), above, below)
    return (byte + 128 * torch.signbit(x)).to(torch.uint8)


def from_bytes(x: Tensor) -> Tensor:
    return _BYTES[x.long()]


def exponent_of(scale: float) -> int:
    """The smallest e with 2**e not below the scale."""
    e = 0
    while 2.0**e < scale:
        e += 1
    while 2.0 ** (e - 1) >= scale:
        e -= 1
    return e


def bf16(x: Tensor) -> Tensor:
    return x.float().to(torch.bfloat16).double()


def turn(x: Tensor, angles: Tensor, sign: int) -> Tensor:
    """Each pair of neighbours as one complex number, times cos + i sin (or its conjugate)."""
    half = angles.shape[-1] // 2
    by = torch.complex(angles[:half].double(), sign * angles[half:].double())
    return torch.view_as_real(torch.view_as_complex(x.double().contiguous().view(*x.shape[:-1], half, 2)) * by).flatten(
        -2
    )


def rms(x: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).sum(-1, keepdim=True) / x.shape[-1] + eps).sqrt()


def read_token(cache: Tensor, slot: int, size: int) -> Tensor:
    block, at = cache[slot // size], slot % size
    data = block[at * TOKEN : (at + 1) * TOKEN]
    scales = block[size * TOKEN + at * SCALES :][: SCALES - 1]
    nope = torch.cat(
        [from_bytes(data[64 * n : 64 * n + 64]) * 2.0 ** (int(scale) - 127) for n, scale in enumerate(scales)]
    )
    return torch.cat([nope, data[NOPE:].clone().view(torch.bfloat16).double()])


def write_token(cache: Tensor, slot: int, size: int, nope: Tensor, rope: Tensor) -> None:
    block, at = cache[slot // size], slot % size
    nope = bf16(nope)
    for n, group in enumerate(nope.view(-1, GROUP)):
        e = exponent_of(max(float(group.abs().max()) / 448.0, 1e-4))
        block[at * TOKEN + n * GROUP :][:GROUP] = to_bytes(group * 2.0**-e)
        block[size * TOKEN + at * SCALES + n] = e + 127
    block[size * TOKEN + at * SCALES + SCALES - 1] = 0
    block[at * TOKEN + NOPE : (at + 1) * TOKEN] = rope.float().to(torch.bfloat16).view(torch.uint8)


def read_index(cache: Tensor, slot: int, size: int) -> Tensor:
    block, at = cache[slot // size], slot % size
    scale = block[size * INDEX + 4 * at :][:4].clone().view(torch.float32)
    return from_bytes(block[at * INDEX : (at + 1) * INDEX]) * float(scale)


def write_index(cache: Tensor, slot: int, size: int, x: Tensor) -> None:
    block, at = cache[slot // size], slot % size
    x = bf16(x)
    e = exponent_of(max(float(x.abs().max()), 1e-4) / 448.0)
    block[at * INDEX : (at + 1) * INDEX] = to_bytes(x * 2.0**-e)
    block[size * INDEX + 4 * at :][:4] = torch.tensor([2.0**e], dtype=torch.float32).view(torch.uint8)


def _gates(x: Tensor, fn: Tensor, eps: float) -> Tensor:
    return rms(x.double().flatten(), eps) @ fn.double().T


def hc_pre_fused_cpu(
    x: Tensor,
    hc_fn: Tensor,
    hc_scale: Tensor,
    hc_base: Tensor,
    hc_mult: int,
    sinkhorn_iters: int,
    rms_eps: float,
    hc_eps: float,
) -> Any:
    n, mixed, posts, combs = hc_mult, [], [], []
    base = hc_base.double()
    for streams in x:
        u = _gates(streams, hc_fn, rms_eps)
        pre = torch.sigmoid(u[:n] * hc_scale[0] + base[:n]) + hc_eps
        posts.append(POST_MULTIPLIER * torch.sigmoid(u[n : 2 * n] * hc_scale[1] + base[n : 2 * n]))
        logits = (u[2 * n :] * hc_scale[2] + base[2 * n :]).view(n, n)
        comb = logits.exp() / logits.exp().sum(1, keepdim=True) + hc_eps
        comb = comb / (comb.sum(0, keepdim=True) + hc_eps)
        for _ in range(sinkhorn_iters - 1):
            comb = comb / (comb.sum(1, keepdim=True) + hc_eps)
            comb = comb / (comb.sum(0, keepdim=True) + hc_eps)
        combs.append(comb)
        mixed.append(sum(pre[j] * streams[j].double() for j in range(n)))
    return torch.stack(mixed), torch.stack(posts), torch.stack(combs)  # type: ignore[arg-type]


def hc_post_fused_cpu(x: Tensor, residual: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    tokens, n, _ = residual.shape
    out = torch.empty(residual.shape, dtype=torch.float64)
    for t in range(tokens):
        for j in range(n):
            out[t, j] = post[t, j].double() * x[t].double() + sum(
                comb[t, i, j].double() * residual[t, i].double() for i in range(n)
            )
    return out


def hc_head_fused_cpu(
    x: Tensor, hc_fn: Tensor, hc_scale: Tensor, hc_base: Tensor, hc_eps: float, norm_eps: float
) -> Tensor:
    out = []
    for streams in x:
        gates = torch.sigmoid(_gates(streams, hc_fn, norm_eps) * hc_scale.double() + hc_base.double()) + hc_eps
        out.append(gates @ streams.double())
    return torch.stack(out)


def convert_weight_packed(weight: Tensor) -> Tensor:
    return weight.double()


def bmm_cpu(out: Tensor, mat1: Tensor, mat2: Tensor, is_vnni: bool, scale: Tensor | None) -> None:
    for group in range(len(out)):
        out[group] = mat1[group].double() @ mat2[group].double().T


def _score(logits: Tensor) -> Tensor:
    return torch.log1p(logits.double().exp()).sqrt()


def hash_topk_cpu(
    gating_output: Tensor, tid2eid: Tensor, topk: int, scoring_func: str, shared: int, num_experts: int, factor: float
) -> Any:
    weights = torch.stack([_score(row[ids.long()]) for row, ids in zip(gating_output, tid2eid, strict=True)])
    return weights / weights.sum(1, keepdim=True) * factor, tid2eid


def biased_topk_cpu(
    hidden: Tensor,
    gating_output: Tensor,
    bias: Tensor,
    topk: int,
    renormalize: bool,
    scoring_func: str,
    shared: int,
    factor: float,
    apply: bool,
) -> Any:
    weights, ids = [], []
    for row in gating_output:
        scores = _score(row)
        order = sorted(range(len(row)), key=lambda e: -float(scores[e] + bias[e]))[:topk]
        ids.append(order)
        weights.append(scores[order] / scores[order].sum() * factor)
    return torch.stack(weights), torch.tensor(ids)


def fused_qnorm_rope_kv_insert_cpu(
    q: Tensor,
    kv: Tensor,
    positions: Tensor,
    cache: Tensor,
    slots: Tensor,
    cos_sin: Tensor,
    padded: int,
    eps: float,
    size: int,
) -> Tensor:
    out = torch.zeros((q.shape[0], padded, q.shape[2]), dtype=torch.float64)
    for t, position in enumerate(positions.tolist()):
        x = rms(q[t].double(), eps)
        out[t, : q.shape[1]] = torch.cat([x[:, :NOPE], turn(x[:, NOPE:], cos_sin[position], 1)], dim=1)
        if t < len(slots) and slots[t] >= 0:
            write_token(cache, int(slots[t]), size, kv[t, :NOPE].double(), turn(kv[t, NOPE:], cos_sin[position], 1))
    return out


def flash_mla_with_kvcache_cpu(
    out: Tensor,
    q: Tensor,
    window: Tensor,
    window_slots: Tensor,
    window_size: int,
    compressed: Tensor,
    compressed_slots: Tensor,
    compressed_size: int,
    sink: Tensor,
    scale: float,
) -> None:
    for t in range(q.shape[0]):
        keys = [read_token(window, int(s), window_size) for s in window_slots[t] if s >= 0]
        keys += [read_token(compressed, int(s), compressed_size) for s in compressed_slots[t] if s >= 0]
        if not keys:
            out[t] = 0
            continue
        k = torch.stack(keys)
        for h in range(q.shape[1]):
            weights = (k @ q[t, h].double() * scale).exp()
            out[t, h] = (weights @ k) / (weights.sum() + sink[h].double().exp())


def inverse_gptj_rope_o_proj_cpu(o: Tensor, positions: Tensor, cos_sin: Tensor, rope_dim: int) -> Tensor:
    return torch.stack(
        [
            torch.cat([x[:, :-rope_dim].double(), turn(x[:, -rope_dim:], cos_sin[p], -1)], dim=1)
            for x, p in zip(o, positions.tolist(), strict=True)
        ]
    )


def save_partial_states_cpu(
    kv: Tensor, score: Tensor, ape: Tensor, positions: Tensor, state: Tensor, slots: Tensor
) -> None:
    size, width = state.shape[1], kv.shape[1]
    for t, slot in enumerate(slots.tolist()):
        if slot >= 0:
            state[slot // size, slot % size, :width] = kv[t]
            state[slot // size, slot % size, width:] = score[t] + ape[int(positions[t]) % len(ape)]


def _compress(state: Tensor, window: list[int], ratio: int, dim: int, weight: Tensor, eps: float) -> Tensor:
    size, width = state.shape[1], state.shape[2] // 2
    top, bottom = torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)
    for w, slot in enumerate(window):
        if slot < 0:
            continue
        row, first = state[slot // size, slot % size].double(), dim if w >= ratio else 0
        share = row[width + first :][:dim].exp()
        top, bottom = top + share * row[first:][:dim], bottom + share
    return rms(top / bottom, eps) * weight.double()


def _store(write: Any, dim: int, args: tuple[Any, ...]) -> None:
    state, gather, positions, slots, weight, eps, cos_sin, cache, size, ratio = args
    for t, position in enumerate(positions.tolist()):
        if (position + 1) % ratio == 0 and slots[t] >= 0:
            x = _compress(state, gather[t].tolist(), ratio, dim, weight, eps)
            write(cache, int(slots[t]), size, x[:-ROPE], turn(x[-ROPE:], cos_sin[position - position % ratio], 1))


def compress_norm_rope_store_cpu(*args: Any) -> None:
    _store(write_token, NOPE + ROPE, args)


def compress_norm_rope_store_indexer_cpu(*args: Any) -> None:
    _store(lambda cache, slot, size, nope, rope: write_index(cache, slot, size, torch.cat([nope, rope])), INDEX, args)


def fused_indexer_q_rope_quant_cpu(
    positions: Tensor,
    q: Tensor,
    cos_sin: Tensor,
    q_fp8: Tensor,
    weights: Tensor,
    softmax_scale: float,
    head_scale: float,
    out: Tensor,
) -> None:
    for t, position in enumerate(positions.tolist()):
        for h in range(q.shape[1]):
            x = torch.cat([q[t, h, :-ROPE].double(), bf16(turn(q[t, h, -ROPE:], cos_sin[position], 1))])
            e = exponent_of(max(float(x.abs().max()), 1e-4) / 448.0)
            q_fp8[t, h] = to_bytes(x * 2.0**-e).view(torch.float8_e4m3fn)
            out[t, h] = float(weights[t, h]) * 2.0**e * softmax_scale * head_scale


def fp8_paged_mqa_logits_cpu(
    q: Tensor, cache: Tensor, weight: Tensor, lengths: Tensor, pages: Tensor, size: int, longest: int
) -> Tensor:
    out = torch.zeros((len(q), longest), dtype=torch.float64)
    for b, length in enumerate(lengths.tolist()):
        for place in range(length):
            k = read_index(cache, int(pages[b, place // size]) * size + place % size, size)
            out[b, place] = torch.relu(from_bytes(q[b].view(torch.uint8)) @ k) @ weight[b].double()
    return out


def topk_transform_512_cpu(
    scores: Tensor, lengths: Tensor, pages: Tensor, out: Tensor, size: int, raw: Tensor | None
) -> None:
    for b, length in enumerate(lengths.tolist()):
        places = sorted(range(length), key=lambda place: -float(scores[b, place]))[:TOPK]
        for column in range(TOPK):
            place = places[column] if column < len(places) else -1
            slot = int(pages[b, place // size]) * size + place % size if place >= 0 else -1
            out[b, column] = slot
            if raw is not None:
                raw[b, column] = place
