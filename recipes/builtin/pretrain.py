"""How the model that comes with the package was made, in one command:

    python recipes/builtin/pretrain.py --papers FILE.jsonl.xz ... --work recipes/builtin/work --out FOLDER
        [--recipe cpu] [--minutes 120 | --steps 5000] [--set learning_rate=3e-3 ...]

``papers`` are jsonl (or jsonl.xz) files with "title" and "abstract"; nothing else of a record is read. What exists in
``work`` is not made again: started anew, the command goes on from the newest checkpoint as if it had never stopped. A
run whose learning rate has not begun to fall can be given more ``steps``.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from corpus import Documents, make_corpus
from evaluate import evaluate
from muon import make_optimizer
from settings import RECIPES, Settings, learning_rate_at, model_config
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3ForCausalLM

from loratory.attention import Layout, decoder_layers
from loratory.batches import micro_batches, step_examples
from loratory.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from loratory.cli import keep_freed_memory
from loratory.runs import append_metric, mend_metrics, write_json
from loratory.train import optimizer_step
from loratory.world import World, resolve_world

SAVE_SECONDS = 300.0
MEASURED_STEPS = 8
SHARD = "15MB"


def main() -> None:
    args = arguments()
    keep_freed_memory()
    if not (args.work / "recipe.json").exists():
        settings = dataclasses.replace(RECIPES[args.recipe], **dict(args.set))
        make_corpus(args.papers, args.work, settings, args.held_out, args.count)
        write_json(args.work / "recipe.json", dataclasses.asdict(settings))
    settings = Settings(**json.loads((args.work / "recipe.json").read_text()))
    world = resolve_world(args.device, "auto", 0, products="auto")
    model = pretrain(args.work, settings, world, args.minutes, args.steps, args.compile)
    write_json(args.work / "evaluation.json", evaluate(model, args.work, layout_of(world, False)))
    if args.out:
        save(model, args.work, args.out)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--papers", type=Path, nargs="+", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="folder for the finished model")
    parser.add_argument("--recipe", choices=RECIPES, default="cpu")
    parser.add_argument("--held-out", type=int, default=2000, help="papers to measure on, the first ones")
    parser.add_argument("--count", type=int, help="papers to train on; all by default")
    parser.add_argument("--minutes", type=float, default=120.0, help="for training, measured on this machine first")
    parser.add_argument("--steps", type=int, help="in place of minutes")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--set", type=setting, nargs="*", default=[], metavar="KEY=VALUE", help="changes the recipe")
    return parser.parse_args()


def setting(text: str) -> tuple[str, Any]:
    """KEY=VALUE, the value in the key's type."""
    key, _, value = text.partition("=")
    return key, type(getattr(Settings(), key))(value)


def pretrain(
    work: Path, settings: Settings, world: World, minutes: float, steps: int | None, compiled: bool
) -> Qwen3ForCausalLM:
    """The model after the whole schedule."""
    layout = layout_of(world, compiled)
    model = make_model(work, settings, world, compiled)
    optimizer = make_optimizer(model, settings)
    steps = planned_steps(work, settings, world, minutes, steps, compiled)
    found, skipped = latest_checkpoint(work / "checkpoints")
    if found:
        load_checkpoint(found, model, optimizer)
        mend_metrics(work)
        print(" ".join([*skipped, f"Going on after step {found.step:,}"]), flush=True)
    saved = time.monotonic()
    for result in train(model, optimizer, Documents(work), settings, layout, found.step if found else 0, steps):
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
    model: Qwen3ForCausalLM,
    optimizer: torch.optim.Optimizer,
    documents: Documents,
    settings: Settings,
    layout: Layout,
    first_step: int,
    steps: int,
) -> Iterator[dict[str, Any]]:
    """The steps from ``first_step`` on, each a record of what it did."""
    device = next(model.parameters()).device
    chosen = step_examples(len(documents), settings.documents_per_step, settings.seed, first_step, steps)
    for step, indices in enumerate(chosen, first_step):
        started = time.perf_counter()
        sequences = [documents[i] for i in indices]
        batches = [b.to(device) for b in micro_batches(sequences, settings.token_budget, share=True)]
        rate = learning_rate_at(step, steps, settings)
        loss, norm = optimizer_step(model, optimizer, batches, layout, rate, settings.max_grad_norm)
        yield {
            "step": step + 1,
            "loss": loss,
            "learning_rate": rate,
            "grad_norm": norm,
            "tokens": sum(len(s.token_ids) for s in sequences),
            "unique_tokens": sum(len(b.token_ids_T) for b in batches),
            "seconds": time.perf_counter() - started,
        }


def make_model(work: Path, settings: Settings, world: World, compiled: bool) -> Qwen3ForCausalLM:
    """Random weights in float32, the same for a seed; matrices that write to the residual stream start smaller."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    torch.manual_seed(settings.seed)
    model = Qwen3ForCausalLM(model_config(settings, tokenizer.pad_token_id, tokenizer.eos_token_id))  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter /= (2 * settings.layers) ** 0.5
    model.to(world.device)  # type: ignore[arg-type]
    model.eval()  # it has no dropout
    if compiled:
        for layer in decoder_layers(model):
            layer.compile(dynamic=True)
    return model


def layout_of(world: World, compiled: bool) -> Layout:
    """Every document by itself, equal beginnings computed once; layers are compiled by ``make_model``."""
    return Layout("tree", "the model is known", plain_head=True, low=world.low)


def planned_steps(
    work: Path, settings: Settings, world: World, minutes: float, steps: int | None, compiled: bool
) -> int:
    """As asked, or as planned when the run began, or as many as fit into ``minutes`` at the speed of the first few."""
    plan = work / "plan.json"
    planned = json.loads(plan.read_text())["steps"] if plan.exists() else None
    if steps is None:
        steps = planned or measured_steps(work, settings, world, minutes, compiled)
    found, _ = latest_checkpoint(work / "checkpoints")
    if planned and found and steps != planned and found.step > (1 - settings.decay) * min(steps, planned):
        sys.exit(f"The learning rate of the run in {work} has begun to fall towards step {planned}: it cannot change")
    write_json(plan, {"steps": steps})
    return steps


def measured_steps(work: Path, settings: Settings, world: World, minutes: float, compiled: bool) -> int:
    """How many steps fit into ``minutes``; the model that is trained for it is thrown away."""
    model = make_model(work, settings, world, compiled)
    optimizer = make_optimizer(model, settings)
    layout = layout_of(world, compiled)
    few = list(train(model, optimizer, Documents(work), settings, layout, 0, MEASURED_STEPS))[MEASURED_STEPS // 2 :]
    return max(1, int(minutes * 60 / (sum(r["seconds"] for r in few) / len(few))))


def save(model: Qwen3ForCausalLM, work: Path, out: Path) -> None:
    """A folder that any program can load, weights in bfloat16."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id], pad_token_id=tokenizer.pad_token_id
    )
    model.to(torch.bfloat16).save_pretrained(out, max_shard_size=SHARD)
    tokenizer.save_pretrained(out)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters -> {out}")


if __name__ == "__main__":
    main()
