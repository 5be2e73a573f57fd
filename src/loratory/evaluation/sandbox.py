"""Runs a program that nobody has read: in a process of its own that cannot write, connect, start others or outlive it.

What holds (Linux on x86-64; elsewhere nothing is run): Landlock lets it read Python's own files and write its temporary
folder; a seccomp filter refuses sockets, processes, threads, and whatever changes the system; limits bound processor
time, memory and file size; the clock is watched from outside. It is meant for what a model writes by accident, and is
no prison for code that attacks it on purpose: whether the tests passed is said by the same process.

This file is also what the process runs, before the program: it imports the standard library alone.
"""

import contextlib
import ctypes
import json
import os
import platform
import secrets
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

FILE_BYTES, OPEN_FILES = 1 << 20, 64
STARTING = 5.0  # seconds for Python itself, which do not count as the program's
UNCONFINED = 77  # exit status: the confinement could not be set up, and nothing was run

# ---- from outside ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    passed: bool
    reason: str
    """Empty if it passed; else the exception's type, "time", "memory", or how the process ended."""


def run_program(*sources: str, seconds: float = 5.0, memory_bytes: int = 512 << 20) -> Outcome:
    """Runs Python source to its end: the first of ``sources`` that compiles. It passes if the end is reached without an
    exception. Raises OSError where it cannot be confined: then nothing was run."""
    nonce = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="loratory-") as folder:
        order = {"sources": sources, "nonce": nonce, "seconds": seconds, "memory": memory_bytes, "folder": folder}
        command = [sys.executable, "-I", "-B", "-X", "utf8", str(Path(__file__).resolve())]
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        with subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=nowhere, cwd=folder, env={}, start_new_session=True
        ) as process:
            try:
                said, _ = process.communicate(json.dumps(order).encode(), timeout=seconds + STARTING)
            except subprocess.TimeoutExpired:
                return Outcome(False, "time")
            finally:
                process.kill()
    if process.returncode == UNCONFINED:
        raise OSError(said.decode("utf-8", "replace"))
    verdict = said.decode("utf-8", "replace").strip().rpartition("\n")[2]
    if process.returncode == 0 and verdict == f"{nonce} passed":
        return Outcome(True, "")
    if process.returncode == -24:  # SIGXCPU
        return Outcome(False, "time")
    reason = verdict.removeprefix(f"{nonce} ") if verdict.startswith(nonce) else ""
    return Outcome(False, reason or f"ended with status {process.returncode} before its tests were through")


def sandbox_problem() -> str | None:
    """Why nothing can be run safely on this machine; None where it can. Tries it."""
    try:
        outcome = run_program("assert 1 + 1 == 2")
    except OSError as error:
        return str(error)
    return None if outcome.passed else outcome.reason


# ---- from inside -----------------------------------------------------------------------------------------------------

# System calls by number on x86-64.
REFUSED = {
    "processes and threads": (56, 57, 58, 59, 322, 435),
    "sockets": (41, 53), "io_uring": (425, 426, 427),
    "signals to others and their memory": (62, 200, 234, 101, 310, 311, 424, 434, 438),
    "limits": (160, 302), "owners, rights, times": (90, 91, 92, 93, 94, 260, 268, 452, 132, 235, 261, 280),
    "attributes": (188, 189, 190, 197, 198, 199),
    "namespaces and mounts": (155, 161, 165, 166, 272, 308, 428, 429, 430, 431, 432, 433, 442),
    "the system": (135, 164, 167, 168, 169, 170, 171, 172, 173, 175, 176, 227, 246, 248, 249, 250, 298, 313, 320, 321,
                   323, 159, 305),
}  # fmt: skip
ARCHITECTURE = 0xC000003E  # x86-64, as the filter sees it
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000  # 1: EPERM
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
READ = 1 << 0 | 1 << 2 | 1 << 3  # execute, read a file, read a folder
LANDLOCK_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}  # by version
WRITE_A_FILE = 1 << 1 | 1 << 2


