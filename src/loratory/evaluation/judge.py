"""The two confined processes of the sandbox: one runs a program, the other one runs its tests and judges it.

The program never shares a process with its tests. The tests see the program's functions as ``Remote`` objects, so the
program can only answer calls: it cannot reach the tests, their verdict, or the pipe that the verdict goes through.

The sandbox starts these functions outside the package, so this file and what it imports use only the standard library.
"""

import builtins
import contextlib
import json
import os
import sys
import types
from collections.abc import Iterator
from typing import Any

from loratory.evaluation.calls import OPERATIONS, Ended, Peer
from loratory.evaluation.confinement import confine

UNCONFINED, ENDED, PASSED, FAILED = "unconfined", "ended", "passed", "failed"


def run_confined(folder: str, seconds: str, memory: str) -> None:
    """The program's process: confines itself, runs the program when asked, and answers calls of its functions."""
    reading, writing = private_streams()
    namespace: dict[str, Any] = {"__name__": "__main__"}

    def run(programs: list[str], names: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
        exec(first_compiled(programs), namespace)
        found = {name: namespace[name] for name in names if name in namespace}
        modules = {name: value.__name__ for name, value in found.items() if isinstance(value, types.ModuleType)}
        return {name: value for name, value in found.items() if name not in modules}, modules

    operations = {**OPERATIONS, "run": run, "is_alive": lambda _: True}
    peer = Peer(reading, writing, operations)
    try:
        confine(folder, float(seconds), int(memory))
    except OSError as error:
        peer.send([UNCONFINED, str(error)])
        return
    peer.send(["confined", ""])
    with contextlib.suppress(Ended):
        peer.serve()


def judge(folder: str, seconds: str, memory: str, reading: str, writing: str) -> None:
    """The tests' process: has the program run, runs its tests, and writes the verdict as JSON: an outcome, a reason."""
    standard_input, output = private_streams()
    with os.fdopen(standard_input, "rb") as file:
        programs, tests = json.loads(file.read())
    peer = Peer(int(reading), int(writing), {"call": lambda function, args, kwargs: function(*args, **kwargs)})
    try:
        confine(folder, float(seconds), int(memory))
        verdict = verdict_of(peer, programs, tests)
    except OSError as error:
        verdict = UNCONFINED, str(error)
    os.write(output, json.dumps(verdict).encode())
    os._exit(0)


def verdict_of(peer: Peer, programs: list[str], tests: str) -> tuple[str, str]:
    try:
        state, problem = peer.receive()
    except Ended:
        return UNCONFINED, "the process for the program did not start"
    if state == UNCONFINED:
        return UNCONFINED, problem
    try:
        code = compile(tests, "tests", "exec", dont_inherit=True)
        values, modules = peer.ask("run", programs, sorted(set(names_in(code))))
        namespace = {"__name__": "__main__", **allowed_names(values)}
        for name, module in modules.items():
            if name.isidentifier() and module.partition(".")[0] in sys.stdlib_module_names:
                exec(f"import {module} as {name}", namespace)
        exec(code, namespace)
        return (PASSED, "") if peer.ask("is_alive", 0) is True else (ENDED, "")
    except (Ended, BrokenPipeError):
        return ENDED, ""
    except MemoryError:
        return FAILED, "memory"
    except BaseException as error:  # including SystemExit: a program that exits early has not passed its tests
        name = type(error).__name__
        return FAILED, name[:80] if name.isidentifier() else "Exception"


def private_streams() -> tuple[int, int]:
    """Copies of standard input and output. What a program reads and prints goes to the null device from now on."""
    copies = os.dup(0), os.dup(1)
    devnull = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(devnull, stream)
    return copies


def first_compiled(sources: list[str]) -> types.CodeType:
    """The code of the first source that compiles. Raises the SyntaxError of the last one if none does."""
    for source in sources[:-1]:
        with contextlib.suppress(SyntaxError, ValueError, MemoryError, RecursionError):
            return compile(source, "program", "exec", dont_inherit=True)
    return compile(sources[-1], "program", "exec", dont_inherit=True)


def names_in(code: types.CodeType) -> Iterator[str]:
    """All names that a code uses, also in its functions."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_in(constant)


def allowed_names(values: dict[str, Any]) -> dict[str, Any]:
    """What the tests take from the program. A program that defines ``abs`` does not change the ``abs`` of its tests,
    except if the tests use nothing else of the program, because then they test just this function."""
    own = {name: value for name, value in values.items() if not hasattr(builtins, name)}
    return own or values
