"""The types of an example: its messages, answers, candidates and tests."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

TOOLS = "tools"


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. A message with the role "tools", as JSON, may precede all turns."""

    role: str
    content: str
    fields: str = ""
    """What else the chat template gets of the turn, such as tool calls, as a JSON object; empty if there is nothing."""
    trained: bool = True
    """Whether an assistant turn is trained; otherwise it is only context for later turns."""

    @property
    def further(self) -> dict[str, Any]:
        """The values in ``fields``."""
        return json.loads(self.fields) if self.fields else {}


@dataclass(frozen=True)
class Tests:
    """The tests of a program, and the Python source before and after the answer."""

    prefix: str
    """The source that the answer may continue; may be empty."""
    name: str
    """The function that the answer has to define; empty if unknown."""
    suffix: str
    """The source that follows the answer; may be empty."""
    statements: str
    """Statements that raise an exception if the answer is wrong."""


@dataclass(frozen=True)
class Example:
    """A prompt with the answer that the model should give."""

    messages: tuple[Message, ...]
    """The turns before the answer, which may include earlier assistant turns."""
    answers: tuple[str, ...]
    """The expected answer, then other correct answers, which are trained too. Empty if there is only a prompt."""
    candidates: tuple[str, ...]
    """The possible answers (for classification: the sorted labels); empty for free answers."""
    source: str
    """Where the example comes from, as file:line."""
    tests: "Tests | None" = None
    """For code: the tests that an answer has to pass."""
    cells: tuple[str, ...] = dataclasses.field(default=(), compare=False, repr=False)
    """The texts of the row that the prompt shows, for the checks; none for conversations and plain texts."""
    turn: Message | None = None
    """The answer as a turn, if it has more than its text, such as tool calls. The answer is then what the chat template
    writes for this turn: see ``loratory.text.with_rendered_answers``."""

    @property
    def answer(self) -> str:
        """The expected answer."""
        return self.answers[0]


def with_shots(example: Example, shots: Sequence[Example]) -> Example:
    """The example with solved examples in front of it, as turns of the same conversation."""
    system = tuple(m for m in example.messages if m.role == "system")
    turns = []
    for shot in shots:
        turns += [m for m in shot.messages if m.role != "system"] + [Message("assistant", shot.answer)]
    question = tuple(m for m in example.messages if m.role != "system")
    return dataclasses.replace(example, messages=(*system, *turns, *question))
