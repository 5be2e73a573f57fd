"""Writes the model card from the files of a pretraining run:

    python recipes/builtin/card.py --work FOLDER --out FOLDER/README.md [--machine "one NVIDIA H200"]
        [--ablations ablations.jsonl] [--results NAME=results.json ...]

``work`` is the working folder of ``pretrain.py``; ``results`` are files written by ``real_papers.py``.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from corpus import Windows

from loratory.metrics import duration
from loratory.storage import read_metrics, write_text

Record = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--machine", help="what it was pretrained on")
    parser.add_argument("--ablations", type=Path)
    parser.add_argument("--results", nargs="*", default=[], metavar="NAME=FILE")
    args = parser.parse_args()
    parts = [about(args.work, args.machine), measured(read(args.work / "evaluation.json"))]
    for name, _, path in (text.partition("=") for text in args.results):
        parts.append(on_real_papers(name, read(Path(path))))
    if args.ablations:
        parts.append(chosen_by([json.loads(line) for line in args.ablations.read_text().splitlines()]))
    write_text(args.out, "\n".join([*parts, LIMITS]))


def read(path: Path) -> Record:
    return json.loads(path.read_text())


def about(work: Path, machine: str | None) -> str:
    """What the model is and how it was trained."""
    recipe = read(work / "recipe.json")
    # A resumed run repeats the steps since its last checkpoint; the last log line of each step counts.
    steps = list({m["step"]: m for m in read_metrics(work) if m["event"] == "step"}.values())
    tokens, seconds = sum(s["tokens"] for s in steps), sum(s["seconds"] for s in steps)
    passes = tokens / len(Windows(work, 1))
    tail = steps[-max(1, len(steps) // 50) :]
    loss = sum(s["loss"] for s in tail) / len(tail)
    name = "ModernBERT (masked)" if recipe["masked"] else "Qwen3 (causal)"
    documents = f"{recipe['plain']:.0%} plain papers; else conversations about titles, keywords, abstracts"
    if recipe["plain"] == 1:
        documents = "plain papers"
    if recipe["masked"]:
        documents += f", of whose tokens {recipe['masked']:.0%} are hidden"
    return f"""# A small language model of scientific abstracts

Made by `recipes/builtin/pretrain.py` to show Loratory without a download: {name},
{recipe["layers"]} layers of width {recipe["width"]}, {recipe["vocabulary"]:,} tokens of vocabulary,
contexts of {recipe["context"]:,} tokens.

| pretraining | |
| --- | --- |
| text | titles and abstracts of arXiv papers (CC0); no category, no label of any kind |
| documents | {documents} |
| tokens read | {tokens / 1e6:.1f} million in {len(steps):,} steps of {recipe["step_tokens"]:,} |
| passes over the text | {passes:.1f} |
| time | {duration(seconds)}, {tokens / seconds:,.0f} tokens a second{f" on {machine}" if machine else ""} |
| optimizer | {recipe["optimizer"]} |
| learning rate | {recipe["learning_rate"]:g}, falling to zero over the last {recipe["decay"]:.0%} of the steps |
| loss at the end | {loss:.3f} nats a token |
"""


def measured(metrics: Record) -> str:
    head = f"## On {metrics['papers']:,} papers that it never read\n\n"
    if "hidden_found" in metrics:
        return f"""{head}Of the {metrics["hidden_share"]:.0%} of tokens that were hidden it finds
{metrics["hidden_found"]:.1%} ({metrics["hidden_loss"]:.3f} nats a token).
"""
    titles = "\n".join(f"| {t['paper']} | {cell(t['model'])} |" for t in metrics["titles"])
    return f"""{head}{metrics["bits_per_byte"]:.3f} bits a byte; the right one of six titles for
{metrics["title_choice"]:.0%} of abstracts (chance: 17 %).

Its own titles for {len(metrics["titles"])} of those abstracts, greedy, unedited:

| the paper | the model |
| --- | --- |
{titles}
"""


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def on_real_papers(name: str, results: Record) -> str:
    """Each system of each model: mean and range over the seeds."""
    models, settings = results["models"], results["settings"]
    systems = list(dict.fromkeys(system for scores in models.values() for system in scores))
    rows = [f"| {s} | " + " | ".join(spread(scores.get(s)) for scores in models.values()) + " |" for s in systems]
    head = f"| system | {' | '.join(models)} |\n|{' --- |' * (len(models) + 1)}"
    changed = ", ".join(f"`{text}`" for text in settings["set"]) or "none"
    return f"""## {name}

Title and abstract to one of ten fields: {settings["train"]:,} training papers, {settings["test"]:,} test papers,
mean of {settings["seeds"]} seed(s) (lowest to highest).
Settings that differ from `examples/arxiv-category/task.toml`: {changed}.

{head}
{chr(10).join(rows)}
"""


def spread(score: dict[str, float] | None) -> str:
    return f"{score['mean']:.1%} ({score['lowest']:.1%} to {score['highest']:.1%})" if score else ""


def chosen_by(runs: Sequence[Record]) -> str:
    rows = [
        f"| {r['name']} | {r['changes']} | {r['parameters'] / 1e6:.1f} M | {r['tokens'] / 1e6:.2f} M "
        f"| {r['bits_per_byte']:.3f} | {r['probe']:.1%} |"
        for r in runs
    ]
    return f"""## Short runs

{runs[0]["minutes"]:g} minutes each on one thread, two at a time (`ablate.py`). *Fields*: accuracy of a linear model on
the mean of its hidden states, 500 training papers, 500 others. Each run changes what the one named `base` or `recipe`
above it has. The first chose the size and the optimizer; those from `recipe` on came after a long run on a CPU.

| run | changes | parameters | tokens read | bits a byte | fields |
| --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}
"""


LIMITS = """## What it is not

A model for work. It knows the wording of abstracts and little else, and what it writes is not true.
"""


if __name__ == "__main__":
    main()
