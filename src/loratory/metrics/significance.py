"""Confidence intervals for one system, and paired intervals and tests for two systems on the same examples."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import binomtest, norm


def wilson_interval(successes: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927): ``(low, high)`` in [0, 1]; (0, 1) if ``total`` is 0."""
    if total == 0:
        return 0.0, 1.0
    interval = binomtest(successes, total).proportion_ci(confidence_level=confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided exact p-value of McNemar's test (1947).

    ``only_a`` and ``only_b`` count the examples that only one of the two systems answers correctly. Under the null
    hypothesis, ``only_b`` is binomial with ``only_a + only_b`` trials and probability 1/2. Returns 1.0 if both are 0.
    """
    if only_a + only_b == 0:
        return 1.0
    return float(binomtest(only_b, only_a + only_b, 0.5).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment for multiple comparisons (1979): the adjusted p-values, in the given order."""
    adjusted = [0.0] * len(p_values)
    largest_yet = 0.0
    for rank, position in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest_yet = max(largest_yet, min(1.0, (len(p_values) - rank) * p_values[position]))
        adjusted[position] = largest_yet
    return adjusted


def paired_difference_interval(only_a: int, only_b: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of "accuracy of b - accuracy of a" on the same ``total`` examples: ``(low, high)`` in [-1, 1].

    Wald interval after adding half an example to each cell of the 2 x 2 table of correct and wrong answers (Agresti &
    Min 2005, "Simple improved confidence intervals for comparing matched proportions"). The plain Wald interval has
    zero width if the systems never differ, and is too narrow on few examples.
    """
    a, b, n = only_a + 0.5, only_b + 0.5, total + 2
    center = (b - a) / n
    half_width = norm.ppf((1 + confidence) / 2) * np.sqrt((a + b) - (b - a) ** 2 / n) / n
    return float(max(-1.0, center - half_width)), float(min(1.0, center + half_width))


def paired_bootstrap(differences: np.ndarray, seed: int = 0, draws: int = 10_000) -> tuple[float, float, float]:
    """Bootstrap of the mean of per-example differences: ``(low, high, p)``.

    ``low`` and ``high`` are the 95 % percentile interval. The two-sided ``p`` is twice the proportion of draws whose
    mean lies on the other side of 0, counting the sample itself (Davison & Hinkley 1997, 4.2); 1.0 if all differences
    are 0.
    """
    if not np.any(differences):
        return 0.0, 0.0, 1.0
    generator, means = np.random.default_rng(seed), []
    block = max(1, 2_000_000 // len(differences))
    for start in range(0, draws, block):
        rows = generator.integers(len(differences), size=(min(block, draws - start), len(differences)))
        means.append(differences[rows].mean(axis=1))
    all_means = np.concatenate(means)
    low, high = np.quantile(all_means, [0.025, 0.975])
    tail = min(int((all_means <= 0).sum()), int((all_means >= 0).sum()))
    return float(low), float(high), min(1.0, 2 * (tail + 1) / (draws + 1))


def bootstrap_interval(
    statistic: Callable[..., float],
    arrays: Sequence[np.ndarray],
    seed: int = 0,
    draws: int = 1000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval (Efron 1979) of ``statistic(*arrays)``: ``(low, high)`` in the statistic's unit.

    The arrays have equal lengths, with one row per example. Each draw samples rows with replacement, the same rows from
    every array.
    """
    generator = np.random.default_rng(seed)
    num_examples = len(arrays[0])
    assert num_examples > 0 and all(len(array) == num_examples for array in arrays)
    values = np.empty(draws)
    for draw in range(draws):
        rows = generator.integers(num_examples, size=num_examples)
        values[draw] = statistic(*(array[rows] for array in arrays))
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
