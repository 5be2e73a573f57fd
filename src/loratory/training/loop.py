"""The training loop: computation only; printing, saving, and evaluating are up to the caller."""

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from loratory.settings import TrainConfig
from loratory.text import TokenizedExample
from loratory.training.optimizer import learning_rate_at, trainable_parameters
from loratory.training.schedule import epochs_of, total_steps
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

# With weights in float16, the loss is scaled by this before the backward pass, and the gradient back after it: else the
# gradient of a step with thousands of targets is below float16's smallest numbers. A power of two is exact.
FLOAT16_SCALE = 2.0**10


@dataclass
class NotFinite(Exception):
    """A number in training is NaN or infinite."""

    quantity: Literal["loss", "gradient", "weights", "validation loss"]
    step: int
    """The step, counted from 1. If the loss or the gradient is not finite, the step was not applied: weights, moments
    and random state are those before it."""
    found: str
    rows: tuple[str, ...] = ()
    """For the loss: the sources of the examples of the step whose own loss is not finite; of all its examples if each
    loss alone is finite, and for the gradient."""
    each_is_finite: bool = True
    """Whether the loss of each example alone is finite."""


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
    then the same as in an uninterrupted run. Raises NotFinite.
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
        random_state = _random_state()
        loss, grad_norm = optimizer_step(model, optimizer, batches, layout, rate, settings.max_grad_norm)
        if not is_finite(loss, grad_norm):
            _restore_random_state(random_state)
            raise _explain(model, sequences, layout, settings, step + 1, loss, grad_norm)
        yield StepResult(
            step=step + 1,
            steps=steps,
            epoch=(step + 1) / steps * epochs_of(settings),
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

    If one of them is NaN or infinite, there is no update: weights and moments stay as they are. Each micro-batch
    contributes its sum divided by the weight of the whole step, so the gradient does not depend on how the step is
    split into micro-batches.
    """
    optimizer.zero_grad(set_to_none=True)
    weight = sum(batch_weight(batch) for batch in batches)
    scale = FLOAT16_SCALE if next(model.parameters()).dtype == torch.float16 else 1.0
    loss = 0.0
    with prepared_for_training(model, layout):
        for batch in batches:
            part = batch_loss(model, batch, layout).total / weight
            (part * scale if scale != 1.0 else part).backward()
            loss += part.item()
    parameters = list(trainable_parameters(model).values())
    if scale != 1.0:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad /= scale
    grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm or float("inf")))
    if not is_finite(loss, grad_norm):
        optimizer.zero_grad(set_to_none=True)
        return loss, grad_norm
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["scale"]
    optimizer.step()
    return loss, grad_norm


def is_finite(*values: float) -> bool:
    """Whether none of the values is NaN or infinite."""
    return all(map(math.isfinite, values))


def _explain(
    model: nn.Module,
    sequences: Sequence[TokenizedExample],
    layout: Layout,
    settings: TrainConfig,
    step: int,
    loss: float,
    grad_norm: float,
) -> NotFinite:
    """The exception for a step that was not applied, with the rows that may be the cause."""
    bad = rows_not_finite(model, sequences, layout, settings.token_budget)
    rows = bad or tuple(dict.fromkeys(s.source for s in sequences))
    quantity = "gradient" if is_finite(loss) else "loss"
    return NotFinite(quantity, step, f"loss {loss:.4g}, gradient norm {grad_norm:.4g}", rows, not bad)


@torch.no_grad()
def rows_not_finite(
    model: nn.Module, sequences: Sequence[TokenizedExample], layout: Layout, token_budget: int
) -> tuple[str, ...]:
    """The sources of the sequences whose loss alone is NaN or infinite, each once; computed as in training."""
    model.eval()
    device = next(model.parameters()).device
    plain = dataclasses.replace(layout, compiled=False, gradient_checkpointing=False)
    rows = {}
    with prepared_for_training(model, plain):
        for sequence in sequences:
            [batch] = micro_batches([sequence], token_budget, layout.share)
            if not is_finite(float(batch_loss(model, batch.to(device), plain).total)):
                rows[sequence.source] = None
    return tuple(rows)


def _random_state() -> tuple[torch.Tensor, list[torch.Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def _restore_random_state(state: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])


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
