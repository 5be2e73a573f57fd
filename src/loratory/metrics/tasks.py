"""The kinds of task: how an answer is scored, and what else is measured."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loratory.config import Config
from loratory.data import LABEL_SEPARATOR, is_plain_text
from loratory.metrics.classification import classification_metrics, label_set_metrics, parse_label, set_f1
from loratory.metrics.formatting import percent
from loratory.metrics.texts import edit_similarity, rouge_l, rstrip_lines, text_metrics

Lines = Sequence[Mapping[str, Any]]
"""A system's predictions as the run directory keeps them: one mapping per example."""


@dataclass(frozen=True)
class Task:
    """A kind of task, as evaluation and report see it."""

    metric: str
    """Key of the headline metric: the mean score of a system's answers."""
    metric_label: str
    """Its display name."""
    score: Callable[[Mapping[str, Any], Sequence[str]], float]
    """The score of one prediction, from 0 to 1, given the accepted answers."""
    is_binary: bool
    """Whether every score is 0 or 1, so that the headline is a proportion."""
    extra_metrics: Callable[[Lines, Sequence[str]], dict[str, float]]
    """Further metrics of a system, given its predictions and the labels."""
    secondary_metric: tuple[str, str]
    """Which of these is shown beside the headline: its display name and its key."""
    headline_name: str
    """The headline's name in a sentence; empty if its value speaks for itself."""
    format_value: Callable[[Mapping[str, Any]], str]
    """Formats the headline of a described system for a sentence."""
    has_answers: bool = True
    """Whether a system answers the examples; otherwise it is only measured on their texts."""

    def headline(self, system: Mapping[str, Any]) -> str:
        """The headline of a described system, with its name."""
        return f"{self.headline_name} {self.format_value(system)}".lstrip()


def exact_match(line: Mapping[str, Any], answers: Sequence[str]) -> float:
    return float(line["answer"] in answers)


def rouge_l_score(line: Mapping[str, Any], answers: Sequence[str]) -> float:
    return rouge_l(line["answer"], answers)


def token_probability(line: Mapping[str, Any], answers: Sequence[str]) -> float:
    """The geometric mean of the probabilities of one example's measured tokens: 1 / its own perplexity."""
    return math.exp(sum(value for value, _ in line["turns"]) / sum(count for _, count in line["turns"]))


def code_similarity(line: Mapping[str, Any], answers: Sequence[str]) -> float:
    return max(edit_similarity(line["answer"], answer) for answer in answers)


def passes_tests(line: Mapping[str, Any], answers: Sequence[str]) -> float:
    return float(line["failure"] == "")


def label_set_f1(line: Mapping[str, Any], answers: Sequence[str]) -> float:
    return set_f1(split_labels(line["answer"]), answers)


def single_label_metrics(lines: Lines, labels: Sequence[str]) -> dict[str, float]:
    """``classification_metrics`` without the headline."""
    expected = [line["expected"] for line in lines]
    answers = [parsed_answer(line["answer"], labels) for line in lines]
    metrics = classification_metrics(expected, answers, labels, [line["probabilities"] for line in lines])
    return {name: value for name, value in metrics.items() if name != "accuracy"}


def parsed_answer(answer: str | None, labels: Sequence[str]) -> str | None:
    """The label that an answer names, or None."""
    return None if answer is None else parse_label(answer, labels)


def ranking_metrics(lines: Lines, labels: Sequence[str]) -> dict[str, float]:
    """``mrr``: mean reciprocal rank of the expected candidate, if all examples were scored; ties share a rank."""
    ranks = [_rank(line["probabilities"], line["expected"]) for line in lines if line["probabilities"]]
    return {"mrr": float(np.mean([1 / rank for rank in ranks]))} if len(ranks) == len(lines) else {}


def _rank(probabilities: Mapping[str, float], expected: str) -> float:
    own = probabilities[expected]
    higher = sum(p > own for p in probabilities.values())
    equal = sum(p == own for p in probabilities.values())
    return higher + (equal + 1) / 2


def generation_metrics(lines: Lines, labels: Sequence[str]) -> dict[str, float]:
    """``text_metrics`` of all answers."""
    return text_metrics([line["answer"] or "" for line in lines], [line["expected"] for line in lines])


def conversation_metrics(lines: Lines, labels: Sequence[str]) -> dict[str, float]:
    """Perplexity of the reference turns (all, first, last), and ``rougeL`` and text metrics of generated last turns."""
    slices = {"perplexity": slice(None), "perplexity_first_turn": slice(1), "perplexity_last_turn": slice(-1, None)}
    metrics = {name: _perplexity([t for line in lines for t in line["turns"][part]]) for name, part in slices.items()}
    rouge = float(np.mean([rouge_l_score(line, [line["expected"]]) for line in lines]))
    return {**metrics, "rougeL": rouge, **generation_metrics(lines, labels)}


