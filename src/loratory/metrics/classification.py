"""Classification metrics, and the parser that turns a free-text answer into a label."""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support
from sklearn.preprocessing import MultiLabelBinarizer

from loratory.metrics.significance import macro_f1_interval

SURROUNDING = "\"'`*()[]{}<>“”„‟‘’‚‛«»‹›「」『』"
FINAL = ".!;:,"
CALIBRATION_BINS = 10
SMALLEST_PROBABILITY = 1e-12
UNDEFINED: Any = 0  # value of 0 / 0 in scikit-learn, whose type stubs allow only "warn"


def normalize_answer(text: str) -> str:
    """Normalizes a text so that answers and labels can be compared.

    Applies Unicode NFKC and case folding and collapses whitespace; then strips surrounding quotes, backticks, asterisks
    and brackets, and final ``. ! ; : ,``. The function is idempotent.
    """
    # Case folding can undo NFKC, so NFKC is applied again; a few rare characters need a second pass of both.
    previous = None
    while text != previous:
        previous = text
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        text = " ".join(text.split()).lstrip(SURROUNDING + " ").rstrip(SURROUNDING + FINAL + " ")
    return text


def parse_label(text: str, labels: Sequence[str]) -> str | None:
    """Returns the label that a free-text answer gives, or None.

    1. An answer that equals a label exactly, apart from surrounding whitespace, is that label.
    2. Otherwise, the first line that is not empty after ``normalize_answer`` is compared with the normalized labels.
       Labels that span several lines are compared with the whole answer instead, and take precedence.
    3. If several labels are equal after normalization, the line must equal one of them exactly.

    Labels are never searched for inside a longer answer: "not spam" must not count as "spam".
    """
    if text.strip() in labels:
        return text.strip()
    lines = text.splitlines()
    line = next((line.strip() for line in lines if normalize_answer(line)), "")
    whole = [label for label in labels if len(label.splitlines()) > 1]
    single = [label for label in labels if len(label.splitlines()) <= 1]
    return _match(text.strip(), whole) or _match(line, single)


def _match(answer: str, labels: Sequence[str]) -> str | None:
    """The only label that equals the answer after normalization; None for an empty answer."""
    normalised = normalize_answer(answer)
    matches = [label for label in labels if normalised and normalize_answer(label) == normalised]
    if len(matches) == 1:
        return matches[0]
    return answer if answer in matches else None


def classification_metrics(
    expected: Sequence[str],
    answers: Sequence[str | None],
    labels: Sequence[str],
    probabilities: Sequence[Mapping[str, float | int] | None] | None,
) -> dict[str, float]:
    """Classification metrics of one system on N >= 1 examples; proportions are in [0, 1].

    ``accuracy``.
    ``macro_f1``: mean F1 of the labels that occur in ``expected`` or ``answers``; ``macro_f1_low`` and
    ``macro_f1_high`` are its 95 % interval, if there are enough examples (see ``macro_f1_interval``).
    ``unparsed``: proportion of answers that are not a label (None, or a text outside ``labels``); each counts as a
    false negative of the expected label.

    Only if every example has probabilities:
    ``mean_log_prob``: mean natural log of the probability of the expected label, clipped to at least 1e-12.
    ``ece``: see ``expected_calibration_error``.
    """
    expected_N, answered_N = label_indices(expected, labels), label_indices(answers, labels)
    assert (expected_N < len(labels)).all(), "an expected answer is not a label"
    occurring = np.union1d(expected_N, answered_N[answered_N < len(labels)])
    interval = macro_f1_interval(expected_N, answered_N, len(labels))
    metrics = {
        "accuracy": float(np.mean(expected_N == answered_N)),
        "macro_f1": float(f1_score(expected_N, answered_N, labels=occurring, average="macro", zero_division=UNDEFINED)),
        **(dict(zip(("macro_f1_low", "macro_f1_high"), interval, strict=True)) if interval else {}),
        "unparsed": float(np.mean(answered_N == len(labels))),
    }
    known = [p for p in probabilities or () if p is not None]
    if len(known) == len(expected):
        of_expected = [p.get(label, 0.0) for p, label in zip(known, expected, strict=True)]
        metrics["mean_log_prob"] = float(np.mean(np.log(np.maximum(of_expected, SMALLEST_PROBABILITY))))
        metrics["ece"] = expected_calibration_error(expected, known)
    return metrics


