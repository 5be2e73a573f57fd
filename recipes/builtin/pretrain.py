"""Pretrains the model that comes with the package, in one command:

    python recipes/builtin/pretrain.py --papers FILE.jsonl.xz ... --work recipes/builtin/work --out FOLDER
        [--recipe cpu] [--minutes 120 | --steps 5000] [--set learning_rate=3e-3 ...]

``papers`` are jsonl or jsonl.xz files with "title" and "abstract"; no other field is read. Files that exist in ``work``
are not made again: the same command resumes from the newest checkpoint, with the same result as an uninterrupted run.
The number of ``steps`` can be increased until the learning rate begins to decay.
"""

import argparse
import copy
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from corpus import Windows, make_corpus
from evaluate import evaluate
from muon import make_optimizer
from objectives import Batch, Loss, hidden_token_loss, hidden_tokens, next_token_loss, next_tokens
from settings import RECIPES, Settings, causal_config, learning_rate_at, masked_config
from torch import Tensor
from transformers import (
    GenerationConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3ForCausalLM,
)

from loratory.cli.main import keep_freed_memory
from loratory.machine import Machine, resolve_machine
from loratory.storage import append_metric, repair_metrics, write_json
from loratory.training import latest_checkpoint, load_checkpoint, save_checkpoint
from loratory.tree import step_examples

SAVE_SECONDS = 60.0
SHARD = "16MB"


def main() -> None:
    args = arguments()
    keep_freed_memory()
    if not (args.work / "recipe.json").exists():
        settings = dataclasses.replace(RECIPES[args.recipe], **dict(args.set))
        make_corpus(args.papers, args.work, settings, args.held_out, args.count)
        write_json(args.work / "recipe.json", dataclasses.asdict(settings))
    settings = Settings(**json.loads((args.work / "recipe.json").read_text()))
    machine = resolve_machine(args.device, "auto", 0, products="auto")
    model = pretrain(args.work, settings, machine, args.minutes, args.steps, args.compile)
    if args.out:
        save(model, args.work, args.out)
    # On a CPU, no kernel has to be compiled for each length of a batch.
    write_json(args.work / "evaluation.json", evaluate(model.cpu(), args.work, settings))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--papers", type=Path, nargs="+", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="folder for the finished model")
    parser.add_argument("--recipe", choices=RECIPES, default="cpu")
    parser.add_argument("--held-out", type=int, default=2000, help="number of first papers to hold out for evaluation")
    parser.add_argument("--count", type=int, help="number of papers to train on; all by default")
    parser.add_argument("--minutes", type=float, default=120.0, help="training time; gives the number of steps")
    parser.add_argument("--steps", type=int, help="number of steps, instead of --minutes")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--set", type=setting, nargs="*", default=[], metavar="KEY=VALUE", help="changes the recipe")
    return parser.parse_args()


def setting(text: str) -> tuple[str, Any]:
    """Parses KEY=VALUE, with the value in the type of the setting."""
    key, _, value = text.partition("=")
    return key, type(getattr(Settings(), key))(value)


def pretrain(
    work: Path, settings: Settings, machine: Machine, minutes: float, steps: int | None, compiled: bool
) -> PreTrainedModel:
    """Trains the model for the whole schedule and returns it."""
    model = make_model(work, settings, machine)
    optimizer = make_optimizer(model, settings)
    steps = planned_steps(work, settings, machine, minutes, steps, compiled)
    checkpoint, skipped = latest_checkpoint(work / "checkpoints")
    if checkpoint:
        load_checkpoint(checkpoint, model, optimizer)
        repair_metrics(work)
        print(" ".join([*skipped, f"Resuming after step {checkpoint.step:,}"]), flush=True)
    saved = time.monotonic()
    first = checkpoint.step if checkpoint else 0
    for result in train(model, optimizer, work, settings, machine, compiled, first, steps):
        append_metric(work, "step", **result)
        step = result["step"]
        if step % 20 == 0 or step == steps:
            left = result["seconds"] * (steps - step) / 60
            rate = result["tokens"] / result["seconds"]
            print(f"{step:,}/{steps:,}  loss {result['loss']:.3f}  {rate:,.0f} tokens/s  {left:.0f} min", flush=True)
        if time.monotonic() - saved > SAVE_SECONDS or step == steps:
            save_checkpoint(work / "checkpoints", model, optimizer, step)
            saved = time.monotonic()
    return model


def train(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    work: Path,
    settings: Settings,
    machine: Machine,
    compiled: bool,
    first_step: int,
    steps: int,
) -> Iterator[dict[str, Any]]:
    """The steps from ``first_step`` on, each a record of what it did."""
    loss_of = make_loss(model, settings, compiled)
    for step, batches in enumerate(batches_of(work, settings, first_step, steps), first_step):
        started = time.perf_counter()
        rate = learning_rate_at(step, steps, settings)
        loss, norm = update(loss_of, model, optimizer, batches, machine, rate, settings.max_grad_norm)
        yield {
            "step": step + 1,
            "loss": loss,
            "learning_rate": rate,
            "grad_norm": norm,
            "tokens": sum(inputs.numel() for inputs, *_ in batches),
            "seconds": time.perf_counter() - started,
        }


