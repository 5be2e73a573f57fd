"""The kinds of task: what an answer is worth, and what else is measured."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loratory.config import Config
from loratory.data.examples import BETWEEN_LABELS, is_plain_text
from loratory.metrics import classification as metrics
from loratory.report.charts import percent

Lines = Sequence[Mapping[str, Any]]
"""The lines of a system's predictions, as the run directory keeps them."""


@dataclass(frozen=True)
class Task:
    """One kind of task, as evaluation and report see it."""

    metric: str
    """The headline: the mean worth of a system's answers."""
    metric_text: str
    """Its name for people."""
    worth: Callable[[Mapping[str, Any], Sequence[str]], float]
    """What a line's answer is worth, from 0 to 1, given the right answers."""
    counts: bool
    """Whether an answer is right or wrong and nothing between."""
    others: Callable[[Lines, Sequence[str]], dict[str, float]]
    """Further metrics of a system, given its lines and the labels."""
    second: tuple[str, str]
    """Which of these stands beside the headline: its name for people, and its key."""
    called: str
    """What a sentence calls the headline; empty where its value says enough."""
    said: Callable[[Mapping[str, Any]], str]
    """How a sentence gives the headline of a described system."""

    def names(self, system: Mapping[str, Any]) -> str:
        """The headline of a described system, and what it is called."""
        return f"{self.called} {self.said(system)}".lstrip()


def is_right(line: Mapping[str, Any], answers: Sequence[str]) -> float:
    return float(line["answer"] in answers)


def likeness(line: Mapping[str, Any], answers: Sequence[str]) -> float:
    return metrics.rouge_l(line["answer"], answers)


def token_probability(line: Mapping[str, Any], answers: Sequence[str]) -> float:
    """The geometric mean of the probabilities of all tokens of the right turns: 1 / perplexity."""
    return math.exp(sum(value for value, _ in line["turns"]) / sum(count for _, count in line["turns"]))


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
    """``mrr``: mean of 1 / the rank of the right candidate, where candidates were scored; equals share a rank."""
    ranks = [_rank(line["probabilities"], line["expected"]) for line in lines if line["probabilities"]]
    return {"mrr": float(np.mean([1 / rank for rank in ranks]))} if len(ranks) == len(lines) else {}


def _rank(probabilities: Mapping[str, float], expected: str) -> float:
    own = probabilities[expected]
    above, same = (sum(test(p) for p in probabilities.values()) for test in (lambda p: p > own, lambda p: p == own))
    return above + (same + 1) / 2


def text_metrics(lines: Lines, labels: Sequence[str]) -> dict[str, float]:
    """``metrics.text_metrics`` of all answers."""
    return metrics.text_metrics([line["answer"] or "" for line in lines], [line["expected"] for line in lines])


def turn_metrics(lines: Lines, labels: Sequence[str]) -> dict[str, float]:
    """``perplexity`` of all right turns' tokens, of the first turns and of the last ones; and what the written last
    turns are like: ``rougeL`` and the text metrics."""

    parts = {"perplexity": slice(None), "perplexity_first_turn": slice(1), "perplexity_last_turn": slice(-1, None)}
    found = {name: _perplexity([t for line in lines for t in line["turns"][part]]) for name, part in parts.items()}
    rouge = float(np.mean([likeness(line, [line["expected"]]) for line in lines]))
    return {**found, "rougeL": rouge, **text_metrics(lines, labels)}


def fill_metrics(lines: Lines, labels: Sequence[str]) -> dict[str, float]:
    """``edit_similarity`` of the words that were filled in and the right ones, mean."""
    likeness = [metrics.edit_similarity(line["answer"] or "", line["expected"]) for line in lines]
    return {"edit_similarity": float(np.mean(likeness))}


