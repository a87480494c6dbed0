"""Packed weights, and the grouped projection of the attention's output that uses them.

Here "packed" means float32: bfloat16 products are slow on a processor that has no instruction for
them, and the packer and its only consumer are both in this module.
"""

from __future__ import annotations

import torch


def convert_weight_packed(weight: torch.Tensor) -> torch.Tensor:
    """The weight as :func:`bmm_cpu` wants it.

    weight: (groups, out, in) bfloat16 or float16. Returns a float32 copy of the same shape. Raises
    ``NotImplementedError`` for any other: quantized and two-dimensional weights are packed only on
    processors that have AMX, and those have the compiled operators.
    """
    if weight.dim() != 3 or weight.dtype not in (torch.bfloat16, torch.float16):
        raise NotImplementedError(
            "kiln-vllm-cpu-shims: convert_weight_packed in PyTorch is for grouped weights (3 "
            f"dimensions) in bfloat16 or float16, not {tuple(weight.shape)} {weight.dtype}"
        )
    return weight.to(torch.float32, copy=True)


def bmm_cpu(
    out: torch.Tensor,
    mat1: torch.Tensor,
    mat2: torch.Tensor,
    is_vnni: bool,
    scale: torch.Tensor | None,
) -> None:
    """out = mat1 times the transpose of mat2, group by group.

    out: (groups, tokens, out) bfloat16; mat1: (groups, tokens, in) bfloat16; mat2: (groups, out,
    in), packed by :func:`convert_weight_packed` where ``is_vnni`` says so. Raises
    ``NotImplementedError`` with a ``scale``, which belongs to fp8 weights.
    """
    if scale is not None:
        raise NotImplementedError("kiln-vllm-cpu-shims: bmm_cpu in PyTorch has no fp8 weights")
    weight = mat2 if is_vnni else convert_weight_packed(mat2)
    out.copy_(torch.bmm(mat1.float(), weight.transpose(1, 2)))
