"""Compares the PyTorch operators of plugins/vllm-cpu-shims with vLLM's compiled ones, or with plain formulations of the same, on the same inputs.

    python3 compare_cpu_operators.py --against compiled     inside the image, on a processor with AVX-512 BF16
    python3 compare_cpu_operators.py --against plain        anywhere with PyTorch and the package; with --prove, every operator spoilt in turn

The shapes are those of the tiny model (scripts/make_tiny_model.py). Caches are filled by the plain formulations, so every operator is compared
by itself; where a layout is an operator's own affair (packed weights) the packer and its consumer are compared as one.

One JSON document on standard output. Exit code 0: within the tolerances; 1: beyond them (with --prove: a spoilt operator was not seen);
2: could not look.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import cpu_operators_plain as plain
import torch
from torch import Tensor

HIDDEN, HC, HEADS, EXPERTS, CHOSEN, INDEX_HEADS = 1280, 4, 8, 64, 6, 8
EPS, SCALE, FACTOR = 1e-6, 512**-0.5, 1.5
TOKENS = (1, 17, 48)
# Two results rounded to bfloat16 from nearly the same number may be one step of it apart, 2^-7 of the largest value; a tenth more is left for
# float32 inside. The attention weights are rounded to bfloat16 before they meet the values in the compiled operator: two steps. The gates'
# tolerances are those of scripts/check_mhc.py. Values in fp8 may be one step apart where they lay near the middle: 32 of 448 of a group's
# largest; that may happen to few of them ("share", of all values).
STEP = 1.1 * 2**-7
TOLERANCE = {
    "bf16": STEP,
    "attention": 2 * STEP,
    "gates": 2.1e-4,
    "float": 1e-5,
    "weights": 1e-4,
    "logits": 1e-3,
    "fp8": 1.1 * 32 / 448,
    "share": 0.01,
    "chosen": 0.0,
}
DIFFERENT = (
    2e-3  # of the largest value of a row: more than a subnormal of fp8, which the compiled operators may flush to 0
)

Quantities = dict[str, tuple[str, Tensor]]
Case = Callable[[Any, int, torch.Generator], Quantities]


def bf(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator).bfloat16()


def angles(generator: torch.Generator) -> Tensor:
    turns = torch.rand((1024, 32), generator=generator) * 6.28
    return torch.cat([turns.cos(), turns.sin()], dim=1)


def pages(blocks: int, size: int, width: int) -> Tensor:
    """A paged cache as vLLM has it: its blocks lie farther apart than they are long."""
    return torch.zeros((blocks, size * width + 96), dtype=torch.uint8)[:, : size * width]


def shuffled(generator: torch.Generator, count: int, among: int) -> Tensor:
    return torch.randperm(among, generator=generator)[:count]


def mhc_pre(ops: Any, tokens: int, g: torch.Generator) -> Quantities:
    x = bf(g, tokens, HC, HIDDEN) * (1 + torch.arange(tokens) % 7).view(-1, 1, 1).bfloat16()
    fn = torch.randn((24, HC * HIDDEN), generator=g) * 0.02
    mixed, post, comb = ops.hc_pre_fused_cpu(
        x, fn, torch.rand(3, generator=g), torch.randn(24, generator=g) * 0.1, HC, 20, EPS, EPS
    )
    return {"mixed": ("bf16", mixed), "post": ("gates", post), "comb": ("gates", comb.flatten(1))}


def mhc_post(ops: Any, tokens: int, g: torch.Generator) -> Quantities:
    comb = torch.softmax(torch.randn((tokens, HC, HC), generator=g), -1)
    return {
        "streams": (
            "bf16",
            ops.hc_post_fused_cpu(
                bf(g, tokens, HIDDEN), bf(g, tokens, HC, HIDDEN), torch.rand((tokens, HC), generator=g), comb
            ).flatten(0, 1),
        )
    }


def mhc_head(ops: Any, tokens: int, g: torch.Generator) -> Quantities:
    fn = torch.randn((HC, HC * HIDDEN), generator=g) * 0.02
    out = ops.hc_head_fused_cpu(
        bf(g, tokens, HC, HIDDEN), fn, torch.rand(1, generator=g), torch.randn(HC, generator=g), EPS, EPS
    )
    return {"joined": ("bf16", out)}


def packed(ops: Any, tokens: int, g: torch.Generator) -> Quantities:
    weight, x = bf(g, 2, 128, 2048), bf(g, 2, tokens, 2048)
    out = torch.empty((2, tokens, 128), dtype=torch.bfloat16)
    ops.bmm_cpu(out, x, ops.convert_weight_packed(weight.clone()), True, None)
    return {"product": ("bf16", out.flatten(0, 1))}


def spread(weights: Tensor, ids: Tensor) -> Tensor:
    """The weights in a row of all experts: two lists of experts in other orders are the same."""
    return torch.zeros((len(ids), EXPERTS), dtype=torch.float64).scatter(1, ids.long(), weights.double())


def hashed(ops: Any, tokens: int, g: torch.Generator) -> Quantities:
    table = torch.stack([shuffled(g, CHOSEN, EXPERTS) for _ in range(tokens)]).int()
    logits = torch.randn((tokens, EXPERTS), generator=g) * 4
    return {
        "weights": ("weights", spread(*ops.hash_topk_cpu(logits, table, CHOSEN, "sqrtsoftplus", 0, EXPERTS, FACTOR)))
    }


def biased(ops: Any, tokens: int, g: torch.Generator) -> Quantities:
    logits, bias = torch.randn((tokens, EXPERTS), generator=g) * 4, torch.randn(EXPERTS, generator=g)
    return {
        "weights": (
            "weights",
            spread(*ops.biased_topk_cpu(logits, logits, bias, CHOSEN, True, "sqrtsoftplus", 0, FACTOR, True)),
        )
    }


def values(cache: Tensor, slots: Tensor, size: int) -> Quantities:
    rows = torch.stack([plain.read_token(cache, int(slot), size) for slot in slots])
    return {"values": ("fp8", rows[:, : plain.NOPE].reshape(-1, 64)), "rotated": ("bf16", rows[:, plain.NOPE :])}


def insert(ops: Any, tokens: int, g: torch.Generator) -> Quantities:
    cache, slots = pages(4, 64, 584), shuffled(g, tokens, 256)
    slots[tokens // 2 + 1 :: 5] = -1
    positions = torch.randint(0, 1000, (tokens,), generator=g)
    q = ops.fused_qnorm_rope_kv_insert_cpu(
        bf(g, tokens, HEADS, 512), bf(g, tokens, 512), positions, cache, slots, angles(g), HEADS + 2, EPS, 64
    )
    return {"queries": ("bf16", q.flatten(0, 1)), **values(cache, slots[slots >= 0], 64)}


def attend(ops: Any, tokens: int, g: torch.Generator) -> Quantities:
    window, compressed = pages(4, 64, 584), pages(3, 2, 584)
    for cache, slots, size in ((window, range(256), 64), (compressed, range(6), 2)):
        for slot in slots:
            plain.write_token(cache, slot, size, torch.randn(448, generator=g), torch.randn(64, generator=g))
    slots = torch.full((tokens, 128), -1)
    others = torch.full((tokens, 8), -1)
    for t in range(tokens):
        few = min(128, 1 + 3 * t)
        slots[t, :few] = shuffled(g, few, 256)
        others[t, : t % 7] = shuffled(g, t % 7, 6)
    if tokens > 1:
        slots[1], others[1] = -1, -1
    out = torch.empty((tokens, HEADS, 512), dtype=torch.bfloat16)
    q, sink = bf(g, tokens, HEADS, 512), torch.randn(HEADS, generator=g)
    ops.flash_mla_with_kvcache_cpu(out, q, window, slots, 64, compressed, others, 2, sink, SCALE)
    alone = torch.empty_like(out)
    ops.flash_mla_with_kvcache_cpu(alone, q, window, slots, 64, window, slots[:, :0].contiguous(), 1, sink, SCALE)
    return {"both": ("attention", out.flatten(0, 1)), "window": ("attention", alone.flatten(0, 1))}


def turned_back(ops: Any, tokens: int, g: torch.Generator) -> Quantities:
    positions = torch.randint(0, 1000, (tokens,), generator=g)
    return {
        "output": (
            "float",
            ops.inverse_gptj_rope_o_proj_cpu(bf(g, tokens, HEADS, 512), positions, angles(g), 64).flatten(0, 1),
        )
    }


def saved(ops: Any, tokens: int, g: torch.Generator) -> Quantities:
    fused, slots = torch.randn((tokens, 512), generator=g), shuffled(g, tokens, 64)
    slots[1::7] = -1
    state = torch.zeros((16, 2600))[:, : 4 * 512].unflatten(1, (4, 512))  # blocks lie farther apart than they are long
    ops.save_partial_states_cpu(
        fused[:, :256], fused[:, 256:], torch.randn((4, 256), generator=g), torch.arange(tokens) + 5, state, slots
    )
    return {"state": ("float", state.flatten(0, 1))}


def compression(ratio: int, width: int, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A state cache, and what to gather from it for tokens that end a window, and some that do not; the first lacks half of its window."""
    window = ratio * (2 if width in (1024, 256) else 1)
    state = torch.randn((64, 4, 2 * width), generator=g)
    positions = torch.tensor([ratio - 1, 3 * ratio - 1, 3 * ratio, 5 * ratio - 1, 7 * ratio - 1])
    gather = torch.stack([shuffled(g, window, 256) for _ in positions])
    if window > ratio:
        gather[0, :ratio] = -1
    return state, gather, positions, torch.tensor([3, 0, -1, 5, -1])


