"""Compares Loratory and TRL on the same examples and machine: examples per second and peak memory.

    python benchmarks/side_by_side.py --trl-python /path/to/trl/python [--shape llama-1b] [--data shared]
        [--adapter lora] [--repeats 3] [--trl-batches 1 4 8 16] [--out FILE.json]

Short runs first determine the best batch size for TRL among ``--trl-batches``. Loratory and TRL with that batch size
then alternate, so that other load on the machine affects both. Every run is a separate process and is recorded. Ratios
are Loratory over TRL. Run the script with Loratory's Python on an otherwise idle machine.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from common import FOLDER, RESULTS, provenance, run_json, save
from shapes import DATA, SHAPES

Result = dict[str, Any]

SEARCHED_BATCHES = (1, 4, 8, 16)
# Examples per run, chosen to take a minute or two on two slow cores; multiples of 16, for full batches.
EXAMPLES = {"llama-1b": 16, "smollm-135m": 16, "tiny-10m": 192}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", type=Path, required=True, help="the Python of an environment with TRL")
    parser.add_argument("--shape", choices=SHAPES, default="smollm-135m")
    parser.add_argument("--data", choices=DATA, default="shared")
    parser.add_argument("--adapter", choices=("lora", "full"), default="lora")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trl-batches", type=int, nargs="+", default=SEARCHED_BATCHES)
    parser.add_argument("--out", type=Path, help="default: in benchmarks/results/")
    args = parser.parse_args()
    name = f"side-by-side-{args.shape}-{args.data}-{args.adapter}.json"
    save(compare(args), args.out or RESULTS / name)


def compare(args: argparse.Namespace) -> Result:
    """Searches for TRL's best batch size, alternates the two, and summarizes the runs."""
    search = [short_run(args, batch_size) for batch_size in args.trl_batches]
    best = best_batch(search)
    print(f"TRL is fastest with a batch size of {best}", file=sys.stderr)
    loratory, trl = [], []
    for _ in range(args.repeats):
        loratory.append(run_json(loratory_command(args)))
        trl.append(run_json(trl_command(args, best, EXAMPLES[args.shape])))
    return {
        **provenance("side-by-side"),
        "shape": args.shape,
        "data": args.data,
        "adapter": args.adapter,
        **summary(loratory, trl, search),
        "loratory": loratory,
        "trl": trl,
        "search": search,
    }


def summary(loratory: list[Result], trl: list[Result], search: list[Result]) -> Result:
    """Medians over the runs and their ratios."""
    ours, theirs = median(loratory, "examples_per_second"), median(trl, "examples_per_second")
    memory = median(loratory, "peak_memory_bytes")
    by_batch = {str(run["batch_size"]): memory / run["peak_memory_bytes"] for run in search if "failed" not in run}
    return {
        "examples_per_second": {"loratory": ours, "trl": theirs},
        "trl_batch_size": trl[0]["batch_size"],
        "ratio": ours / theirs,
        "peak_memory_bytes": {"loratory": memory, "trl": median(trl, "peak_memory_bytes")},
        "memory_ratio": memory / median(trl, "peak_memory_bytes"),
        "memory_ratio_by_trl_batch_size": by_batch,
        "roofline": median(loratory, "roofline"),
    }


def median(runs: list[Result], key: str) -> float:
    return statistics.median(run[key] for run in runs)


# ---- runs ------------------------------------------------------------------------------------------------------------


def short_run(args: argparse.Namespace, batch_size: int) -> Result:
    """One counted step, or three at a batch size of 1. A run that fails, for lack of memory, is recorded too."""
    examples = max(3, batch_size)
    try:
        return run_json(trl_command(args, batch_size, examples))
    except RuntimeError as error:
        return {"engine": "trl", "batch_size": batch_size, "failed": str(error)}


def best_batch(search: list[Result]) -> int:
    """The batch size with the most tokens per second without padding, because the lengths of few examples differ."""
    done = [run for run in search if "failed" not in run]
    if not done:
        raise SystemExit("TRL failed at every batch size")
    return max(done, key=lambda run: run["tokens"] / run["seconds"])["batch_size"]


def loratory_command(args: argparse.Namespace) -> list[str | Path]:
    return [sys.executable, FOLDER / "throughput.py", *work(args), "--examples", str(EXAMPLES[args.shape])]


def trl_command(args: argparse.Namespace, batch_size: int, examples: int) -> list[str | Path]:
    size = ["--batch-size", str(batch_size), "--examples", str(examples)]
    return [args.trl_python, FOLDER / "peer_trl.py", *work(args), *size]


def work(args: argparse.Namespace) -> list[str]:
    return [args.shape, "--data", args.data, "--adapter", args.adapter]


if __name__ == "__main__":
    main()
