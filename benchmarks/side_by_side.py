"""Loratory and TRL on the same examples, one after the other on the same machine: examples a second and peak memory.

    python benchmarks/side_by_side.py --trl-python /path/to/trl/python [--shape llama-1b] [--data shared]
        [--adapter lora] [--repeats 3] [--trl-batches 1 4 8 16] [--out FILE.json]

First TRL's best batch of those named is found in short runs. Then Loratory and TRL at that batch take turns, so that
what else goes on in the machine meets both. Every run is a process of its own and is recorded. Ratios are Loratory's
figure over TRL's. Run it with Loratory's Python; the machine should have nothing else to do.
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
# Examples of a run, so that it takes a minute or two on two slow cores. A multiple of 16, for whole batches.
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
    asked = parser.parse_args()
    name = f"side-by-side-{asked.shape}-{asked.data}-{asked.adapter}.json"
    save(compare(asked), asked.out or RESULTS / name)


def compare(asked: argparse.Namespace) -> Result:
    """Searches, takes turns, and draws the medians."""
    search = [short_run(asked, batch_size) for batch_size in asked.trl_batches]
    best = best_batch(search)
    print(f"TRL is fastest at a batch of {best}", file=sys.stderr)
    loratory, trl = [], []
    for _ in range(asked.repeats):
        loratory.append(run_json(loratory_command(asked)))
        trl.append(run_json(trl_command(asked, best, EXAMPLES[asked.shape])))
    return {
        **provenance("side-by-side"),
        "shape": asked.shape,
        "data": asked.data,
        "adapter": asked.adapter,
        **summary(loratory, trl, search),
        "loratory": loratory,
        "trl": trl,
        "search": search,
    }


def summary(loratory: list[Result], trl: list[Result], search: list[Result]) -> Result:
    """Medians over the runs, and their ratios."""
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


def short_run(asked: argparse.Namespace, batch_size: int) -> Result:
    """One counted step at that batch, or three of one example. One that fails, for want of memory, is recorded too."""
    examples = max(3, batch_size)
    try:
        return run_json(trl_command(asked, batch_size, examples))
    except RuntimeError as error:
        return {"engine": "trl", "batch_size": batch_size, "failed": str(error)}


def best_batch(search: list[Result]) -> int:
    """The batch with the most tokens a second, padding not counted: a few examples differ too much in length."""
    done = [run for run in search if "failed" not in run]
    if not done:
        raise SystemExit("TRL failed at every batch size")
    return max(done, key=lambda run: run["tokens"] / run["seconds"])["batch_size"]


def loratory_command(asked: argparse.Namespace) -> list[str | Path]:
    return [sys.executable, FOLDER / "throughput.py", *work(asked), "--examples", str(EXAMPLES[asked.shape])]


def trl_command(asked: argparse.Namespace, batch_size: int, examples: int) -> list[str | Path]:
    size = ["--batch-size", str(batch_size), "--examples", str(examples)]
    return [asked.trl_python, FOLDER / "peer_trl.py", *work(asked), *size]


def work(asked: argparse.Namespace) -> list[str]:
    return [asked.shape, "--data", asked.data, "--adapter", asked.adapter]


if __name__ == "__main__":
    main()
