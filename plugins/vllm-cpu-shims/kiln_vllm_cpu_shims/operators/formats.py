"""What the operators share: rotary embedding, the fp8 number formats, and the layout of the caches.

A paged cache of keys and values is a uint8 tensor (blocks, bytes of a block); its rows may lie
farther apart in memory than they are long. A block of ``size`` tokens holds, for the attention
(head dimension 512, of which the last 64 are rotated):

    size x 576 bytes    448 fp8 e4m3 values, then 64 bfloat16 values
    size x 8 bytes      7 scales, one for 64 of the fp8 values, as exponents with bias 127; 1 byte 0

and for the indexer (head dimension 128):

    size x 128 bytes    128 fp8 e4m3 values
    size x 4 bytes      1 scale, float32

Every scale is a power of two, so values come back exactly as they were rounded.
"""

from __future__ import annotations

from typing import Final

import torch

ROPE_DIM: Final = 64
NOPE_DIM: Final = 448
HEAD_DIM: Final = NOPE_DIM + ROPE_DIM
GROUP: Final = 64
GROUPS: Final = NOPE_DIM // GROUP
TOKEN_BYTES: Final = NOPE_DIM + 2 * ROPE_DIM
SCALE_BYTES: Final = GROUPS + 1

INDEX_DIM: Final = 128
INDEX_SCALE_BYTES: Final = 4

FP8_MAX: Final = 448.0
SMALLEST: Final = 1e-4  # keeps the scale of an all-zero group a number
EXPONENT_BIAS: Final = 127


def rotate(
    x: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor, *, inverse: bool = False
) -> torch.Tensor:
    """Rotary embedding of neighbouring pairs (GPT-J's order), or its inverse.

    x: (n, ..., d) float32; positions: (n) int64; cos_sin: (positions, d) float32, cosines in the
    first half of a row and sines in the second. Returns (n, ..., d) float32.
    """
    cos, sin = cos_sin[positions].chunk(2, dim=-1)
    if inverse:
        sin = -sin
    while cos.dim() < x.dim():
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def ceil_log2(x: torch.Tensor) -> torch.Tensor:
    """The smallest integer e with 2**e >= x, for positive float32 x; int32, exact."""
    mantissa, exponent = torch.frexp(x)
    return exponent - (mantissa == 0.5).to(exponent.dtype)


def power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """2**exponent as float32, exact: int32 exponents from -127 (which gives 0) to 127."""
    return (exponent + EXPONENT_BIAS << 23).view(torch.float32)


def to_fp8(x: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    """x / 2**exponent as fp8 e4m3, to the nearest; the exponent broadcasts. Returns float8_e4m3fn."""
    scaled = (x * power_of_two(-exponent)).clamp_(-FP8_MAX, FP8_MAX)
    return scaled.to(torch.float8_e4m3fn)


def encode_tokens(nope: torch.Tensor, rope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens as the attention's cache stores them.

    nope: (n, 448) float32, rounded to bfloat16 first; rope: (n, 64) float32, rotated. Returns the
    data, (n, 576) uint8, and the scales, (n, 8) uint8.
    """
    n = nope.shape[0]
    groups = nope.to(torch.bfloat16).float().view(n, GROUPS, GROUP)
    exponent = ceil_log2((groups.abs().amax(-1) / FP8_MAX).clamp_(min=SMALLEST))
    values = to_fp8(groups, exponent.unsqueeze(-1)).view(torch.uint8).view(n, NOPE_DIM)
    data = torch.cat((values, rope.to(torch.bfloat16).contiguous().view(torch.uint8)), dim=1)
    scales = torch.zeros((n, SCALE_BYTES), dtype=torch.uint8)
    scales[:, :GROUPS] = (exponent + EXPONENT_BIAS).to(torch.uint8)
    return data, scales


def decode_tokens(cache: torch.Tensor, slots: torch.Tensor, size: int) -> torch.Tensor:
    """The tokens in these slots of the attention's cache.

    cache: (blocks, bytes) uint8, ``size`` tokens a block; slots: (n) int64, all valid. Returns
    (n, 512) float32.
    """
    data = gather(cache, slots, size, 0, TOKEN_BYTES)
    scales = gather(cache, slots, size, size * TOKEN_BYTES, SCALE_BYTES)[:, :GROUPS]
    values = data[:, :NOPE_DIM].contiguous().view(torch.float8_e4m3fn).float()
    exponent = scales.to(torch.int32) - EXPONENT_BIAS
    nope = (values.view(-1, GROUPS, GROUP) * power_of_two(exponent).unsqueeze(-1)).flatten(1)
    rope = data[:, NOPE_DIM:].contiguous().view(torch.bfloat16).float()
    return torch.cat((nope, rope), dim=1)


def gather(
    cache: torch.Tensor, slots: torch.Tensor, size: int, start: int, width: int
) -> torch.Tensor:
    """``width`` bytes of each slot out of the part of its block that begins at ``start``.

    cache: (blocks, bytes) uint8; slots: (n) int64. Returns (n, width) uint8.
    """
    columns = start + (slots % size * width).unsqueeze(1) + torch.arange(width)
    return cache[(slots // size).unsqueeze(1), columns]


def scatter(
    cache: torch.Tensor, slots: torch.Tensor, size: int, start: int, data: torch.Tensor
) -> None:
    """Write each slot's bytes, (n, width) uint8, where :func:`gather` would read them."""
    width = data.shape[1]
    columns = start + (slots % size * width).unsqueeze(1) + torch.arange(width)
    cache[(slots // size).unsqueeze(1), columns] = data
