"""Questions to the person at the terminal, above all before a model is downloaded."""

import sys

from loratory.errors import Interrupted
from loratory.printable import printable
from loratory.settings import ModelConfig


def agree_to_download(model: ModelConfig, yes: bool) -> None:
    """Asks before a model that the person has named is downloaded. Without a terminal, nothing is asked.

    Raises Interrupted if the answer is no.
    """
    if yes or not can_ask():
        return
    from loratory.models import bytes_to_download

    if (size := bytes_to_download(model)) and not ask(
        f"{model.name} is not on this machine: {size / 1e9:.2f} GB. Download it?"
    ):
        raise Interrupted("Nothing was downloaded or started")


def can_ask() -> bool:
    """Whether somebody sits at a terminal."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def ask(question: str) -> bool:
    """Whether the person says yes, or just presses Enter."""
    print(printable(f"{question} [Y/n] "), end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("", "y", "yes")
