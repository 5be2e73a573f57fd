"""Trains on the examples of throughput.py with TRL's SFTTrainer: LoRA with PEFT, or full fine-tuning.

Needs an environment with TRL, and does not import Loratory.

    /path/to/trl/python benchmarks/peer_trl.py SHAPE [--data shared] [--adapter lora] [--examples 64] [--batch-size 4]

Prints one JSON object. The first step, on a separate batch, is a warm-up and not counted. Settings are TRL's defaults
except that gradient checkpointing is off, because it makes TRL slower. ``--batch-size`` is sequences per step; with
``--packing``, rows of 2,048 tokens.
"""

import argparse
import itertools
import json
import resource
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from shapes import DATA, SHAPES, rows
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl import SFTConfig, SFTTrainer

LONGEST = 2048
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--data", choices=DATA, default="shared")
    parser.add_argument("--adapter", choices=("lora", "full"), default="lora")
    parser.add_argument("--examples", type=int, default=64, help="counted examples; the warm-up takes more")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--packing", action="store_true")
    print(json.dumps(measure(parser.parse_args())))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Trains once and returns the measurements."""
    clock = StepClock(args.device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(args, folder, clock)
        lengths = counted_lengths(trainer, args.batch_size)
        trainer.train()
    step_seconds = [later - earlier for earlier, later in itertools.pairwise(clock.step_ends)]
    seconds = sum(step_seconds)
    return {
        "engine": "trl",
        "shape": args.shape,
        "data": args.data,
        "adapter": args.adapter,
        "dtype": args.dtype,
        "device": args.device,
        "packing": args.packing,
        "batch_size": args.batch_size,
        "examples": len(lengths),
        "seconds": seconds,
        "examples_per_second": len(lengths) / seconds,
        "step_seconds": step_seconds,
        "tokens": sum(lengths),
        "peak_memory_bytes": peak_memory_bytes(args.device),
        "versions": {name: version(name) for name in ("trl", "torch", "transformers", "peft")},
        "cpu": cpu_name(),
        "gpu": torch.cuda.get_device_name() if args.device == "cuda" else None,
        "threads": torch.get_num_threads(),
    }


# ---- TRL -------------------------------------------------------------------------------------------------------------


@dataclass
class StepClock(TrainerCallback):
    """The time at which each step ended. A step's time runs from the end of the step before, to include batching."""

    device: str
    step_ends: list[float] = field(default_factory=list)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.step_ends.append(time.perf_counter())
        print(f"step {len(self.step_ends)}", file=sys.stderr, flush=True)


def make_trainer(args: argparse.Namespace, folder: str, clock: StepClock) -> SFTTrainer:
    """The trainer on the warm-up batch followed by the counted examples."""
    model = random_model(args)
    drawn = list(rows(args.data, max(args.examples, args.batch_size), model.config.vocab_size))
    settings = SFTConfig(
        output_dir=folder,
        num_train_epochs=1,
        per_device_train_batch_size=args.batch_size,
        train_sampling_strategy="sequential",
        learning_rate=1e-4,
        max_length=LONGEST,
        packing=args.packing,
        completion_only_loss=True,  # not the default of TRL for token ids
        gradient_checkpointing=False,
        use_cpu=args.device == "cpu",
        bf16=args.dtype == "bfloat16",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    return SFTTrainer(
        model=model,
        args=settings,
        train_dataset=as_dataset(drawn[: args.batch_size] + drawn[: args.examples]),
        processing_class=number_tokenizer(model.config.vocab_size),
        peft_config=lora() if args.adapter == "lora" else None,
        callbacks=[clock],
    )


def random_model(args: argparse.Namespace) -> PreTrainedModel:
    """A model in ``args.dtype``; for full fine-tuning in float32, because bfloat16 rounds small updates away."""
    config = LlamaConfig(**SHAPES[args.shape], tie_word_embeddings=True, max_position_embeddings=4096)
    torch.manual_seed(0)
    dtype = DTYPES[args.dtype] if args.adapter == "lora" else torch.float32
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


def lora() -> LoraConfig:
    """LoRA with the defaults of Loratory."""
    return LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def as_dataset(examples: list[tuple[list[int], list[int]]]) -> Dataset:
    """Prompt and answer as token ids, with a mask for the answer."""
    return Dataset.from_dict(
        {
            "input_ids": [prompt + answer for prompt, answer in examples],
            "completion_mask": [[0] * len(prompt) + [1] * len(answer) for prompt, answer in examples],
        }
    )


def number_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer with ``vocab_size`` words. The trainer requires one, although the examples are token ids."""
    words = {str(i): i for i in range(vocab_size)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="0"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="0", bos_token="1", eos_token="2")


def counted_lengths(trainer: SFTTrainer, batch_size: int) -> list[int]:
    """Lengths of the sequences after the first step. With packing, a row contains several, in a different order."""
    after_first = trainer.train_dataset.select(range(batch_size, len(trainer.train_dataset)))
    if "seq_lengths" in after_first.column_names:
        return [length for row in after_first["seq_lengths"] for length in row]
    return [len(ids) for ids in after_first["input_ids"]]


# ---- the machine -----------------------------------------------------------------------------------------------------


def peak_memory_bytes(device: str) -> int:
    """Peak memory so far: allocated GPU memory on "cuda", otherwise resident memory of this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cpu_name() -> str:
    """The name of the processor, from /proc/cpuinfo."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
