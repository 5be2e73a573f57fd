"""The whole command on real papers: ``loratory train`` against a TRL script, in seconds for each example more.

    python benchmarks/whole_command.py --tokenizer FOLDER --papers FILE.jsonl --trl-python /path/to/trl/python
        [--out FILE.json]

The model has Qwen2.5-0.5B's shape and random weights. Each command runs on few and on more papers; the difference of
the two wall times over the papers added is free of imports, loading and planning, which ``seconds`` still shows. The
papers of a smaller run are the first ones of a larger one. TRL runs at several batch sizes and its best counts.
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
HELD_OUT = 8  # papers of validation and test each, which the command wants but does not measure
LEARNING_RATE = 2e-4


@dataclass(frozen=True)
class Setting:
    """What all runs share."""

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
    parser.add_argument("--shape", default="qwen2.5-0.5b", help=argparse.SUPPRESS)  # "tiny" to try the script
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        save(compare(asked, Path(folder)), asked.out)


def compare(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Makes the model, runs everything, and sets Loratory against TRL's best batch."""
    model = folder / "model"
    # A process of its own, because this one must stay small: see common.py.
    shape = ["--tokenizer", asked.tokenizer, "--shape", asked.shape]
    checked(run_child([sys.executable, FOLDER / "random_qwen.py", model, *shape]))
    papers = balanced([json.loads(line) for line in asked.papers.read_text(encoding="utf-8").splitlines()])
    setting = Setting(model, papers, tomllib.loads(TASK.read_text(encoding="utf-8"))["prompt"], folder)
    loratory = added_cost(setting.papers, {n: loratory_train(setting, n) for n in LORATORY_PAPERS})
    trl = [
        {"batch_size": b, **added_cost(papers, {n: trl_train(setting, asked.trl_python, n, b) for n in TRL_PAPERS})}
        for b in TRL_BATCHES
    ]
    best = min(trl, key=lambda found: found["seconds_per_character"])
    return {
        **provenance("whole-command"),
        "shape": asked.shape,
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
    """What the papers that only the larger run has took. Few papers differ in length: so also for each character."""
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
    """What Loratory chose and recorded about the machine."""
    found = json.loads((folder / f"run-{LORATORY_PAPERS[-1]}" / "environment.json").read_text(encoding="utf-8"))
    return {key: found[key] for key in ("dtype", "threads", "batches", "versions")}


def checked(child: Child) -> Child:
    """The child, if it ended well."""
    if child.code != 0:
        raise SystemExit(f"A command failed with exit code {child.code}; what it said stands above")
    return child


# ---- the two commands ------------------------------------------------------------------------------------------------


def loratory_train(setting: Setting, count: int) -> Child:
    """``loratory train`` on the first papers."""
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
    """The same with TRL."""
    labels = ", ".join(sorted({paper["category"] for paper in setting.papers}))
    rows = [conversation(setting.prompt, paper, labels) for paper in setting.papers[:count]]
    data = write_lines(setting.folder / f"conversations-{count}.jsonl", rows)
    out = setting.folder / f"trl-{count}-{batch_size}"
    how = ["--out", out, "--batch-size", str(batch_size), "--learning-rate", str(LEARNING_RATE)]
    return checked(run_child([python, FOLDER / "peer_trl_papers.py", setting.model, data, *how]))


def conversation(prompt: dict[str, str], paper: Paper, labels: str) -> dict[str, list[dict[str, str]]]:
    """A paper as TRL takes it: the messages of the prompt, and the answer."""
    texts = {"system": prompt["system"].format(labels=labels), "user": prompt["user"].format(**paper)}
    messages = [{"role": role, "content": text} for role, text in texts.items()]
    return {"prompt": messages, "completion": [{"role": "assistant", "content": paper["category"]}]}


# ---- data ------------------------------------------------------------------------------------------------------------


def balanced(papers: Sequence[Paper]) -> list[Paper]:
    """One paper of each category after another, so that even the smallest run has them all."""
    by_category: dict[str, list[Paper]] = {}
    for paper in papers:
        by_category.setdefault(paper["category"], []).append(paper)
    return list(itertools.chain.from_iterable(zip(*by_category.values(), strict=False)))


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def as_toml(sections: dict[str, dict[str, Any]]) -> str:
    """A task file; texts and numbers are written alike in JSON and TOML."""
    return "\n".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
        for name, values in sections.items()
    )


if __name__ == "__main__":
    main()
