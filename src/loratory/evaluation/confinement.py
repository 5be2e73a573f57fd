"""Confines a process with the means of the Linux kernel: no network, no other processes, no files but its own.

Works on Linux on x86-64. Landlock restricts the process to reading Python's files and to writing files in its folder. A
seccomp filter denies sockets, processes, threads and system calls that change the system. Resource limits bound CPU
time, memory and file size. None of this can be undone by the process.

The sandbox runs this file outside the package, so it imports only the standard library.
"""

import contextlib
import ctypes
import os
import struct
import sys
from pathlib import Path

try:
    import resource
except ImportError:  # Windows, where no program is run
    resource = None

FILE_BYTES, OPEN_FILES = 1 << 20, 64
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
OWN_FILES = WRITE_A_FILE | 1 << 3 | 1 << 5 | 1 << 8 | 1 << 14  # also list, remove, make and truncate; no folders


def confine(folder: str, seconds: float, memory_bytes: int) -> None:
    """Irrevocably drops the rights that a program does not need. Raises OSError if that fails."""
    if resource is None:
        raise OSError("this platform has no resource limits")
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
    """Landlock: allows files only in ``folder``, and reading only there and in Python's installation."""
    version = checked(libc.syscall(LANDLOCK_CREATE, None, 0, 1), "Landlock")
    rights = LANDLOCK_RIGHTS[max(v for v in LANDLOCK_RIGHTS if v <= version)]
    handled = ctypes.create_string_buffer(struct.pack("Q", rights), 8)
    rules = checked(libc.syscall(LANDLOCK_CREATE, handled, 8, 0), "Landlock")
    python = {sys.prefix, sys.base_prefix, str(Path(os.__file__).parent), "/usr", "/lib", "/lib64", "/etc/localtime"}
    allowed = [(path, READ) for path in sorted(python)] + [(folder, OWN_FILES), ("/dev/null", WRITE_A_FILE)]
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
