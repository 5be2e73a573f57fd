"""How many test examples a paired test needs to show a difference."""

import math

import numpy as np
from scipy.stats import binom, norm

from loratory.metrics.significance import LARGE_SAMPLE

LEVEL = 0.05
POWER = 0.8
DIFFERENCE = 0.1
"""The difference of two systems that a test set should be large enough to show."""
MOST_EXAMPLES = 2_000  # more than any discordance needs for a difference of 0.1


def examples_needed(differences: np.ndarray, is_binary: bool) -> int:
    """How many test examples would show a mean difference of 0.1 with a probability of 0.8, at a level of 0.05.

    ``differences``: the per-example differences of two systems, from which the variance is estimated. Because a few
    examples say little about it, one more is added: one on which the systems disagree if scores are right or wrong
    (McNemar's test), otherwise one that lies 0.5 from the mean (paired test of graded scores, at least 30 examples).
    """
    num_examples = len(differences)
    if is_binary:
        discordant = (np.count_nonzero(differences) + 1) / (num_examples + 1)
        return _smallest_with_power(max(discordant, DIFFERENCE))
    variance = (float(((differences - differences.mean()) ** 2).sum()) + 0.5**2) / num_examples
    quantiles = norm.isf(LEVEL / 2) + norm.isf(1 - POWER)
    # The last term corrects the normal approximation for the estimated variance.
    needed = quantiles**2 * variance / DIFFERENCE**2 + norm.isf(LEVEL / 2) ** 2 / 2
    return max(LARGE_SAMPLE, math.ceil(needed))


def detectable_difference(num_examples: int) -> float | None:
    """The smallest difference of two accuracies that can be shown with a probability of 0.8, at a level of 0.05.

    This is the best case, in which the worse system is never right where the better one is wrong (McNemar's test). In
    hundredths, rounded up; None if not even a difference of 1 could be significant.
    """
    differences = (percent / 100 for percent in range(1, 101))
    return next((d for d in differences if mcnemar_power(d, d, num_examples) >= POWER), None)


def _smallest_with_power(discordant: float) -> int:
    low, high = 1, MOST_EXAMPLES
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if mcnemar_power(discordant, DIFFERENCE, middle) >= POWER else (middle, high)
    return high


def mcnemar_power(discordant: float, difference: float, num_examples: int) -> float:
    """Power of the two-sided exact McNemar test at a level of 0.05.

    ``discordant``: probability that exactly one of the systems answers an example correctly; ``difference`` <=
    ``discordant``: difference of their accuracies.
    """
    pairs = np.arange(num_examples + 1)
    share = (1 + difference / discordant) / 2
    # The largest number of pairs for one system that is significant against it; -1 if there is none.
    limits = binom.ppf(LEVEL / 2, pairs, 0.5) - 1
    rejected = binom.cdf(limits, pairs, share) + binom.cdf(limits, pairs, 1 - share)
    return float((binom.pmf(pairs, num_examples, discordant) * rejected).sum())