def make_loss(model: PreTrainedModel, settings: Settings, compiled: bool) -> Loss:
    loss_of = partial(hidden_token_loss if settings.masked else next_token_loss, model)
    # Compiled once for each of the two lengths.
    return torch.compile(loss_of, dynamic=False) if compiled else loss_of


def batches_of(work: Path, settings: Settings, first_step: int, steps: int) -> Iterator[list[Batch]]:
    """The micro-batches of each step: short windows, and whole contexts in every ``long_every``-th step."""
    mask_id = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer").mask_token_id
    long_before = first_step // settings.long_every
    short = rows_of(work, settings, settings.window, settings.seed, first_step - long_before)
    long = rows_of(work, settings, settings.context, settings.seed + 1, long_before)
    for step in range(first_step, steps):
        parts = next(long if (step + 1) % settings.long_every == 0 else short)
        draw = torch.Generator().manual_seed(settings.seed * 2**32 + step)
        yield [hidden_tokens(p, settings, mask_id, draw) if settings.masked else next_tokens(p) for p in parts]


def rows_of(work: Path, settings: Settings, length: int, seed: int, first: int) -> Iterator[list[Tensor]]:
    """The windows of one length for each step, from step ``first`` of that length on; reshuffled in each epoch."""
    windows = Windows(work, length)
    rows = settings.step_tokens // length
    whole_steps = len(windows) // rows * rows
    for indices in step_examples(whole_steps, rows, seed, first, sys.maxsize):
        yield list(windows.rows(indices).split(max(1, settings.micro_batch_tokens // length)))


def update(
    loss_of: Loss,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    batches: list[Batch],
    machine: Machine,
    rate: float,
    max_grad_norm: float,
) -> tuple[float, float]:
    """One optimizer step. Returns the mean loss in nats per target and the gradient norm before clipping."""
    optimizer.zero_grad(set_to_none=True)
    targets = sum(batch[-1].numel() for batch in batches)
    shares = []
    for batch in batches:
        with torch.autocast(machine.device.type, machine.autocast_dtype) if machine.autocast_dtype else nullcontext():
            share = loss_of(*(part.to(machine.device) for part in batch)) / targets
        share.backward()
        shares.append(share.detach())
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
    optimizer.step()
    # Reading a number waits for the GPU, so it comes last.
    return sum(share.item() for share in shares), float(norm)


def make_model(work: Path, settings: Settings, machine: Machine) -> PreTrainedModel:
    """A model with random float32 weights, determined by the seed.

    Matrices that write to the residual stream are initialized smaller, as in GPT-2 (Radford et al., 2019).
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    torch.manual_seed(settings.seed)
    if settings.masked:
        model = ModernBertForMaskedLM(masked_config(settings, tokenizer.pad_token_id))  # type: ignore[arg-type]
    else:
        model = Qwen3ForCausalLM(causal_config(settings, tokenizer.pad_token_id, tokenizer.eos_token_id))  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter /= (2 * settings.layers) ** 0.5
    model.to(machine.device)  # type: ignore[arg-type]
    model.eval()  # it has no dropout
    return model


def planned_steps(
    work: Path, settings: Settings, machine: Machine, minutes: float, steps: int | None, compiled: bool
) -> int:
    """The number of steps: ``steps``, or the plan of the run being resumed, or as many as fit into ``minutes``."""
    plan = work / "plan.json"
    planned = json.loads(plan.read_text())["steps"] if plan.exists() else None
    if steps is None:
        steps = planned or measured_steps(work, settings, machine, minutes, compiled)
    checkpoint, _ = latest_checkpoint(work / "checkpoints")
    if planned and checkpoint and steps != planned and checkpoint.step > (1 - settings.decay) * min(steps, planned):
        sys.exit(f"The learning rate of the run in {work} has begun to fall towards step {planned}: it cannot change")
    write_json(plan, {"steps": steps})
    return steps


def measured_steps(work: Path, settings: Settings, machine: Machine, minutes: float, compiled: bool) -> int:
    """How many steps fit into ``minutes``, measured on a few steps of a model that is then discarded."""
    model = make_model(work, settings, machine)
    optimizer = make_optimizer(model, settings)
    results = list(train(model, optimizer, work, settings, machine, compiled, 0, 2 * settings.long_every))
    last = [r["seconds"] for r in results[settings.long_every :]]  # both lengths are compiled by then
    return max(1, int(minutes * 60 / (sum(last) / len(last))))


def save(model: PreTrainedModel, work: Path, out: Path) -> None:
    """Saves the model to a standard Transformers folder, with weights rounded to bfloat16."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    if model.can_generate():
        stops = [tokenizer.eos_token_id, tokenizer.pad_token_id]
        model.generation_config = GenerationConfig(eos_token_id=stops, pad_token_id=tokenizer.pad_token_id)
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(out, max_shard_size=SHARD)
    tokenizer.save_pretrained(out)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters -> {out}")


if __name__ == "__main__":
    main()
