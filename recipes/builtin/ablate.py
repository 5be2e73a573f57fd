"""Short runs of the recipe, each for a fixed time, to choose its settings:

    python recipes/builtin/ablate.py --papers FILE.jsonl.xz ... --labelled train.jsonl --work FOLDER --minutes 6
        base adamw:optimizer=adamw,learning_rate=2e-3 shallow:layers=4

Each run has a name and the settings that it changes. Its time starts after the first, compiling step, and its learning
rate decays towards the end. Results are appended to ``ablations.jsonl`` in ``work``. The ``labelled`` papers have a
"category", which no language model reads: a linear probe on the hidden states measures how well they separate fields.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corpus import Windows, held_out_papers, make_corpus
from evaluate import TOKEN_BUDGET, bits_per_byte, encode, title_choice
from muon import make_optimizer
from objectives import next_tokens
from papers import Paper
from pretrain import make_loss, make_model, setting, update
from settings import RECIPES, Settings, learning_rate_at
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from loratory.cli.main import keep_freed_memory
from loratory.machine import Machine, resolve_machine
from loratory.tree import Layout

PAPERS = 20_000
HELD_OUT = 100
FITTED, PROBED = 500, 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME[:KEY=VALUE,...]")
    parser.add_argument("--papers", type=Path, nargs="+", required=True)
    parser.add_argument("--labelled", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--recipe", choices=RECIPES, default="cpu")
    args = parser.parse_args()
    keep_freed_memory()
    machine = resolve_machine("auto", "auto", 0, products="auto")
    labelled = [json.loads(line) for line in args.labelled.read_text(encoding="utf-8").splitlines()]
    for run in args.runs:
        name, _, changes = run.partition(":")
        settings = dataclasses.replace(
            RECIPES[args.recipe], **dict(setting(part) for part in changes.split(",") if part)
        )
        work = args.work / name
        make_corpus(args.papers, work, settings, HELD_OUT, PAPERS)
        result = {"name": name, "changes": changes, "minutes": args.minutes}
        result |= ablation(work, settings, machine, args.minutes, labelled)
        with (args.work / "ablations.jsonl").open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(json.dumps(result), flush=True)


def ablation(
    work: Path, settings: Settings, machine: Machine, minutes: float, labelled: list[dict[str, str]]
) -> dict[str, Any]:
    model = make_model(work, settings, machine)
    tokens, loss = train_for(model, work, settings, machine, minutes * 60)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    papers = held_out_papers(work)
    layout = Layout("tree", "the model is known", plain_head=True)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": tokens,
        "loss": loss,
        "bits_per_byte": bits_per_byte(model, tokenizer, papers, layout),
        "title_choice": title_choice(model, tokenizer, papers, layout),
        "probe": probe(model, tokenizer, labelled),
    }


def train_for(
    model: PreTrainedModel, work: Path, settings: Settings, machine: Machine, seconds: float
) -> tuple[int, float]:
    """Trains on short windows for ``seconds``. Returns the tokens read and the mean loss of the last tenth of steps."""
    optimizer = make_optimizer(model, settings)
    loss_of = make_loss(model, settings, compiled=True)
    windows = Windows(work, settings.window)
    rows = settings.step_tokens // settings.window
    micro = settings.micro_batch_tokens // settings.window
    update(loss_of, model, optimizer, [next_tokens(windows.rows(range(micro)))], machine, 0.0, settings.max_grad_norm)
    losses: list[float] = []
    started = time.monotonic()
    while (spent := time.monotonic() - started) < seconds:
        step = len(losses)
        steps = round(step * seconds / spent) if step else 10**6
        first = step * rows % (len(windows) - rows)
        batches = [next_tokens(part) for part in windows.rows(range(first, first + rows)).split(micro)]
        rate = learning_rate_at(step, max(step + 1, steps), settings)
        losses.append(update(loss_of, model, optimizer, batches, machine, rate, settings.max_grad_norm)[0])
    return len(losses) * rows * settings.window, float(np.mean(losses[-max(1, len(losses) // 10) :]))


@torch.no_grad()
def probe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, labelled: list[dict[str, str]]) -> float:
    """Linear probe: accuracy of logistic regression on mean hidden states, on papers that it was not fitted on."""
    chosen = labelled[: FITTED + PROBED]
    states = []
    for row in chosen:
        ids = torch.from_numpy(encode(tokenizer, Paper(row["title"], row["abstract"]).text)[:TOKEN_BUDGET])[None]
        states.append(model.model(input_ids=ids).last_hidden_state[0].mean(0).float().numpy())  # type: ignore[operator]
    labels = [row["category"] for row in chosen]
    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    fitted.fit(states[:FITTED], labels[:FITTED])
    return float(fitted.score(states[FITTED:], labels[FITTED:]))


if __name__ == "__main__":
    main()
