"""The amount of memory of the machine, and the peak memory of this process."""

import os
import sys
from pathlib import Path

import torch


def memory_bytes(device: torch.device | None = None) -> int:
    """The memory available to a model, in bytes; 0 if unknown.

    The memory of the GPU if there is one and ``device`` is None or a GPU; otherwise the memory of the machine, or the
    limit of the container if that is lower.
    """
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
    """Peak memory of this process in bytes: GPU memory if a GPU is in use, otherwise resident memory; 0 if unknown."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
