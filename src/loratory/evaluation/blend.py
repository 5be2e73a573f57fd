"""A log-linear mix of the probabilities of several systems: log p is a weighted sum of theirs, up to a constant.

K: systems.  E: examples.  L: labels.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64, Int64
from scipy.optimize import minimize
from scipy.special import log_softmax

SMALLEST = 1e-6  # probabilities below count as this, so that one system cannot rule a label out
# The penalty on the distance of the weights from equal ones: it counts about as much as this many examples.
STRENGTH = 2.0
FOLDS = 5

LogProbs = Float64[np.ndarray, "K E L"]


def as_log_probs(systems: Sequence[Sequence[Mapping[str, float]]], labels: Sequence[str]) -> LogProbs:
    """The log-probability of each label by each system for each example. A label that a system lacks has none."""
    values = [[[row.get(label, 0.0) for label in labels] for row in rows] for rows in systems]
    return np.log(np.maximum(np.array(values, dtype=np.float64), SMALLEST))


def fit_weights(log_probs_KEL: LogProbs, targets_E: Int64[np.ndarray, " E"]) -> Float64[np.ndarray, " K"]:
    """The weights, at least 0, with which the mix gives the right labels the highest mean log-probability.

    A penalty keeps them near equal weights that sum to 1, unless many examples say otherwise. The problem is convex.
    """
    systems, count, _ = log_probs_KEL.shape
    equal = np.full(systems, 1 / systems)
    rows = np.arange(count)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixed_EL = log_softmax(np.tensordot(weights, log_probs_KEL, axes=1), axis=1)
        expected_KE = (np.exp(mixed_EL) * log_probs_KEL).sum(2)
        gradient = (expected_KE - log_probs_KEL[:, rows, targets_E]).sum(1)
        away = weights - equal
        value = -mixed_EL[rows, targets_E].sum() + STRENGTH * systems * (away**2).sum()
        return float(value), gradient + 2 * STRENGTH * systems * away

    return minimize(loss, equal, jac=True, bounds=[(0.0, None)] * systems, method="L-BFGS-B").x


def mix(log_probs_KEL: LogProbs, weights_K: Float64[np.ndarray, " K"]) -> Float64[np.ndarray, "E L"]:
    """The log-probabilities of the mix."""
    return log_softmax(np.tensordot(weights_K, log_probs_KEL, axes=1), axis=1)


def log_prob_at_best_temperature(rows: Sequence[Mapping[str, float]], answers: Sequence[str]) -> float:
    """The mean log-probability of the right labels, once the probabilities are raised to the power that maximizes it.

    So it measures how well the labels are told apart, and not how sure the system is of itself (temperature scaling:
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017). Each example may have labels of its own.
    """
    targets_E = np.array([list(row).index(answer) for row, answer in zip(rows, answers, strict=True)], dtype=np.int64)
    numbered = [{str(i): p for i, p in enumerate(row.values())} for row in rows]
    log_probs_KEL = as_log_probs([numbered], [str(i) for i in range(max(map(len, rows)))])
    mixed_EL = mix(log_probs_KEL, fit_weights(log_probs_KEL, targets_E))
    return float(mixed_EL[np.arange(len(answers)), targets_E].mean())


def cross_fitted(log_probs_KEL: LogProbs, targets_E: Int64[np.ndarray, " E"], seed: int) -> Float64[np.ndarray, "E L"]:
    """The log-probabilities of the mix for the examples that its weights are fitted on, each by weights fitted on the
    examples of the other folds."""
    count = len(targets_E)
    fold_E = np.random.default_rng(seed).permutation(count) % min(FOLDS, count)
    mixed_EL = np.empty(log_probs_KEL.shape[1:])
    for fold in range(min(FOLDS, count)):
        inside = fold_E == fold
        weights_K = fit_weights(log_probs_KEL[:, ~inside], targets_E[~inside])
        mixed_EL[inside] = mix(log_probs_KEL[:, inside], weights_K)
    return mixed_EL