def compressed(ratio: int, width: int) -> Case:
    def case(ops: Any, tokens: int, g: torch.Generator) -> Quantities:
        state, gather, positions, slots = compression(ratio, width, g)
        cache = pages(3, 2, 584)
        ops.compress_norm_rope_store_cpu(
            state, gather, positions, slots, 1 + 0.1 * torch.randn(512, generator=g), EPS, angles(g), cache, 2, ratio
        )
        return values(cache, slots[slots >= 0], 2)

    return case


def compressed_index(ops: Any, tokens: int, g: torch.Generator) -> Quantities:
    state, gather, positions, slots = compression(4, 256, g)
    cache = pages(3, 2, 132)
    ops.compress_norm_rope_store_indexer_cpu(
        state, gather, positions, slots, 1 + 0.1 * torch.randn(128, generator=g), EPS, angles(g), cache, 2, 4
    )
    return {"values": ("fp8", torch.stack([plain.read_index(cache, int(slot), 2) for slot in slots[slots >= 0]]))}


def index_query(ops: Any, tokens: int, g: torch.Generator) -> Quantities:
    positions = torch.randint(0, 1000, (tokens,), generator=g)
    q, weights = bf(g, tokens, INDEX_HEADS, 128).float(), torch.rand((tokens, INDEX_HEADS), generator=g) + 0.1
    q_fp8, out = torch.empty_like(q, dtype=torch.float8_e4m3fn), torch.empty_like(weights)
    ops.fused_indexer_q_rope_quant_cpu(positions, q, angles(g), q_fp8, weights, 128**-0.5, 8**-0.5, out)
    return {"query": ("fp8", (q_fp8.float() * (out / weights).unsqueeze(-1)).flatten(0, 1))}


