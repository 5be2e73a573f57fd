"""Runs chat templates in a process of their own, within limits of time, memory and output.

A chat template is a program that comes with a model. Jinja's sandbox keeps it from reaching Python's objects, but not
from looping or from filling the memory (docs/decisions/0022-templates-run-in-a-process-of-their-own.md).
"""

import atexit
import functools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loratory.errors import UserError

SECONDS = 8.0  # for one text; a real template takes less than a millisecond
STARTING = 60.0  # for the start of the process
MAX_SOURCE = 1 << 20  # characters of a template
MAX_RESULT = 256 << 20  # bytes of a result, which is JSON


class TemplateFailure(Exception):
    """A template raised an exception."""


class TemplateRunner:
    """The process and the connection to it. Starts with the first request, and again after a limit was broken."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None
        self.owner = 0
        self.is_ready = False
        self.templates: dict[str, int] = {}
        self.deadline: float | None = None
        self.lock = threading.Lock()
        atexit.register(self.stop)

    def render(
        self, name: str, template: str, messages: list, tools: list | None, prompt: bool, arguments: Mapping[str, Any]
    ) -> str:
        """The text of ``messages``. ``name`` is the model's, for errors.

        Raises TemplateFailure if the template raises an exception, and UserError if it breaks a limit.
        """
        with self.lock:
            if not self._is_running() or template not in self.templates:
                self._ask(name, {"add": template})
                self.templates[template] = len(self.templates)
            request = {"template": self.templates[template], "messages": messages, "tools": tools, "prompt": prompt}
            return self._ask(name, {**request, "arguments": dict(arguments)})["text"]

    def describe(self, name: str, template: str, day: str) -> dict[str, Any]:
        """The template with the day (YYYY-MM-DD) in place of its calls of ``strftime_now`` ("dated"), whether some are
        left ("computes_date"), and the names of its variables ("variables"). Raises as ``render`` does."""
        if len(template) > MAX_SOURCE:
            raise _broken(name, f"it has more than {MAX_SOURCE} characters")
        with self.lock:
            return self._ask(name, {"describe": template, "day": day})

    def begin(self) -> None:
        """Starts the process without waiting for it, so that it is ready when the first text is to be rendered."""
        with self.lock:
            if not self._is_running():
                self._start()

    def stop(self) -> None:
        """Ends the process."""
        process, self.process, self.templates = self.process, None, {}
        if process is not None and self.owner == os.getpid():
            process.kill()
            process.communicate()

    def _is_running(self) -> bool:
        """Whether there is a process that this process, and not one that it was forked from, has started."""
        return self.process is not None and self.owner == os.getpid() and self.process.poll() is None

    def _ask(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        if not self._is_running():
            self._start()
        if not self.is_ready:
            self._wait_until_ready()
        process = self.process
        assert process and process.stdin and process.stdout
        try:
            self.deadline = time.monotonic() + SECONDS
            process.stdin.write(json.dumps(request, default=_placeholder).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline(MAX_RESULT)
            was_late = self.deadline is None
            self.deadline = None
        except BrokenPipeError:
            line, was_late = b"", self.deadline is None
        except BaseException:  # an interrupt: the result that is still to come belongs to no request
            self.stop()
            raise
        if not line.endswith(b"\n"):
            self.stop()
            raise _broken(name, f"one text takes more than {SECONDS:.0f} seconds" if was_late else "its process ended")
        result = json.loads(line)
        if "error" not in result:
            return result
        if result.get("is_limit"):
            self.stop()
            raise _broken(name, result["error"])
        raise TemplateFailure(result["error"])

    def _start(self) -> None:
        self.stop()
        command = [sys.executable, "-P", str(Path(__file__).with_name("template_process.py"))]
        pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "USE_TORCH": "0", "TRANSFORMERS_VERBOSITY": "error"}
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=quiet, env=environment)
        self.owner, self.is_ready = os.getpid(), False
        threading.Thread(target=self._watch, args=(self.process,), daemon=True).start()

    def _wait_until_ready(self) -> None:
        assert self.process and self.process.stdin and self.process.stdout
        self.deadline = time.monotonic() + STARTING  # not the template's fault, so it has a longer limit of its own
        try:
            self.process.stdin.write(b'{"add": ""}\n')
            self.process.stdin.flush()
            started = self.process.stdout.readline(MAX_RESULT)
        except BaseException:
            self.stop()
            raise
        self.deadline = None
        if not started:
            self.stop()
            raise OSError("the process for chat templates did not start")
        self.is_ready, self.templates = True, {"": 0}

    def _watch(self, process: subprocess.Popen) -> None:
        """Kills the process when a request is late. Pipes cannot be read with a timeout on every system."""
        while process.poll() is None and self.process is process:
            deadline = self.deadline
            if deadline is not None and time.monotonic() > deadline:
                self.deadline = None
                process.kill()
            time.sleep(0.25)


def _placeholder(value: object) -> str:
    """What Transformers shows a template instead of a value that is not plain data, such as a date from a task file."""
    return f"<{type(value).__name__}>"


def _broken(name: str, limit: str) -> UserError:
    return UserError("The chat template breaks a limit", name, found=limit, fix="choose another model")


@functools.cache
def template_runner() -> TemplateRunner:
    """The one process for templates; all renderers share it."""
    return TemplateRunner()


def start_template_process() -> None:
    """Starts the process for templates ahead of time: it needs a second, in which the model can be loaded."""
    template_runner().begin()
