"""Runs commands in forked children of a process that has only imported the libraries, so that each starts at once.

The process itself computes nothing: threads would not survive a fork.
"""

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

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
    log: Path,
    prepare: Callable[[], None] = lambda: None,
    kill_after: float | None = None,
    limit: float = 120.0,
) -> Ended:
    """Runs ``loratory ARGUMENTS`` in a forked child.

    ``prepare`` is called in the child first. The child is killed after ``kill_after`` seconds, if it is given, and in
    any case after ``limit`` seconds.
    """
    return run_function(lambda: main(arguments), log, prepare, kill_after, limit)


def run_function(
    work: Callable[[], int],
    log: Path,
    prepare: Callable[[], None] = lambda: None,
    kill_after: float | None = None,
    limit: float = 120.0,
) -> Ended:
    """Like ``run_command``, for a function that returns the exit code."""
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os._exit(_in_child(work, log, prepare))
    deadline = started + (limit if kill_after is None else min(limit, kill_after))
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            _, status, usage = os.wait4(child, 0)
            break
        time.sleep(0.002)
    output = log.read_text(errors="replace") if log.exists() else ""
    seconds = time.monotonic() - started
    return Ended(os.waitstatus_to_exitcode(status), output, seconds, usage.ru_maxrss / 1024)


def _in_child(work: Callable[[], int], log: Path, prepare: Callable[[], None]) -> int:
    handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        prepare()
        code = work()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = CRASHED
    sys.stdout.flush()
    sys.stderr.flush()
    return code
