"""The mHC operators of an image against the mathematics, in float64: right answers, and no row that takes another row's sum of squares.

Runs inside an image (PyTorch and what the image has). One JSON document on standard output; exit code 0 right, 1 wrong, 2 could not look.

    check_mhc.py --backend torch --backend tilelang --hidden 1280 7168 --tokens 1 16 17 64 65 1000

The mathematics (DeepSeek V4's multi-stream residual mixing; hc = 4 streams, hidden size h, m tokens; R: m x hc x h streams in bfloat16, W: 24 x hc*h,
scale: 3, base: 24, all float32):

    U = (x W^T) / sqrt(mean(x^2) + rms_eps)                  x is R with its streams laid end to end
    V = U * [scale_0 x 4, scale_1 x 4, scale_2 x 16] + base
    pre = sigmoid(V[0:4]) + pre_eps
    post_mix = post_mult * sigmoid(V[4:8])
    comb_mix: softmax over the last axis of V[8:24] as 4 x 4, plus eps, each column divided by its sum plus eps; then repeat - 1 times rows, columns
    layer_input = sum over streams of pre_j R_j
    post: out_j = post_mix_j * y + sum_i comb_mix_ij R_i     y is the layer's output; note that comb_mix is used transposed

The race that this must see (AITER before b639cb63): within each tile of 64 rows, rows 16 to 63 may get the sum of squares of the row 16, 32 or 48
before. On rows of one magnitude that changes little, so the rows here differ: row i is scaled by 1 + i mod 97.

On such rows a missing eps of 1e-6, or an iteration of Sinkhorn's more or less, hides below every tolerance. On faint ones each decides: streams so
small that mean(x^2) is about rms_eps, a base that takes pre to pre_eps, and one that takes comb_mix above its diagonal to eps: there the iterations
have not converged after 20, and the last one still moves comb_mix by 4e-3.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch

HC = 4
MIXES = HC * (2 + HC)
RMS_EPS = PRE_EPS = SINKHORN_EPS = 1e-6
POST_MULT = 2.0  # what vLLM passes
REPEAT = 20
TILE, SHIFTS = 64, (16, 32, 48)
# What an honest kernel may differ by. The first two: worst error of vLLM 0.25's TileLang kernels on an H100 against this reference (7.2e-5, 5.3e-5),
# times four, for other hardware adds in another order. The last two are outputs in bfloat16, relative to their row's largest value: rounding to
# nearest alone is up to 2^-8 of a value (8 bits of precision), and a tenth more is left for float32 inside.
TOLERANCE = {"post_mix": 2.9e-4, "comb_mix": 2.1e-4, "layer_input": 1.1 * 2**-8, "post": 1.1 * 2**-8}
EDGES = (1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 80, 127, 128, 129, 255, 256, 257, 1000, 1023, 1024, 1025, 4096, 8192, 65536)
KINDS = ("scaled", "plain", "faint")
ROWS_AT_ONCE = 2048  # of the float64 reference, so that it fits wherever the operator does


class Inputs(NamedTuple):
    """Inputs of one case, on the device: streams, weight, scale, base and the layer's output."""

    residual: torch.Tensor
    weight: torch.Tensor
    scale: torch.Tensor
    base: torch.Tensor
    layer_output: torch.Tensor


class Mixed(NamedTuple):
    """What ``pre`` gives: (m, 4) and (m, 4, 4) float32, and (m, h) bfloat16."""

    post_mix: torch.Tensor
    comb_mix: torch.Tensor
    layer_input: torch.Tensor


class Backend(NamedTuple):
    """The two operators of a backend."""

    pre: Callable[[Inputs], Mixed]
    post: Callable[[Inputs, Mixed], torch.Tensor]


@dataclass(frozen=True)
class Case:
    """One shape and kind of input; ``kind`` is scaled (row i times 1 + i mod 97), plain, or faint (where each eps matters)."""

    backend: str
    kind: str
    hidden: int
    tokens: int
    seed: int


@dataclass
class Found:
    """What a case showed: worst error by quantity, in which row, in how many runs one was above its tolerance, and how many rows of the first such
    run hold another row's answer."""

    case: Case
    worst: dict[str, float] = field(default_factory=dict)
    row: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    taken: dict[str, int] = field(default_factory=dict)
    runs: int = 0
    alarms: int = 0
    seconds: float = 0.0


