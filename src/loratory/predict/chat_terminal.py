"""Terminal input and output of a chat."""

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from loratory.printable import printable
from loratory.signals import interrupt_requested

try:
    import readline  # adds line editing and a history to input()
except ImportError:  # Windows
    readline = None


@dataclass(frozen=True)
class Terminal:
    """Input and output of a conversation."""

    read: Callable[[str], str]
    """Shows a prompt and returns the next line, like ``input``."""
    console: Console
    notify: Callable[[str], None]
    interruption: Callable[[], AbstractContextManager[Callable[[], bool]]]
    """Context manager for the time of an answer; yields a function that returns whether the user wants it to stop."""


def side_by_side(texts: Mapping[str, str]) -> Table:
    """Named texts in columns of equal width."""
    table = Table(expand=True)
    for name in texts:
        table.add_column(name, ratio=1, overflow="fold")
    table.add_row(*(Text(printable(text)) for text in texts.values()))
    return table


def standard_terminal() -> Terminal:
    """Reads standard input, prompting if interactive; writes answers to standard output, messages to standard error."""
    interactive = sys.stdin.isatty()
    prompted = interactive and sys.stdout.isatty()
    if prompted and readline:
        readline.parse_and_bind("set enable-bracketed-paste on")  # pasted lines form one message

    def read(prompt: str) -> str:
        try:
            return input(prompt if prompted else "")
        except EOFError:
            if prompted:
                notify("")  # the shell prompt starts on a new line
            raise

    def notify(text: str) -> None:
        print(printable(text), file=sys.stderr, flush=True)

    # If the input is piped, an interrupt ends the program instead of the current answer.
    interruption = interrupt_requested if interactive else lambda: nullcontext(lambda: False)
    return Terminal(read, Console(), notify, interruption)