def logits(ops: Any, tokens: int, g: torch.Generator) -> Quantities:
    cache = pages(6, 16, 132)
    for slot in range(96):
        plain.write_index(cache, slot, 16, torch.randn(128, generator=g))
    q = bf(g, tokens, INDEX_HEADS, 128).to(torch.float8_e4m3fn)
    lengths = torch.randint(0, 40, (tokens,), generator=g).int()
    lengths[0] = 40
    tables = torch.stack([shuffled(g, 3, 6) for _ in range(tokens)]).int()
    out = ops.fp8_paged_mqa_logits_cpu(
        q, cache, torch.randn((tokens, INDEX_HEADS), generator=g), lengths, tables, 16, 40
    )
    seen = torch.arange(40) < lengths.unsqueeze(1)
    return {"logits": ("logits", torch.where(seen, out.double(), 0.0))}


def chosen(ops: Any, tokens: int, g: torch.Generator) -> Quantities:
    scores, lengths = torch.randn((tokens, 700), generator=g), torch.randint(0, 700, (tokens,), generator=g).int()
    lengths[0] = 700
    if tokens > 2:
        lengths[1], lengths[2] = 512, 513
    tables = torch.stack([shuffled(g, 44, 64) for _ in range(tokens)]).int()
    out, raw = torch.empty((tokens, 512), dtype=torch.int32), torch.empty((tokens, 512), dtype=torch.int32)
    ops.topk_transform_512_cpu(scores, lengths, tables, out, 16, raw)
    return {"slots": ("chosen", out.sort(1).values), "places": ("chosen", raw.sort(1).values)}


