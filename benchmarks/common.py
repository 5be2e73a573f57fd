"""Shared by the benchmark scripts: description of the machine, child processes with peak memory, result files.

Standard library only. On Linux, a child's peak memory starts at that of its parent, so a script that measures children
must stay small: it imports neither PyTorch nor Loratory.
"""

import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Child:
    """A finished process."""

    code: int
    seconds: float
    """Wall time of the whole process, including imports."""
    peak_memory_bytes: int
    """Peak resident memory of the process and of the processes that it waited for."""
    output: str


def run_child(command: Sequence[str | Path]) -> Child:
    """Runs a command to its end. Standard error is inherited, standard input is empty."""
    print(f"$ {' '.join(map(str, command))}", file=sys.stderr, flush=True)
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env={**os.environ, **OFFLINE}
    )
    assert process.stdout is not None
    with process.stdout as stream:
        output = stream.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Child(process.returncode, time.perf_counter() - started, usage.ru_maxrss * 1024, output)


def run_json(command: Sequence[str | Path]) -> dict[str, Any]:
    """Runs a script and parses the JSON on its last line of output. Raises RuntimeError if the script fails."""
    child = run_child(command)
    if child.code != 0:
        raise RuntimeError(f"exit code {child.code}: {' '.join(map(str, command))}")
    return json.loads(child.output.splitlines()[-1])


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file; none if it does not exist."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def cpu_name() -> str:
    """The name of the processor, from /proc/cpuinfo."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def versions(*packages: str) -> dict[str, str]:
    """The installed versions of packages."""
    return {name: version(name) for name in packages}


def provenance(benchmark: str) -> dict[str, Any]:
    """The origin of a result: benchmark, date, command and machine."""
    return {
        "benchmark": benchmark,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": ["python", *sys.argv],
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "platform": platform.platform(),
        },
    }


def save(result: dict[str, Any], path: Path) -> None:
    """Writes the result atomically and prints it as the last line of output."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(json.dumps(result, indent=1) + "\n")
    Path(temporary).chmod(0o644)
    Path(temporary).replace(path)
    print(f"Wrote {path}", file=sys.stderr)
    print(json.dumps(result))
