"""What reading and checking data found: rows set aside, guesses about a file, faults of the data."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

Severity = Literal["note", "warning", "error"]
MOST_PLACES = 5


@dataclass(frozen=True)
class Finding:
    """One thing that was found in the data, in how many rows, and where."""

    name: str
    """What kind of finding it is, as in "missing_answers"; ``data.waive`` accepts an error by this name."""
    severity: Severity
    """note: how the data was read. warning: the result may mislead. error: the run does not start."""
    message: str
    """One sentence for people, with the numbers."""
    count: int = 0
    """The number of rows, groups or labels concerned; 0 if it concerns a whole file."""
    places: tuple[str, ...] = ()
    """The first few places, as file:line."""


@runtime_checkable
class Placed(Protocol):
    """A row or an example."""

    @property
    def source(self) -> str: ...


def places_of(items: Iterable[Placed]) -> tuple[str, ...]:
    """Where the first few of the rows or examples are, each place once."""
    return tuple(dict.fromkeys(item.source for item in items))[:MOST_PLACES]
