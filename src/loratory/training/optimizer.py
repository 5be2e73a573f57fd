"""Optimizer parameter groups, and the learning rate as a pure function of the step."""

import math

import torch
from torch import nn

from loratory.models import lora_plus_groups
from loratory.settings import AdapterConfig, TrainConfig

# For full fine-tuning at a width of 2000; low-rank branches tolerate ten times this rate.
BASE_LEARNING_RATE = 5e-5
LORA_FACTOR = 10.0
WIDTH_EXPONENT = 0.78
HIGHEST_LEARNING_RATE = 5e-3


def automatic_learning_rate(adapter: AdapterConfig, width: int) -> float:
    """5e-5 * (10 for LoRA) * (2000 / width) ** 0.78, at most 5e-3.

    ``width`` is the model's hidden size. Form and constants follow the sweeps that Schulman et al. report in "LoRA
    Without Regret" (2025): the best rate falls with width, hardly depends on the rank if the branch is scaled by
    alpha / rank, and is about ten times that of full fine-tuning.
    """
    factor = LORA_FACTOR if adapter.kind == "lora" else 1.0
    return min(HIGHEST_LEARNING_RATE, BASE_LEARNING_RATE * factor * (2000 / width) ** WIDTH_EXPONENT)


def learning_rate_at(step: int, steps: int, peak: float, schedule: str, warmup: float) -> float:
    """The learning rate at ``step`` (counted from 0) of ``steps``: linear warm-up to ``peak``, then the schedule."""
    warmup_steps = math.ceil(steps * warmup)
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(steps - warmup_steps, 1)
    if schedule == "constant":
        return peak
    return peak * ((1 + math.cos(math.pi * progress)) / 2 if schedule == "cosine" else 1 - progress)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by name, each once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def make_optimizer(model: nn.Module, settings: TrainConfig, lora_plus: float = 1.0) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, without weight decay for vectors (biases, norms).

    ``lora_plus``: ratio of the learning rates of the second and the first matrix of a LoRA branch. A group's learning
    rate is that of the step times the group's ``scale``.
    """
    if lora_plus != 1.0:
        groups = lora_plus_groups(model, lora_plus, settings.weight_decay)
    else:
        parameters = trainable_parameters(model).values()
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay, "scale": 1.0},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0, "scale": 1.0},
        ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=(0.9, 0.999), eps=1e-8)