def fill_metrics(lines: Lines, labels: Sequence[str]) -> dict[str, float]:
    """Mean ``edit_similarity`` of predicted and expected words."""
    similarities = [edit_similarity(line["answer"] or "", line["expected"]) for line in lines]
    return {"edit_similarity": float(np.mean(similarities))}


def plain_text_metrics(lines: Lines, labels: Sequence[str]) -> dict[str, float]:
    """``perplexity``: exp of the mean negative log-probability of all tokens of all texts.

    Of a masked language model, a pseudo-perplexity: each token is masked once, a seventh of a text at a time, while
    Salazar et al. ("Masked Language Model Scoring", ACL 2020) mask one token at a time.
    """
    return {"perplexity": _perplexity([turn for line in lines for turn in line["turns"]])}


def _perplexity(turns: Sequence[Sequence[float | int]]) -> float:
    return math.exp(-sum(value for value, _ in turns) / sum(count for _, count in turns))


def code_metrics(lines: Lines, labels: Sequence[str]) -> dict[str, float]:
    """``exact_match`` and mean ``edit_similarity``, both ignoring whitespace at line ends."""
    pairs = [(line["answer"], line["expected"]) for line in lines]
    same = [rstrip_lines(answer) == rstrip_lines(expected) for answer, expected in pairs]
    similarities = [edit_similarity(answer, expected) for answer, expected in pairs]
    return {"exact_match": float(np.mean(same)), "edit_similarity": float(np.mean(similarities))}


def split_labels(text: str | None) -> list[str]:
    return [label for label in (text or "").split(LABEL_SEPARATOR) if label]


def multilabel_metrics(lines: Lines, labels: Sequence[str]) -> dict[str, float]:
    """``label_set_metrics`` of all answers."""
    answers, expected = ([split_labels(line[key]) for line in lines] for key in ("answer", "expected"))
    return label_set_metrics(answers, expected, labels)


def task_variant(config: Config) -> str:
    """The key in TASKS that measures a run: its task, or a variant of it."""
    if config.task == "fill" and is_plain_text(config.task, config.data, config.prompt):
        return "fill-text"
    return "code-tests" if config.task == "code" and config.code.run else config.task


def _value_as_percent(system: Mapping[str, Any]) -> str:
    return percent(system["value"])


def _perplexity_of(system: Mapping[str, Any]) -> str:
    return f"{system['metrics']['perplexity']:.2f}"


TASKS = {
    "classification": Task(
        "accuracy", "accuracy", exact_match, True, single_label_metrics, ("macro-F1", "macro_f1"),
        "", _value_as_percent,
    ),
    "labels": Task(
        "set_f1", "set F1", label_set_f1, False, multilabel_metrics, ("micro-F1", "micro_f1"),
        "set F1", _value_as_percent,
    ),
    "choice": Task(
        "accuracy", "accuracy", exact_match, True, ranking_metrics, ("MRR", "mrr"),
        "", _value_as_percent,
    ),
    "text": Task(
        "rougeL", "ROUGE-L", rouge_l_score, False, generation_metrics, ("chrF", "chrf"),
        "ROUGE-L", _value_as_percent,
    ),
    "dialogue": Task(
        "token_probability", "token probability", token_probability, False, conversation_metrics,
        ("perplexity", "perplexity"), "perplexity", _perplexity_of,
    ),
    "fill": Task(
        "accuracy", "accuracy", exact_match, True, fill_metrics, ("edit similarity", "edit_similarity"),
        "", _value_as_percent,
    ),
    "fill-text": Task(
        "token_probability", "token probability", token_probability, False, plain_text_metrics,
        ("pseudo-perplexity", "perplexity"), "pseudo-perplexity", _perplexity_of,
    ),
    "pretrain": Task(
        "token_probability", "token probability", token_probability, False, plain_text_metrics,
        ("perplexity", "perplexity"), "perplexity", _perplexity_of, has_answers=False,
    ),
    "code": Task(
        "edit_similarity", "edit similarity", code_similarity, False, code_metrics, ("exact match", "exact_match"),
        "edit similarity", _value_as_percent,
    ),
    "code-tests": Task(
        "pass_at_1", "pass@1", passes_tests, True, code_metrics, ("edit similarity", "edit_similarity"),
        "pass@1", _value_as_percent,
    ),
}  # fmt: skip
