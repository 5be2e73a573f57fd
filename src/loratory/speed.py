"""What of the fast path a training uses: resolved once, recorded with the run, and told in sentences."""

import dataclasses
from collections.abc import Sequence
from functools import cache

import torch
from torch import nn

from loratory.attention import Layout, decoder_layers
from loratory.batches import micro_batches, steps_per_epoch
from loratory.config import SpeedConfig, TrainConfig
from loratory.errors import UserError
from loratory.render import TokenizedExample
from loratory.world import World, matmul_flops, memory_bytes

COMPILE_REPAYS_AFTER = 600.0  # seconds of training; compiling takes 20 to 60 and saves a tenth to a fifth
ACTIVATION_FACTOR = 1.4  # what a layer keeps for the backward, in inputs and outputs of its linear layers (measured)
MEMORY_SHARE = 0.8  # of the machine's memory that a training may plan with


def resolve_speed(
    speed: SpeedConfig,
    settings: TrainConfig,
    full: bool,
    model: nn.Module,
    examples: Sequence[Sequence[TokenizedExample]],
    layout: Layout,
    world: World,
) -> tuple[SpeedConfig, list[str]]:
    """Settings without "auto", and a sentence for each thing that was switched on.

    Raises UserError where compiling is asked for and cannot be done.
    """
    first = [sequence for group in examples[: settings.batch_size] for sequence in group]
    sizes = [len(batch.token_ids_T) for batch in micro_batches(first, settings.token_budget, layout.share)]
    steps = settings.epochs * steps_per_epoch(len(examples), settings.batch_size)
    sentences = []
    tokens, seconds = max(sizes), steps * step_seconds(model, sum(sizes), full, world)
    checkpointing = speed.checkpointing
    if checkpointing == "auto":
        needed = training_bytes(model, tokens, full)
        short = needed > MEMORY_SHARE * memory_bytes() > 0
        checkpointing = "on" if short else "off"
        if short:
            sentences.append(
                f"About {needed / 1024**3:.0f} GiB would be needed, so layers are computed twice to save memory"
            )
    compiling = speed.compile
    if compiling == "auto":
        worth = layout.share and seconds > COMPILE_REPAYS_AFTER
        compiling = "on" if worth and compile_problem(str(world.device)) is None else "off"
        if worth and compiling == "off":
            sentences.append(
                f"Not compiled ({compile_problem(str(world.device))}): a C++ compiler would make it faster"
            )
    elif compiling == "on" and (problem := compile_problem(str(world.device))):
        fix = 'install a C++ compiler such as g++, or set compile = "auto"'
        raise UserError("torch.compile does not work here", "[speed] compile", found=problem, fix=fix)
    if compiling == "on":
        sentences.append("Layers are compiled first, which takes up to a minute and makes every step faster")
    return dataclasses.replace(speed, compile=compiling, checkpointing=checkpointing), sentences


def layer_features(model: nn.Module) -> tuple[int, int]:
    """Weights of the linear layers inside the decoder layers, and the sum of their input and output widths."""
    shapes = [p.shape for layer in decoder_layers(model) for p in layer.parameters() if p.ndim == 2]
    return sum(a * b for a, b in shapes), sum(a + b for a, b in shapes)


def step_seconds(model: nn.Module, tokens: int, full: bool, world: World) -> float:
    """Seconds that the matrix products of so many tokens take at least: 4 (full fine-tuning: 6) FLOP a weight."""
    parameters, _ = layer_features(model)
    return (6 if full else 4) * parameters * tokens / matmul_flops(world.device, world.products)


def training_bytes(model: nn.Module, tokens: int, full: bool) -> float:
    """An estimate of the memory for weights, gradients, optimizer and what ``tokens`` tokens keep for the backward."""
    _, widths = layer_features(model)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    kept = ACTIVATION_FACTOR * widths * tokens * next(model.parameters()).element_size()
    return weights * (4 if full else 1) + kept


@cache
def compile_problem(device: str) -> str | None:
    """Why torch.compile does not work on this machine; None where it does. Tried on ten numbers, once a process."""

    def double(x: torch.Tensor) -> torch.Tensor:
        return (x * 2).sum()

    try:
        x = torch.ones(10, device=device, requires_grad=True)
        torch.compile(double)(x).backward()
    except Exception as error:  # a missing compiler, an unwritable cache folder, and what other platforms lack
        cause = getattr(error, "inner_exception", error)
        return str(cause).splitlines()[0][:160] if str(cause) else type(cause).__name__
    return None
