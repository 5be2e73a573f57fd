"""Logits and targets -> a sum and a weight. Nothing here divides: the optimizer step does, once.

N: targets.  U: rows that some target needs.  X: width of the hidden states.  V: vocabulary.  C: rows at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from transformers import DynamicCache

from loratory.attention import Layout, target_logits, target_states
from loratory.batches import Batch

LOGITS_AT_ONCE = 2**24  # 64 MiB of float32


@dataclass(frozen=True)
class LossSum:
    """Sum of weight times cross-entropy (in nats) over targets, and the sum of the weights."""

    total: Float[Tensor, ""]
    weight: float


def target_log_probs(
    model: nn.Module, batch: Batch, layout: Layout, prefix: DynamicCache | None = None
) -> Float[Tensor, "N"]:
    """Natural log of the probability of every target, computed in float32 at least.

    ``prefix``: keys and values of tokens before the batch's own, for a layout of trees.
    """
    if layout.plain_head:
        states_UX, inverse_N = target_states(model, batch, layout, prefix)
        head = _head(model)
        return _WithHead.apply(states_UX, head.weight, head.bias, inverse_N, batch.target_ids_N)
    logits_UV, inverse_N = target_logits(model, batch, layout, prefix)
    log_probs_UV = logits_UV.to(torch.promote_types(logits_UV.dtype, torch.float32)).log_softmax(dim=-1)
    return log_probs_UV[inverse_N, batch.target_ids_N]


def batch_loss(model: nn.Module, batch: Batch, layout: Layout) -> LossSum:
    """The batch's part of the loss; ``model`` must be prepared for the layout."""
    log_probs_N = target_log_probs(model, batch, layout)
    return LossSum(-(batch.target_weights_N * log_probs_N).sum(), batch_weight(batch))


def batch_weight(batch: Batch) -> float:
    """The sum of the target weights: known before any forward, so that one denominator serves the whole step."""
    return float(batch.target_weights_N.sum(dtype=torch.float64))


def _head(model: nn.Module) -> nn.Linear:
    return model.get_output_embeddings()  # type: ignore[operator, return-value]


class _WithHead(torch.autograd.Function):
    """Head and log-probabilities, so many rows at a time that the logits stay small; computed again in the backward."""

    @staticmethod
    def forward(ctx: Any, states_UX: Tensor, weight: Tensor, bias: Tensor | None, inverse_N: Tensor, ids_N: Tensor):
        ctx.save_for_backward(states_UX, weight, bias, inverse_N, ids_N)
        wide = torch.promote_types(states_UX.dtype, torch.float32)
        found_N = torch.empty(len(ids_N), dtype=wide, device=ids_N.device)
        for rows, targets in _parts(states_UX, weight, inverse_N):
            log_probs_CV = linear(states_UX[rows], weight, bias).to(wide).log_softmax(dim=-1)
            found_N[targets] = log_probs_CV[inverse_N[targets] - rows.start, ids_N[targets]]
        return found_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor):
        states_UX, weight, bias, inverse_N, ids_N = ctx.saved_tensors
        wide = grad_N.dtype
        d_states = torch.empty_like(states_UX)
        d_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        d_bias = torch.zeros_like(bias) if ctx.needs_input_grad[2] else None
        for rows, targets in _parts(states_UX, weight, inverse_N):
            row_of = inverse_N[targets] - rows.start
            grad_C = grad_N.new_zeros(len(states_UX[rows])).index_add_(0, row_of, grad_N[targets])
            d_logits = linear(states_UX[rows], weight, bias).to(wide).softmax(dim=-1).mul_(-grad_C[:, None])
            d_logits.index_put_((row_of, ids_N[targets]), grad_N[targets], accumulate=True)
            d_logits = d_logits.to(states_UX.dtype)
            d_states[rows] = d_logits @ weight
            if d_weight is not None:
                d_weight += d_logits.t() @ states_UX[rows]
            if d_bias is not None:
                d_bias += d_logits.sum(0)
        return d_states, d_weight, d_bias, None, None


def _parts(
    states_UX: Tensor, weight: Tensor, inverse_N: Int64[Tensor, "N"]
) -> Iterator[tuple[slice, Int64[Tensor, "_"]]]:
    """Rows of the states, and the targets that hang on them."""
    at_once = max(1, LOGITS_AT_ONCE // len(weight))
    for start in range(0, len(states_UX), at_once):
        stop = min(start + at_once, len(states_UX))
        yield slice(start, stop), ((inverse_N >= start) & (inverse_N < stop)).nonzero()[:, 0]
