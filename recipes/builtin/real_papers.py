"""Tunes pretrained models on real papers and compares them with prompting, embeddings and a linear model.

    python recipes/builtin/real_papers.py MODEL ... --papers train.jsonl --validation validation.jsonl --work FOLDER
        [--train 500] [--seeds 3] [--set adapter.rank=16 train.epochs=8 ...] [--test 2000]

Each seed draws its own training papers, the same number per category. The test papers are the same for all seeds and
are never trained on. ``--test 0`` evaluates on the validation papers only, for choosing settings. Every model and seed
is one ``loratory run``; results are printed and written to ``results.json`` in ``work``.
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

from loratory.settings import SYSTEMS

Row = dict[str, str]
TASK = Path(__file__).parents[2] / "examples" / "arxiv-category" / "task.toml"
UNTRAINED = ("prompt", "prompt-choose")  # independent of the training papers, so evaluated for the first seed only


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
    args = parser.parse_args()
    test, pool = split(read(args.papers), args.test)
    args.work.mkdir(parents=True, exist_ok=True)
    write(args.work / "test.jsonl", test or read(args.validation))
    systems = args.systems or SYSTEMS["classification"]
    results: dict[str, Any] = {}
    for model in args.models:
        reports = []
        for seed in range(args.seeds):
            write(args.work / "train.jsonl", draw(pool, args.train, seed))
            reports.append(run(model, seed, args, [n for n in systems if not seed or n not in UNTRAINED]))
        results[model.name] = summary(reports)
        print(json.dumps({model.name: results[model.name]}, indent=2), flush=True)
    settings = {"train": args.train, "test": len(test), "seeds": args.seeds, "set": args.set}
    (args.work / "results.json").write_text(json.dumps({"settings": settings, "models": results}, indent=2) + "\n")


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: Sequence[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def split(rows: Sequence[Row], test: int) -> tuple[list[Row], list[Row]]:
    """A fixed draw of ``test`` papers, the same number per category, and the remaining papers."""
    chosen = draw(rows, test, seed=-1)
    ids = {row["id"] for row in chosen}
    return chosen, [row for row in rows if row["id"] not in ids]


def draw(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """Draws ``count`` papers, the same number per category."""
    by_category = defaultdict(list)
    for row in rows:
        by_category[row["category"]].append(row)
    random_draw = random.Random(seed)
    per_category = count // len(by_category)
    drawn = [row for _, papers in sorted(by_category.items()) for row in random_draw.sample(papers, per_category)]
    random_draw.shuffle(drawn)
    return drawn


def run(model: Path, seed: int, args: argparse.Namespace, systems: Sequence[str]) -> dict[str, Any]:
    """Executes one ``loratory run`` with ``systems`` and returns its report."""
    out = args.work / f"{model.name}-{seed}"
    settings = {
        "model.name": model.resolve(),
        "data.train": (args.work / "train.jsonl").resolve(),
        "data.validation": args.validation.resolve(),
        "data.test": (args.work / "test.jsonl").resolve(),
        "data.limit-train": None,
        "train.seed": seed,
        "run.out": out.resolve(),
        **dict(text.split("=", 1) for text in args.set),
    }
    flags = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    flags += ["--run.systems", *systems]
    program = Path(sys.executable).parent / "loratory"
    subprocess.run([program, "run", TASK, "--overwrite", *flags], check=True)
    return json.loads((out / "report.json").read_text())


def summary(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean, minimum and maximum of each system over the seeds."""
    values = defaultdict(list)
    for report in reports:
        for system in report["systems"]:
            values[system["name"]].append(system["value"])
    return {
        name: {"mean": statistics.mean(scores), "lowest": min(scores), "highest": max(scores)}
        for name, scores in values.items()
    }


if __name__ == "__main__":
    main()
