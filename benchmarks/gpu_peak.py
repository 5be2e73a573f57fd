"""Measures the bfloat16 peak of a device: the fastest of several products of two square matrices, as one JSON object.

python benchmarks/gpu_peak.py [--device cuda] [--quick]
"""

import argparse
import json
import time

import torch
from workload import wait_for

SIZE, QUICK_SIZE, CALLS, REPEATS = 8192, 256, 20, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help=f"size {QUICK_SIZE} instead of {SIZE}")
    args = parser.parse_args()
    size = QUICK_SIZE if args.quick else SIZE
    print(json.dumps({"size": size, "dtype": "bfloat16", "flops": square_flops(size, args.device)}))


def square_flops(size: int, device: str) -> float:
    """FLOP/s of the product of two random matrices; the best of several repeats after a warm-up."""
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    best = float("inf")
    for _ in range(REPEATS + 1):
        wait_for(device)
        started = time.perf_counter()
        for _ in range(CALLS):
            torch.mm(a, b)
        wait_for(device)
        best = min(best, (time.perf_counter() - started) / CALLS)
    return 2 * size**3 / best


if __name__ == "__main__":
    main()