CASES: dict[str, tuple[Case, tuple[str, ...], tuple[int, ...]]] = {
    "mhc pre": (mhc_pre, ("hc_pre_fused_cpu",), TOKENS),
    "mhc post": (mhc_post, ("hc_post_fused_cpu",), TOKENS),
    "mhc head": (mhc_head, ("hc_head_fused_cpu",), TOKENS),
    "packed product": (packed, ("convert_weight_packed", "bmm_cpu"), TOKENS),
    "routing by table": (hashed, ("hash_topk_cpu",), TOKENS),
    "routing by score": (biased, ("biased_topk_cpu",), TOKENS),
    "insert": (insert, ("fused_qnorm_rope_kv_insert_cpu",), TOKENS),
    "attend": (attend, ("flash_mla_with_kvcache_cpu",), TOKENS),
    "turn back": (turned_back, ("inverse_gptj_rope_o_proj_cpu",), TOKENS),
    "save states": (saved, ("save_partial_states_cpu",), TOKENS),
    "compress by 4": (compressed(4, 1024), ("compress_norm_rope_store_cpu",), (5,)),
    "compress by 128": (compressed(128, 512), ("compress_norm_rope_store_cpu",), (5,)),
    "compress for the indexer": (compressed_index, ("compress_norm_rope_store_indexer_cpu",), (5,)),
    "indexer's query": (index_query, ("fused_indexer_q_rope_quant_cpu",), TOKENS),
    "indexer's logits": (logits, ("fp8_paged_mqa_logits_cpu",), TOKENS),
    "indexer's choice": (chosen, ("topk_transform_512_cpu",), TOKENS),
}


def compare(kind: str, got: Tensor, want: Tensor) -> dict[str, float]:
    """The worst difference: absolute for gates and weights, else relative to the largest value of the row; for fp8 also how many differ."""
    got, want = got.double(), want.double()
    if kind == "chosen":
        return {kind: float((got != want).sum())}
    error = (got - want).abs()
    if kind not in ("gates", "weights"):
        error = error / want.abs().amax(-1, keepdim=True).clamp_min(1e-30)
    error = torch.nan_to_num(error, nan=float("inf"))  # a NaN is no small error
    worst = {kind: float(error.max())}
    return {**worst, "share": float((error > DIFFERENT).double().mean())} if kind == "fp8" else worst


