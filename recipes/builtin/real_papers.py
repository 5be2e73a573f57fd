"""What tuning makes of a pretrained model on real papers, beside prompting, embeddings and a linear model.

    python recipes/builtin/real_papers.py MODEL ... --papers train.jsonl --validation validation.jsonl --work FOLDER
        [--train 500] [--seeds 3] [--set adapter.rank=16 train.epochs=8 ...] [--test 2000]

Each seed draws its own training papers, as many of each category; the test papers are the same for all, and none of
them is trained on. ``--test 0`` measures on the validation papers alone, which is where settings are chosen.
Every model is a ``loratory run`` of its own; the results are printed and written to ``results.json`` in ``work``.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loratory.config import SYSTEMS

Row = dict[str, str]
TASK = Path(__file__).parents[2] / "examples" / "arxiv-category" / "task.toml"
UNTRAINED = ("prompt", "prompt-choose")  # the same for any training papers, so measured with the first seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--papers", type=Path, required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--train", type=int, default=500, help="training papers")
    parser.add_argument("--test", type=int, default=2000, help="test papers; 0: measure on validation")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--systems", nargs="*", help="which systems; all by default")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of loratory run")
    asked = parser.parse_args()
    test, pool = split(read(asked.papers), asked.test)
    asked.work.mkdir(parents=True, exist_ok=True)
    write(asked.work / "test.jsonl", test or read(asked.validation))
    systems = asked.systems or SYSTEMS["classification"]
    results: dict[str, Any] = {}
    for model in asked.models:
        reports = []
        for seed in range(asked.seeds):
            write(asked.work / "train.jsonl", draw(pool, asked.train, seed))
            reports.append(run(model, seed, asked, [n for n in systems if not seed or n not in UNTRAINED]))
        results[model.name] = summary(reports)
        print(json.dumps({model.name: results[model.name]}, indent=2), flush=True)
    settings = {"train": asked.train, "test": len(test), "seeds": asked.seeds, "set": asked.set}
    (asked.work / "results.json").write_text(json.dumps({"settings": settings, "models": results}, indent=2) + "\n")


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: Sequence[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def split(rows: Sequence[Row], test: int) -> tuple[list[Row], list[Row]]:
    """As many test papers of each category, always the same, and the rest."""
    chosen = draw(rows, test, seed=-1)
    ids = {row["id"] for row in chosen}
    return chosen, [row for row in rows if row["id"] not in ids]


def draw(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """``count`` papers, as many of each category."""
    by_category = defaultdict(list)
    for row in rows:
        by_category[row["category"]].append(row)
    random_draw = random.Random(seed)
    each = count // len(by_category)
    found = [row for _, own in sorted(by_category.items()) for row in random_draw.sample(own, each)]
    random_draw.shuffle(found)
    return found


def run(model: Path, seed: int, asked: argparse.Namespace, systems: Sequence[str]) -> dict[str, Any]:
    """One ``loratory run`` that measures ``systems``; its report."""
    out = asked.work / f"{model.name}-{seed}"
    settings = {
        "model.name": model.resolve(),
        "data.train": (asked.work / "train.jsonl").resolve(),
        "data.validation": asked.validation.resolve(),
        "data.test": (asked.work / "test.jsonl").resolve(),
        "data.limit-train": None,
        "train.seed": seed,
        "run.out": out.resolve(),
        **dict(text.split("=", 1) for text in asked.set),
    }
    flags = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    flags += ["--run.systems", *systems]
    program = Path(sys.executable).parent / "loratory"
    subprocess.run([program, "run", TASK, "--overwrite", *flags], check=True)
    return json.loads((out / "report.json").read_text())


def summary(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread of each system over the seeds."""
    values = defaultdict(list)
    for report in reports:
        for system in report["systems"]:
            values[system["name"]].append(system["value"])
    return {
        name: {"mean": statistics.mean(own), "lowest": min(own), "highest": max(own)} for name, own in values.items()
    }


if __name__ == "__main__":
    main()
