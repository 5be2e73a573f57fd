"""Confidence intervals for one system, and paired intervals and tests for two systems on the same examples.

docs/statistics.md says which method is used where, and how often each is wrong. Functions whose arrays are named
``..._SN`` accept S samples at once, one per row; a single sample is one row.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy.special import expit, logsumexp
from scipy.stats import beta, binomtest, t

CONFIDENCE = 0.95
# From this number of examples on, intervals of means are approximate; below, they hold for every distribution.
LARGE_SAMPLE = 30
# The approximation also needs this many values that differ from the most common one.
DIFFERENT_VALUES = 6
BETS = (0.25, 0.5, 0.75, 1.0)
# How much of the skewness is corrected: all of it costs power, because it is estimated from the same few values.
SKEW_CORRECTION = 0.75
# All 2^12 sign flips are enumerated; with more differences, as many flips as below are drawn with a fixed seed.
ENUMERATED = 12
FLIPS = 9_999
BLOCK = 4_000_000  # numbers in memory at once
ROUNDING = 1e-9  # sums of the same differences in another order
# An interval of macro-F1 needs this many expected examples of every label, and this many wrong answers.
LABEL_SUPPORT = 10
WRONG_ANSWERS = 5


# ---- Right or wrong answers ------------------------------------------------------------------------------------------


def proportion_interval(successes: int, total: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Exact interval of a proportion (Clopper & Pearson 1934): ``(low, high)`` in [0, 1]; (0, 1) if ``total`` is 0."""
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, successes, total - successes + 1)) if successes else 0.0
    high = float(beta.isf(tail, successes + 1, total - successes)) if successes < total else 1.0
    return low, high


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided exact p-value of McNemar's test (1947).

    ``only_a`` and ``only_b`` count the examples that only one of the two systems answers correctly. Under the null
    hypothesis, ``only_b`` is binomial with ``only_a + only_b`` trials and probability 1/2. Returns 1.0 if both are 0.
    """
    if only_a + only_b == 0:
        return 1.0
    return float(binomtest(only_b, only_a + only_b, 0.5).pvalue)


def paired_difference_interval(
    only_a: int, only_b: int, total: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Interval of "accuracy of b - accuracy of a" on the same ``total`` examples: ``(low, high)`` in [-1, 1].

    Squares and adds the distances to the Clopper-Pearson limits of the two discordant proportions, with their
    correlation estimated after adding half an example to each (the MOVER of Zou & Donner 2008, for proportions
    Newcombe 1998). It contains 0 exactly if the p-value of ``mcnemar_exact`` is at least 1 - confidence: the limits
    never contain 0 where McNemar's test rejects, and are extended to 0 where it does not.
    """
    a, b = only_a / total, only_b / total
    (a_low, a_high), (b_low, b_high) = (proportion_interval(k, total, confidence) for k in (only_a, only_b))
    smooth_a, smooth_b = (only_a + 0.5) / (total + 1), (only_b + 0.5) / (total + 1)
    correlation = -min(1.0, math.sqrt(smooth_a * smooth_b / ((1 - smooth_a) * (1 - smooth_b))))

    def distance(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one**2 + other**2 - 2 * correlation * one * other))

    low = max(-1.0, b - a - distance(b - b_low, a_high - a))
    high = min(1.0, b - a + distance(b_high - b, a - a_low))
    return _extended_to_zero(low, high, mcnemar_exact(only_a, only_b), confidence)


