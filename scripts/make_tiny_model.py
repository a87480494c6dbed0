"""Make a tiny DeepSeek V4 checkpoint that knows a handful of answers by heart.

Runs inside an image, with no network: it needs torch, transformers, tokenizers and
safetensors, which every serving image has. The model is real in every part that a server
exercises (mHC with four streams, sparse and compressed attention, hash and top-k routing over
64 experts) and small enough to be trained on two cores in well under a minute.

    python make_tiny_model.py --out DIR [--seed N] [--wrong-answers]

DIR gets ``model.safetensors`` (published DeepSeek V4 weight names, no quantization),
``config.json``, ``generation_config.json``, ``tokenizer.json``, ``tokenizer_config.json`` and
``answers.json``. The last is what ``ask_server.py`` asks and what a judge compares with.

The script then reads the checkpoint back and checks it: every answer must come out exactly in
transformers' greedy generation, and on every answer token the right logit must lead the next
one by more than ``SAFETY`` times the largest change that computing in bfloat16 instead of
float32 makes to any logit, measured on this very checkpoint. Where that does not hold it trains
on, up to its limits, and then fails.

With ``--wrong-answers`` the model learns other answers while ``answers.json`` stays the standard
one: a check that passes on such a model is no check.

Standard output is one JSON line; progress goes to standard error. Exit status: 0 made and
checked, 1 the checkpoint could not be made good within the limits, 2 usage.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import tiny_texts

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

# Two for the two logits of a gap that rounding can move towards each other; doubled for what an
# engine rounds beyond bfloat16 (vLLM's CPU path keeps the keys and values in fp8).
SAFETY: Final = 4.0

LEARNING_RATE: Final = 1e-3
WARM_UP_STEPS: Final = 4
FIRST_STEPS: Final = 20
MORE_STEPS: Final = 6
IGNORED: Final = -100  # cross entropy's marker for positions that are not answers
SERVING_DTYPE: Final = "bfloat16"


class NotGoodEnoughError(Exception):
    """The checkpoint missed its own checks within the limits of steps and seconds."""


@dataclass(frozen=True)
class Taught:
    """One sequence to learn: token ids of the prompt and of the answer with its EOS."""

    id: str
    prompt: list[int]
    answer: list[int]
    text: str


@dataclass(frozen=True)
class Findings:
    """What a look at the written checkpoint found.

    ``margins``: per lesson id, the smallest lead of the taught answer's logit, float32 and
    bfloat16 both counted. ``standard``: the same for the standard answers (negative where the
    model was taught something else). ``rounding``: the largest change of any logit at an answer
    position between the two dtypes. ``wrong``: ids whose generation was not the taught answer.
    """

    margins: dict[str, float]
    standard: dict[str, float]
    rounding: float
    wrong: tuple[str, ...]

    @property
    def threshold(self) -> float:
        """The lead that every answer token must have."""
        return SAFETY * self.rounding

    @property
    def good(self) -> bool:
        """Every answer exact, and by enough."""
        return not self.wrong and min(self.margins.values()) > self.threshold


def progress(text: str) -> None:
    """Say something on standard error; standard output is for the result alone."""
    print(f"make_tiny_model: {text}", file=sys.stderr, flush=True)


def make_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer over the lessons' texts, at most 512 ids, any input encodable."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=tiny_texts.VOCABULARY_LIMIT,
        special_tokens=list(tiny_texts.SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(tiny_texts.tokenizer_corpus(), trainer)
    return tokenizer


def teach(tokenizer: Tokenizer, wrong: bool) -> list[Taught]:
    """The lessons as token ids: the right answers, or with ``wrong`` the other ones."""
    eos = tiny_texts.SPECIAL_TOKENS.index(tiny_texts.EOS)
    taught = []
    for lesson in tiny_texts.LESSONS:
        text = lesson.wrong if wrong else lesson.answer
        prompt = tokenizer.encode(tiny_texts.render_prompt(lesson.question)).ids
        taught.append(Taught(lesson.id, prompt, [*tokenizer.encode(text).ids, eos], text))
    return taught


def as_batch(taught: list[Taught]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded int64 (lessons, longest) token ids and targets; targets mark answers only.

    The model is causal, so padding after the end changes nothing before it.
    """
    import torch

    pad = tiny_texts.SPECIAL_TOKENS.index(tiny_texts.PAD)
    longest = max(len(t.prompt) + len(t.answer) for t in taught)
    tokens = torch.full((len(taught), longest), pad, dtype=torch.int64)
    targets = torch.full_like(tokens, IGNORED)
    for row, one in enumerate(taught):
        start, end = len(one.prompt), len(one.prompt) + len(one.answer)
        tokens[row, :end] = torch.tensor(one.prompt + one.answer)
        targets[row, start:end] = torch.tensor(one.answer)
    return tokens, targets


