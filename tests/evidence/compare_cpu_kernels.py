"""Compares the stand-ins of plugins/vllm-cpu-shims for five of vLLM's kernels with Triton's interpretation of the kernels, bit for bit.

    python3 compare_cpu_kernels.py [--cases 40] [--prove]      inside the image

Each case makes its inputs twice from one seed; upstream's kernel gets the one, the stand-in the other, and afterwards all memory must be the
same: what is written, what is read, and the sentinels around and between. With --prove every stand-in is spoilt, twice: it leaves its
last program out, and it writes one element too many.

One JSON document on standard output. Exit code 0: the same; 1: not (with --prove: a spoilt stand-in was not seen); 2: could not look.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from kiln_vllm_cpu_shims.kernels import registration
from kiln_vllm_cpu_shims.kernels.standin import StandIn
from torch import Tensor

FILL = -77
I32, I64 = torch.int32, torch.int64


class Memory(random.Random):
    """Random inputs, each in a storage of its own that is larger than it."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.kept: dict[str, Tensor] = {}

    def give(self, name: str, values: Tensor, gap: int = 0) -> Tensor:
        """The values in the midst of a storage of sentinels; rows of a matrix lie ``gap`` farther apart than they are long."""
        rows, width = values.shape if values.dim() == 2 else (1, values.shape[0])
        fill = True if values.dtype == torch.bool else FILL
        storage = torch.full((16 + rows * (width + gap) + 16,), fill, dtype=values.dtype)
        strides = (width + gap, 1) if values.dim() == 2 else (1,)
        view = storage.as_strided(tuple(values.shape), strides, 16)
        view.copy_(values)
        self.kept[name] = storage
        return view

    def ints(self, count: int, low: int, high: int) -> list[int]:
        return [self.randint(low, high) for _ in range(count)]

    def array(self, name: str, values: list[int], dtype: torch.dtype = I32) -> Tensor:
        return self.give(name, torch.tensor(values, dtype=dtype))

    def blocks(self, name: str, rows: int, width: int, gap: int = 0) -> Tensor:
        """A block table; now and then its numbers are so large that a slot overflows."""
        high = self.choice((50, 50, 50, 2**31 - 1))
        return self.give(name, torch.tensor(self.ints(rows * width, 0, high), dtype=I32).view(rows, width), gap)

    def blank(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, gap: int = 0) -> Tensor:
        return self.give(name, torch.full(shape, FILL, dtype=dtype), gap)

    def lengths(self, requests: int) -> tuple[list[int], list[int]]:
        """Tokens of each request, and where they start."""
        each = [self.choice((0, 1, 1, self.randint(2, 40), self.choice((70, 1100)))) for _ in range(requests)]
        return each, [sum(each[:n]) for n in range(requests + 1)]


def addresses(tensors: list[Tensor]) -> Tensor:
    return torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.uint64)


Case = Callable[[Memory], tuple[tuple[int, ...], dict[str, Any], str]]


def gather(m: Memory) -> tuple[tuple[int, ...], dict[str, Any], str]:
    groups, requests = m.randint(1, 4), m.randint(0, 5)
    rows = requests + m.randint(0, 3)
    widths = [m.choice((m.randint(1, 40), 1100)) for _ in range(groups)]
    counts = torch.tensor([m.ints(8, 0, width) for width in widths], dtype=I32)
    sources = [m.blocks(f"source{n}", 8, width) for n, width in enumerate(widths)]
    targets = [m.blank(f"out{n}", (rows + 1, width), I32) for n, width in enumerate(widths)]
    num_blocks = m.give("num_blocks", counts, m.choice((0, 3)))
    return (
        (groups, rows),
        {
            "batch_idx_to_req_idx": m.array("requests", m.sample(range(8), requests)),
            "src_block_table_ptrs": addresses(sources),
            "dst_block_table_ptrs": addresses(targets),
            "block_table_strides": m.array("strides", widths, I64),
            "num_blocks_ptr": num_blocks,
            "num_blocks_stride": num_blocks.stride(0),
            "num_reqs": requests,
            "BLOCK_SIZE": m.choice((8, 64, 1024)),
        },
        "out0",
    )