def confine(folder: str, seconds: float, memory_bytes: int) -> None:
    """Gives up, for good, what a program does not need. Raises OSError where that does not work."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise OSError(f"programs are only run on Linux on x86-64, this is {platform.system()} on {platform.machine()}")
    try:
        import resource
    except ImportError as error:
        raise OSError("this platform has no limits") from error
    whole = max(1, int(seconds + 0.999))
    resource.setrlimit(resource.RLIMIT_CPU, (whole, whole + 1))  # the first one ends it with a signal of its own
    limits = {resource.RLIMIT_AS: memory_bytes, resource.RLIMIT_FSIZE: FILE_BYTES,
              resource.RLIMIT_NOFILE: OPEN_FILES, resource.RLIMIT_CORE: 0}  # fmt: skip
    for name, limit in limits.items():
        resource.setrlimit(name, (limit, limit))
    libc = ctypes.CDLL(None, use_errno=True)
    checked(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    restrict_files(libc, folder)
    restrict_calls(libc)


def checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what} is not to be had here: {os.strerror(number)}")
    return result


def restrict_files(libc: ctypes.CDLL, folder: str) -> None:
    """Landlock: everything is writable in ``folder`` alone, and readable there and where Python lives."""
    version = checked(libc.syscall(LANDLOCK_CREATE, None, 0, 1), "Landlock")
    rights = LANDLOCK_RIGHTS[max(v for v in LANDLOCK_RIGHTS if v <= version)]
    handled = ctypes.create_string_buffer(struct.pack("Q", rights), 8)
    rules = checked(libc.syscall(LANDLOCK_CREATE, handled, 8, 0), "Landlock")
    python = {sys.prefix, sys.base_prefix, str(Path(os.__file__).parent), "/usr", "/lib", "/lib64", "/etc/localtime"}
    allowed = [(path, READ) for path in sorted(python)] + [(folder, rights), ("/dev/null", WRITE_A_FILE)]
    for path, access in [*allowed, ("/dev/urandom", 1 << 2)]:
        with contextlib.suppress(FileNotFoundError):
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
            kept = access & rights if Path(path).is_dir() else access & (WRITE_A_FILE | 1)
            rule = ctypes.create_string_buffer(struct.pack("=Qi", kept, opened), 12)
            checked(libc.syscall(LANDLOCK_ADD, rules, 1, rule, 0), f"Landlock for {path}")
            os.close(opened)
    checked(libc.syscall(LANDLOCK_RESTRICT, rules, 0), "Landlock")
    os.close(rules)


def restrict_calls(libc: ctypes.CDLL) -> None:
    """seccomp: the refused calls fail with EPERM; calls of other architectures end the process."""
    numbers = sorted(number for group in REFUSED.values() for number in group)
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    program = [(load, 0, 0, 4), (equal, 1, 0, ARCHITECTURE), (give, 0, 0, KILL), (load, 0, 0, 0)]
    program += [(at_least, 0, 1, 0x40000000), (give, 0, 0, KILL)]
    for number in numbers:
        program += [(equal, 0, 1, number), (give, 0, 0, REFUSE)]
    packed = b"".join(struct.pack("HBBI", *step) for step in [*program, (give, 0, 0, ALLOW)])
    steps = ctypes.create_string_buffer(packed, len(packed))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(packed) // 8, ctypes.addressof(steps)), 16)
    checked(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0), "seccomp")


def first_compiled(sources: list[str]) -> CodeType:
    """Raises SyntaxError, of the last one, where none compiles."""
    for source in sources[:-1]:
        with contextlib.suppress(SyntaxError, ValueError, MemoryError, RecursionError):
            return compile(source, "program", "exec", dont_inherit=True)
    return compile(sources[-1], "program", "exec", dont_inherit=True)


def main() -> None:
    """In the process: reads the order, confines itself, runs the program and says how it went."""
    order = json.loads(sys.stdin.buffer.read())
    said, nonce = os.dup(1), order["nonce"]
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    try:
        confine(order["folder"], order["seconds"], order["memory"])
    except OSError as error:
        os.write(said, str(error).encode())
        os._exit(UNCONFINED)
    try:
        exec(first_compiled(order["sources"]), {"__name__": "__main__"})
        verdict = "passed"
    except MemoryError:
        verdict = "memory"
    except BaseException as error:  # SystemExit too: a program that leaves early has not passed
        verdict = type(error).__name__
    os.write(said, f"\n{nonce} {verdict}".encode())
    os._exit(0)


if __name__ == "__main__":
    main()