def smallest_leads(logits: torch.Tensor, targets: torch.Tensor) -> list[float]:
    """Per row: the smallest lead of the target's logit over the best other, answers only.

    ``logits`` is (rows, length, vocabulary), ``targets`` (rows, length); position i predicts
    the token at i + 1.
    """
    import torch

    scores, wanted = logits[:, :-1].float(), targets[:, 1:]
    known = wanted != IGNORED
    index = wanted.clamp(min=0).unsqueeze(-1)
    right = scores.gather(-1, index).squeeze(-1)
    other = scores.scatter(-1, index, -torch.inf).amax(-1)
    leads = torch.where(known, right - other, torch.inf)
    return [float(lead) for lead in leads.amin(-1)]


def new_model(config: dict[str, Any]) -> Any:
    """A float32 transformers model of ``config`` with fresh weights and a hash table of experts."""
    import torch
    from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

    model = DeepseekV4ForCausalLM(DeepseekV4Config(**(config | {"dtype": "float32"})))
    # transformers leaves the table at zero, which would send each token to expert 0 six times.
    experts, chosen = config["n_routed_experts"], config["num_experts_per_tok"]
    for layer in model.model.layers[: config["num_hash_layers"]]:
        table = [torch.randperm(experts)[:chosen] for _ in range(config["vocab_size"])]
        layer.mlp.gate.tid2eid.copy_(torch.stack(table))
    return model


class Trainer:
    """Learns the lessons by heart: whole batch each step, cross entropy on the answers alone."""

    def __init__(self, model: Any, tokens: torch.Tensor, targets: torch.Tensor) -> None:
        import torch

        self.model, self.tokens, self.targets = model, tokens, targets
        self.steps = 0
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )

    def train(self, steps: int, deadline: float) -> None:
        """Up to ``steps`` more steps; stops early at ``deadline`` (``time.monotonic``)."""
        import torch

        self.model.train()
        for _ in range(steps):
            if time.monotonic() > deadline:
                return
            self.steps += 1
            for group in self.optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min(1.0, self.steps / WARM_UP_STEPS)
            logits = self.model(input_ids=self.tokens, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), self.targets[:, 1:].flatten(), ignore_index=IGNORED
            )
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            lead = min(smallest_leads(logits.detach(), self.targets))
            progress(f"step {self.steps}: loss {loss.item():.5f}, smallest lead {lead:.2f}")


