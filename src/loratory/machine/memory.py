"""How much memory the machine has, and how much this process has used."""

import os
import sys
from pathlib import Path

import torch


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
