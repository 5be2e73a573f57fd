"""Runs commands in forked children of a process that has only imported the libraries, so that each starts at once.

The process itself computes nothing: threads would not survive a fork.
"""

import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"  # as the command sets it before it imports anything

import datasets
import peft
import sklearn.linear_model
import torch
import transformers

import loratory.finetune
import loratory.predict
from loratory.cli.main import main

IMPORTED = (datasets, peft, sklearn.linear_model, torch, transformers, loratory.finetune, loratory.predict)
CRASHED = 99
MOST_OUTPUT = 1_000_000  # bytes; the last ones are kept


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    """The exit code; minus the number of the signal that killed it."""
    output: str
    """Standard output and standard error."""
    seconds: float
    megabytes: float
    """The largest resident memory."""


def run_command(
    arguments: list[str],
    prepare: Callable[[], None] = lambda: None,
    kill_after: float | None = None,
    limit: float = 120.0,
    command: Callable[[list[str]], int] = main,
) -> Ended:
    """Runs ``loratory ARGUMENTS``, or another command, in a forked child.

    ``prepare`` is called in the child first. The child is killed after ``kill_after`` seconds, if it is given, and in
    any case after ``limit`` seconds.
    """
    started = time.monotonic()
    deadline = started + (limit if kill_after is None else min(limit, kill_after))
    reading, writing = os.pipe()  # not a file: its size may be limited
    child = os.fork()
    if child == 0:
        try:
            code = _in_child(command, arguments, writing, prepare)
        finally:
            os._exit(code if "code" in locals() else CRASHED)
    os.close(writing)
    output, killed = b"", False
    while True:
        if not killed and time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            killed = True
        readable, _, _ = select.select([reading], [], [], 0.005)
        if readable:
            part = os.read(reading, 1 << 16)
            output = (output + part)[-MOST_OUTPUT:]
            if not part:
                break
    os.close(reading)
    _, status, usage = os.wait4(child, 0)
    seconds = time.monotonic() - started
    return Ended(os.waitstatus_to_exitcode(status), output.decode(errors="replace"), seconds, usage.ru_maxrss / 1024)


def _in_child(
    command: Callable[[list[str]], int], arguments: list[str], output: int, prepare: Callable[[], None]
) -> int:
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        prepare()
        code = command(arguments)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = CRASHED
    sys.stdout.flush()
    sys.stderr.flush()
    return code
