"""Checks that Loratory works on a GPU, and measures its speed there, in about five minutes.

    python benchmarks/gpu_check.py [--out benchmarks/results/gpu-check.json] [--only resume demo ...] [--device cuda]

Every check runs in its own process and within a time limit. Its results are written as soon as they are known, so an
interrupted run keeps them. ``--device cpu --quick`` runs the same code on tiny models, as a rehearsal. Exit codes: 0 if
every check passed, 1 if not, 2 without a GPU.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import FOLDER, OFFLINE, RESULTS, provenance, save

FAMILIES = ("llama", "qwen3", "gemma3", "modernbert", "bert")
SPEED_DATA = ("shared", "unshared")
CPU_PATIENCE = 6  # a rehearsal may take this many times as long


@dataclass(frozen=True)
class Check:
    """A script of this folder (or a module, after "-m") whose output contains JSON objects, one to a line."""

    arguments: tuple[str, ...]
    limit: float
    """Seconds on a GPU after which it is stopped."""


def main() -> None:
    args = arguments()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("A GPU that PyTorch can use is needed (--device cpu --quick rehearses without one).", file=sys.stderr)
        sys.exit(2)
    result = {**provenance("gpu-check"), **device_facts(args.device), "quick": args.quick, "checks": []}
    with tempfile.TemporaryDirectory() as folder:
        checks = all_checks(args.device, args.quick, Path(folder))
        for name in args.only or checks:
            started = time.perf_counter()
            for case in outcomes(checks[name], checks[name].limit * (CPU_PATIENCE if args.device == "cpu" else 1)):
                record = {"check": name, "at_seconds": time.perf_counter() - started, **case}
                result["checks"].append(record)
                save(result, args.out)
                print(summary(record), file=sys.stderr, flush=True)
    sys.exit(any(record.get("passed") is False for record in result["checks"]))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu-check.json")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny models")
    parser.add_argument("--only", nargs="+", choices=all_checks("cuda", False, Path()), help="checks to run, in order")
    return parser.parse_args()


def all_checks(device: str, quick: bool, folder: Path) -> dict[str, Check]:
    """The checks by name, in the order in which they run. ``folder`` is for their files."""
    shared = ("--device", device, *(["--quick"] if quick else []))
    checks = {name: Check(("gpu_exactness.py", name, *shared), 100) for name in (*FAMILIES, "resume")}
    checks["demo"] = Check(("gpu_demo.py", str(folder / "demo"), *shared), 100)
    checks["peak"] = Check(("gpu_peak.py", *shared), 40)
    model, examples, size = ("tiny-10m", "8", "4") if quick else ("llama-1b", "256", "32")
    for data in SPEED_DATA:
        common = (model, "--data", data, "--device", device, "--examples", examples)
        checks[f"loratory-{data}"] = Check(("throughput.py", *common, "--batch-size", size), 90)
        # A row of 2,048 tokens holds five examples, and a step of TRL as many as one of Loratory.
        rows = ("--batch-size", str(max(1, int(size) // 5)), "--packing")
        checks[f"trl-{data}"] = Check(("peer_trl.py", *common, *rows), 90)
    return checks


def device_facts(device: str) -> dict[str, Any]:
    versions = {"python": sys.version.split()[0], "torch": torch.__version__}
    return {"gpu": torch.cuda.get_device_name() if device == "cuda" else None, "versions": versions}


def outcomes(check: Check, limit: float) -> Iterator[dict[str, Any]]:
    """Yields the JSON objects of the check's output as they come, and a failure if it does not end well."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, FOLDER / check.arguments[0], *check.arguments[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **OFFLINE},
        )
        stopped = threading.Event()

        def stop() -> None:
            stopped.set()
            process.kill()

        timer = threading.Timer(limit, stop)
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith('{"'):  # TRL also prints dictionaries
                yield json.loads(line)
        code = process.wait()
        timer.cancel()
        if code != 0:
            errors.seek(0)
            reason = f"stopped after {limit:g} seconds" if stopped.is_set() else f"exit code {code}"
            yield {"passed": False, "error": reason, "output": last_lines(errors.read().splitlines())}


def last_lines(lines: Sequence[str]) -> list[str]:
    return [line[:300] for line in lines[-12:]]


def summary(record: dict[str, Any]) -> str:
    """One line for the terminal."""
    state = {True: "passed", False: "FAILED", None: "measured"}[record.get("passed")]
    facts = {
        k: v for k, v in record.items() if isinstance(v, (str, int, float)) and k not in ("check", "passed", "cpu")
    }
    shown = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items())
    return f"{record['check']}: {state} ({shown})"[:500]


if __name__ == "__main__":
    main()
