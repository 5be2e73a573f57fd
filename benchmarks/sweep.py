"""Tunes a model with many settings on small data sets of short texts: what the automatic settings are derived from.

    python benchmarks/sweep.py --model FOLDER --data FOLDER --out benchmarks/results/sweep.jsonl [--workers 2]

Each line of the result is one training: its settings, the validation loss after each epoch, and which validation and
test examples the kept weights answer correctly. What is in the file is not made again, so that a sweep that was
stopped goes on.
"""

import argparse
import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from common import read_lines
from data_sets import write

VALIDATION_SHARE = 0.2


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is varied."""

    learning_rate: float
    steps: int
    """At least this many optimizer steps, in whole epochs, and at least three epochs."""
    batch_size: int = 16
    rank: int = 8


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training."""

    data: str
    size: int
    """Training rows, a fifth of them for validation."""
    settings: Settings
    seed: int = 0

    @property
    def epochs(self) -> int:
        steps = math.ceil((self.size - round(VALIDATION_SHARE * self.size)) / self.settings.batch_size)
        return max(3, math.ceil(self.settings.steps / steps))


SETTINGS = (
    Settings(1.3e-3, 0),
    *(Settings(rate, steps) for steps in (120, 360) for rate in (4e-4, 1.3e-3, 4e-3)),
    Settings(1.3e-3, 360, rank=32),
    Settings(1.3e-3, 360, batch_size=4),
    Settings(4e-4, 1000),
)
SIZES = {"titles": (60, 200, 500), "sentences": (60, 200, 500), "questions": (60, 200, 500), "tickets": (60, 140)}


def cells() -> list[Cell]:
    """All trainings, the most informative settings first."""
    return [Cell(name, size, s) for s in SETTINGS for name, sizes in SIZES.items() for size in sizes]


def main() -> None:
    args = arguments()
    if args.worker is None:
        raise SystemExit(start_workers(args.workers))
    known = {key(record) for record in read_lines(args.out)}
    todo = [cell for cell in cells() if key(dataclasses.asdict(cell)) not in known]
    for cell in todo[args.worker :: args.workers]:
        try:
            record = run(cell, args)
        except Exception:  # the others are still worth having
            traceback.print_exc()
            continue
        line = json.dumps(record) + "\n"
        with args.out.open("a", encoding="utf-8") as file:  # one write, so that workers do not mix their lines
            file.write(line)
        print(f"{summary(record)}", file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with arxiv/ and banking77/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batching", default="auto")
    parser.add_argument("--dtype", default="auto")
    return parser.parse_args()


def start_workers(count: int) -> int:
    """Runs this script once for each worker; returns the highest exit code."""
    commands = [[sys.executable, *sys.argv, "--worker", str(i)] for i in range(count)]
    processes = [subprocess.Popen(command, env=os.environ) for command in commands]
    return max(process.wait() for process in processes)


def key(record: dict[str, Any]) -> str:
    return json.dumps([record["data"], record["size"], record["settings"], record["seed"]])


def run(cell: Cell, args: argparse.Namespace) -> dict[str, Any]:
    """Trains and measures one cell."""
    from loratory.config import Config
    from loratory.evaluation import evaluate, headline
    from loratory.events import ignore_event
    from loratory.metrics import task_variant
    from loratory.run import load_or_train, open_job, tuned_system
    from loratory.settings import AdapterConfig, DataConfig, ModelConfig, PromptConfig, RunConfig, TrainConfig
    from loratory.storage import read_metrics

    started = time.perf_counter()
    folder = Path(tempfile.mkdtemp(prefix="sweep-"))
    train, test = write(folder, cell.data, cell.size, cell.seed, args.data)
    s = cell.settings
    config = Config(
        model=ModelConfig(args.model, device=args.device, dtype=args.dtype),
        data=DataConfig((str(train),), (), (str(test),), "label", validation_share=VALIDATION_SHARE),
        prompt=PromptConfig(system="Sort the text into one of: {labels}.", user="{text}"),
        adapter=AdapterConfig(rank=s.rank, alpha=2 * s.rank),
        train=TrainConfig(
            epochs=cell.epochs,
            batch_size=s.batch_size,
            learning_rate=s.learning_rate,
            batching=args.batching,
            token_budget=8192 if args.device != "cpu" else 2048,
            checkpoint_every=0,
            seed=cell.seed,
        ),
        run=RunConfig(str(folder / "run"), systems=("tuned-choose",)),
    )
    with open_job(config, ignore_event, False, False, lambda job: (job, {})) as job:
        model = load_or_train(job, ignore_event)
        trained = time.perf_counter()
        record = evaluate(
            "tuned-choose", tuned_system(job, model, "tuned-choose"), job.split.validation, job.split.test,
            lambda part, done, total: None,
        )  # fmt: skip
        parts = {"validation": (job.split.validation, record.validation), "test": (job.split.test, record.test)}
        metrics = read_metrics(job.run)
        values = {name: headline(*part, task_variant(job.config))[1] for name, part in parts.items()}
        right = {
            name: "".join(str(int(p.answer == e.answer)) for e, p in zip(*part, strict=True))
            for name, part in parts.items()
        }
    shutil.rmtree(folder)
    return {
        **dataclasses.asdict(cell),
        "epochs": cell.epochs,
        "validation_losses": [m["loss"] for m in metrics if m["event"] == "validation"],
        "accuracy": values,
        "right": right,
        "seconds": {"training": trained - started, "all": time.perf_counter() - started},
        "device": str(job.machine.device),
        "dtype": job.machine.dtype_name,
    }


def summary(record: dict[str, Any]) -> str:
    accuracy, losses = record["accuracy"], record["validation_losses"]
    return (
        f"{record['data']:>10} {record['size']:>4} {record['settings']}: validation {accuracy['validation']:.3f}, test "
        f"{accuracy['test']:.3f}, loss {min(losses):.3f} in epoch {losses.index(min(losses)) + 1} of {len(losses)}, "
        f"{record['seconds']['all']:.0f} s"
    )


if __name__ == "__main__":
    main()