def text_perplexity(lines: Lines, labels: Sequence[str]) -> dict[str, float]:
    """``perplexity`` of all tokens, each hidden once, a seventh of a text at a time: a pseudo-perplexity (Salazar
    et al., "Masked Language Model Scoring", ACL 2020, hide one token at a time)."""
    return {"perplexity": _perplexity([turn for line in lines for turn in line["turns"]])}


def _perplexity(turns: Sequence[Sequence[float | int]]) -> float:
    return math.exp(-sum(value for value, _ in turns) / sum(count for _, count in turns))


def code_likeness(line: Mapping[str, Any], answers: Sequence[str]) -> float:
    return max(metrics.edit_similarity(line["answer"], right) for right in answers)


def passes(line: Mapping[str, Any], answers: Sequence[str]) -> float:
    """Whether the answer went through its tests."""
    return float(line["failure"] == "")


def code_metrics(lines: Lines, labels: Sequence[str]) -> dict[str, float]:
    """``edit_similarity`` (1 - the edits from answer to right answer over the longer of the two, mean) and
    ``exact_match``, white space at the ends of lines aside."""
    pairs = [(line["answer"], line["expected"]) for line in lines]
    same = [metrics.bare_lines(answer) == metrics.bare_lines(expected) for answer, expected in pairs]
    likeness = [metrics.edit_similarity(answer, expected) for answer, expected in pairs]
    return {"exact_match": float(np.mean(same)), "edit_similarity": float(np.mean(likeness))}


def split_labels(text: str | None) -> list[str]:
    return [label for label in (text or "").split(BETWEEN_LABELS) if label]


def set_likeness(line: Mapping[str, Any], answers: Sequence[str]) -> float:
    return metrics.set_f1(split_labels(line["answer"]), answers)


def set_metrics(lines: Lines, labels: Sequence[str]) -> dict[str, float]:
    """``metrics.set_metrics`` of all sets."""
    answered, expected = ([split_labels(line[key]) for line in lines] for key in ("answer", "expected"))
    return metrics.set_metrics(answered, expected, labels)


def measure_of(config: Config) -> str:
    """The entry of TASKS that measures a run: its task, or a form of it."""
    if is_plain_text(config.task, config.data, config.prompt):
        return "fill-text"
    return "code-tests" if config.task == "code" and config.code.run else config.task


def _percent(system: Mapping[str, Any]) -> str:
    return percent(system["value"])


def _perplexity_of(system: Mapping[str, Any]) -> str:
    return f"{system['metrics']['perplexity']:.2f}"


TASKS = {
    "classification": Task(
        "accuracy", "accuracy", is_right, True, label_metrics, ("macro-F1", "macro_f1"), "", _percent
    ),
    "labels": Task(
        "set_f1", "set F1", set_likeness, False, set_metrics, ("micro-F1", "micro_f1"),
        "set F1", _percent,
    ),
    "choice": Task("accuracy", "accuracy", is_right, True, choice_metrics, ("MRR", "mrr"), "", _percent),
    "text": Task(
        "rougeL", "ROUGE-L", likeness, False, text_metrics, ("chrF", "chrf"), "ROUGE-L", _percent
    ),
    "dialogue": Task(
        "token_probability", "token probability", token_probability, False, turn_metrics, ("perplexity", "perplexity"),
        "perplexity", _perplexity_of,
    ),
    "fill": Task(
        "accuracy", "accuracy", is_right, True, fill_metrics, ("edit similarity", "edit_similarity"), "", _percent
    ),
    "fill-text": Task(
        "token_probability", "token probability", token_probability, False, text_perplexity,
        ("pseudo-perplexity", "perplexity"), "pseudo-perplexity", _perplexity_of,
    ),
    "code": Task(
        "edit_similarity", "edit similarity", code_likeness, False, code_metrics, ("exact match", "exact_match"),
        "edit similarity", _percent,
    ),
    "code-tests": Task(
        "pass_at_1", "pass@1", passes, True, code_metrics, ("edit similarity", "edit_similarity"),
        "pass@1", _percent,
    ),
}  # fmt: skip
