"""``vllm.v1.worker.utils``: clear blocks of the KV cache before they are used again."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np

from kiln_vllm_cpu_shims.kernels.memory import Pointer
from kiln_vllm_cpu_shims.kernels.standin import Grid


def zero_kv_blocks(grid: Grid, a: SimpleNamespace) -> None:
    """Clear the first ``page`` int32 of each block in each segment.

    ``grid`` is (blocks, segments, chunks); no more than ``chunks * BLOCK_SIZE`` elements of a page
    are cleared. ``seg_addrs_ptr`` ``(segments,)`` uint64: absolute addresses;
    ``seg_block_strides_ptr``, ``seg_page_sizes_ptr`` ``(segments,)`` int64: in elements of 4
    bytes; ``block_ids_ptr`` ``(blocks,)`` int64.
    """
    blocks, segments, chunks = grid
    if not (blocks and segments and chunks):
        return
    each = np.arange(segments)
    strides = Pointer(a.seg_block_strides_ptr).load(each).tolist()
    pages = Pointer(a.seg_page_sizes_ptr).load(each).tolist()
    addresses = Pointer(a.seg_addrs_ptr).load(each).tolist()
    block_ids = Pointer(a.block_ids_ptr).load(np.arange(blocks)).tolist()
    for address, stride, page in zip(addresses, strides, pages, strict=True):
        size = 4 * min(page, chunks * a.BLOCK_SIZE)
        if size > 0:
            for block_id in block_ids:
                ctypes.memset(address + 4 * block_id * stride, 0, size)
