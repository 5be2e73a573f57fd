"""The kinds of task: what an answer is worth, and what else is measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loratory import metrics

Lines = Sequence[Mapping[str, Any]]
"""The lines of a system's predictions, as the run directory keeps them."""


@dataclass(frozen=True)
class Task:
    """One kind of task, as evaluation and report see it."""

    metric: str
    """The headline: the mean worth of a system's answers."""
    metric_text: str
    """Its name for people."""
    worth: Callable[[str, Sequence[str]], float]
    """What an answer is worth, from 0 to 1, given the right answers."""
    counts: bool
    """Whether an answer is right or wrong and nothing between."""
    others: Callable[[Lines, Sequence[str]], dict[str, float]]
    """Further metrics of a system, given its lines and the labels."""
    second: tuple[str, str]
    """Which of these stands beside the headline: its name for people, and its key."""


def is_right(answer: str, answers: Sequence[str]) -> float:
    return float(answer in answers)


def label_metrics(lines: Lines, labels: Sequence[str]) -> dict[str, float]:
    """``metrics.classification_metrics`` without the headline."""
    expected = [line["expected"] for line in lines]
    answers = [parsed(line["answer"], labels) for line in lines]
    found = metrics.classification_metrics(expected, answers, labels, [line["probabilities"] for line in lines])
    return {name: value for name, value in found.items() if name != "accuracy"}


def parsed(answer: str | None, labels: Sequence[str]) -> str | None:
    """The label that a line's answer gives, or None."""
    return None if answer is None else metrics.parse_label(answer, labels)


def choice_metrics(lines: Lines, labels: Sequence[str]) -> dict[str, float]:
    """``mrr``: mean of 1 / the rank of the right candidate, where candidates were scored."""
    ranks = [1 + sum(p > line["probabilities"][line["expected"]] for p in line["probabilities"].values())
             for line in lines if line["probabilities"]]  # fmt: skip
    return {"mrr": float(np.mean([1 / rank for rank in ranks]))} if len(ranks) == len(lines) else {}


def text_metrics(lines: Lines, labels: Sequence[str]) -> dict[str, float]:
    """``metrics.text_metrics`` of all answers."""
    return metrics.text_metrics([line["answer"] or "" for line in lines], [line["expected"] for line in lines])


TASKS = {
    "classification": Task("accuracy", "accuracy", is_right, True, label_metrics, ("macro-F1", "macro_f1")),
    "choice": Task("accuracy", "accuracy", is_right, True, choice_metrics, ("MRR", "mrr")),
    "text": Task("rougeL", "ROUGE-L", metrics.rouge_l, False, text_metrics, ("chrF", "chrf")),
}
