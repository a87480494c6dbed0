"""``vllm.v1.attention.backends.mla``: which slots a token's attention reads and writes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from kiln_vllm_cpu_shims.kernels.memory import Array, Pointer, divide, remainder, scalar, spread
from kiln_vllm_cpu_shims.kernels.standin import Grid


def compute_swa_indices_and_lens(grid: Grid, a: SimpleNamespace) -> None:
    """The slots in each token's sliding window, and how many they are; the rest of a row is -1.

    ``grid`` is (tokens,), from ``token_offset`` on. ``is_valid_token_ptr`` ``(tokens,)`` bool:
    others get length 0; ``token_to_req_indices_ptr`` ``(tokens,)`` int32; ``query_start_loc_ptr``
    ``(requests + 1,)``, ``seq_lens_ptr``, ``replay_start_ptr`` ``(requests,)`` int32;
    ``block_table_ptr`` ``(requests, blocks)`` int32; ``left_visible_ptr``, ``right_visible_ptr``
    ``(tokens,)`` int32, read if ``HAS_IMAGE``. Out: ``swa_indices_ptr`` ``(tokens, index_width)``
    int32, its rows ``swa_indices_stride`` apart; ``swa_lens_ptr`` ``(tokens,)`` int32.
    """
    program = np.arange(grid[0], dtype=np.int32)
    token = program + scalar(a.token_offset)
    column = np.arange(a.index_width, dtype=np.int32)[None, :]
    valid = Pointer(a.is_valid_token_ptr).load(token).astype(bool)
    indices, lens = Pointer(a.swa_indices_ptr), Pointer(a.swa_lens_ptr)
    row_start = (program * scalar(a.swa_indices_stride))[:, None]
    lens.store(program[~valid], 0)
    if not valid.all():
        indices.store(row_start[~valid] + column, -1)
    if not valid.any():
        return
    token = token[valid]
    request = Pointer(a.token_to_req_indices_ptr).load(token)
    query_start_loc = Pointer(a.query_start_loc_ptr)
    query_start = query_start_loc.load(request)
    query_len = query_start_loc.load(request + 1) - query_start
    pos = Pointer(a.seq_lens_ptr).load(request) - query_len + token - query_start
    left: Array = scalar(0)
    right: Array = scalar(0)
    if a.HAS_IMAGE:
        left = Pointer(a.left_visible_ptr).load(token)
        right = Pointer(a.right_visible_ptr).load(token)
    before = scalar(a.window_size) - 1
    start = np.maximum(pos - before - np.maximum(left - before, 0), 0)
    start = np.maximum(start, Pointer(a.replay_start_ptr).load(request))
    end = pos + right + 1
    length = end - start
    lens.store(program[valid], length)

    at = start[:, None] + column
    size = scalar(a.block_size)
    blocks = Pointer(a.block_table_ptr).load(
        (request * scalar(a.block_table_stride))[:, None] + divide(at, size), at < end[:, None]
    )
    slots = blocks * size + remainder(at, size)
    indices.store(row_start[valid] + column, np.where(column < length[:, None], slots, -1))


def compressed_slot_mapping(grid: Grid, a: SimpleNamespace) -> None:
    """The slot of the compressed state that a token completes; ``PAD_ID`` if it completes none.

    ``grid`` is (requests,). ``slot_mapping_ptr`` ``(tokens,)`` int64: the tokens' own slots;
    ``query_start_loc_ptr`` ``(requests + 1,)``, ``seq_lens_ptr`` ``(requests,)`` int32;
    ``block_table_ptr`` ``(requests, blocks)`` int32. Out: ``compressed_slot_mapping_ptr``
    ``(tokens,)`` int64.
    """
    request = np.arange(grid[0], dtype=np.int32)
    query_start_loc = Pointer(a.query_start_loc_ptr)
    query_start = query_start_loc.load(request)
    query_len = query_start_loc.load(request + 1) - query_start
    row, offset = spread(query_len)
    if not len(row):
        return
    pos = (Pointer(a.seq_lens_ptr).load(request) - query_len)[row] + offset
    place = query_start[row] + offset
    own = Pointer(a.slot_mapping_ptr).load(place)
    valid = (remainder(pos + 1, a.COMPRESS_RATIO) == 0) & (own != a.PAD_ID)
    interleave, size = scalar(a.cp_interleave), scalar(a.block_size)
    around = interleave * scalar(a.dcp_world_size)
    local = divide(pos, around) * interleave + remainder(pos, interleave)
    state = divide(local, a.COMPRESS_RATIO)
    blocks = Pointer(a.block_table_ptr).load(
        request[row] * scalar(a.block_table_stride) + divide(state, size), valid
    )
    slots = blocks.astype(np.int64) * size + remainder(state, size)
    Pointer(a.compressed_slot_mapping_ptr).store(place, np.where(valid, slots, a.PAD_ID))
