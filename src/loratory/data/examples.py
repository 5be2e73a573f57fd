"""Rows -> Example: prompts, answers, candidates. What can be wrong with a row of a task is said here."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

TOOLS = "tools"


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; before all turns may stand the tools that it has, as JSON."""

    role: str
    content: str


@dataclass(frozen=True)
class Tests:
    """Python source around an answer."""

    prefix: str
    """What the answer may continue."""
    name: str
    """The function that it has to define; empty if unknown."""
    after: str
    """Statements that raise where the answer is wrong."""


@dataclass(frozen=True)
class Example:
    """What the model is shown and what it should answer."""

    messages: tuple[Message, ...]
    """The prompt's turns, ending before the answer; earlier assistant turns may be among them."""
    answers: tuple[str, ...]
    """The expected answer; further entries are also right, and trained. Empty when only a prediction is wanted."""
    candidates: tuple[str, ...]
    """What can be chosen from (for classification: the labels, sorted); may be empty."""
    source: str
    """Where it came from, as file:line."""
    tests: "Tests | None" = None
    """For code: what says whether an answer works."""

    @property
    def answer(self) -> str:
        return self.answers[0]


def with_shots(example: Example, shots: Sequence[Example]) -> Example:
    """The example with solved ones before it, as turns of the same conversation."""
    system = tuple(m for m in example.messages if m.role == "system")
    turns = []
    for shot in shots:
        turns += [m for m in shot.messages if m.role != "system"] + [Message("assistant", shot.answer)]
    own = tuple(m for m in example.messages if m.role != "system")
    return dataclasses.replace(example, messages=(*system, *turns, *own))
