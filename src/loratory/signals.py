"""Handles Ctrl-C, SIGTERM and SIGHUP: the first one requests a stop, the second one forces it."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from loratory.errors import Terminated

# What a shell, a job scheduler or a closed terminal sends to end a process; Windows has no SIGHUP.
ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def interrupt_requested() -> Iterator[Callable[[], bool]]:
    """Within the context, the first Ctrl-C only sets a flag, which the yielded function returns; the second interrupts.

    Python handles signals in the main thread only; in other threads the flag stays False.
    """
    with _first_signal_noted((signal.SIGINT,)) as received:
        yield lambda: bool(received)


@contextmanager
def stop_requested() -> Iterator[Callable[[], signal.Signals | None]]:
    """Like ``interrupt_requested``, for SIGTERM and SIGHUP too. The yielded function returns the signal, or None.

    A signal that is ignored, as SIGHUP is under nohup, stays ignored.
    """
    with _first_signal_noted((signal.SIGINT, *ENDING)) as received:
        yield lambda: received[0] if received else None


@contextmanager
def _first_signal_noted(numbers: tuple[int, ...]) -> Iterator[list[signal.Signals]]:
    received: list[signal.Signals] = []

    def note(number: int, _frame: Any) -> None:
        received.append(signal.Signals(number))
        for other in taken:
            # Not the previous handler: in a job started in the background, that one ignores SIGINT.
            signal.signal(other, signal.default_int_handler if other == signal.SIGINT else _terminate)

    with _handled(numbers, note) as taken:
        yield received


@contextmanager
def termination_raised() -> Iterator[None]:
    """Within the context, SIGTERM and SIGHUP raise ``Terminated`` in the main thread, so that files are cleaned up."""
    with _handled(ENDING, _terminate):
        yield


def _terminate(_number: int, _frame: Any) -> None:
    raise Terminated


@contextmanager
def _handled(numbers: tuple[int, ...], handler: Callable[[int, Any], None]) -> Iterator[tuple[int, ...]]:
    """Handles the signals within the context; yields those that are handled."""
    if threading.current_thread() is not threading.main_thread():
        yield ()
        return
    previous = {number: signal.getsignal(number) for number in numbers}
    taken = tuple(n for n in numbers if n == signal.SIGINT or previous[n] is not signal.SIG_IGN)
    for number in taken:
        signal.signal(number, handler)
    try:
        yield taken
    finally:
        for number in taken:
            signal.signal(number, previous[number])