def slot_mappings(m: Memory) -> tuple[tuple[int, ...], dict[str, Any], str]:
    groups, requests = m.randint(1, 4), m.randint(0, 5)
    each, starts = m.lengths(requests)
    positions = [first + n for length in each for first in (m.randint(0, 60),) for n in range(length)]
    sizes = [m.choice((1, 4, 16, 64)) for _ in range(groups)]
    tables = [m.blocks(f"table{n}", 8, max(positions, default=0) // size + 1) for n, size in enumerate(sizes)]
    states = [m.choice((state, state, state, -1)) for state in m.sample(range(8), requests)]
    width = starts[-1] + m.randint(0, 50)
    out = m.blank("out", (groups, width + 1), I64, m.choice((0, 5)))
    return (
        (groups, requests + 1),
        {
            "max_num_tokens": width,
            "idx_mapping": m.array("states", states),
            "query_start_loc": m.array("starts", starts),
            "pos": m.array("positions", positions, I64),
            "block_table_ptrs": addresses(tables),
            "block_table_strides": m.array("strides", [table.stride(0) for table in tables], I64),
            "block_sizes": m.array("sizes", sizes),
            "slot_mapping_enabled": m.array("enabled", m.choices((1, 1, 1, 0), k=groups), torch.bool),
            "dcp_sharded": m.array("sharded", m.choices((1, 1, 0), k=groups), torch.bool),
            "slot_mappings_ptr": out,
            "slot_mappings_stride": out.stride(0),
            "cp_rank": 0,
            "CP_SIZE": 1,  # the interpreter cannot do others ("mask has unsupported dtype")
            "CP_INTERLEAVE": m.choice((1, 2, 4)),
            "PAD_ID": -1,
            "TRITON_BLOCK_SIZE": m.choice((8, 64, 1024)),
        },
        "out",
    )


def zero_blocks(m: Memory) -> tuple[tuple[int, ...], dict[str, Any], str]:
    segments, blocks, size = m.randint(1, 4), m.randint(0, 5), m.choice((8, 32, 1024))
    pages = [m.choice((m.randint(1, 70), 300)) for _ in range(segments)]
    chunks = max(1, -(-max(pages) // size) - m.choice((0, 0, 0, 1)))
    caches = [m.blank(f"out{n}", (6, page), I32, m.choice((0, 9))) for n, page in enumerate(pages)]
    return (
        (blocks, segments, chunks),
        {
            "seg_addrs_ptr": addresses(caches),
            "seg_block_strides_ptr": m.array("strides", [cache.stride(0) for cache in caches], I64),
            "seg_page_sizes_ptr": m.array("pages", pages, I64),
            "block_ids_ptr": m.array("blocks", m.sample(range(6), blocks), I64),
            "BLOCK_SIZE": size,
        },
        "out0",
    )


def compressed(m: Memory) -> tuple[tuple[int, ...], dict[str, Any], str]:
    requests = m.randint(0, 5)
    each, starts = m.lengths(requests)
    # The last request's positions may be below 0, as a padded one's are.
    before = [m.choice((0, m.randint(0, 300))) for _ in each]
    if each and m.random() < 0.3:
        before[-1] = -min(each[-1], 6)
    table = m.blocks("table", requests, 1500, m.choice((0, 7)))
    return (
        (requests,),
        {
            "compressed_slot_mapping_ptr": m.blank("out", (starts[-1] + 2,), I64),
            "slot_mapping_ptr": m.array("slots", [m.choice((-1, 5, 9, 2**40)) for _ in range(starts[-1])], I64),
            "query_start_loc_ptr": m.array("starts", starts),
            "seq_lens_ptr": m.array("lengths", [a + b for a, b in zip(each, before, strict=True)]),
            "block_table_ptr": table,
            "block_table_stride": table.stride(0),
            "block_size": m.choice((1, 2, 16, 64)),
            "dcp_world_size": m.choice((1, 1, 2)),
            "cp_interleave": m.choice((1, 1, 4)),
            "COMPRESS_RATIO": m.choice((1, 2, 4, 128)),
            "PAD_ID": -1,
            "TRITON_BLOCK_SIZE": m.choice((8, 64, 1024)),
        },
        "out",
    )


def window(m: Memory) -> tuple[tuple[int, ...], dict[str, Any], str]:
    requests = m.randint(1, 4)
    each = m.ints(requests, 0, 9)
    starts = [sum(each[:n]) for n in range(requests + 1)]
    offset = m.choice((0, 0, min(3, starts[-1])))
    padding = m.randint(0, 3)
    tokens = starts[-1] + padding
    owners = [n for n, length in enumerate(each) for _ in range(length)] + [0] * padding
    lengths = [max(0, length + m.choice((0, -2, m.randint(0, 300)))) for length in each]
    width = m.choice((1, 8, 40, 128))
    wide = width + m.choice((0, 0, 5, 30))
    table = m.blocks("table", requests, 400, m.choice((0, 7)))
    valid = [int(n < starts[-1] and m.random() < 0.9) for n in range(tokens)]
    out = m.blank("out", (tokens - offset + 1, wide), I32, m.choice((0, 9)))
    return (
        (tokens - offset,),
        {
            "swa_indices_ptr": out,
            "swa_indices_stride": out.stride(0),
            "swa_lens_ptr": m.blank("lens", (tokens - offset + 1,), I32),
            "window_size": width,
            "index_width": wide,
            "left_visible_ptr": m.array("left", m.ints(tokens, 0, 60)),
            "right_visible_ptr": m.array("right", m.ints(tokens, 0, 20)),
            "query_start_loc_ptr": m.array("starts", starts),
            "seq_lens_ptr": m.array("lengths", lengths),
            "token_to_req_indices_ptr": m.array("owners", owners),
            "is_valid_token_ptr": m.array("valid", valid, torch.bool),
            "block_table_ptr": table,
            "block_table_stride": table.stride(0),
            "block_size": m.choice((1, 4, 64)),
            "replay_start_ptr": m.array("replays", [m.choice((0, m.randint(0, 200))) for _ in each]),
            "token_offset": offset,
            "HAS_IMAGE": m.choice((0, 1)),
            "TRITON_BLOCK_SIZE": m.choice((8, 64, 1024)),
        },
        "out",
    )


CASES: dict[str, Case] = {
    "_gather_block_tables_kernel": gather,
    "_compute_slot_mappings_kernel": slot_mappings,
    "_zero_kv_blocks_kernel": zero_blocks,
    "CompressedSlotMappingKernel.kernel": compressed,
    "_compute_swa_indices_and_lens_kernel": window,
}


def differing(name: str, upstream: Any, standin: Any, seed: int, spoil: str | None) -> list[str]:
    """Which memory is not the same after upstream's kernel and the stand-in."""
    after, seconds = [], []
    for kernel in (upstream, standin):
        memory = Memory(seed)
        grid, arguments, out = CASES[name](memory)
        if kernel is standin and spoil == "less" and grid[0]:
            grid = (grid[0] - 1, *grid[1:])
        words, started = list(arguments), time.perf_counter()
        # As vLLM launches: some arguments by position, the others by name.
        first = [arguments[word] for word in words[: seed % (len(words) + 1)]]
        kernel[grid](*first, **{word: arguments[word] for word in words[len(first) :]}, num_warps=4)
        seconds.append(time.perf_counter() - started)
        if kernel is standin and spoil == "more":
            untouched = (memory.kept[out] == FILL).nonzero().flatten()
            memory.kept[out][untouched[-1]] = 0
        after.append(memory.kept)
    TIMES[name] = [a + b for a, b in zip(TIMES.get(name, [0.0, 0.0]), seconds, strict=True)]
    return [key for key in after[0] if not torch.equal(after[0][key], after[1][key])]


TIMES: dict[str, list[float]] = {}


def kernels() -> tuple[dict[str, tuple[Any, Any]], list[str]]:
    """By name: upstream's kernel and the stand-in in its place. Then what was not replaced."""
    found, left = {}, []
    for module_name, knowns in registration.KERNELS.items():
        module = importlib.import_module(module_name)
        places = [place for known in knowns for place in known.places]
        before = {place: registration._get(module, place) for place in places}
        registration.provide(module)
        for place in places:
            now = registration._get(module, place)
            if not isinstance(now, StandIn) or now.kernel is not before[place]:
                left.append(place)
        found |= {
            known.places[0]: (before[known.places[0]], registration._get(module, known.places[0])) for known in knowns
        }
    return found, left


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--prove", action="store_true")
    options = parser.parse_args()
    try:
        registration.skip_overflow_checks()
        both, left = kernels()
    except (ImportError, AttributeError, KeyError) as lacking:
        print(json.dumps({"could_not_look": repr(lacking)}))
        return 2
    document: dict[str, Any] = {"cases": options.cases, "left": left, "uncovered": sorted(both.keys() - CASES.keys())}
    if options.prove:
        document["seen"] = {
            f"{name} {spoil}": sum(
                bool(differing(name, *pair, seed=seed, spoil=spoil)) for seed in range(options.cases)
            )
            for name, pair in both.items()
            for spoil in ("less", "more")
        }
        good = all(document["seen"].values())
    else:
        document["different"] = {
            name: rows
            for name, pair in both.items()
            if (rows := {seed: d for seed in range(options.cases) if (d := differing(name, *pair, seed, None))})
        }
        good = not document["different"]
    document["seconds"] = {name: [round(s, 3) for s in both_] for name, both_ in TIMES.items()}
    print(json.dumps(document, indent=1))
    return 0 if good and not left and not document["uncovered"] else 1


if __name__ == "__main__":
    sys.exit(main())
