"""Restarts the process with allocator settings that suit training."""

import contextlib
import os
import platform
import sys

ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


def keep_freed_memory() -> None:
    """Restarts the program with an allocator that keeps freed memory and uses huge pages.

    By default glibc returns large blocks to the kernel, which zeroes them again at the next step: a tenth of the time
    of a training step. It reads these settings only when a process starts. If any of them is already set, nothing is
    changed.
    """
    library, number = platform.libc_ver()
    new_enough = library == "glibc" and tuple(map(int, number.split("."))) >= (2, 35)  # slower with older versions
    from_a_file = bool(sys.executable) and sys.argv[0] != "-"  # a program on standard input has already been read
    if not new_enough or not from_a_file or any(name in os.environ for name in ALLOCATOR):
        return
    os.environ.update(ALLOCATOR)
    if sys.stdout:
        sys.stdout.flush()
    with contextlib.suppress(OSError):  # the executable is gone: carry on without the restart
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