def label_indices(answers: Sequence[str | None], labels: Sequence[str]) -> np.ndarray:
    """The index of each answer in ``labels``, shape (N,); ``len(labels)`` for an answer that is not a label."""
    number = {label: position for position, label in enumerate(labels)}
    return np.array(
        [len(labels) if answer is None else number.get(answer, len(labels)) for answer in answers], dtype=np.int64
    )


def set_f1(answered: Sequence[str], expected: Sequence[str]) -> float:
    """F1 of a set of labels against the expected set, in [0, 1]."""
    common = len({*answered} & {*expected})
    return 2 * common / (len({*answered}) + len({*expected}))


def label_set_metrics(
    answered: Sequence[Sequence[str]], expected: Sequence[Sequence[str]], labels: Sequence[str]
) -> dict:
    """``micro_f1`` over all labels of all examples, ``macro_f1`` (mean F1 over labels) and ``exact_match``."""
    binarizer = MultiLabelBinarizer(classes=list(labels)).fit([])
    indicators = [binarizer.transform(sets) for sets in (expected, answered)]
    same = [set(a) == set(e) for a, e in zip(answered, expected, strict=True)]
    averages = {
        f"{kind}_f1": float(f1_score(*indicators, average=kind, zero_division=UNDEFINED)) for kind in ("micro", "macro")
    }
    return {**averages, "exact_match": float(np.mean(same))}


def expected_calibration_error(expected: Sequence[str], probabilities: Sequence[Mapping[str, float | int]]) -> float:
    """Expected calibration error in [0, 1]: mean gap between confidence and accuracy over 10 equal-width bins.

    Naeini et al. 2015, in the top-label form of Guo et al. 2017. Bins are weighted by their number of examples.
    """
    tops = [max(p, key=lambda label: p[label]) for p in probabilities]
    confidence_N = np.array([p[top] for p, top in zip(probabilities, tops, strict=True)])
    right_N = np.array([top == label for top, label in zip(tops, expected, strict=True)])
    bin_N = np.clip((confidence_N * CALIBRATION_BINS).astype(int), 0, CALIBRATION_BINS - 1)
    gap_B = np.bincount(bin_N, weights=confidence_N - right_N, minlength=CALIBRATION_BINS)
    return float(np.abs(gap_B).sum() / len(expected))


def per_label(
    expected: Sequence[str], answers: Sequence[str | None], labels: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """``precision``, ``recall``, ``f1`` (0 where undefined) and ``support`` (expected examples) of every label."""
    columns = precision_recall_fscore_support(
        label_indices(expected, labels),
        label_indices(answers, labels),
        labels=np.arange(len(labels)),
        zero_division=UNDEFINED,
    )
    precision_L, recall_L, f1_L, support_L = (np.asarray(column).tolist() for column in columns)
    rows = zip(precision_L, recall_L, f1_L, support_L, strict=True)
    names = ("precision", "recall", "f1", "support")
    return {label: dict(zip(names, row, strict=True)) for label, row in zip(labels, rows, strict=True)}


def confusion(expected: Sequence[str], answers: Sequence[str | None], labels: Sequence[str]) -> list[list[int]]:
    """Confusion matrix, L x (L + 1): a row per expected label, a column per answer, the last being "no label"."""
    numbers = np.arange(len(labels) + 1)
    counts = confusion_matrix(label_indices(expected, labels), label_indices(answers, labels), labels=numbers)
    return counts[:-1].tolist()
