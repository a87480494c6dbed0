"""``vllm.v1.worker.gpu.block_table``: the block tables of a batch, and its tokens' slots.

A block table is reached through its address (uint64, in a tensor of one per KV cache group); its
rows, of int32, lie ``block_table_strides`` (int64, elements) apart, and its memory is not resized.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from kiln_vllm_cpu_shims.kernels.memory import (
    Address,
    Pointer,
    divide,
    remainder,
    scalar,
    spread,
)
from kiln_vllm_cpu_shims.kernels.standin import Grid, NotCoveredError


def gather_block_tables(grid: Grid, a: SimpleNamespace) -> None:
    """Copy the requests' rows to the batch's rows; clear the rows after the last request.

    ``grid`` is (groups, rows). ``batch_idx_to_req_idx`` ``(num_reqs,)`` int32: a batch row's
    request; ``num_blocks_ptr`` ``(groups, max requests)`` int32: how many elements of a request's
    row are copied, the others of the batch's row stay as they are.
    """
    groups, rows = grid
    if not (groups and rows):
        return
    each = np.arange(groups)
    strides = Pointer(a.block_table_strides).load(each)
    sources = Pointer(a.src_block_table_ptrs).load(each).tolist()
    targets = Pointer(a.dst_block_table_ptrs).load(each).tolist()
    real = max(min(rows, a.num_reqs), 0)
    requests = Pointer(a.batch_idx_to_req_idx).load(np.arange(real))
    num_blocks, num_blocks_stride = Pointer(a.num_blocks_ptr), scalar(a.num_blocks_stride)
    for group in range(groups):
        stride = strides[group : group + 1]
        target = Address(targets[group])
        row, column = spread(num_blocks.load(group * num_blocks_stride + requests))
        ids = Address(sources[group]).load(
            requests[row] * stride + column, np.ones(row.shape, dtype=bool)
        )
        target.store(row * stride + column, ids)
        target.store(np.arange(real * int(stride[0]), rows * int(stride[0])), 0)


def compute_slot_mappings(grid: Grid, a: SimpleNamespace) -> None:
    """Each token's slot in each group's cache; ``PAD_ID`` after the last token.

    ``grid`` is (groups, requests + 1). ``idx_mapping`` ``(requests,)`` int32: a request's row in
    the block tables, -1 for one that has none (its tokens get ``PAD_ID``); ``query_start_loc``
    ``(requests + 1,)`` int32; ``pos`` ``(tokens,)`` int64; ``block_sizes`` ``(groups,)`` int32;
    ``slot_mapping_enabled`` ``(groups,)`` bool; ``slot_mappings_ptr`` ``(groups, max_num_tokens)``
    int64. A context spread over ranks (``CP_SIZE``) is not covered.
    """
    if a.CP_SIZE != 1:
        raise NotCoveredError
    groups, requests = grid[0], grid[1] - 1
    if groups < 1 or requests < 0:
        return
    each = np.arange(groups)
    strides = Pointer(a.block_table_strides).load(each)
    sizes = Pointer(a.block_sizes).load(each)
    enabled = Pointer(a.slot_mapping_enabled).load(each)
    tables = Pointer(a.block_table_ptrs).load(each).tolist()
    bounds = Pointer(a.query_start_loc).load(np.arange(requests + 1))
    row, offset = spread(bounds[1:] - bounds[:-1])
    offset = bounds[:-1][row] + offset
    positions = Pointer(a.pos).load(offset)
    states = Pointer(a.idx_mapping).load(np.arange(requests))[row]
    real = states >= 0
    slots, slots_stride = Pointer(a.slot_mappings_ptr), scalar(a.slot_mappings_stride)
    for group in range(groups):
        start = group * slots_stride
        if len(row):
            size, on = sizes[group : group + 1], bool(enabled[group])
            block = divide(positions, size) if on else np.zeros_like(positions)
            numbers = Address(tables[group]).load(
                states * strides[group : group + 1] + block, real
            )
            slot = numbers * size + remainder(positions, size)
            slots.store(start + offset, np.where(real & on, slot, a.PAD_ID))
        first = int(start[0])
        slots.fill(first + int(bounds[-1]), first + a.max_num_tokens, a.PAD_ID)
