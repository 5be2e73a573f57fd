"""The speed settings of a training run: resolved once, recorded with the run, and explained in sentences."""

import dataclasses
from collections.abc import Sequence
from functools import cache

import torch
from torch import nn

from loratory.machine import Machine, matmul_flops, memory_bytes
from loratory.settings import SpeedConfig, TrainConfig
from loratory.text import TokenizedExample
from loratory.training.schedule import total_steps
from loratory.tree import (
    Layout,
    decoder_layers,
    micro_batches,
    sequences_of_epoch,
    supports_gradient_checkpointing,
)

COMPILE_PAYS_OFF_AFTER = 600.0  # seconds of training; compilation takes 20 to 60 and saves a tenth to a fifth
ACTIVATION_FACTOR = 1.4  # activations saved by a layer, over inputs and outputs of its linear layers (measured)
MEMORY_SHARE = 0.8  # share of the machine's memory that a training run may plan to use


def resolve_speed(
    speed: SpeedConfig,
    settings: TrainConfig,
    full: bool,
    model: nn.Module,
    examples: Sequence[Sequence[TokenizedExample]],
    layout: Layout,
    machine: Machine,
) -> tuple[SpeedConfig, list[str]]:
    """The settings with "auto" resolved, and a sentence for each option that was turned on or could not be."""
    first = sequences_of_epoch(examples, range(min(len(examples), settings.batch_size)), 0)
    unique = sum(len(batch.token_ids_T) for batch in micro_batches(first, settings.token_budget, layout.share))
    longest = max(len(sequence.token_ids) for group in examples for sequence in group)
    tokens = max(longest, min(settings.token_budget, unique))
    seconds = float(total_steps(len(examples), settings))
    seconds *= step_seconds(model, unique, full, machine)
    checkpointing, first_sentence = _checkpointing(speed, model, training_bytes(model, tokens, full, machine), machine)
    compiling, second_sentence = _compiling(speed, model, layout, seconds, machine)
    resolved = dataclasses.replace(
        speed,
        compile=compiling,
        checkpointing=checkpointing,
        products=machine.matmul_dtype_name if full and machine.dtype != torch.float64 else speed.products,
    )
    return resolved, [sentence for sentence in (first_sentence, second_sentence) if sentence]


def _checkpointing(speed: SpeedConfig, model: nn.Module, needed: float, machine: Machine) -> tuple[str, str | None]:
    short = needed > MEMORY_SHARE * memory_bytes(machine.device) > 0
    if speed.checkpointing == "off" or (speed.checkpointing == "auto" and not short):
        return "off", None
    if not supports_gradient_checkpointing(model):
        advice = "halve --train.token-budget if memory runs out"
        return "off", f"{type(model).__name__} does not support gradient checkpointing here; {advice}"
    reason = f"Training would need about {needed / 1024**3:.0f} GiB, so gradient" if short else "Gradient"
    return "on", f"{reason} checkpointing is used: layers are computed twice to save memory"


def _compiling(
    speed: SpeedConfig, model: nn.Module, layout: Layout, seconds: float, machine: Machine
) -> tuple[str, str | None]:
    mixture = any("experts" in name for name, _ in model.named_modules())  # recompiles for each choice of experts
    enabled = speed.compile == "on" or (speed.compile == "auto" and seconds > COMPILE_PAYS_OFF_AFTER and not mixture)
    if not enabled or not layout.share:
        return "off", None
    if problem := compile_problem(str(machine.device)):
        return "off", f"Not compiled ({problem}); with a C++ compiler, training would be faster"
    return "on", "Layers are compiled first, which takes up to a minute and makes every step faster"


def layer_features(model: nn.Module) -> tuple[int, int]:
    """Number of weights in the linear layers of the decoder layers, and the sum of their input and output widths."""
    shapes = [p.shape for layer in decoder_layers(model) for p in layer.parameters() if p.ndim == 2]
    return sum(a * b for a, b in shapes), sum(a + b for a, b in shapes)


def step_seconds(model: nn.Module, tokens: int, full: bool, machine: Machine) -> float:
    """A lower bound on the seconds for ``tokens`` tokens: 4 FLOP (full fine-tuning: 6) per weight and token."""
    parameters, _ = layer_features(model)
    return (6 if full else 4) * parameters * tokens / matmul_flops(machine.device, machine.matmul_dtype)


def training_bytes(model: nn.Module, tokens: int, full: bool, machine: Machine) -> float:
    """Estimated memory for weights, gradients, optimizer state, and the activations saved for ``tokens`` tokens."""
    _, widths = layer_features(model)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    activations = ACTIVATION_FACTOR * widths * tokens * next(model.parameters()).element_size()
    return weights * (4 if full else 1) + (weights / 2 if machine.autocast_dtype else 0) + activations


@cache
def compile_problem(device: str) -> str | None:
    """Why torch.compile does not work on this machine, or None if it does. Tested on ten numbers, once per process."""

    def double(x: torch.Tensor) -> torch.Tensor:
        return (x * 2).sum()

    try:
        x = torch.ones(10, device=device, requires_grad=True)
        torch.compile(double)(x).backward()
    except Exception as error:  # a missing compiler, an unwritable cache folder, or platform-specific failures
        cause = getattr(error, "inner_exception", error)
        return str(cause).splitlines()[0][:160] if str(cause) else type(cause).__name__
    return None
