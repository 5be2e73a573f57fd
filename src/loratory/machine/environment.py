"""What a later reader must know of the machine: its hardware, and the versions that decide the numbers."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from loratory.machine.device import Machine


def describe_machine(machine: Machine) -> dict:
    """What a later reader needs to know about the machine; equal values promise equal bytes."""
    return {
        "device": str(machine.device),
        "dtype": machine.dtype_name,
        "products": machine.matmul_dtype_name,
        "threads": machine.threads,
        "why": machine.reason,
        "cpu": f"{platform.processor() or platform.machine()} ({torch.backends.cpu.get_cpu_capability()})",
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }


PACKAGES = ("loratory", "torch", "transformers", "peft", "tokenizers", "datasets", "safetensors", "scikit-learn")


def versions() -> dict[str, str]:
    """The installed versions of what decides the numbers."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_state(folder: Path) -> str | None:
    """Commit of the checkout that holds ``folder``, with "+changes" if files differ from it; None outside of git."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None
