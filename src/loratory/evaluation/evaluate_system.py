"""One function that evaluates every system on the same examples, before and after tuning.

A system is anything that answers examples: a prompted model, label scoring, a linear model, the tuned model.
"""

import functools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from loratory.data import Example
from loratory.events import ProgressCallback
from loratory.tree import Rule


class NotMeasurable(Exception):
    """A system that cannot be measured on this data. The message is the reason, as a clause without a period."""


@dataclass(frozen=True)
class Prediction:
    """A system's answer to one example."""

    answer: str
    """The label, or the generated text if it does not name a label."""
    log_probs: dict[str, float] | None
    """The model's natural log-probability of each label; None if labels were not scored."""
    probabilities: dict[str, float] | None
    """The probability of each label after the system's rule; None if the system gives no probabilities."""
    turns: tuple[tuple[float, int], ...] | None = None
    """Log-probability and number of tokens of each reference assistant turn, of each masked part of a text, or of each
    window of a document."""
    failure: str | None = None
    """Why the answer failed its tests, empty if it passed; None if no tests were run."""


@dataclass(frozen=True)
class System:
    """Something that answers examples."""

    predict: Callable[[Sequence[Example], ProgressCallback], list[Prediction]]
    note: str | None
    rule: Rule | None
    """How it chooses among labels; None if it does not score them."""
    training: tuple[Prediction, ...] = ()
    """For a classifier, its answers to the training examples, each when fitted without that example."""


@dataclass(frozen=True)
class EvalRecord:
    """A system's predictions and timings."""

    name: str
    note: str | None
    rule: Rule | None
    validation: tuple[Prediction, ...]
    test: tuple[Prediction, ...]
    seconds: float
    """Seconds to make the system and to answer both sets."""
    seconds_per_example: float
    """Seconds per example of the test set."""
    training: tuple[Prediction, ...] = ()
    """For a classifier, its answers to the training examples, each when fitted without that example."""


def evaluate(
    name: str,
    make: Callable[[ProgressCallback], System],
    validation: Sequence[Example],
    test: Sequence[Example],
    progress: Callable[[str, int, int], None],
) -> EvalRecord:
    """Makes the system, and answers the validation and test examples with it.

    ``progress`` is called with the part of the work ("preparation", "validation" or "test"), the number of finished
    examples of that part, and their total number. Raises NotMeasurable if the system cannot be made from these
    examples, or if a score of an answer is NaN or infinite.
    """
    started = time.perf_counter()
    system = make(functools.partial(progress, "preparation"))
    on_validation = system.predict(validation, functools.partial(progress, "validation")) if validation else []
    before_test = time.perf_counter()
    on_test = system.predict(test, functools.partial(progress, "test"))
    ended = time.perf_counter()
    check_scores([*on_validation, *on_test], [*validation, *test])
    per_example = (ended - before_test) / max(len(test), 1)
    seconds = ended - started
    return EvalRecord(
        name, system.note, system.rule, tuple(on_validation), tuple(on_test), seconds, per_example, system.training
    )


def check_scores(predictions: Iterable[Prediction], examples: Iterable[Example]) -> None:
    """Raises NotMeasurable if a log-probability or probability is NaN or infinite."""
    for prediction, example in zip(predictions, examples, strict=True):
        scores = [*(prediction.log_probs or {}).values(), *(prediction.probabilities or {}).values()]
        scores += [value for value, _ in prediction.turns or ()]
        if not all(map(math.isfinite, scores)):
            raise not_finite_scores(example)


def not_finite_scores(example: Example) -> NotMeasurable:
    """The reason if the scores of an example are NaN or infinite."""
    return NotMeasurable(f"its scores are NaN or infinite, first for the example {example.source}")
