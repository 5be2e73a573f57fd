"""Resolves the device, the dtypes and the number of CPU threads, and measures the speed of matrix products.

Runs use a single process. Code for ranks and collectives would belong here, so that support for several processes
changes only this file.
"""

import time
from dataclasses import dataclass

import torch

from loratory.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True)
class Machine:
    """Where a run computes. ``reason`` explains in one sentence the choice of device and dtype."""

    device: torch.device
    dtype: torch.dtype
    """The dtype of the base model's weights."""
    threads: int
    reason: str
    autocast_dtype: torch.dtype | None = None
    """The dtype of matrix products in training, if it differs from that of the weights."""

    @property
    def matmul_dtype(self) -> torch.dtype:
        """The dtype of matrix products in training."""
        return self.autocast_dtype or self.dtype

    @property
    def matmul_dtype_name(self) -> str:
        return str(self.matmul_dtype).removeprefix("torch.")

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def resolve_machine(
    device: str, dtype: str, threads: int, products: str | None = None, source: str = "as configured"
) -> Machine:
    """Resolves ``device``, ``dtype`` and ``threads`` ("auto", "auto" and 0 choose for this machine).

    Sets PyTorch's thread count. On a CPU, bfloat16 is chosen only if a timed matrix product is faster with it: without
    AMX, AVX512-BF16 or Arm BF16 it is many times slower than float32.

    ``products`` is the setting ``speed.products`` in full fine-tuning, otherwise None. If it is set, the dtype "auto"
    keeps the weights in float32, because updates are small relative to the weights, and ``products`` determines the
    dtype of matrix products in training. ``source`` says where settings other than "auto" come from.

    Raises UserError if the device does not exist, or if weights that are all trained would be in float16.
    """
    if dtype == "float16" and products:
        raise UserError(
            "Full fine-tuning cannot keep its weights in float16",
            "[model] dtype",
            "auto, float32, float64 or bfloat16",
            dtype,
            "remove the key: weights are then in float32, and products in bfloat16 where that is faster; or train LoRA",
        )
    if threads:
        torch.set_num_threads(threads)
    torch_device, device_reason = _device(device, source)
    if dtype != "auto":
        weights, reason = DTYPES[dtype], f"{dtype}, {source}"
    elif products:
        weights, reason = torch.float32, "weights in float32, because all of them are trained"
    else:
        weights, reason = _probe_dtype(torch_device)
    autocast_dtype = None
    if products and weights == torch.float32 and (products != "auto" or dtype == "auto"):
        if products == "auto":
            autocast_dtype, products_reason = _probe_dtype(torch_device)
        else:
            autocast_dtype, products_reason = DTYPES[products], f"{products}, {source}"
        reason = f"{reason}; matrix products in {products_reason}"
    if autocast_dtype == weights:
        autocast_dtype = None
    return Machine(torch_device, weights, torch.get_num_threads(), f"{device_reason}; {reason}", autocast_dtype)


def _device(name: str, source: str) -> tuple[torch.device, str]:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), f"GPU found ({torch.cuda.get_device_name()})"
        return torch.device("cpu"), "CPU, because no GPU was found"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            "No CUDA device on this machine",
            where="[model] device",
            expected="auto or cpu",
            found=name,
            fix="remove the key, or install a PyTorch built for this GPU",
        )
    if name == "mps" and not torch.backends.mps.is_available():
        fix = "remove the key"
        raise UserError("No Apple GPU on this machine", "[model] device", "auto or cpu", name, fix)
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    count = torch.cuda.device_count() if device is not None and device.type == "cuda" else 1
    if device is None or device.type not in ("cpu", "cuda", "mps") or (device.index or 0) >= count:
        expected = f"auto, cpu, cuda, cuda:N{f', where N is below {count}' if count > 1 else ''} or mps"
        raise UserError("Unknown device", "[model] device", expected, name)
    return device, f"{name}, {source}"


def _probe_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """The faster of bfloat16 and float32 on the device, and the reason."""
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported():
            return torch.bfloat16, "bfloat16, which this GPU supports"
        return torch.float32, "float32, because this GPU does not support bfloat16"
    if device.type == "mps":
        return torch.float32, "float32, which every Apple GPU computes"
    single, half = (_matmul_seconds(t) for t in (torch.float32, torch.bfloat16))
    ratio, product = half / single, "a bfloat16 matrix product"
    if ratio < 1:
        dtype, only = (torch.bfloat16, "") if ratio * 1.5 < 1 else (torch.float32, "only ")
        measured = f"{product} is {only}{1 / ratio:.1f} times as fast as a float32 one on this machine"
    else:
        dtype, measured = torch.float32, f"{product} takes {ratio:.2g} times as long as a float32 one on this machine"
    return dtype, f"{str(dtype).removeprefix('torch.')}, because {measured}"


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP per second of a square matrix product, 384 x 384 on a CPU and 4096 x 4096 on other devices."""
    size = 384 if device.type == "cpu" else 4096
    return 2 * size**3 / _matmul_seconds(dtype, size, device)


def _matmul_seconds(dtype: torch.dtype, size: int = 384, device: torch.device | None = None) -> float:
    """Seconds of a product of two size x size matrices; the best of three."""
    a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    torch.mm(a, b)  # warm-up: the first call sets up the kernel

    def time_once() -> float:
        started = time.perf_counter()
        torch.mm(a, b)[0, 0].item()  # item() waits for the GPU
        return time.perf_counter() - started

    return min(time_once() for _ in range(3))
