"""What a verb of the command line is."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Verb:
    """One verb: what it does, how it is called, and the function that runs it."""

    name: str
    usage: str
    """Its positional arguments."""
    flags: type
    """The dataclass of its flags; its docstring is the verb's description."""
    examples: tuple[str, ...]
    common: tuple[str, ...] | None
    """The settings that ``--help`` lists, as in "train.epochs"; None for a verb that takes no settings of a run."""
    execute: Callable[[list[str]], int | None]
    """Runs the verb; returns the exit code, or None for success."""
