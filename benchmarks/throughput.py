"""Measures Loratory's training loop on random weights: examples per second, peak memory, share of the roofline.

    python benchmarks/throughput.py SHAPE [--data shared] [--adapter lora] [--examples 64] [--batch-size 16]

Prints one JSON object. The first step, on a separate batch, is a warm-up and not counted. ``roofline`` is the time that
the unavoidable matrix products would take at the measured GEMM peak, as a share of the measured time.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from common import cpu_name, versions
from shapes import DATA, SHAPES
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel
from workload import DTYPES, peak_memory_bytes, random_model, tokenized, wait_for

from loratory.cli.main import keep_freed_memory
from loratory.models import LoadedModel, LoadedTokenizer, attach_adapter
from loratory.settings import AdapterConfig, TrainConfig
from loratory.text import TokenizedExample
from loratory.training import make_optimizer, train
from loratory.tree import choose_layout

LEARNING_RATE = 1e-4
GEMM_ROWS = 2048
GEMM_REPEATS = 5
# 2 FLOP per parameter and row for each product: forward, gradient of the input, and in full fine-tuning of the weight.
FLOP_PER_PARAMETER = {"lora": 4, "full": 6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--data", choices=DATA, default="shared")
    parser.add_argument("--adapter", choices=FLOP_PER_PARAMETER, default="lora")
    parser.add_argument("--examples", type=int, default=64, help="counted examples; the warm-up takes more")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--token-budget", type=int, default=TrainConfig().token_budget)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the matrix products")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", choices=("on", "off"), default="on")
    args = parser.parse_args()
    keep_freed_memory()  # as the command line does
    print(json.dumps(measure(args)))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Builds the model, measures the GEMM peak, trains, and returns the measurements."""
    # Full fine-tuning keeps float32 weights, as the loratory command does.
    base = random_model(args.shape, "float32" if args.adapter == "full" else args.dtype, args.device)
    floor = Floor.of(base, FLOP_PER_PARAMETER[args.adapter])
    gemm_flops = gemm_peak(base, DTYPES[args.dtype], args.device)
    print(f"GEMM peak: {gemm_flops / 1e12:.2f} TFLOP/s", file=sys.stderr)
    drawn = tokenized(args.data, max(args.examples, args.batch_size), base.config.vocab_size)
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    counted = drawn[: args.examples]
    timed = timed_training(base, drawn[: args.batch_size], counted, args)
    seconds = sum(timed.step_seconds)
    model_flops = floor.flops(timed.unique_tokens, trained_tokens(counted))
    return {
        "engine": "loratory",
        "shape": args.shape,
        "data": args.data,
        "adapter": args.adapter,
        "dtype": args.dtype,
        "device": args.device,
        "batch_size": args.batch_size,
        "token_budget": args.token_budget,
        "compile": args.compile,
        "examples": len(counted),
        "seconds": seconds,
        "examples_per_second": len(counted) / seconds,
        "step_seconds": timed.step_seconds,
        "tokens": timed.tokens,
        "unique_tokens": timed.unique_tokens,
        "peak_memory_bytes": peak_memory_bytes(args.device),
        "gemm_flops": gemm_flops,
        "model_flops": model_flops,
        "roofline": model_flops / seconds / gemm_flops,
        "versions": versions("loratory", "torch", "transformers", "peft"),
        "cpu": cpu_name(),
        "gpu": torch.cuda.get_device_name() if args.device == "cuda" else None,
        "threads": torch.get_num_threads(),
    }


# ---- training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timed:
    """The counted steps."""

    step_seconds: list[float]
    """From the end of one step to the end of the next, to include batching."""
    tokens: int
    unique_tokens: int


def timed_training(
    base: PreTrainedModel,
    warm_up: Sequence[Sequence[TokenizedExample]],
    counted: Sequence[Sequence[TokenizedExample]],
    args: argparse.Namespace,
) -> Timed:
    """One step on ``warm_up``, then one epoch over ``counted``."""
    settings = TrainConfig(epochs=1, batch_size=args.batch_size, token_budget=args.token_budget)
    no_text = LoadedTokenizer(None, (), False, 2**31)  # type: ignore[arg-type]
    model = attach_adapter(LoadedModel(base, no_text, "random", None, {}), AdapterConfig(kind=args.adapter), seed=0)
    optimizer = make_optimizer(model, settings)
    layout = choose_layout(base, [sequence for group in warm_up for sequence in group], "tree")
    low = DTYPES[args.dtype] if args.adapter == "full" else None
    layout = dataclasses.replace(layout, compiled=args.compile == "on", autocast_dtype=low)
    for _ in train(model, warm_up, optimizer, settings, LEARNING_RATE, layout):
        wait_for(args.device)
    seconds, tokens, unique_tokens = [], 0, 0
    before = time.perf_counter()
    for result in train(model, counted, optimizer, settings, LEARNING_RATE, layout):
        wait_for(args.device)
        now = time.perf_counter()
        seconds.append(now - before)
        before = now
        tokens += result.tokens
        unique_tokens += result.unique_tokens
        print(f"step {result.step}/{result.steps}: {seconds[-1]:.2f} s, loss {result.loss:.3f}", file=sys.stderr)
    return Timed(seconds, tokens, unique_tokens)


def trained_tokens(examples: Sequence[Sequence[TokenizedExample]]) -> int:
    """Rows that need the head: random examples share no context with an answer, so every target has its own row."""
    return sum(int((sequence.loss_weights > 0).sum()) for group in examples for sequence in group)


# ---- minimal cost ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Floor:
    """The unavoidable work: the linear layers for each unique token, the head for each row that predicts a target."""

    layer_parameters: int
    head_parameters: int
    flop_per_parameter: int

    @classmethod
    def of(cls, model: PreTrainedModel, flop_per_parameter: int) -> "Floor":
        layers = sum(weight.numel() for weight in layer_weights(model))
        return cls(layers, model.get_output_embeddings().weight.numel(), flop_per_parameter)

    def flops(self, unique_tokens: int, target_rows: int) -> int:
        products = self.layer_parameters * unique_tokens + self.head_parameters * target_rows
        return self.flop_per_parameter * products


def layer_weights(model: PreTrainedModel) -> list[Tensor]:
    """The weights of the linear layers inside the decoder layers."""
    return [m.weight for m in model.base_model.layers.modules() if isinstance(m, nn.Linear)]


def gemm_peak(model: PreTrainedModel, dtype: torch.dtype, device: str) -> float:
    """FLOP/s of the fastest of the model's matrix products, in ``dtype``."""
    by_shape = {weight.shape: weight.detach().to(dtype) for weight in layer_weights(model)}
    return max(gemm_flops(weight, device) for weight in by_shape.values())


@torch.no_grad()
def gemm_flops(weight: Tensor, device: str) -> float:
    """FLOP/s of a product with ``weight``, the best of several repeats."""
    rows = torch.randn(GEMM_ROWS, weight.shape[1], dtype=weight.dtype, device=weight.device)
    calls = 20 if device == "cuda" else 1  # a single call on a GPU is too short to time
    best = float("inf")
    for _ in range(GEMM_REPEATS):
        wait_for(device)
        started = time.perf_counter()
        for _ in range(calls):
            linear(rows, weight)
        wait_for(device)
        best = min(best, (time.perf_counter() - started) / calls)
    return 2 * GEMM_ROWS * weight.numel() / best


if __name__ == "__main__":
    main()
