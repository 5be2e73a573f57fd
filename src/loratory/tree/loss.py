"""The loss of a batch as a weighted sum and its weight; the optimizer step divides, once.

N: targets.  U: rows that at least one target needs.  X: width of the hidden states.  V: vocabulary.
C: rows computed at once.
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

from loratory.tree.batches import Batch
from loratory.tree.forward import target_logits, target_states
from loratory.tree.layout import Layout

LOGITS_AT_ONCE = 2**24  # 64 MiB of float32


@dataclass(frozen=True)
class LossSum:
    """The sum of weight times cross-entropy (in nats) over the targets, and the sum of the weights."""

    total: Float[Tensor, ""]
    weight: float


def target_log_probs(
    model: nn.Module, batch: Batch, layout: Layout, prefix: DynamicCache | None = None
) -> Float[Tensor, "N"]:
    """Natural log of the probability of every target, computed in float32 or wider.

    ``prefix``: keys and values of tokens that precede the batch; supported by the tree layout.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    if layout.plain_head and type(head) is nn.Linear:  # an adapter may wrap it
        states_UX, inverse_N = target_states(model, batch, layout, prefix)
        return _HeadLogProbs.apply(states_UX, head.weight, head.bias, inverse_N, batch.target_ids_N)
    logits_UV, inverse_N = target_logits(model, batch, layout, prefix)
    log_probs_UV = logits_UV.to(_at_least_float32(logits_UV)).log_softmax(dim=-1)
    return log_probs_UV[inverse_N, batch.target_ids_N]


def batch_loss(model: nn.Module, batch: Batch, layout: Layout) -> LossSum:
    """The batch's contribution to the loss; ``model`` must be prepared for the layout."""
    log_probs_N = target_log_probs(model, batch, layout)
    return LossSum(-(batch.target_weights_N * log_probs_N).sum(), batch_weight(batch))


def batch_weight(batch: Batch) -> float:
    """The sum of the target weights; known before any forward pass, so the whole step can use one denominator."""
    return float(batch.target_weights_N.cpu().sum(dtype=torch.float64))  # not every GPU has float64


class _HeadLogProbs(torch.autograd.Function):
    """Head and log-probabilities, a few rows at a time to keep the logits small; recomputed in the backward pass."""

    @staticmethod
    def forward(ctx: Any, states_UX: Tensor, weight: Tensor, bias: Tensor | None, inverse_N: Tensor, ids_N: Tensor):
        ctx.save_for_backward(states_UX, weight, bias, inverse_N, ids_N)
        kind = states_UX.device.type
        ctx.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states_UX.dtype
        low_bias = bias if bias is None else bias.to(ctx.dtype)
        log_probs_N = torch.empty(len(ids_N), dtype=_at_least_float32(states_UX), device=ids_N.device)
        for rows, targets, logits_CV in _parts(states_UX.to(ctx.dtype), weight.to(ctx.dtype), low_bias, inverse_N):
            log_probs_CV = logits_CV.to(log_probs_N.dtype).log_softmax(dim=-1)
            log_probs_N[targets] = log_probs_CV[inverse_N[targets] - rows.start, ids_N[targets]]
        return log_probs_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor):
        states_UX, weight, bias, inverse_N, ids_N = ctx.saved_tensors
        low_states_UX, low_weight = states_UX.to(ctx.dtype), weight.to(ctx.dtype)
        low_bias = bias if bias is None else bias.to(ctx.dtype)
        d_states_UX = torch.empty_like(states_UX)
        d_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        d_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        for rows, targets, logits_CV in _parts(low_states_UX, low_weight, low_bias, inverse_N):
            row_of = inverse_N[targets] - rows.start
            grad_C = grad_N.new_zeros(len(logits_CV)).index_add_(0, row_of, grad_N[targets])
            d_logits_CV = logits_CV.to(grad_N.dtype).softmax(dim=-1).mul_(-grad_C[:, None])
            d_logits_CV.index_put_((row_of, ids_N[targets]), grad_N[targets], accumulate=True)
            d_logits_CV = d_logits_CV.to(ctx.dtype)
            d_states_UX[rows] = (d_logits_CV @ low_weight).to(states_UX.dtype)
            if d_weight is not None:
                d_weight += d_logits_CV.t() @ low_states_UX[rows]
            if d_bias is not None:
                d_bias += d_logits_CV.sum(0)
        return d_states_UX, d_weight, d_bias, None, None


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _parts(
    states_UX: Tensor, weight: Tensor, bias: Tensor | None, inverse_N: Int64[Tensor, "N"]
) -> Iterator[tuple[slice, Int64[Tensor, "_"], Float[Tensor, "C V"]]]:
    """Yields a slice of rows of the states, the indices of the targets that they predict, and the rows' logits."""
    at_once = max(1, LOGITS_AT_ONCE // len(weight))
    for start in range(0, len(states_UX), at_once):
        stop = min(start + at_once, len(states_UX))
        targets = ((inverse_N >= start) & (inverse_N < stop)).nonzero()[:, 0]
        yield slice(start, stop), targets, linear(states_UX[start:stop], weight, bias)
