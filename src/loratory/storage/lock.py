"""One writer per run: a lock that names its owner, and that is free once its owner has ended, however it ended."""

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from loratory.errors import UserError
from loratory.storage.files import json_text, read_json_object

LOCK, OWNER = ".lock", ".owner.json"


@contextmanager
def only_writer(run: Path) -> Iterator[None]:
    """Within the context, no other process writes to the run. Raises UserError if another one is writing to it.

    The operating system holds the lock, and frees it when the process ends.
    """
    with _held(run / LOCK, run / OWNER) as taken:
        if not taken:
            fix = "wait for it to end, or stop it"
            raise UserError("Another process is writing to this run", str(run), found=_owner(run / OWNER), fix=fix)
        yield


@contextmanager
def only_writer_of_file(path: Path) -> Iterator[None]:
    """Like ``only_writer``, for a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, owner = (path.with_name(f".{path.name}{suffix}") for suffix in (LOCK, OWNER))
    with _held(lock, owner) as taken:
        if not taken:
            fix = "wait for it to end, or stop it"
            raise UserError("Another process is writing to this file", str(path), found=_owner(owner), fix=fix)
        yield


@contextmanager
def _held(path: Path, owner: Path) -> Iterator[bool]:
    """Yields whether the lock was free; if so, it is held within the context."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        started = datetime.now().astimezone().isoformat(timespec="seconds")
        # Not atomic, so that a kill leaves no other file: whoever reads half of it does without the name of the owner.
        owner.unlink(missing_ok=True)  # and "x": a link that somebody put there is not followed
        with owner.open("x", encoding="utf-8") as file:
            file.write(json_text({"pid": os.getpid(), "host": socket.gethostname(), "started": started}))
        yield True
    finally:
        # Another process may already have opened the lock file; it notices that the file is gone, and tries again.
        with contextlib.suppress(OSError):  # Windows cannot remove a file that is open
            owner.unlink()
            path.unlink()
        lock.release()


def _owner(path: Path) -> str | None:
    """Who holds the lock, as far as it can be read: the owner writes this file just after it takes the lock."""
    try:
        owner = read_json_object(path)
        return f"process {owner['pid']} on {owner['host']}, since {owner['started']}"
    except (ValueError, KeyError):
        return None
