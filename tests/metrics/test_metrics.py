"""The answer parser, and the metrics compared with scikit-learn and with values computed by hand."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratory.metrics.classification import classification_metrics, confusion, normalize_answer, parse_label, per_label

LABELS = ["Robotics", "Machine Learning", "C++", "Not spam", "spam"]
texts = st.text(max_size=20)


@given(texts)
def test_normalizing_is_idempotent(text):
    assert normalize_answer(normalize_answer(text)) == normalize_answer(text)


@given(st.lists(texts, min_size=1, max_size=5, unique=True), st.data())
def test_an_exact_label_is_parsed_as_itself(labels, data):
    label = data.draw(st.sampled_from(labels))
    stripped = [other for other in labels if other.strip() == label.strip()]
    if len(stripped) == 1 and label == label.strip():
        assert parse_label(label, labels) == label


@given(texts, st.lists(texts, max_size=4))
def test_the_parser_returns_only_labels_or_none(text, labels):
    assert parse_label(text, labels) in [None, *labels]


@pytest.mark.parametrize(
    "answer",
    ["Robotics", " robotics. ", "**ROBOTICS**", "\n\n`Robotics`!\nBecause it has arms.", "“Robotics”", "[robotics];",
     '"Robotics."', "Ｒｏｂｏｔｉｃｓ", "(Robotics):", "```\nRobotics\n```"],
)  # fmt: skip
def test_quotes_markdown_and_punctuation_around_an_answer_are_ignored(answer):
    assert parse_label(answer, LABELS) == "Robotics"


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "  \n",
        "Robotic",
        "It is Robotics",
        "Label: Robotics",
        "Robotics, Machine Learning",
        "...",
        "Unknown\nRobotics",
    ],
)
def test_answers_that_name_no_label_are_rejected(answer):
    assert parse_label(answer, LABELS) is None


def test_labels_are_not_searched_for_inside_an_answer():
    assert parse_label("not spam", LABELS) == "Not spam"
    assert parse_label("definitely not spam", LABELS) is None


def test_whitespace_and_case_folding():
    assert parse_label("machine \t learning", LABELS) == "Machine Learning"
    assert parse_label("STRASSE", ["Straße"]) == "Straße"
    assert parse_label("c++", LABELS) == "C++"


def test_labels_that_are_equal_after_normalization_must_match_exactly():
    labels = ["Yes", "yes", "*", "**"]
    assert parse_label("yes", labels) == "yes"
    assert parse_label(" Yes \nindeed", labels) == "Yes"
    assert parse_label("YES", labels) is None
    assert parse_label("**", labels) == "**"
    assert parse_label("*.", labels) is None


def test_a_multi_line_label_is_compared_with_the_whole_answer():
    labels = ["first\nsecond", "first"]
    assert parse_label("First\n  SECOND.", labels) == "first\nsecond"
    assert parse_label("first\nthird", labels) == "first"
    assert parse_label("first second", ["first\nsecond"]) == "first\nsecond"


def synthetic(num_examples, num_labels, share_right=0.6, seed=0):
    generator = np.random.default_rng(seed)
    labels = [f"label {i}" for i in range(num_labels)]
    expected = [labels[i] for i in generator.integers(num_labels, size=num_examples)]
    guesses = [*labels, None, "nonsense"]
    answers = [e if generator.random() < share_right else guesses[generator.integers(len(guesses))] for e in expected]
    return expected, answers, labels


def test_metrics_by_hand():
    expected, answers = ["a", "a", "b", "b"], ["a", None, "b", "what"]
    found = classification_metrics(expected, answers, ["a", "b", "never"], None)
    assert found["accuracy"] == 0.5 and found["unparsed"] == 0.5
    assert found["macro_f1"] == pytest.approx(2 / 3), "a label that never occurs does not count"
    assert "ece" not in found and "mean_log_prob" not in found


def test_a_wrongly_answered_label_counts_in_macro_f1():
    assert classification_metrics(["a", "a"], ["a", "c"], ["a", "b", "c"], None)["macro_f1"] == pytest.approx(
        (2 / 3) / 2
    )


def test_macro_f1_interval_is_given_only_on_enough_examples():
    found = classification_metrics(*synthetic(150, 4), None)
    assert found["macro_f1_low"] < found["macro_f1"] < found["macro_f1_high"]
    assert "macro_f1_low" not in classification_metrics(*synthetic(29, 2), None)


def test_metrics_with_many_labels_are_fast():
    expected, answers, labels = synthetic(1000, 77)
    start = time.perf_counter()
    classification_metrics(expected, answers, labels, None)
    assert time.perf_counter() - start < 2


def test_log_probability_and_calibration_error_by_hand():
    sure = [{"a": 0.95, "b": 0.05}, {"a": 0.95, "b": 0.05}]
    found = classification_metrics(["a", "b"], ["a", "a"], ["a", "b"], sure)
    assert found["mean_log_prob"] == pytest.approx((np.log(0.95) + np.log(0.05)) / 2)
    assert found["ece"] == pytest.approx(0.45), "95 % confident, 50 % correct"
    found = classification_metrics(["a", "b"], ["a", "a"], ["a", "b"], [{"a": 1.0, "b": 0.0}] * 2)
    assert found["mean_log_prob"] == pytest.approx(np.log(1e-12) / 2)
    assert "ece" not in classification_metrics(["a", "b"], ["a", "a"], ["a", "b"], [sure[0], None])


def test_calibration_errors_of_different_bins_do_not_cancel():
    probabilities = [{"a": 0.92, "b": 0.08}, {"a": 0.55, "b": 0.45}]
    found = classification_metrics(["b", "a"], ["a", "a"], ["a", "b"], probabilities)
    assert found["ece"] == pytest.approx((0.92 + 0.45) / 2)


@given(st.integers(1, 60), st.integers(1, 6), st.integers(0, 1000))
def test_confusion_matrix_and_per_label_metrics_agree(num_examples, num_labels, seed):
    expected, answers, labels = synthetic(num_examples, num_labels, seed=seed)
    counts = np.array(confusion(expected, answers, labels))
    assert counts.shape == (num_labels, num_labels + 1) and counts.sum() == num_examples
    assert counts[:, -1].sum() == sum(answer not in labels for answer in answers)
    for i, (label, row) in enumerate(per_label(expected, answers, labels).items()):
        assert label == labels[i] and row["support"] == counts[i].sum() == expected.count(label)
        assert row["recall"] == pytest.approx(counts[i, i] / max(1, counts[i].sum()))
        assert row["precision"] == pytest.approx(counts[i, i] / max(1, counts[:, i].sum()))
