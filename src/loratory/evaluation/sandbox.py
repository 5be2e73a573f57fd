"""A sandbox for generated programs: a child process without network, subprocesses or writes outside its folder.

Works on Linux on x86-64; elsewhere no program is run. Landlock restricts the process to reading Python's files and
writing to its temporary folder. A seccomp filter denies sockets, processes, threads and system calls that change the
system. Resource limits bound CPU time, memory and file size, and the parent enforces a wall-clock timeout. The sandbox
protects against what a model writes by accident. It does not withstand a deliberate attack: the process that runs the
program also reports whether its tests passed.

The child process runs this file as a script, so it imports only the standard library.
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
STARTING = 5.0  # seconds for the start of Python, added to the program's time limit
UNCONFINED = 77  # exit status if the sandbox could not be set up; the program was not run

# ---- parent process --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    passed: bool
    reason: str
    """Empty if it passed; otherwise the exception's type, "time", "memory", or how the process ended."""


def run_program(*sources: str, seconds: float = 5.0, memory_bytes: int = 512 << 20) -> Outcome:
    """Runs the first of ``sources`` that compiles. The program passes if it reaches its end without an exception.

    ``seconds`` limits its time and ``memory_bytes`` its address space. Raises OSError, without running anything, if the
    sandbox cannot be set up.
    """
    nonce = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="loratory-") as folder:
        request = {"sources": sources, "nonce": nonce, "seconds": seconds, "memory": memory_bytes, "folder": folder}
        command = [sys.executable, "-I", "-B", "-X", "utf8", str(Path(__file__).resolve())]
        pipe, devnull = subprocess.PIPE, subprocess.DEVNULL
        with subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=devnull, cwd=folder, env={}, start_new_session=True
        ) as process:
            try:
                output, _ = process.communicate(json.dumps(request).encode(), timeout=seconds + STARTING)
            except subprocess.TimeoutExpired:
                return Outcome(False, "time")
            finally:
                process.kill()
    if process.returncode == UNCONFINED:
        raise OSError(output.decode("utf-8", "replace"))
    verdict = output.decode("utf-8", "replace").strip().rpartition("\n")[2]
    if process.returncode == 0 and verdict == f"{nonce} passed":
        return Outcome(True, "")
    if process.returncode == -24:  # SIGXCPU
        return Outcome(False, "time")
    reason = verdict.removeprefix(f"{nonce} ") if verdict.startswith(nonce) else ""
    return Outcome(False, reason or f"exited with status {process.returncode} before its tests finished")


def sandbox_problem() -> str | None:
    """Why programs cannot be run safely on this machine; None if they can. Runs a trivial program to find out."""
    try:
        outcome = run_program("assert 1 + 1 == 2")
    except OSError as error:
        return str(error)
    return None if outcome.passed else outcome.reason


# ---- child process ---------------------------------------------------------------------------------------------------

# Numbers of system calls on x86-64.
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
READ = 1 << 0 | 1 << 2 | 1 << 3  # execute, read file, read directory
LANDLOCK_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}  # by ABI version
WRITE_A_FILE = 1 << 1 | 1 << 2


def confine(folder: str, seconds: float, memory_bytes: int) -> None:
    """Irrevocably drops the rights that a program does not need. Raises OSError if that fails."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        system = f"{platform.system()} on {platform.machine()}"
        raise OSError(f"programs are run only on Linux on x86-64, and this machine runs {system}")
    try:
        import resource
    except ImportError as error:
        raise OSError("this platform has no resource limits") from error
    cpu_seconds = max(1, int(seconds + 0.999))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))  # the soft limit sends SIGXCPU
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
        raise OSError(number, f"{what} is not available on this machine: {os.strerror(number)}")
    return result


def restrict_files(libc: ctypes.CDLL, folder: str) -> None:
    """Landlock: allows writing only in ``folder``, and reading only there and in Python's installation."""
    version = checked(libc.syscall(LANDLOCK_CREATE, None, 0, 1), "Landlock")
    rights = LANDLOCK_RIGHTS[max(v for v in LANDLOCK_RIGHTS if v <= version)]
    handled = ctypes.create_string_buffer(struct.pack("Q", rights), 8)
    rules = checked(libc.syscall(LANDLOCK_CREATE, handled, 8, 0), "Landlock")
    python = {sys.prefix, sys.base_prefix, str(Path(os.__file__).parent), "/usr", "/lib", "/lib64", "/etc/localtime"}
    allowed = [(path, READ) for path in sorted(python)] + [(folder, rights), ("/dev/null", WRITE_A_FILE)]
    for path, access in [*allowed, ("/dev/urandom", 1 << 2)]:
        with contextlib.suppress(FileNotFoundError):
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
            granted = access & rights if Path(path).is_dir() else access & (WRITE_A_FILE | 1)
            rule = ctypes.create_string_buffer(struct.pack("=Qi", granted, opened), 12)
            checked(libc.syscall(LANDLOCK_ADD, rules, 1, rule, 0), f"Landlock for {path}")
            os.close(opened)
    checked(libc.syscall(LANDLOCK_RESTRICT, rules, 0), "Landlock")
    os.close(rules)


def restrict_calls(libc: ctypes.CDLL) -> None:
    """seccomp: refused system calls fail with EPERM; system calls of other architectures end the process."""
    numbers = sorted(number for group in REFUSED.values() for number in group)
    load, equal, at_least, ret = 0x20, 0x15, 0x35, 0x06  # opcodes of classic BPF
    program = [(load, 0, 0, 4), (equal, 1, 0, ARCHITECTURE), (ret, 0, 0, KILL), (load, 0, 0, 0)]
    program += [(at_least, 0, 1, 0x40000000), (ret, 0, 0, KILL)]
    for number in numbers:
        program += [(equal, 0, 1, number), (ret, 0, 0, REFUSE)]
    packed = b"".join(struct.pack("HBBI", *step) for step in [*program, (ret, 0, 0, ALLOW)])
    steps = ctypes.create_string_buffer(packed, len(packed))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(packed) // 8, ctypes.addressof(steps)), 16)
    checked(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0), "seccomp")


def first_compiled(sources: list[str]) -> CodeType:
    """The code of the first source that compiles. Raises the SyntaxError of the last one if none does."""
    for source in sources[:-1]:
        with contextlib.suppress(SyntaxError, ValueError, MemoryError, RecursionError):
            return compile(source, "program", "exec", dont_inherit=True)
    return compile(sources[-1], "program", "exec", dont_inherit=True)


def main() -> None:
    """Entry point of the child process: reads the request, confines itself, runs the program, reports the outcome."""
    request = json.loads(sys.stdin.buffer.read())
    output, nonce = os.dup(1), request["nonce"]
    devnull = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(devnull, stream)
    try:
        confine(request["folder"], request["seconds"], request["memory"])
    except OSError as error:
        os.write(output, str(error).encode())
        os._exit(UNCONFINED)
    try:
        exec(first_compiled(request["sources"]), {"__name__": "__main__"})
        verdict = "passed"
    except MemoryError:
        verdict = "memory"
    except BaseException as error:  # including SystemExit: a program that exits early has not passed its tests
        verdict = type(error).__name__
    os.write(output, f"\n{nonce} {verdict}".encode())
    os._exit(0)


if __name__ == "__main__":
    main()
