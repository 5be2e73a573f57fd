"""What a run reports while it works, so that a terminal, a notebook and a page can show the same story."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Event:
    """Something to show.

    ``values`` depend on the kind. progress: ``done`` and ``total``. step: the fields of a ``StepResult``. system:
    ``metric``, ``value`` and ``seconds``. report: the report. message: for a plan, the estimated seconds of each stage.
    """

    kind: Literal["stage", "message", "progress", "step", "system", "report"]
    text: str
    values: Mapping[str, Any] = field(default_factory=dict)


EventCallback = Callable[[Event], None]

ProgressCallback = Callable[[int, int], None]
"""Called with the number of examples done and their total."""


def ignore_event(_event: Event) -> None:
    """An event callback that shows nothing."""


def ignore_progress(_done: int, _total: int) -> None:
    """A progress callback that shows nothing."""
