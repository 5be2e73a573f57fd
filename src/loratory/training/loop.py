"""The training loop: computation only; printing, saving, and evaluating are up to the caller."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from loratory.config import TrainConfig
from loratory.text import TokenizedExample
from loratory.training.optimizer import learning_rate_at, trainable_parameters
from loratory.tree import (
    Batch,
    Layout,
    LossSum,
    batch_loss,
    batch_weight,
    micro_batches,
    prepared,
    prepared_for_training,
    sequences_of_epoch,
    step_examples,
    steps_per_epoch,
)


@dataclass(frozen=True)
class StepResult:
    """The result of one optimizer step."""

    step: int
    """Steps completed so far, including this one."""
    steps: int
    epoch: float
    loss: float
    """Mean cross-entropy per target token, in nats, before the update."""
    learning_rate: float
    grad_norm: float
    """Norm of the gradient before clipping."""
    tokens: int
    """Tokens in the step's sequences."""
    unique_tokens: int
    """Tokens actually computed; each shared prefix counts once."""
    seconds: float


def total_steps(examples: int, settings: TrainConfig) -> int:
    """Number of optimizer steps in the whole training run."""
    return settings.epochs * steps_per_epoch(examples, settings.batch_size)


def train(
    model: nn.Module,
    examples: Sequence[Sequence[TokenizedExample]],
    optimizer: torch.optim.Optimizer,
    settings: TrainConfig,
    peak_learning_rate: float,
    layout: Layout,
    first_step: int = 0,
) -> Iterator[StepResult]:
    """Trains the model, and yields one result per optimizer step. ``examples``: the sequences of each example.

    Model and optimizer must hold the state after ``first_step`` steps (see ``checkpoints.py``); the remaining steps are
    then the same as in an uninterrupted run.
    """
    steps = total_steps(len(examples), settings)
    device = next(model.parameters()).device
    schedule = step_examples(len(examples), settings.batch_size, settings.seed, first_step, steps)
    for step, indices in enumerate(schedule, first_step):
        started = time.perf_counter()
        sequences = sequences_of_epoch(examples, indices, step // steps_per_epoch(len(examples), settings.batch_size))
        batches = [b.to(device) for b in micro_batches(sequences, settings.token_budget, layout.share)]
        rate = learning_rate_at(step, steps, peak_learning_rate, settings.schedule, settings.warmup)
        set_training(model)  # at every step, because the caller may evaluate between steps
        loss, grad_norm = optimizer_step(model, optimizer, batches, layout, rate, settings.max_grad_norm)
        yield StepResult(
            step=step + 1,
            steps=steps,
            epoch=(step + 1) / steps * settings.epochs,
            loss=loss,
            learning_rate=rate,
            grad_norm=grad_norm,
            tokens=sum(len(s.token_ids) for s in sequences),
            unique_tokens=sum(len(b.token_ids_T) for b in batches),
            seconds=time.perf_counter() - started,
        )


def optimizer_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    layout: Layout,
    learning_rate: float,
    max_grad_norm: float,
) -> tuple[float, float]:
    """One update from the mean loss over all targets of all micro-batches. Returns that loss and the gradient norm.

    Each micro-batch contributes its sum divided by the weight of the whole step, so the gradient does not depend on how
    the step is split into micro-batches.
    """
    optimizer.zero_grad(set_to_none=True)
    weight = sum(batch_weight(batch) for batch in batches)
    loss = 0.0
    with prepared_for_training(model, layout):
        for batch in batches:
            part = batch_loss(model, batch, layout).total / weight
            part.backward()
            loss += part.item()
    parameters = list(trainable_parameters(model).values())
    grad_norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm or float("inf"))
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["scale"]
    optimizer.step()
    return loss, float(grad_norm)


def set_training(model: nn.Module) -> None:
    """Puts the base model in inference mode, without dropout, and turns on the dropout of the adapter's branches."""
    model.eval()
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and "lora_dropout" in name:
            module.train()


@torch.no_grad()
def mean_loss(
    model: nn.Module, examples: Sequence[Sequence[TokenizedExample]], layout: Layout, token_budget: int
) -> float:
    """Mean cross-entropy per target token, in nats, over all examples; does not train."""
    model.eval()
    device = next(model.parameters()).device
    sequences = [sequence for group in examples for sequence in group]
    with prepared(model, layout):
        sums: list[LossSum] = [
            batch_loss(model, batch.to(device), layout)
            for batch in micro_batches(sequences, token_budget, layout.share)
        ]
    return sum(float(s.total) for s in sums) / sum(s.weight for s in sums)
