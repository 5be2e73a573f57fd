"""Describes the environment of a run for its record: hardware, package versions and git commit."""

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from loratory.machine.device import Machine


def describe_machine(machine: Machine) -> dict:
    """The hardware and numeric settings of a run. With equal values and versions, results are equal bit for bit."""
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


PACKAGES = (
    "loratory",
    "torch",
    "transformers",
    "peft",
    "tokenizers",
    "datasets",
    "safetensors",
    "numpy",
    "scikit-learn",
)


def versions() -> dict[str, str]:
    """The installed versions of the packages that affect the results."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def different_versions(recorded: Mapping[str, str]) -> str:
    """The packages whose installed version is not the recorded one, as "torch 2.12.0, now 2.13.0"; empty if none.

    Packages without a recorded version are not compared.
    """
    now = versions()
    pairs = [(name, old, now.get(name, "missing")) for name, old in recorded.items()]
    return ", ".join(f"{name} {old}, now {new}" for name, old, new in pairs if old != new)


def git_state(folder: Path) -> str | None:
    """The commit of the git checkout that contains ``folder``, or None outside of git.

    "+changes" is appended if tracked files differ from the commit.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None
