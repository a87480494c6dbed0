"""Which experts a token goes to, and with what weights.

Router logits are (tokens, experts), float32 in DeepSeek V4. Both operators return the weights,
(tokens, topk) float32, and the experts, (tokens, topk) int32.
"""

from __future__ import annotations

import torch
from torch.nn.functional import softplus


def _scores(logits: torch.Tensor, scoring_func: str) -> torch.Tensor:
    logits = logits.float()
    if scoring_func == "sqrtsoftplus":
        return softplus(logits).sqrt()
    if scoring_func == "sigmoid":
        return torch.sigmoid(logits)
    raise ValueError(f"kiln-vllm-cpu-shims: scoring_func {scoring_func} is not known")


def _no_shared(num_fused_shared_experts: int) -> None:
    if num_fused_shared_experts:
        raise NotImplementedError(
            "kiln-vllm-cpu-shims: routing in PyTorch takes no fused shared experts; vLLM's CPU "
            "model of DeepSeek V4 has none"
        )


def hash_topk_cpu(
    gating_output: torch.Tensor,
    tid2eid: torch.Tensor,
    topk: int,
    scoring_func: str,
    num_fused_shared_experts: int,
    num_experts: int,
    routed_scaling_factor: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts that a table names for the token, weighted by their scores.

    gating_output: (tokens, experts); tid2eid: (tokens, topk) int32, the table's row of each token.
    The weights of a token add up to ``routed_scaling_factor``.
    """
    _no_shared(num_fused_shared_experts)
    if gating_output.shape[1] != num_experts or tid2eid.shape[1] != topk:
        raise ValueError(
            f"kiln-vllm-cpu-shims: hash_topk_cpu got logits {tuple(gating_output.shape)} for "
            f"{num_experts} experts and a table {tuple(tid2eid.shape)} for topk {topk}"
        )
    chosen = _scores(gating_output, scoring_func).gather(1, tid2eid.long())
    weights = chosen / chosen.sum(-1, keepdim=True) * routed_scaling_factor
    return weights, tid2eid.to(torch.int32, copy=True)


def biased_topk_cpu(
    hidden_states: torch.Tensor,  # noqa: ARG001 the compiled operator has it
    gating_output: torch.Tensor,
    correction_bias: torch.Tensor,
    topk: int,
    renormalize: bool,
    scoring_func: str,
    num_fused_shared_experts: int,
    routed_scaling_factor: float | None,
    apply_routed_scaling_factor_on_output: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts with the highest score plus bias, weighted by their scores without it.

    hidden_states: not read; gating_output: (tokens, experts); correction_bias: (experts). With
    ``renormalize`` the weights of a token add up to 1, or to ``routed_scaling_factor``.
    """
    _no_shared(num_fused_shared_experts)
    scores = _scores(gating_output, scoring_func)
    chosen = (scores + correction_bias.float()).topk(topk, dim=-1).indices
    weights = scores.gather(1, chosen)
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
        if apply_routed_scaling_factor_on_output:
            # A factor that was not given is 0 in the compiled operator as well; vLLM gives one.
            weights = weights * (routed_scaling_factor or 0.0)
    return weights, chosen.to(torch.int32)