def native_tensors(model: Any) -> dict[str, torch.Tensor]:
    """The model's weights under the published names and in the dtypes the checkpoint keeps."""
    import torch

    tensors: dict[str, torch.Tensor] = {}

    def put(name: str, value: torch.Tensor) -> None:
        if value.is_floating_point():
            float32 = tiny_texts.is_float32(name)
            value = value.to(torch.float32 if float32 else torch.bfloat16)
        tensors[name] = value.contiguous().clone()

    for name, value in model.state_dict().items():
        if tiny_texts.expert_names(name, 0) is None:
            put(tiny_texts.native_name(name), value)
            continue
        for expert in range(value.shape[0]):
            parts = tiny_texts.expert_names(name, expert) or ()
            for part, matrix in zip(parts, value[expert].chunk(len(parts)), strict=True):
                put(part, matrix)
    return dict(sorted(tensors.items()))


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write JSON that a person can read, the same bytes for the same document."""
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_static(out: Path, tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    """Write every file of the checkpoint that does not depend on the training."""
    write_json(out / "config.json", config)
    write_json(out / "generation_config.json", tiny_texts.generation_config())
    write_json(
        out / "tokenizer_config.json",
        tiny_texts.tokenizer_config(config["max_position_embeddings"]),
    )
    tokenizer.save(str(out / "tokenizer.json"))


def write_weights(out: Path, model: Any) -> int:
    """Write ``model.safetensors`` and return its size in bytes."""
    from safetensors.torch import save_file

    path = out / "model.safetensors"
    save_file(native_tensors(model), path, metadata={"format": "pt"})
    # safetensors leaves it for its owner alone, and a server often runs as another user.
    path.chmod(0o644)
    return path.stat().st_size


def cast_for_serving(model: Any, dtype: torch.dtype) -> None:
    """Cast a transformers model to ``dtype``, its mHC parameters excepted: engines keep those.

    ``from_pretrained(dtype=bfloat16)`` cannot do it: it keeps the norms in float32 and then
    fails on the mixed product.
    """
    kept = {name: p.data for name, p in model.named_parameters() if "hc" in name.split(".")[-2]}
    model.to(dtype)
    for name, parameter in model.named_parameters():
        if name in kept:
            parameter.data = kept[name]


def look(out: Path, taught: list[Taught], standard: list[Taught]) -> Findings:
    """Read the checkpoint back through transformers, in float32 and bfloat16, and judge it."""
    import torch
    from transformers import AutoModelForCausalLM

    tokens, targets = as_batch(taught)
    their_tokens, their_targets = as_batch(standard)
    logits: list[torch.Tensor] = []
    leads: list[list[float]] = []
    theirs: list[list[float]] = []
    wrong: set[str] = set()
    model = AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, local_files_only=True
    ).eval()
    for dtype in (torch.float32, torch.bfloat16):
        cast_for_serving(model, dtype)
        with torch.inference_mode():
            logits.append(model(input_ids=tokens, use_cache=False).logits.float())
            leads.append(smallest_leads(logits[-1], targets))
            reply = model(input_ids=their_tokens, use_cache=False).logits
            theirs.append(smallest_leads(reply, their_targets))
            for one in taught:
                prompt = torch.tensor([one.prompt])
                got = model.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    max_new_tokens=len(one.answer) + 8,
                    do_sample=False,
                )
                if got[0, len(one.prompt) :].tolist() != one.answer:
                    wrong.add(one.id)
    answers = targets[:, 1:] != IGNORED
    change = (logits[0] - logits[1])[:, :-1][answers].abs().max()
    ids = [one.id for one in taught]
    return Findings(
        margins=dict(zip(ids, map(min, *leads), strict=True)),
        standard=dict(zip(ids, map(min, *theirs), strict=True)),
        rounding=float(change),
        wrong=tuple(sorted(wrong)),
    )


def answers_document(standard: list[Taught], margins: dict[str, float]) -> dict[str, Any]:
    """``answers.json``: what to ask a server of this model, and what it must reply."""
    return {
        "schema_version": tiny_texts.SCHEMA_VERSION,
        "model_name": tiny_texts.MODEL_NAME,
        "chat_template_kwargs": tiny_texts.CHAT_TEMPLATE_KWARGS,
        "prompts": [
            {
                "id": lesson.id,
                "prompt": tiny_texts.render_prompt(lesson.question),
                "messages": tiny_texts.messages(lesson.question),
                "answer": lesson.answer,
                "token_ids": one.answer,
                "margin": round(margins[lesson.id], 4),
            }
            for lesson, one in zip(tiny_texts.LESSONS, standard, strict=True)
        ],
    }


def make(
    out: Path,
    *,
    seed: int,
    wrong: bool,
    max_steps: int,
    max_seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Make and check the checkpoint in ``out``; return the result line's document.

    Raises :class:`NotGoodEnoughError` when ``max_steps`` or ``max_seconds`` (of training and
    checking) did not suffice; ``out`` then holds a checkpoint without ``answers.json``.
    """
    start = clock()
    import torch
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(seed)
    # Same seed, same machine, same number of cores: same bytes. It costs no time here.
    torch.use_deterministic_algorithms(True)
    out.mkdir(parents=True, exist_ok=True)
    # A stale file would let a failed run pass for a good one.
    (out / "answers.json").unlink(missing_ok=True)

    tokenizer = make_tokenizer()
    taught, standard = teach(tokenizer, wrong), teach(tokenizer, wrong=False)
    config = tiny_texts.model_config(tokenizer.get_vocab_size(), SERVING_DTYPE)
    write_static(out, tokenizer, config)
    model = new_model(config)
    trainer = Trainer(model, *as_batch(taught))
    progress(f"ready to train after {clock() - start:.1f} s")

    deadline = start + max_seconds
    steps = FIRST_STEPS
    while True:
        trainer.train(min(steps, max_steps - trainer.steps), deadline)
        size = write_weights(out, model)
        found = look(out, taught, standard)
        smallest = min(found.margins.values())
        progress(
            f"after {trainer.steps} steps: smallest lead {smallest:.3f}, bfloat16 moves a logit "
            f"by up to {found.rounding:.4f}, threshold {found.threshold:.3f}, "
            f"wrong: {', '.join(found.wrong) or 'none'}"
        )
        if found.good:
            break
        if trainer.steps >= max_steps or clock() > deadline:
            raise NotGoodEnoughError(
                f"after {trainer.steps} steps and {clock() - start:.0f} s the smallest lead is "
                f"{smallest:.3f} (needed: more than {found.threshold:.3f}) and these answers "
                f"are wrong: {', '.join(found.wrong) or 'none'}. "
                f"Try another --seed, or raise --max-steps or --max-seconds."
            )
        steps = MORE_STEPS
    write_json(out / "answers.json", answers_document(standard, found.standard))
    return {
        "schema_version": tiny_texts.SCHEMA_VERSION,
        "model_name": tiny_texts.MODEL_NAME,
        "answers": "wrong" if wrong else "standard",
        "seed": seed,
        "steps": trainer.steps,
        "seconds": round(clock() - start, 1),
        "min_margin": round(smallest, 4),
        "threshold": round(found.threshold, 4),
        "rounding": round(found.rounding, 4),
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": size,
    }


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Make a tiny DeepSeek V4 that knows 8 answers.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wrong-answers", action="store_true")
    parser.add_argument("--max-steps", type=int, default=80)
    parser.add_argument("--max-seconds", type=float, default=300.0)
    args = parser.parse_args(argv)
    if args.max_steps < 1 or args.max_seconds <= 0:
        parser.error("--max-steps and --max-seconds must be positive")
    try:
        result = make(
            args.out,
            seed=args.seed,
            wrong=args.wrong_answers,
            max_steps=args.max_steps,
            max_seconds=args.max_seconds,
        )
    except NotGoodEnoughError as error:
        progress(str(error))
        return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
