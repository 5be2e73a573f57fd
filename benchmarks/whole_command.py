"""Compares ``loratory train`` with a TRL script on real papers, in seconds per additional example.

    python benchmarks/whole_command.py --tokenizer FOLDER --papers FILE.jsonl --trl-python /path/to/trl/python
        [--out FILE.json]

The model has the shape of Qwen2.5-0.5B and random weights. Each command runs on a small and on a larger number of
papers. The difference of the wall times, divided by the number of added papers, excludes imports, loading and planning;
``seconds`` includes them. A larger run starts with the papers of the smaller one. TRL runs with several batch sizes, of
which the fastest counts.
"""

import argparse
import itertools
import json
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import FOLDER, RESULTS, Child, provenance, run_child, save

Paper = dict[str, str]

TASK = FOLDER.parent / "examples" / "arxiv-category" / "task.toml"
LORATORY_PAPERS, TRL_PAPERS = (32, 96), (8, 16)
TRL_BATCHES = (1, 8)
HELD_OUT = 8  # papers each for validation and test, which the command requires but does not evaluate
LEARNING_RATE = 2e-4


@dataclass(frozen=True)
class Setting:
    """What all runs have in common."""

    model: Path
    papers: list[Paper]
    prompt: dict[str, str]
    folder: Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of Qwen2.5's tokenizer")
    parser.add_argument("--papers", type=Path, required=True, help='lines with "title", "abstract" and "category"')
    parser.add_argument("--trl-python", type=Path, required=True, help="the Python of an environment with TRL")
    parser.add_argument("--out", type=Path, default=RESULTS / "whole-command.json")
    parser.add_argument("--shape", default="qwen2.5-0.5b", help=argparse.SUPPRESS)  # "tiny" to test the script
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        save(compare(args, Path(folder)), args.out)


def compare(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Makes the model, runs everything, and compares Loratory with TRL at its best batch size."""
    model = folder / "model"
    # In a separate process, because this one must stay small: see common.py.
    shape = ["--tokenizer", args.tokenizer, "--shape", args.shape]
    checked(run_child([sys.executable, FOLDER / "random_qwen.py", model, *shape]))
    papers = balanced([json.loads(line) for line in args.papers.read_text(encoding="utf-8").splitlines()])
    setting = Setting(model, papers, tomllib.loads(TASK.read_text(encoding="utf-8"))["prompt"], folder)
    loratory = added_cost(setting.papers, {n: loratory_train(setting, n) for n in LORATORY_PAPERS})
    trl = [
        {"batch_size": b, **added_cost(papers, {n: trl_train(setting, args.trl_python, n, b) for n in TRL_PAPERS})}
        for b in TRL_BATCHES
    ]
    best = min(trl, key=lambda result: result["seconds_per_character"])
    return {
        **provenance("whole-command"),
        "shape": args.shape,
        "environment": environment(folder),
        "trl_batch_size": best["batch_size"],
        "seconds_per_example": {
            "loratory": loratory["seconds_per_example"],
            "trl": best["seconds_per_example"],
        },
        "ratio": best["seconds_per_example"] / loratory["seconds_per_example"],
        "ratio_per_character": best["seconds_per_character"] / loratory["seconds_per_character"],
        "peak_memory_bytes": {"loratory": loratory["peak_memory_bytes"], "trl": best["peak_memory_bytes"]},
        "memory_ratio": loratory["peak_memory_bytes"] / best["peak_memory_bytes"],
        "loratory": loratory,
        "trl": trl,
    }


def added_cost(papers: Sequence[Paper], runs: dict[int, Child]) -> dict[str, Any]:
    """The cost of the papers that only the larger run has, also per character, because few papers differ in length."""
    few, many = sorted(runs)
    seconds = runs[many].seconds - runs[few].seconds
    characters = sum(len(p["title"]) + len(p["abstract"]) for p in papers[few:many])
    return {
        "seconds_per_example": seconds / (many - few),
        "seconds_per_character": seconds / characters,
        "added_characters": characters,
        "peak_memory_bytes": max(run.peak_memory_bytes for run in runs.values()),
        "runs": [
            {"papers": n, "seconds": run.seconds, "peak_memory_bytes": run.peak_memory_bytes} for n, run in runs.items()
        ],
    }


def environment(folder: Path) -> dict[str, Any]:
    """What Loratory recorded about its environment."""
    record = json.loads((folder / f"run-{LORATORY_PAPERS[-1]}" / "environment.json").read_text(encoding="utf-8"))
    return {key: record[key] for key in ("dtype", "threads", "batches", "versions")}


def checked(child: Child) -> Child:
    """Returns the child if it succeeded; exits otherwise."""
    if child.code != 0:
        raise SystemExit(f"A command failed with exit code {child.code}; see its output above")
    return child


# ---- the two commands ------------------------------------------------------------------------------------------------


def loratory_train(setting: Setting, count: int) -> Child:
    """Runs ``loratory train`` on the first ``count`` papers."""
    held_out = setting.papers[-2 * HELD_OUT :]
    parts = {"train": setting.papers[:count], "validation": held_out[:HELD_OUT], "test": held_out[HELD_OUT:]}
    files = {name: write_lines(setting.folder / f"{name}-{count}.jsonl", rows) for name, rows in parts.items()}
    run = setting.folder / f"run-{count}"
    sections = {
        "model": {"name": str(setting.model)},
        "data": {**{name: str(path) for name, path in files.items()}, "answer": "category"},
        "prompt": setting.prompt,
        "train": {"learning_rate": LEARNING_RATE},
        "run": {"out": str(run)},
    }
    task = setting.folder / f"task-{count}.toml"
    task.write_text(as_toml(sections), encoding="utf-8")
    command = Path(sys.executable).with_name("loratory")
    return checked(run_child([command, "train", task, "--train.epochs", "1", "--yes"]))


def trl_train(setting: Setting, python: Path, count: int, batch_size: int) -> Child:
    """Runs the TRL script on the first ``count`` papers."""
    labels = ", ".join(sorted({paper["category"] for paper in setting.papers}))
    rows = [conversation(setting.prompt, paper, labels) for paper in setting.papers[:count]]
    data = write_lines(setting.folder / f"conversations-{count}.jsonl", rows)
    out = setting.folder / f"trl-{count}-{batch_size}"
    how = ["--out", out, "--batch-size", str(batch_size), "--learning-rate", str(LEARNING_RATE)]
    return checked(run_child([python, FOLDER / "peer_trl_papers.py", setting.model, data, *how]))


def conversation(prompt: dict[str, str], paper: Paper, labels: str) -> dict[str, list[dict[str, str]]]:
    """A paper in TRL's format: the messages of the prompt, and of the completion."""
    texts = {"system": prompt["system"].format(labels=labels), "user": prompt["user"].format(**paper)}
    messages = [{"role": role, "content": text} for role, text in texts.items()]
    return {"prompt": messages, "completion": [{"role": "assistant", "content": paper["category"]}]}


# ---- data ------------------------------------------------------------------------------------------------------------


def balanced(papers: Sequence[Paper]) -> list[Paper]:
    """Interleaves the categories, so that even the smallest run has papers of all of them."""
    by_category: dict[str, list[Paper]] = {}
    for paper in papers:
        by_category.setdefault(paper["category"], []).append(paper)
    return list(itertools.chain.from_iterable(zip(*by_category.values(), strict=False)))


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def as_toml(sections: dict[str, dict[str, Any]]) -> str:
    """A task file. Strings and numbers have the same syntax in JSON and TOML."""
    return "\n".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
        for name, values in sections.items()
    )


if __name__ == "__main__":
    main()
