"""Runs the built-in task on one device and prints its wall time and its main figures as one JSON object.

python benchmarks/gpu_demo.py FOLDER [--device cuda] [--quick]
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

QUICK = ["--train.epochs", "1", "--run.systems", "linear", "tuned"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="one epoch, and two systems")
    args = parser.parse_args()
    options = ["--run.out", args.folder, "--model.device", args.device, *(QUICK if args.quick else [])]
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "loratory.cli", "run", *options], stdout=sys.stderr, check=True)
    wall = time.perf_counter() - started
    report = json.loads((args.folder / "report.json").read_text())
    kept = ("verdict", "seconds", "peak_memory_bytes", "train_tokens_per_second")
    systems = {system["name"]: {key: system[key] for key in ("value", "seconds")} for system in report["systems"]}
    print(json.dumps({"passed": True, "wall_seconds": wall, **{key: report[key] for key in kept}, "systems": systems}))


if __name__ == "__main__":
    main()
