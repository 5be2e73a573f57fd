"""The machine that a run uses: device, dtype, CPU threads, and memory.

In: the settings ``device``, ``dtype`` and ``threads``. Out: a ``Machine``. Read ``device.py`` first.
"""

from loratory.machine.device import Machine, matmul_flops, resolve_machine
from loratory.machine.environment import describe_machine, different_versions, git_state, versions
from loratory.machine.memory import memory_bytes, peak_memory_bytes

__all__ = [
    "Machine",
    "describe_machine",
    "different_versions",
    "git_state",
    "matmul_flops",
    "memory_bytes",
    "peak_memory_bytes",
    "resolve_machine",
    "versions",
]
