"""Events that a run reports while it works, for display in a terminal, a notebook or a web page."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Event:
    """One thing that happened in a run.

    ``values`` depends on the kind. progress: ``done`` and ``total`` and, for a system, ``part``:
    "preparation", "validation" or "test". step: the fields of a ``StepResult``. system:
    ``metric``, ``value`` and ``seconds``. report: the report. message: for a plan, the estimated seconds of each stage;
    for a check of the data, its name and count.
    """

    kind: Literal["stage", "message", "progress", "step", "system", "report"]
    text: str
    values: Mapping[str, Any] = field(default_factory=dict)


EventCallback = Callable[[Event], None]

ProgressCallback = Callable[[int, int], None]
"""Called with the number of finished examples and their total number."""


def ignore_event(_event: Event) -> None:
    """An event callback that does nothing."""


def ignore_progress(*_progress: str | int) -> None:
    """A progress callback that does nothing."""
