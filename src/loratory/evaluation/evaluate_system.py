"""One function that measures every system, before and after, on the same examples.

A system is anything that answers examples: a prompted model, a scored label set, a linear model, the tuned model.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loratory.data import Example
from loratory.events import ProgressCallback
from loratory.tree import Rule


@dataclass(frozen=True)
class Prediction:
    """A system's answer to one example."""

    answer: str
    """The label, or for a free answer that is no label the text as it came."""
    log_probs: dict[str, float] | None
    """Natural log-probability of each label as the model gives it; only where labels were scored."""
    probabilities: dict[str, float] | None
    """What the system reports after its rule; only where it gives probabilities."""
    turns: tuple[tuple[float, int], ...] | None = None
    """Log-probability and number of tokens of each right assistant turn, or of each hidden part of a text."""
    failure: str | None = None
    """How the answer failed its tests, empty if it passed; only where tests were run."""


@dataclass(frozen=True)
class System:
    """Something that answers examples."""

    predict: Callable[[Sequence[Example], ProgressCallback], list[Prediction]]
    note: str | None
    rule: Rule | None
    """How it chooses among labels; None where it does not score them."""


@dataclass(frozen=True)
class EvalRecord:
    """What a system answered."""

    name: str
    note: str | None
    rule: Rule | None
    validation: tuple[Prediction, ...]
    test: tuple[Prediction, ...]
    seconds: float
    """Making the system and both sets."""
    seconds_per_example: float
    """On the test set."""


def evaluate(
    name: str,
    make: Callable[[ProgressCallback], System],
    validation: Sequence[Example],
    test: Sequence[Example],
    progress: ProgressCallback,
) -> EvalRecord:
    """Makes the system and has it answer both sets."""
    started = time.perf_counter()
    system = make(progress)
    on_validation = system.predict(validation, progress) if validation else []
    before_test = time.perf_counter()
    on_test = system.predict(test, progress)
    ended = time.perf_counter()
    each = (ended - before_test) / max(len(test), 1)
    return EvalRecord(
        name, system.note, system.rule, tuple(on_validation), tuple(on_test), ended - started, each
    )  # fmt: skip
