"""Handles Ctrl-C: the first one requests a stop, the second one forces it."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interrupt_requested() -> Iterator[Callable[[], bool]]:
    """Within the context, the first Ctrl-C only sets a flag, which the yielded function returns; the second interrupts.

    Python handles signals in the main thread only; in other threads the flag stays False.
    """
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested.is_set
        return

    def handle_first(_signal, _frame):
        requested.set()
        # Not the previous handler: in a job started in the background, that one ignores SIGINT.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = signal.signal(signal.SIGINT, handle_first)
    try:
        yield requested.is_set
    finally:
        signal.signal(signal.SIGINT, previous)