def _extended_to_zero(low: float, high: float, p_value: float, confidence: float) -> tuple[float, float]:
    return (min(low, 0.0), max(high, 0.0)) if p_value >= 1 - confidence else (low, high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment for multiple comparisons (1979): the adjusted p-values, in the given order."""
    adjusted = [0.0] * len(p_values)
    largest_yet = 0.0
    for rank, position in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest_yet = max(largest_yet, min(1.0, (len(p_values) - rank) * p_values[position]))
        adjusted[position] = largest_yet
    return adjusted


# ---- Means of graded scores ------------------------------------------------------------------------------------------


def mean_interval(
    values: np.ndarray, lowest: float, highest: float, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Interval of the mean of N values in [lowest, highest]: the means whose ``mean_p_values`` is not too small."""
    values = np.asarray(values, dtype=np.float64)
    if _is_approximate(values[None])[0]:
        low, high = _t_interval(values, confidence)
    else:
        low, high = _betting_interval(values, lowest, highest, confidence)
    return max(lowest, low), min(highest, high)


def paired_mean_interval(differences: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Compares two systems by N per-example differences in [-1, 1]: ``(low, high, p)`` of the mean difference.

    ``p`` is that of ``paired_mean_p_values``. The interval contains 0 exactly if ``p`` is at least 1 - confidence.
    """
    p = float(paired_mean_p_values(differences[None])[0])
    low, high = mean_interval(differences, -1.0, 1.0, confidence)
    return *_extended_to_zero(low, high, p, confidence), p


def paired_mean_p_values(differences_SN: np.ndarray, flips: int = FLIPS) -> np.ndarray:
    """Two-sided p-values, shape (S,), of the hypothesis that two systems are equally good on average.

    The larger of two: that of ``sign_flip_p_values``, which is exact if the outputs of the two systems could be swapped
    in each example, and that of ``mean_p_values``, which only asks for a mean difference of 0, so that skewed
    differences do not pass for a gain.
    """
    return np.maximum(sign_flip_p_values(differences_SN, flips), mean_p_values(differences_SN, 0.0, -1.0, 1.0))


def sign_flip_p_values(differences_SN: np.ndarray, flips: int = FLIPS) -> np.ndarray:
    """Two-sided p-values of the sign-flip test of the mean difference, shape (S,) (Fisher 1935).

    Under the null hypothesis the outputs of the systems can be swapped in each example, so the signs of the differences
    are those of fair coins. Flips that give the same sum count as extreme. All flips are enumerated if at most 12
    differences are not 0; otherwise ``flips`` are drawn with a fixed seed, and p is (b + 1) / (flips + 1) (Phipson &
    Smyth 2010). Dividing by the standard error would change nothing: flips keep the sum of squares.
    """
    differences_SN = np.asarray(differences_SN, dtype=np.float64)
    few_S = (differences_SN != 0).sum(axis=1) <= ENUMERATED
    # The differences that are not 0 come first.
    nonzero_first = np.take_along_axis(differences_SN, np.argsort(differences_SN == 0, axis=1, kind="stable"), axis=1)
    p_S = np.empty(len(differences_SN))
    p_S[few_S] = _sign_flip_p_values(nonzero_first[few_S, :ENUMERATED], None)
    p_S[~few_S] = _sign_flip_p_values(differences_SN[~few_S], flips)
    return p_S


def _sign_flip_p_values(values_SK: np.ndarray, flips: int | None) -> np.ndarray:
    if len(values_SK) == 0:
        return np.empty(0)
    limits_S = np.abs(values_SK.sum(axis=1)) - ROUNDING
    counts_S = np.zeros(len(values_SK), dtype=np.int64)
    for signs_FK in _signs(values_SK.shape[1], flips, len(values_SK)):
        counts_S += (np.abs(values_SK @ signs_FK.T) >= limits_S[:, None]).sum(axis=1)
    return _p_value(counts_S, values_SK.shape[1], flips)


def _p_value(counts: Any, num_signs: int, flips: int | None) -> Any:
    """The p-value of how many flips are as extreme as the sample; ``flips`` is None if all were enumerated."""
    return counts / 2**num_signs if flips is None else (counts + 1) / (flips + 1)


def _signs(count: int, flips: int | None, num_rows: int = 1) -> Iterator[np.ndarray]:
    """Rows of ``count`` signs, in blocks of moderate size: all combinations, or ``flips`` drawn with a fixed seed."""
    total, generator = 2**count if flips is None else flips, np.random.default_rng(0)
    block = max(1, BLOCK // max(count, num_rows))
    for start in range(0, total, block):
        size = min(block, total - start)
        if flips is None:
            bits_FK = (np.arange(start, start + size)[:, None] >> np.arange(count)) & 1
        else:
            bits_FK = generator.integers(2, size=(size, count), dtype=np.int8)
        yield 2.0 * bits_FK - 1


def mean_p_values(values_SN: np.ndarray, mean: float, lowest: float, highest: float) -> np.ndarray:
    """Two-sided p-values, shape (S,), of the hypothesis that the mean is ``mean``, for values in [lowest, highest].

    With fewer than 30 values, or fewer than 6 that differ from the most common value, they are valid for every
    distribution: see ``_log_wealth``. Otherwise they are the larger of that of Student's t and that of t corrected for
    most of the skewness (Hall 1992, "On the removal of skewness by transformation").
    """
    values_SN = np.asarray(values_SN, dtype=np.float64)
    p_S, approximate_S = np.empty(len(values_SN)), _is_approximate(values_SN)
    rest_SN, many_SN = values_SN[~approximate_S], values_SN[approximate_S]
    wealth_S = np.maximum(_log_wealth(rest_SN - lowest, mean - lowest), _log_wealth(highest - rest_SN, highest - mean))
    p_S[~approximate_S] = np.minimum(1.0, 2 * np.exp(-wealth_S))
    if len(many_SN):
        error_S, skew_S = _standard_error_and_skew(many_SN)
        t_S = (many_SN.mean(axis=1) - mean) / error_S
        smaller = np.minimum(np.abs(t_S), np.abs(_without_skew(t_S, skew_S)))
        p_S[approximate_S] = 2 * t.sf(smaller, values_SN.shape[1] - 1)
    return p_S


def _is_approximate(values_SN: np.ndarray) -> np.ndarray:
    """Whether the approximation by t may be used, for each sample."""
    count = values_SN.shape[1] - DIFFERENT_VALUES
    if values_SN.shape[1] < LARGE_SAMPLE:
        return np.zeros(len(values_SN), dtype=bool)
    # A value that occurs more than `count` times spans a run of the sorted values.
    ordered = np.sort(values_SN.round(12), axis=1)
    return ~(ordered[:, count:] == ordered[:, :DIFFERENT_VALUES]).any(axis=1)


def _log_wealth(values_SN: np.ndarray, mean: float) -> np.ndarray:
    """Log of what bets against "the mean of these values >= 0 is at most ``mean`` > 0" have made of 1, shape (S,).

    A bet of share b turns wealth w into w (1 - b + b x / mean) at a value x; the result is the average of four
    players, who bet 1/4, 1/2, 3/4 and all of their wealth each time. Under the hypothesis the expected wealth is at
    most 1, so it exceeds 1 / p with probability at most p (Markov's inequality; Waudby-Smith & Ramdas 2024, "Estimating
    means of bounded random variables by betting").
    """
    with np.errstate(divide="ignore"):  # a player who loses everything
        logs = [np.log(1 - bet + bet * values_SN / mean).sum(axis=1) for bet in BETS]
    return logsumexp(logs, axis=0) - math.log(len(BETS))


def _betting_interval(values: np.ndarray, lowest: float, highest: float, confidence: float) -> tuple[float, float]:
    low = lowest + _smallest_mean(values - lowest, highest - lowest, confidence)
    return low, highest - _smallest_mean(highest - values, highest - lowest, confidence)


def _smallest_mean(values: np.ndarray, highest: float, confidence: float) -> float:
    """The smallest mean of values in [0, highest] that the bets do not reject, by bisection (wealth falls with it)."""
    rejected, kept = 0.0, float(values.mean())
    while kept - rejected > 1e-6 * highest:
        middle = (rejected + kept) / 2
        if _log_wealth(values[None], middle)[0] >= math.log(2 / (1 - confidence)):
            rejected = middle
        else:
            kept = middle
    return rejected


def _t_interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """The smallest interval that contains Student's interval and the one corrected for skewness."""
    error, skew = (float(part[0]) for part in _standard_error_and_skew(values[None]))
    quantile = float(t.isf((1 - confidence) / 2, len(values) - 1))
    # The inverse of _without_skew.
    high, low = (
        3 / skew * (np.cbrt(1 + skew * (q - skew / 6)) - 1) if abs(skew) > 1e-6 else q for q in (quantile, -quantile)
    )
    mean = float(values.mean())
    return mean - error * max(high, quantile), mean - error * min(low, -quantile)


def _standard_error_and_skew(values_SN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The standard error of the mean, and the skewness to correct, divided by the square root of their number."""
    num_values = values_SN.shape[1]
    centered_SN = values_SN - values_SN.mean(axis=1, keepdims=True)
    variance_S = (centered_SN**2).mean(axis=1)
    skew_S = (centered_SN**3).mean(axis=1) / variance_S**1.5
    return np.sqrt(variance_S / (num_values - 1)), SKEW_CORRECTION * skew_S / np.sqrt(num_values)


def _without_skew(t_S: np.ndarray, skew_S: np.ndarray) -> np.ndarray:
    """Hall's cubic transformation of t, whose distribution is closer to a symmetric one."""
    return t_S + skew_S * t_S**2 / 3 + skew_S**2 * t_S**3 / 27 + skew_S / 6


# ---- Macro-F1 --------------------------------------------------------------------------------------------------------


def macro_f1_interval(expected_N: np.ndarray, answered_N: np.ndarray, num_labels: int) -> tuple[float, float] | None:
    """95 % interval of macro-F1, by the delta method on the logit scale; None on too few examples.

    Labels are numbers below ``num_labels``; an answer of ``num_labels`` is none of them. The interval needs 30
    examples, 10 of each label that occurs, and 5 wrong answers: with fewer, the approximation fails.
    """
    num_examples, wrong = len(expected_N), int((expected_N != answered_N).sum())
    right_L, expected_L, answered_L = _label_counts(expected_N, answered_N, num_labels)
    occurring_L = expected_L + answered_L > 0
    if num_examples < LARGE_SAMPLE or wrong < WRONG_ANSWERS or expected_L[occurring_L].min() < LABEL_SUPPORT:
        return None
    weight_L = occurring_L / np.maximum(expected_L + answered_L, 1) / occurring_L.sum()
    f1_L = 2 * right_L / np.maximum(expected_L + answered_L, 1)
    value = f1_L.sum() / occurring_L.sum()
    if not 0 < value < 1:
        return None
    # What one more example like this one would add to macro-F1, times the number of examples.
    loss_L, gain_L = np.append(weight_L * f1_L, 0.0), np.append(2 * weight_L, 0.0)
    influence_N = gain_L[expected_N] * (expected_N == answered_N) - loss_L[expected_N] - loss_L[answered_N]
    error = np.sqrt(num_examples) * influence_N.std(ddof=1)
    logit, half = math.log(value / (1 - value)), t.isf((1 - CONFIDENCE) / 2, num_examples - 1)
    half *= error / (value * (1 - value))
    return float(expit(logit - half)), float(expit(logit + half))


def macro_f1_p_value(
    expected_N: np.ndarray, a_N: np.ndarray, b_N: np.ndarray, num_labels: int, flips: int = FLIPS
) -> float:
    """Two-sided p-value of the difference in macro-F1 of two systems: their answers are swapped example by example.

    Labels as in ``macro_f1_interval``. Exact under the null hypothesis that the two answers to each example could be
    swapped; swaps are enumerated or drawn like the flips of ``sign_flip_p_values``.
    """
    differing = a_N != b_N
    expected_K, a_K, b_K = expected_N[differing], a_N[differing], b_N[differing]
    count, labels = len(expected_K), num_labels + 1
    drawn = None if count <= ENUMERATED else flips
    # How a swap changes the counts of system a; those of b change the other way.
    right_KL, answered_KL = np.zeros((count, labels)), np.zeros((count, labels))
    right_KL[np.arange(count), expected_K] = (b_K == expected_K).astype(float) - (a_K == expected_K)
    answered_KL[np.arange(count), b_K] += 1
    answered_KL[np.arange(count), a_K] -= 1
    changes = right_KL[:, :num_labels], answered_KL[:, :num_labels]
    counts_a, counts_b = (_label_counts(expected_N, answers_N, num_labels) for answers_N in (a_N, b_N))

    def differences(swapped_FK: np.ndarray) -> np.ndarray:
        right_FL, answered_FL = (swapped_FK @ change for change in changes)
        scores = (
            _macro_f1(right_L + sign * right_FL, expected_L + answered_L + sign * answered_FL)
            for (right_L, expected_L, answered_L), sign in ((counts_b, -1), (counts_a, 1))
        )
        return np.abs(next(scores) - next(scores))

    limit = differences(np.zeros((1, count)))[0] - ROUNDING
    blocks = _signs(count, drawn, num_labels)
    extreme = sum(int((differences((signs_FK + 1) / 2) >= limit).sum()) for signs_FK in blocks)
    return float(_p_value(extreme, count, drawn))


def _macro_f1(right_L: np.ndarray, occurrences_L: np.ndarray) -> np.ndarray:
    """Mean F1 of the labels that occur, over the last axis."""
    f1_L = np.where(occurrences_L > 0, 2 * right_L / np.maximum(occurrences_L, 1), 0.0)
    return f1_L.sum(axis=-1) / (occurrences_L > 0).sum(axis=-1)


def _label_counts(
    expected_N: np.ndarray, answered_N: np.ndarray, num_labels: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How often each label is answered correctly, is expected, and is answered."""
    chosen = (expected_N[expected_N == answered_N], expected_N, answered_N)
    right_L, expected_L, answered_L = (np.bincount(labels, minlength=num_labels + 1)[:num_labels] for labels in chosen)
    return right_L, expected_L, answered_L
