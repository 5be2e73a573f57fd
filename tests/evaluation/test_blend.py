"""The mix of several systems' probabilities."""

import numpy as np
import pytest
from scipy.special import log_softmax

from loratory.data import Example, Message, Split
from loratory.evaluation import EvalRecord, NotMeasurable, Prediction, blend_system
from loratory.evaluation.blend import SMALLEST, as_log_probs, cross_fitted, fit_weights, mix
from loratory.events import ignore_progress
from loratory.settings import PromptConfig

LABELS = ("A", "B", "C")


def systems(qualities: list[float], count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities [K, E, L] that lean towards the right label by each quality, and the right labels [E]."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, len(LABELS), count)
    noise = rng.normal(size=(len(qualities), count, len(LABELS)))
    signal = np.eye(len(LABELS))[targets] * np.array(qualities)[:, None, None]
    return log_softmax(noise + signal, axis=2), targets


def mean_log_prob(mixed: np.ndarray, targets: np.ndarray) -> float:
    return float(mixed[np.arange(len(targets)), targets].mean())


def test_the_weights_are_better_on_new_examples_than_any_single_system():
    log_probs, targets = systems([1.5, 1.0, 0.0], 4000)
    weights = fit_weights(log_probs[:, :2000], targets[:2000])
    assert weights[0] > weights[1] > 10 * weights[2] >= 0
    mixed = mean_log_prob(mix(log_probs[:, 2000:], weights), targets[2000:])
    singles = [mean_log_prob(mix(log_probs[[k], 2000:], np.ones(1)), targets[2000:]) for k in range(3)]
    assert mixed > max(singles) + 0.05


def test_few_examples_leave_the_weights_nearly_equal():
    log_probs, targets = systems([1.0, 1.0], 2)
    assert fit_weights(log_probs, targets) == pytest.approx([0.5, 0.5], abs=0.25)


def test_a_system_that_is_always_wrong_gets_less_weight_and_rules_no_label_out():
    sure = [{"A": 1.0}, {"B": 1.0}, {"C": 1.0}] * 20
    wrong = [{"B": 1.0}, {"C": 1.0}, {"A": 1.0}] * 20
    log_probs = as_log_probs([sure, wrong], LABELS)
    assert log_probs.min() == pytest.approx(np.log(SMALLEST))
    weights = fit_weights(log_probs, np.array([0, 1, 2] * 20))
    assert weights[0] > 2 * weights[1]
    assert mix(log_probs, weights).argmax(1).tolist() == [0, 1, 2] * 20


def test_cross_fitted_answers_do_not_see_their_own_label():
    log_probs, targets = systems([0.7, 0.7], 40)
    before = cross_fitted(log_probs, targets, 0)
    assert np.isfinite(before).all() and np.exp(before).sum(1) == pytest.approx(np.ones(40))
    other = targets.copy()
    other[3] = (other[3] + 1) % 3
    assert np.array_equal(cross_fitted(log_probs, other, 0)[3], before[3])


def record(name: str, log_probs: np.ndarray, train: int, validation: int) -> EvalRecord:
    rows = [Prediction("", None, dict(zip(LABELS, row, strict=True))) for row in np.exp(log_probs).tolist()]
    end = train + validation
    return EvalRecord(name, None, None, tuple(rows[train:end]), tuple(rows[end:]), 0.0, 0.0, tuple(rows[:train]))


def split(targets: np.ndarray, train: int, validation: int) -> Split:
    examples = tuple(Example((Message("user", f"{i}"),), (LABELS[t],), LABELS, f"{i}") for i, t in enumerate(targets))
    end = train + validation
    return Split(examples[:train], examples[train:end], examples[end:], LABELS, PromptConfig())


def test_the_system_answers_validation_and_test_examples_and_names_its_weights():
    log_probs, targets = systems([1.0, 0.8, 1.2], 900)
    parts = split(targets, 300, 100)
    simple = [record("linear", log_probs[0], 300, 100), record("encoder", log_probs[1], 300, 100)]
    tuned = record("tuned-choose", log_probs[2], 300, 100)
    system = blend_system(simple, tuned, parts, parts.test, 0)
    assert system.note and all(f"{name} " in system.note for name in ("linear", "encoder", "tuned-choose"))
    on_test = system.predict(parts.test, ignore_progress)
    assert len(system.predict(parts.validation, ignore_progress)) == 100

    def right(answers: list[str]) -> float:
        return float(np.mean([a == e.answer for a, e in zip(answers, parts.test, strict=True)]))

    alone = [[LABELS[i] for i in one[400:].argmax(1)] for one in log_probs]
    assert right([p.answer for p in on_test]) > max(map(right, alone))
    with pytest.raises(NotMeasurable, match="validation"):
        blend_system(simple, tuned, split(targets, 300, 0), parts.test, 0)


def test_without_classifiers_the_mix_is_the_tuned_model_made_more_or_less_sure():
    log_probs, targets = systems([1.0], 300)
    parts = split(targets, 100, 100)
    tuned = record("tuned-choose", log_probs[0], 100, 100)
    answers = blend_system([], tuned, parts, parts.test, 0).predict(parts.test, ignore_progress)
    assert [p.answer for p in answers] == [LABELS[i] for i in log_probs[0][200:].argmax(1)]
