"""Pretraining objectives: next-token prediction and masked language modeling.

R: rows.  L: length of a row.  H: masked tokens of all rows.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from settings import Settings
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

Batch = tuple[Tensor, ...]
"""The arguments of the loss; the last one holds the targets."""
Loss = Callable[..., Float[Tensor, ""]]

MASKED, REPLACED = 0.8, 0.1  # shares of the chosen tokens; the others stay unchanged but are predicted as well


def next_tokens(rows: Int64[Tensor, "R L+1"]) -> Batch:
    return rows[:, :-1], rows[:, 1:]


def next_token_loss(model: nn.Module, inputs: Int64[Tensor, "R L"], targets: Int64[Tensor, "R L"]) -> Tensor:
    """Summed cross-entropy, in nats, of every token except the first of each row."""
    states = model.model(input_ids=inputs, use_cache=False).last_hidden_state  # type: ignore[operator]
    logits = model.lm_head(states).flatten(0, 1).float()  # type: ignore[operator]
    return cross_entropy(logits, targets.flatten(), reduction="sum")


def hidden_tokens(rows: Int64[Tensor, "R L+1"], settings: Settings, mask_id: int, draw: torch.Generator) -> Batch:
    """Masks the same number of random tokens in each row and returns the rows, flat indices and original ids.

    Devlin et al., "BERT", 2019, with a larger share of masked tokens as in Wettig et al., 2023.
    """
    inputs = rows[:, :-1].clone()
    count = max(1, round(settings.masked * inputs.shape[1]))
    chosen = torch.rand(inputs.shape, generator=draw).topk(count, dim=1).indices
    chosen_H = (chosen + torch.arange(len(inputs))[:, None] * inputs.shape[1]).flatten()
    targets_H = inputs.flatten()[chosen_H]
    fate_H = torch.rand(len(chosen_H), generator=draw)
    others_H = torch.randint(settings.vocabulary, (len(chosen_H),), generator=draw)
    shown_H = torch.where(fate_H < MASKED, mask_id, torch.where(fate_H < MASKED + REPLACED, others_H, targets_H))
    inputs.view(-1)[chosen_H] = shown_H
    return inputs, chosen_H, targets_H


def hidden_token_loss(
    model: nn.Module, inputs: Int64[Tensor, "R L"], chosen_H: Int64[Tensor, " H"], targets_H: Int64[Tensor, " H"]
) -> Tensor:
    """Summed cross-entropy, in nats, of the masked tokens."""
    states = model.model(input_ids=inputs).last_hidden_state.flatten(0, 1)[chosen_H]  # type: ignore[operator]
    logits = model.decoder(model.head(states)).float()  # type: ignore[operator]
    return cross_entropy(logits, targets_H, reduction="sum")
