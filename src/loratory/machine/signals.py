"""Ctrl-C asks for a stop first and forces one second."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interrupt_requested() -> Iterator[Callable[[], bool]]:
    """While open, the first Ctrl-C only sets a flag, which the yielded function reads; the second one interrupts.

    Signals can be handled in the main thread alone; elsewhere the flag stays False.
    """
    seen = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield seen.is_set
        return

    def first(_signal, _special_tokens):
        seen.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job started in the background ignores it before

    before = signal.signal(signal.SIGINT, first)
    try:
        yield seen.is_set
    finally:
        signal.signal(signal.SIGINT, before)
