"""The machine: device, number format, threads, memory, and the signal that interrupts. The one place that asks.

One process for now; whoever needs a rank or a collective asks here, so that several processes change this file alone.
"""

import time
from dataclasses import dataclass

import torch

from loratory.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True)
class Machine:
    """Where the arithmetic happens. ``reason`` says in one sentence why this device and this number format."""

    device: torch.device
    dtype: torch.dtype
    """Of the base model's weights."""
    threads: int
    reason: str
    autocast_dtype: torch.dtype | None = None
    """The number format of matrix products in training, where it is not that of the weights."""

    @property
    def matmul_dtype(self) -> torch.dtype:
        return self.autocast_dtype or self.dtype

    @property
    def matmul_dtype_name(self) -> str:
        return str(self.matmul_dtype).removeprefix("torch.")

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def resolve_machine(device: str, dtype: str, threads: int, products: str | None = None) -> Machine:
    """Resolves the settings ``auto``/``auto``/0 to what suits this machine best, and sets PyTorch's thread count.

    On a CPU, bfloat16 is chosen only if a timed matrix product shows that it pays: without AMX, AVX512-BF16 or Arm
    BF16 it is many times slower than float32.

    ``products`` is the setting ``speed.products`` if all weights train, else None. Then ``auto`` keeps the weights in
    float32, because updates are small compared with them, and computes matrix products in training in the given format.

    Raises UserError if the device does not exist.
    """
    if threads:
        torch.set_num_threads(threads)
    torch_device, device_reason = _device(device)
    if dtype != "auto":
        weights, reason = DTYPES[dtype], f"{dtype}, as configured"
    elif products:
        weights, reason = torch.float32, "weights in float32, because all of them train"
    else:
        weights, reason = _probe_dtype(torch_device)
    autocast_dtype = None
    if products and weights == torch.float32 and (products != "auto" or dtype == "auto"):
        if products == "auto":
            autocast_dtype, products_reason = _probe_dtype(torch_device)
        else:
            autocast_dtype, products_reason = DTYPES[products], f"{products}, as configured"
        reason = f"{reason}; matrix products in {products_reason}"
    if autocast_dtype == weights:
        autocast_dtype = None
    return Machine(torch_device, weights, torch.get_num_threads(), f"{device_reason}; {reason}", autocast_dtype)


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
