"""The mHC steps: mixing the residual streams before a layer, after it, and at the end.

Streams are (tokens, hc, hidden) bfloat16, hc being 4 in DeepSeek V4; gates are float32.
"""

from __future__ import annotations

import torch
from torch.nn.functional import linear

POST_MULTIPLIER = 2.0


def _gates(x: torch.Tensor, fn: torch.Tensor, eps: float) -> torch.Tensor:
    """The gates' linear map of all streams of a token, divided by the streams' root mean square.

    x: (tokens, hc, hidden); fn: (gates, hc * hidden) float32. Returns (tokens, gates) float32.
    """
    flat = x.flatten(1).float()
    return linear(flat, fn) * torch.rsqrt(flat.square().mean(-1, keepdim=True) + eps)


def _mix(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted sum of a token's streams: (tokens, hc, hidden) and (tokens, hc) float32."""
    return torch.bmm(weights.unsqueeze(1), x.float()).squeeze(1).to(x.dtype)


def sinkhorn(logits: torch.Tensor, iterations: int, eps: float) -> torch.Tensor:
    """An almost doubly stochastic matrix: softmax of the rows, then columns and rows in turn.

    logits: (tokens, hc, hc) float32. Returns the same.
    """
    comb = torch.softmax(logits, dim=-1) + eps
    comb = comb / (comb.sum(-2, keepdim=True) + eps)
    for _ in range(iterations - 1):
        comb = comb / (comb.sum(-1, keepdim=True) + eps)
        comb = comb / (comb.sum(-2, keepdim=True) + eps)
    return comb


def hc_pre_fused_cpu(
    x: torch.Tensor,
    hc_fn: torch.Tensor,
    hc_scale: torch.Tensor,
    hc_base: torch.Tensor,
    hc_mult: int,
    sinkhorn_iters: int,
    rms_eps: float,
    hc_eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What enters a layer, and the gates for :func:`hc_post_fused_cpu`.

    x: (tokens, hc, hidden) bfloat16; hc_fn: ((2 + hc) * hc, hc * hidden) float32; hc_scale: (3)
    float32; hc_base: ((2 + hc) * hc) float32. Returns the layer's input, (tokens, hidden) of x's
    type, post, (tokens, hc) float32, and comb, (tokens, hc, hc) float32.
    """
    hc = hc_mult
    scale = torch.repeat_interleave(hc_scale, torch.tensor([hc, hc, hc * hc]))
    pre, post, comb = (_gates(x, hc_fn, rms_eps) * scale + hc_base).split([hc, hc, hc * hc], dim=-1)
    mixed = _mix(x, torch.sigmoid(pre) + hc_eps)
    comb = sinkhorn(comb.reshape(-1, hc, hc), sinkhorn_iters, hc_eps)
    return mixed, POST_MULTIPLIER * torch.sigmoid(post), comb


def hc_post_fused_cpu(
    x: torch.Tensor, residual: torch.Tensor, post: torch.Tensor, comb: torch.Tensor
) -> torch.Tensor:
    """The streams after a layer: its output times post, plus the old streams mixed by comb.

    x: (tokens, hidden) bfloat16; residual: (tokens, hc, hidden) of x's type; post: (tokens, hc)
    float32; comb: (tokens, hc, hc) float32, from stream (rows) to stream (columns). Returns
    (tokens, hc, hidden) of x's type.
    """
    added = post.unsqueeze(-1) * x.float().unsqueeze(1)
    return torch.baddbmm(added, comb.transpose(1, 2), residual.float()).to(x.dtype)


def hc_head_fused_cpu(
    x: torch.Tensor,
    hc_fn: torch.Tensor,
    hc_scale: torch.Tensor,
    hc_base: torch.Tensor,
    hc_eps: float,
    norm_eps: float,
) -> torch.Tensor:
    """The streams joined into one before the last norm.

    x: (tokens, hc, hidden) bfloat16; hc_fn: (hc, hc * hidden) float32; hc_scale: (1) float32;
    hc_base: (hc) float32. Returns (tokens, hidden) of x's type.
    """
    gates = torch.sigmoid(_gates(x, hc_fn, norm_eps) * hc_scale + hc_base) + hc_eps
    return _mix(x, gates)