def make_inputs(case: Case, device: str) -> Inputs:
    """Inputs that depend on the case alone: made on the processor, so that every device gets the same."""
    generator = torch.Generator().manual_seed(case.seed)
    residual = torch.randn(case.tokens, HC, case.hidden, generator=generator)
    if case.kind == "scaled":
        residual *= (1 + torch.arange(case.tokens) % 97).view(-1, 1, 1)
    weight = torch.randn(MIXES, HC * case.hidden, generator=generator) * 0.01
    scale, base = torch.randn(3, generator=generator) * 0.1, torch.randn(MIXES, generator=generator) * 0.1
    layer_output = torch.randn(case.tokens, case.hidden, generator=generator)
    if case.kind == "faint":
        residual *= 1e-3
        base[:HC] -= 20
        base[2 * HC :].view(HC, HC).sub_(20 * torch.ones(HC, HC).triu(1))
    moved = (residual.bfloat16(), weight, scale, base, layer_output.bfloat16())
    return Inputs(*(tensor.to(device) for tensor in moved))


def mix(inputs: Inputs, dtype: torch.dtype, sums: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The formula, in ``dtype``: post_mix, comb_mix, and layer_input before rounding. ``sums`` stands in for the rows' sums of squares."""
    rows = inputs.residual.to(dtype)
    flat = rows.flatten(1)
    squares = flat.square().sum(-1) if sums is None else sums.to(dtype)
    weight, scale, base = inputs.weight.to(dtype), inputs.scale.to(dtype), inputs.base.to(dtype)
    logits = flat @ weight.T * torch.rsqrt(squares / flat.shape[1] + RMS_EPS).unsqueeze(-1)
    logits = logits * torch.cat([scale[0].expand(HC), scale[1].expand(HC), scale[2].expand(HC * HC)]) + base
    pre = torch.sigmoid(logits[:, :HC]) + PRE_EPS
    post_mix = POST_MULT * torch.sigmoid(logits[:, HC : 2 * HC])
    comb = torch.softmax(logits[:, 2 * HC :].view(-1, HC, HC), -1) + SINKHORN_EPS
    comb = comb / (comb.sum(-2, keepdim=True) + SINKHORN_EPS)
    for _ in range(REPEAT - 1):
        comb = comb / (comb.sum(-1, keepdim=True) + SINKHORN_EPS)
        comb = comb / (comb.sum(-2, keepdim=True) + SINKHORN_EPS)
    return post_mix, comb, (pre.unsqueeze(-1) * rows).sum(1)


def mix_back(inputs: Inputs, post_mix: torch.Tensor, comb_mix: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The formula of ``post``, in ``dtype``: (m, 4, h)."""
    mixed = torch.einsum("mij,mih->mjh", comb_mix.to(dtype), inputs.residual.to(dtype))
    return mixed + post_mix.to(dtype).unsqueeze(-1) * inputs.layer_output.to(dtype).unsqueeze(1)


def in_blocks(inputs: Inputs) -> Iterator[tuple[slice, Inputs]]:
    """The inputs a block of rows at a time: rows do not know each other."""
    for start in range(0, inputs.residual.shape[0], ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        yield rows, inputs._replace(residual=inputs.residual[rows], layer_output=inputs.layer_output[rows])


def race(tokens: int, generator: torch.Generator, *, share: float) -> torch.Tensor:
    """Which row's sum of squares each row gets under the faulty store: its own, or that of the row 16, 32 or 48 before in its tile.

    Lane l of a wavefront of 64 holds the sum of row l mod 16 of its 16 rows and writes it to row l of the tile, so the last write decides. ``share`` of
    the rows that can be hit are; a share of 0 hits exactly one.
    """
    source = torch.arange(tokens)
    place = source % TILE
    can = (place >= SHIFTS[0]).nonzero().flatten()
    if not len(can):
        return source
    hit = can[torch.rand(len(can), generator=generator) < share]
    if not len(hit):
        hit = can[torch.randint(len(can), (1,), generator=generator)]
    shifts = torch.tensor(SHIFTS)[torch.randint(3, (len(hit),), generator=generator)]
    shifts = torch.minimum(shifts, place[hit] // SHIFTS[0] * SHIFTS[0])
    source[hit] -= shifts
    return source


def racing(share: float) -> Backend:
    """The formula in float32 with the faulty store emulated: what every run of this check must call wrong."""
    generator = torch.Generator().manual_seed(20260523)

    def pre(inputs: Inputs) -> Mixed:
        own = inputs.residual.float().flatten(1).square().sum(-1)
        source = race(len(own), generator, share=share).to(own.device)
        post_mix, comb, layer_input = mix(inputs, torch.float32, own[source])
        return Mixed(post_mix, comb, layer_input.bfloat16())

    return Backend(pre, plain().post)


def plain() -> Backend:
    """The formula in float32, as PyTorch computes it: what an honest kernel is expected to be as good as."""

    def pre(inputs: Inputs) -> Mixed:
        post_mix, comb, layer_input = mix(inputs, torch.float32)
        return Mixed(post_mix, comb, layer_input.bfloat16())

    return Backend(pre, lambda inputs, mixed: mix_back(inputs, mixed.post_mix, mixed.comb_mix, torch.float32).bfloat16())


def of_vllm(module: str, pre_name: str, post_name: str) -> Backend:
    """Two operators of vLLM's, by their names in ``vllm.model_executor.kernels.mhc.<module>``; they take the same arguments everywhere."""
    kernels = importlib.import_module(f"vllm.model_executor.kernels.mhc.{module}")
    pre_kernel, post_kernel = getattr(kernels, pre_name), getattr(kernels, post_name)

    def pre(inputs: Inputs) -> Mixed:
        given = (inputs.residual, inputs.weight, inputs.scale, inputs.base)
        post_mix, comb, layer_input = pre_kernel(*given, RMS_EPS, PRE_EPS, SINKHORN_EPS, POST_MULT, REPEAT)
        return Mixed(post_mix.view(-1, HC), comb.view(-1, HC, HC), layer_input)

    def post(inputs: Inputs, mixed: Mixed) -> torch.Tensor:
        result: torch.Tensor = post_kernel(inputs.layer_output, inputs.residual, mixed.post_mix.unsqueeze(-1), mixed.comb_mix)
        return result

    return Backend(pre, post)


def of_vllm_cpu() -> Backend:
    """vLLM's operators for processors. Its plugins come first, as in every process of vLLM's: they stand in where none are compiled."""
    importlib.import_module("vllm.plugins").load_general_plugins()
    return of_vllm("cpu", "mhc_pre_cpu", "mhc_post_cpu")


def of_aiter() -> Backend:
    """AITER's own operators, without vLLM between: ``post`` writes in place."""
    kernels = importlib.import_module("aiter.ops.mhc")

    def pre(inputs: Inputs) -> Mixed:
        given = (inputs.residual, inputs.weight, inputs.scale, inputs.base)
        post_mix, comb, layer_input = kernels.mhc_pre(*given, RMS_EPS, PRE_EPS, SINKHORN_EPS, POST_MULT, REPEAT)
        return Mixed(post_mix.view(-1, HC), comb.view(-1, HC, HC), layer_input)

    def post(inputs: Inputs, mixed: Mixed) -> torch.Tensor:
        out = torch.empty_like(inputs.residual)
        kernels.mhc_post(out, inputs.layer_output, inputs.residual, mixed.post_mix.unsqueeze(-1), mixed.comb_mix)
        return out

    return Backend(pre, post)


BACKENDS: dict[str, Callable[[], Backend]] = {
    "formula": plain,
    "torch": lambda: of_vllm("torch", "mhc_pre_torch", "mhc_post_torch"),
    "cpu": of_vllm_cpu,
    "tilelang": lambda: of_vllm("tilelang", "mhc_pre_tilelang", "mhc_post_tilelang"),
    "aiter": of_aiter,
    "race": lambda: racing(0.5),
    "race-one-row": lambda: racing(0.0),
}
MUST_BE_WRONG = {"race", "race-one-row"}


def compare(found: Found, quantity: str, got: torch.Tensor, want: torch.Tensor, first: int) -> torch.Tensor:
    """Note the worst error of one quantity (absolute for the mixes, relative to the row's largest value for streams); returns each row's error."""
    rows = got.shape[0]
    error = (got.double() - want).abs().reshape(rows, -1).amax(-1)
    if quantity in ("layer_input", "post"):
        error = error / want.abs().reshape(rows, -1).amax(-1).clamp_min(1e-30)
    # A NaN is no small error, whatever it compares to.
    error = torch.nan_to_num(error, nan=float("inf"))
    worst = float(error.max())
    if worst >= found.worst.get(quantity, -1.0):
        found.worst[quantity], found.row[quantity] = worst, first + int(error.argmax())
    return error


def who_took(inputs: Inputs, mixed: Mixed, wrong_rows: list[int]) -> dict[str, int]:
    """How many of the wrong rows hold what they would with the sum of squares of the row 16, 32 or 48 before: this defect, and no other."""
    taken: dict[str, int] = {}
    sums = inputs.residual.double().flatten(1).square().sum(-1)
    for row in wrong_rows[:256]:
        for shift in SHIFTS:
            if row % TILE < shift:
                continue
            one = inputs._replace(residual=inputs.residual[row : row + 1])
            post_mix, _, _ = mix(one, torch.float64, sums[row - shift : row - shift + 1])
            if float((post_mix - mixed.post_mix[row : row + 1].double()).abs().max()) < TOLERANCE["post_mix"]:
                taken[f"r-{shift}"] = taken.get(f"r-{shift}", 0) + 1
                break
    return taken


def look(case: Case, backend: Backend, device: str, runs: int) -> Found:
    """Run a case ``runs`` times and compare every run with the reference."""
    began = time.monotonic()
    found = Found(case, runs=runs)
    inputs = make_inputs(case, device)
    wants = [(rows, block, *mix(block, torch.float64)) for rows, block in in_blocks(inputs)]
    for _ in range(runs):
        mixed = backend.pre(inputs)
        out = backend.post(inputs, mixed)
        mixed_up: list[int] = []
        alarm = False
        for rows, block, post_mix, comb, layer_input in wants:
            errors = {
                "post_mix": compare(found, "post_mix", mixed.post_mix[rows], post_mix, rows.start),
                "comb_mix": compare(found, "comb_mix", mixed.comb_mix[rows], comb, rows.start),
                "layer_input": compare(found, "layer_input", mixed.layer_input[rows], layer_input, rows.start),
            }
            # ``post`` is judged for the mixes that it was given: an error of ``pre`` is counted once.
            given = mix_back(block, mixed.post_mix[rows], mixed.comb_mix[rows], torch.float64)
            errors["post"] = compare(found, "post", out[rows], given, rows.start)
            alarm |= any(bool((error > TOLERANCE[name]).any()) for name, error in errors.items())
            wrong = (errors["post_mix"] > TOLERANCE["post_mix"]) | (errors["comb_mix"] > TOLERANCE["comb_mix"])
            mixed_up += (wrong.nonzero().flatten() + rows.start).tolist()
        found.alarms += alarm
        if mixed_up and not found.taken:
            found.taken = who_took(inputs, mixed, mixed_up)
    found.wrong = [f"{name}: {worst:.3g} in row {found.row[name]}, at most {TOLERANCE[name]:.3g}" for name, worst in found.worst.items() if not worst <= TOLERANCE[name]]
    found.seconds = round(time.monotonic() - began, 3)
    return found


def judge(case: Case, found: Found) -> str:
    """Whether the case ended as it must: an operator right, the emulated race wrong (where it can hit a row at all)."""
    if case.backend in MUST_BE_WRONG:
        if case.tokens <= SHIFTS[0]:
            return "" if not found.alarms else "the emulation is wrong although it cannot hit a row here"
        if case.kind != "scaled":
            return ""  # rows of one magnitude may differ by less than an honest error; what was seen is reported, and not asked for
        if found.alarms < found.runs:
            return f"the emulated race was seen in {found.alarms} of {found.runs} runs: this check would not always see the real one"
        return ""
    return f"{found.alarms} of {found.runs} runs: {'; '.join(found.wrong)}" if found.alarms else ""


def main() -> int:
    """Run all cases and print the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", action="append", choices=sorted(BACKENDS), help="repeatable; default: formula, race, race-one-row")
    parser.add_argument("--hidden", type=int, nargs="+", default=[1280])
    parser.add_argument("--tokens", nargs="+", default=[str(tokens) for tokens in EDGES if tokens <= 1025], help="counts, or all: every edge up to 65536")
    parser.add_argument("--kind", choices=KINDS, nargs="+", default=list(KINDS))
    parser.add_argument("--runs", type=int, default=3, help="of every case: the race is a matter of timing")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    counts = EDGES if arguments.tokens == ["all"] else [int(tokens) for tokens in arguments.tokens]
    names = arguments.backend or ["formula", "race", "race-one-row"]
    # Kernels' compilers write to standard output too: what is not the document goes to standard error.
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    document: dict[str, Any] = {
        "schema_version": 1,
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu",
        "torch": torch.__version__,
        "tolerance": TOLERANCE,
        "cases": [],
    }
    could_not: list[str] = []
    wrong: list[str] = []
    for name in names:
        try:
            backend = BACKENDS[name]()
        except Exception as error:  # noqa: BLE001 - whatever keeps a backend from loading, it was not looked at
            could_not.append(f"{name} could not be loaded: {type(error).__name__}: {error}")
            continue
        for case in (Case(name, kind, h, m, arguments.seed) for h in arguments.hidden for m in counts for kind in arguments.kind):
            try:
                found = look(case, backend, arguments.device, arguments.runs)
            except Exception as error:  # noqa: BLE001 - the other cases are looked at all the same
                could_not.append(f"{case}: {type(error).__name__}: {error}"[:500])
                continue
            if trouble := judge(case, found):
                wrong.append(f"{name}, {case.kind} rows, hidden {case.hidden}, {case.tokens} tokens: {trouble}")
            document["cases"].append({**asdict(found), "verdict": trouble or "as it must be"})
            print(f"{name:14} {case.kind:6} h={case.hidden:5} m={case.tokens:6} {found.seconds:7.2f} s  {found.worst}", file=sys.stderr)
    document |= {"wrong": wrong, "could_not_look": could_not}
    print(json.dumps(document), file=told, flush=True)
    return 1 if wrong else 2 if could_not or not document["cases"] else 0


if __name__ == "__main__":
    sys.exit(main())
