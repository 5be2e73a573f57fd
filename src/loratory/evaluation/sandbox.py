"""A sandbox for generated programs: two confined processes, one for the program and one for its tests.

Works on Linux on x86-64; elsewhere no program is run.

What holds: both processes are confined by the kernel (``confinement.py``) and in time and memory. The program passes
only if its tests, in the other process, reach their end. The program can only answer their calls (``calls.py``), so it
cannot reach the tests or the verdict, and an object of a class of its own equals no plain value. What does not hold: a
program can still compute the expected answers from the calls alone, and the tests have to trust the program's own
objects where they use them instead of plain values. Programs are tested only with values that can be sent: plain data,
and functions and objects by reference; a program cannot look into objects of the tests, only call their functions.

The files of the program's folder are counted every 20 ms, so a program exceeds their limit only by what it writes in
that time; each file is limited by the kernel.
"""

import json
import os
import platform
import selectors
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from loratory.evaluation.judge import ENDED, PASSED, UNCONFINED

STARTING = 5.0  # seconds for the start of Python, added to the program's time limit
TICK = 0.02  # seconds between two looks at the folder
MAX_FILES, MAX_FOLDER_BYTES, MAX_VERDICT = 64, 8 << 20, 4096
# Imports the modules of this folder without running the package's __init__.py, which would load PyTorch.
START = """
import sys, types
for name, folder in zip(("loratory", "loratory.evaluation"), sys.argv[2:4]):
    sys.modules[name] = module = types.ModuleType(name)
    module.__path__ = [folder]
from loratory.evaluation import judge
getattr(judge, sys.argv[1])(*sys.argv[4:])
"""


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    passed: bool
    reason: str
    """Empty if it passed; otherwise the exception's type, "time", "memory", "files", or how the process ended."""


def run_program(*programs: str, tests: str = "", seconds: float = 5.0, memory_bytes: int = 512 << 20) -> Outcome:
    """Runs the first of ``programs`` that compiles, and in another process its tests. The program passes if both reach
    their end without an exception.

    ``seconds`` limits its time and ``memory_bytes`` its address space, and the same limits hold for the tests. Raises
    OSError, without running anything, if the sandbox cannot be set up.
    """
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        system = f"{platform.system()} on {platform.machine()}"
        raise OSError(f"programs are run only on Linux on x86-64, and this machine runs {system}")
    with tempfile.TemporaryDirectory(prefix="loratory-") as folder:
        limits = [folder, str(seconds), str(memory_bytes)]
        asked, ask = os.pipe()
        answer, answered = os.pipe()
        try:
            program = _start(["run_confined", *limits], asked, answered)
            judge = _start(["judge", *limits, str(answer), str(ask)], subprocess.PIPE, subprocess.PIPE, (answer, ask))
        finally:
            for pipe in (asked, ask, answer, answered):
                os.close(pipe)
        with program, judge:
            try:
                return _outcome(program, judge, json.dumps([programs, tests]).encode(), Path(folder), seconds)
            finally:
                program.kill()
                judge.kill()


def _start(arguments: list[str], stdin: int, stdout: int, kept: tuple[int, ...] = ()) -> subprocess.Popen:
    """Starts a process of the sandbox, which inherits no other file descriptors and no environment."""
    here = Path(__file__).resolve().parent
    command = [sys.executable, "-I", "-B", "-X", "utf8", "-c", START, arguments[0], str(here.parent), str(here)]
    return subprocess.Popen(
        [*command, *arguments[1:]], stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL, cwd=arguments[1], env={},
        start_new_session=True, pass_fds=kept,
    )  # fmt: skip


def _outcome(
    program: subprocess.Popen, judge: subprocess.Popen, request: bytes, folder: Path, seconds: float
) -> Outcome:
    assert judge.stdin and judge.stdout
    try:
        judge.stdin.write(request)
        judge.stdin.close()
    except BrokenPipeError:
        raise OSError("the process for the tests did not start") from None
    deadline = time.monotonic() + seconds + STARTING
    with selectors.DefaultSelector() as selector:
        selector.register(judge.stdout, selectors.EVENT_READ)
        while not selector.select(TICK):
            if time.monotonic() > deadline:
                return Outcome(False, "time")
            if _is_full(folder):
                return Outcome(False, "files")
    output = os.read(judge.stdout.fileno(), MAX_VERDICT)  # written at once
    if not output:
        return Outcome(False, _how_ended(judge, "its tests ended with status {} before their verdict"))
    verdict, reason = json.loads(output)
    if verdict == UNCONFINED:
        raise OSError(reason)
    if verdict == ENDED:
        return Outcome(False, _how_ended(program, "exited with status {} before its tests finished"))
    return Outcome(verdict == PASSED, reason)


def _how_ended(process: subprocess.Popen, otherwise: str) -> str:
    """The reason for a process that ended by itself."""
    try:
        status = process.wait(1)
    except subprocess.TimeoutExpired:
        return "did not answer its tests as agreed"
    return "time" if status in (-24, -9) else otherwise.format(status)  # SIGXCPU, and SIGKILL if it ignores that


def _is_full(folder: Path) -> bool:
    """Whether the files of the folder are more or larger than allowed."""
    total = 0
    with os.scandir(folder) as entries:
        for count, entry in enumerate(entries, 1):
            try:
                total += entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:  # removed meanwhile
                continue
            if count > MAX_FILES or total > MAX_FOLDER_BYTES:
                return True
    return False


def sandbox_problem() -> str | None:
    """Why programs cannot be run safely on this machine; None if they can. Runs a trivial program to find out."""
    try:
        outcome = run_program("def two():\n    return 1 + 1", tests="assert two() == 2")
    except OSError as error:
        return str(error)
    return None if outcome.passed else outcome.reason
