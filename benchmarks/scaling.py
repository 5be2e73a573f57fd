"""Scaling of time and memory: the same training on 16, 160 and 1,600 examples, each in a separate process.

python benchmarks/scaling.py [SHAPE] [--out FILE.json]
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from common import FOLDER, RESULTS, provenance, run_json, save
from shapes import SHAPES

BASE, FACTORS = 16, (1, 10, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES, nargs="?", default="tiny-10m")
    parser.add_argument("--base", type=int, default=BASE, help="number of examples in the smallest training")
    parser.add_argument("--out", type=Path, help="default: in benchmarks/results/")
    args = parser.parse_args()
    script = FOLDER / "throughput.py"
    runs = [run_json([sys.executable, script, args.shape, "--examples", str(args.base * f)]) for f in FACTORS]
    result = {**provenance("scaling"), "shape": args.shape, **summary(runs), "runs": runs}
    save(result, args.out or RESULTS / f"scaling-{args.shape}.json")


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds per example and peak memory at each size, and the ratios of the largest size to the smallest."""
    sizes = [
        {
            "examples": run["examples"],
            "seconds_per_example": run["seconds"] / run["examples"],
            "peak_memory_bytes": run["peak_memory_bytes"],
        }
        for run in runs
    ]
    return {
        "sizes": sizes,
        "time_ratio": sizes[-1]["seconds_per_example"] / sizes[0]["seconds_per_example"],
        "memory_ratio": sizes[-1]["peak_memory_bytes"] / sizes[0]["peak_memory_bytes"],
    }


if __name__ == "__main__":
    main()
