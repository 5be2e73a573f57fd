"""Logits and targets -> a sum and a weight. Nothing here divides: the optimizer step does, once.

N: targets.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loratory.attention import Layout, target_logits
from loratory.batches import Batch


@dataclass(frozen=True)
class LossSum:
    """Sum of weight times cross-entropy (in nats) over targets, and the sum of the weights."""

    total: Float[Tensor, ""]
    weight: float


def target_log_probs(model: nn.Module, batch: Batch, layout: Layout) -> Float[Tensor, "N"]:
    """Natural log of the probability of every target, computed in float32 at least."""
    logits_UV, inverse_N = target_logits(model, batch, layout)
    log_probs_UV = logits_UV.to(torch.promote_types(logits_UV.dtype, torch.float32)).log_softmax(dim=-1)
    return log_probs_UV[inverse_N, batch.target_ids_N]


def batch_loss(model: nn.Module, batch: Batch, layout: Layout) -> LossSum:
    """The batch's part of the loss; ``model`` must be prepared for the layout."""
    log_probs_N = target_log_probs(model, batch, layout)
    return LossSum(-(batch.target_weights_N * log_probs_N).sum(), batch_weight(batch))


def batch_weight(batch: Batch) -> float:
    """The sum of the target weights: known before any forward, so that one denominator serves the whole step."""
    return float(batch.target_weights_N.sum(dtype=torch.float64))
