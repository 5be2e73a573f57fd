"""Compares scoring ten labels with Loratory and generating an answer with Transformers, on the same model and papers.

    python benchmarks/scoring.py SHAPE [--papers 200] [--labels 10] [--repeats 3] [--out FILE.json]

scoring_engines.py does the work. Time is measured in one process on one model, with the two engines alternating; peak
memory in a separate process per engine. Ratios are Loratory over Transformers.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from common import FOLDER, RESULTS, provenance, run_json, save
from shapes import SHAPES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--papers", type=int, default=200)
    parser.add_argument("--labels", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="default: in benchmarks/results/")
    args = parser.parse_args()
    save(compare(args), args.out or RESULTS / f"scoring-{args.shape}.json")


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Times and peak memory of both engines."""
    work = [args.shape, "--papers", str(args.papers), "--labels", str(args.labels)]

    def run(*task: str) -> dict[str, Any]:
        return run_json([sys.executable, FOLDER / "scoring_engines.py", *task, *work])

    times = run("times", "--repeats", str(args.repeats))
    memory = {
        "loratory": run("loratory")["peak_memory_bytes"],
        "transformers": run("transformers", "--batch-size", str(times["batch_size"]))["peak_memory_bytes"],
    }
    rates = {engine: args.papers / statistics.median(times["seconds"][engine]) for engine in memory}
    return {
        **provenance("scoring"),
        "shape": args.shape,
        "papers": args.papers,
        "labels": args.labels,
        "papers_per_second": rates,
        "ratio": rates["loratory"] / rates["transformers"],
        "peak_memory_bytes": memory,
        "memory_ratio": memory["loratory"] / memory["transformers"],
        **times,
    }


if __name__ == "__main__":
    main()