def measure(ours: Any, theirs: Any, names: list[str]) -> Iterator[dict[str, Any]]:
    """One row a case, token count and quantity."""
    for name in names:
        case, operators, counts = CASES[name]
        for tokens in counts:
            seed = 1000 * list(CASES).index(name) + tokens
            began = time.perf_counter()
            got = case(ours, tokens, torch.Generator().manual_seed(seed))
            seconds = time.perf_counter() - began
            want = case(theirs, tokens, torch.Generator().manual_seed(seed))
            for quantity, (kind, tensor) in got.items():
                for what, worst in compare(kind, tensor, want[quantity][1]).items():
                    row = {
                        "case": name,
                        "operators": operators,
                        "tokens": tokens,
                        "quantity": quantity,
                        "measure": what,
                    }
                    yield {
                        **row,
                        "worst": worst,
                        "tolerance": TOLERANCE[what],
                        "within": worst <= TOLERANCE[what],
                        "seconds": round(seconds, 4),
                    }


def pytorch_operators() -> SimpleNamespace:
    """Ours, called as functions: nothing is registered."""
    from kiln_vllm_cpu_shims.operators import registration

    schemas = [
        (module, registration.name_of(schema)) for module, those in registration.SCHEMAS.items() for schema in those
    ]
    return SimpleNamespace(
        **{
            name: getattr(importlib.import_module(f"kiln_vllm_cpu_shims.operators.{module}"), name)
            for module, name in schemas
        }
    )


def compiled_operators(names: list[str]) -> Any:
    """vLLM's, loaded as vLLM loads them. Raises RuntimeError where they are not there."""
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    lacking = [name for name in names if not hasattr(torch.ops._C, name)]
    if lacking:
        raise RuntimeError(f"the library that vLLM loads on this processor has no {', '.join(lacking)}")
    return torch.ops._C


def spoilt(ours: SimpleNamespace, name: str) -> SimpleNamespace:
    """Ours, with one operator whose every result is a tenth too large (indices: one too far; bytes: another bit)."""

    def spoil(x: Any) -> Any:
        if isinstance(x, tuple):
            return tuple(spoil(part) for part in x)
        if not isinstance(x, Tensor):
            return x
        if x.dtype == torch.uint8:
            return x.bitwise_xor(16)
        return (x.float() * 1.25).to(x.dtype) if x.is_floating_point() else x + 1

    operator = getattr(ours, name)

    def wrong(*args: Any) -> Any:
        before = [arg.clone() if isinstance(arg, Tensor) else arg for arg in args]
        result = operator(*args)
        for arg, old in zip(args, before, strict=True):
            if isinstance(arg, Tensor) and not torch.equal(
                arg.contiguous().view(torch.uint8), old.contiguous().view(torch.uint8)
            ):
                arg.copy_(spoil(arg))
        if name.endswith("topk_cpu"):
            return spoil(result[0]), result[1]
        return spoil(result)

    return SimpleNamespace(**{**vars(ours), name: wrong})


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--against", choices=("compiled", "plain"), required=True)
    parser.add_argument("--prove", action="store_true", help="spoil every operator in turn; each must be seen")
    options = parser.parse_args()
    try:
        ours = pytorch_operators()
        theirs = compiled_operators(list(vars(ours))) if options.against == "compiled" else plain
    except (ImportError, RuntimeError) as error:
        print(json.dumps({"could_not_look": str(error)}))
        return 2
    uncovered = set(vars(ours)) - {operator for _, operators, _ in CASES.values() for operator in operators}
    if options.prove:
        seen = {}
        for operator in vars(ours):
            names = [name for name, (_, operators, _) in CASES.items() if operator in operators]
            seen[operator] = not all(row["within"] for row in measure(spoilt(ours, operator), theirs, names))
        print(json.dumps({"schema_version": 1, "seen": seen}, indent=1))
        return 0 if all(seen.values()) else 1
    rows = list(measure(ours, theirs, list(CASES)))
    wrong = [row for row in rows if not row["within"]]
    document = {
        "schema_version": 1,
        "against": options.against,
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
    print(json.dumps({**document, "uncovered": sorted(uncovered), "beyond": len(wrong), "rows": rows}, indent=1))
    return 1 if wrong or uncovered else 0


if __name__ == "__main__":
    sys.exit(main())
