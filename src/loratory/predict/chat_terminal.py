"""Where a conversation is typed and shown."""

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from loratory.machine import interrupt_requested

try:
    import readline  # gives input() line editing and a history
except ImportError:  # Windows
    readline = None

# Characters that would steer the terminal, as their pictures; one for one, so that places in a text stay right.
CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}


@dataclass(frozen=True)
class Terminal:
    """Where lines come from and words go."""

    read: Callable[[str], str]
    """The next line after showing a prompt, as ``input`` does."""
    console: Console
    notify: Callable[[str], None]
    interruption: Callable[[], AbstractContextManager[Callable[[], bool]]]
    """Open while an answer is made; what it gives says whether the person wants it to stop."""


def printable(text: str) -> str:
    """The text with characters that steer a terminal as pictures, but for tab and line end; as long as before."""
    return text.translate(CONTROL_PICTURES)


def side_by_side(texts: Mapping[str, str]) -> Table:
    """Named texts in columns of equal width."""
    table = Table(expand=True)
    for name in texts:
        table.add_column(name, ratio=1, overflow="fold")
    table.add_row(*(Text(text) for text in texts.values()))
    return table


def standard_terminal() -> Terminal:
    """Lines from standard input, with a prompt where a person types; answers to standard output, all else to error."""
    typed = sys.stdin.isatty()
    prompted = typed and sys.stdout.isatty()
    if prompted and readline:
        readline.parse_and_bind("set enable-bracketed-paste on")  # several lines pasted at once are one message

    def read(sign: str) -> str:
        try:
            return input(sign if prompted else "")
        except EOFError:
            if prompted:
                notify("")  # what the shell shows next begins on a line of its own
            raise

    def notify(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    # Where nobody types, an interruption means the whole.
    interruption = interrupt_requested if typed else lambda: nullcontext(lambda: False)
    return Terminal(read, Console(), notify, interruption)
