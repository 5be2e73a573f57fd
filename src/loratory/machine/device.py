"""The machine: device, number format, threads, memory, and the signal that interrupts. The one place that asks.

One process for now; whoever needs a rank or a collective asks here, so that several processes change this file alone.
"""

import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from loratory.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True)
class World:
    """Where the arithmetic happens. ``why`` says in one sentence why this device and this number format."""

    device: torch.device
    dtype: torch.dtype
    """Of the base model's weights."""
    threads: int
    why: str
    low: torch.dtype | None = None
    """The number format of matrix products in training, where it is not that of the weights."""

    @property
    def products(self) -> torch.dtype:
        return self.low or self.dtype

    @property
    def products_name(self) -> str:
        return str(self.products).removeprefix("torch.")

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def resolve_world(device: str, dtype: str, threads: int, products: str | None = None) -> World:
    """Turns the settings ``auto``/``auto``/0 into what this machine does best, and sets PyTorch's thread count.

    bfloat16 on a CPU is chosen only where a timed matrix product shows that it pays: without AMX, AVX512-BF16 or
    Arm's BF16 it is many times slower than float32. ``products``: all weights train, so ``auto`` keeps them in
    float32, for updates that are small against them, and products in training are computed in this format.

    Raises UserError for a device that is not there.
    """
    if threads:
        torch.set_num_threads(threads)
    chosen, why = _device(device)
    if dtype != "auto":
        weights, reason = DTYPES[dtype], f"{dtype} as the settings say"
    elif products:
        weights, reason = torch.float32, "weights in float32, because all of them train"
    else:
        weights, reason = _probe_dtype(chosen)
    low = None
    if products and weights == torch.float32 and (products != "auto" or dtype == "auto"):
        low, because = (
            _probe_dtype(chosen) if products == "auto" else (DTYPES[products], f"{products}, as the settings say")
        )
        reason = f"{reason}; products in {because}"
    return World(chosen, weights, torch.get_num_threads(), f"{why}; {reason}", None if low == weights else low)


def _device(name: str) -> tuple[torch.device, str]:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), f"GPU found ({torch.cuda.get_device_name()})"
        return torch.device("cpu"), "no GPU found, so the CPU"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            "No CUDA device on this machine",
            where="[model] device",
            expected="auto or cpu",
            found=name,
            fix="remove the key, or install a PyTorch built for this GPU",
        )
    try:
        return torch.device(name), f"{name} as the settings say"
    except RuntimeError as error:
        raise UserError("Unknown device", "[model] device", "auto, cpu, cuda or cuda:N", name) from error


def _probe_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported():
            return torch.bfloat16, "bfloat16, which this GPU supports"
        return torch.float32, "float32, because this GPU has no bfloat16"
    single, half = (_matmul_seconds(t) for t in (torch.float32, torch.bfloat16))
    measured = f"a bfloat16 matrix product takes {half / single:.2g} times as long as a float32 one here"
    if half * 1.5 < single:
        return torch.bfloat16, f"bfloat16, because {measured}"
    return torch.float32, f"float32, because {measured}"


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP a second in a matrix product of a few hundred rows."""
    size = 384 if device.type == "cpu" else 4096
    return 2 * size**3 / _matmul_seconds(dtype, size, device)


def _matmul_seconds(dtype: torch.dtype, size: int = 384, device: torch.device | None = None) -> float:
    """The fastest of three products of size x size matrices, in seconds."""
    a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    torch.mm(a, b)  # the first call sets up the kernel

    def once() -> float:
        started = time.perf_counter()
        torch.mm(a, b)[0, 0].item()  # waits for a GPU
        return time.perf_counter() - started

    return min(once() for _ in range(3))


def memory_bytes(device: torch.device | None = None) -> int:
    """Memory that a model may use: the GPU's where there is one (and ``device`` is no other), else the machine's or the
    container's. 0: unknown."""
    if torch.cuda.is_available() and (device is None or device.type == "cuda"):
        return torch.cuda.get_device_properties(0).total_memory
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 0
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(machine, int(text)) if text.isdigit() else machine


def peak_memory_bytes() -> int:
    """The most memory that this process has held so far: resident memory, or the GPU's where one is used."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def describe(world: World) -> dict:
    """What a later reader needs to know about the machine; equal values promise equal bytes."""
    return {
        "device": str(world.device),
        "dtype": world.dtype_name,
        "products": world.products_name,
        "threads": world.threads,
        "why": world.why,
        "cpu": f"{platform.processor() or platform.machine()} ({torch.backends.cpu.get_cpu_capability()})",
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }


@contextmanager
def interrupt_requested() -> Iterator[Callable[[], bool]]:
    """While open, the first Ctrl-C only sets a flag, which the yielded function reads; the second one interrupts.

    Signals can be handled in the main thread alone; elsewhere the flag stays False.
    """
    seen = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield seen.is_set
        return

    def first(_signal, _frame):
        seen.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job started in the background ignores it before

    before = signal.signal(signal.SIGINT, first)
    try:
        yield seen.is_set
    finally:
        signal.signal(signal.SIGINT, before)
