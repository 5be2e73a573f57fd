"""The two engines that scoring.py compares; scoring.py runs this script in separate processes.

Every paper is a shared prompt of 150 tokens followed by its own text. Loratory sums the log-probabilities of labels of
3 to 7 tokens, which are the same for all papers. Transformers generates up to 7 tokens greedily, in left-padded batches
of papers of similar length. A random model rarely stops early, so almost all answers have 7 tokens; with a trained
model, a batch also runs until its longest answer ends.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common import versions
from shapes import EOS, SHAPES, rows
from transformers import GenerationConfig, PreTrainedModel
from workload import peak_memory_bytes, random_model

from loratory.cli.main import keep_freed_memory
from loratory.events import ignore_progress
from loratory.settings import TrainConfig
from loratory.tree import Layout, choose_layout, completion_log_probs, scored_sequence

BATCHES = (1, 8, 16, 32)
SEARCHED = 32  # papers on which the best batch size is determined
LABEL_TOKENS = (3, 7)  # minimum and maximum, including the end-of-sequence token
DTYPE, DEVICE = "bfloat16", "cpu"


@dataclass(frozen=True)
class Work:
    """The workload of both engines, and Loratory's layout for it."""

    model: PreTrainedModel
    layout: Layout
    prompts: list[np.ndarray]
    labels: list[list[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("times", "loratory", "transformers"))
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--papers", type=int, required=True)
    parser.add_argument("--labels", type=int, required=True)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument(
        "--batch-size", type=int, default=1, help="batch size of Transformers; memory is measured at it"
    )
    args = parser.parse_args()
    keep_freed_memory()  # for both engines
    work = make_work(args.shape, args.papers, args.labels)
    if args.task == "times":
        print(json.dumps(take_turns(work, args.repeats)))
        return
    if args.task == "loratory":
        score(work, work.prompts)
    else:
        generate(work.model, work.prompts, args.batch_size)
    print(json.dumps({"peak_memory_bytes": peak_memory_bytes(DEVICE)}))


def make_work(shape: str, papers: int, labels: int) -> Work:
    """A workload with random weights, papers and labels."""
    model = random_model(shape, DTYPE, DEVICE)
    vocab_size = model.config.vocab_size
    draw = random.Random(1)
    lengths = [draw.randint(*LABEL_TOKENS) for _ in range(labels)]
    label_ids = [[*(draw.randrange(3, vocab_size) for _ in range(length - 1)), EOS] for length in lengths]
    prompts = [np.array(prompt, dtype=np.int64) for prompt, _ in rows("shared", papers, vocab_size)]
    probes = [scored_sequence(prompt, label) for prompt in prompts[:4] for label in label_ids]
    return Work(model, choose_layout(model, probes, "tree"), prompts, label_ids)


def take_turns(work: Work, repeats: int) -> dict[str, Any]:
    """Finds the best batch size of Transformers on a few papers, then times both engines on all papers."""
    sample = work.prompts[:: max(1, len(work.prompts) // SEARCHED)][:SEARCHED]
    score(work, sample[:4])  # warm-up
    generate(work.model, sample[:4], 4)
    searched = {size: seconds_of(lambda size=size: generate(work.model, sample, size)) for size in BATCHES}
    best = min(searched, key=lambda size: searched[size])
    print(f"Transformers is fastest with a batch size of {best}: {searched}", file=sys.stderr)
    seconds: dict[str, list[float]] = {"loratory": [], "transformers": []}
    for _ in range(repeats):
        seconds["loratory"].append(seconds_of(lambda: score(work, work.prompts)))
        seconds["transformers"].append(seconds_of(lambda: generate(work.model, work.prompts, best)))
        print(f"seconds: {seconds}", file=sys.stderr)
    return {
        "seconds": seconds,
        "batch_size": best,
        "searched_papers": len(sample),
        "searched_seconds": {str(size): value for size, value in searched.items()},
        "versions": versions("loratory", "torch", "transformers"),
        "threads": torch.get_num_threads(),
    }


def seconds_of(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def score(work: Work, prompts: Sequence[np.ndarray]) -> None:
    """Loratory: scores all labels for every paper."""
    completions, budget = [work.labels] * len(prompts), TrainConfig().token_budget
    completion_log_probs(work.model, prompts, completions, work.layout, budget, ignore_progress)


def generate(model: PreTrainedModel, prompts: Sequence[np.ndarray], batch_size: int) -> None:
    """Transformers: generates a greedy answer to every paper, in batches of papers of similar length."""
    settings = GenerationConfig(do_sample=False, max_new_tokens=LABEL_TOKENS[1], eos_token_id=EOS, pad_token_id=0)
    by_length = sorted(prompts, key=len)
    for start in range(0, len(by_length), batch_size):
        batch = by_length[start : start + batch_size]
        width = max(map(len, batch))
        ids = torch.zeros(len(batch), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(batch):
            ids[row, width - len(prompt) :] = torch.from_numpy(prompt)
            mask[row, width - len(prompt) :] = 1
        model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)


if __name__ == "__main__":
    main()
