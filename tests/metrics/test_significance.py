"""Confidence intervals and paired tests: their properties, and known values."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratory.metrics.significance import (
    bootstrap_interval,
    holm,
    mcnemar_exact,
    paired_difference_interval,
    wilson_interval,
)

counts = st.integers(0, 400)
p_lists = st.lists(st.floats(0, 1), max_size=8)


@given(counts, counts)
def test_wilson_contains_the_proportion_and_stays_in_range(successes, failures):
    low, high = wilson_interval(successes, successes + failures)
    share = successes / (successes + failures) if successes + failures else 0.5
    assert 0 <= low <= share + 1e-12 and share - 1e-12 <= high <= 1


def test_wilson_against_its_formula():
    z, n, p = 1.959963984540054, 50, 0.2
    center, half = (
        (p + z * z / (2 * n)) / (1 + z * z / n),
        z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n),
    )
    assert wilson_interval(10, 50) == pytest.approx((center - half, center + half))
    assert wilson_interval(0, 0) == (0, 1)


def test_higher_confidence_gives_wider_intervals():
    narrow, wide = wilson_interval(30, 100, 0.8), wilson_interval(30, 100, 0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    narrow, wide = paired_difference_interval(3, 9, 100, 0.8), paired_difference_interval(3, 9, 100, 0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@given(counts, counts)
def test_mcnemar_is_symmetric(only_a, only_b):
    p = mcnemar_exact(only_a, only_b)
    assert 0 <= p <= 1 and p == pytest.approx(mcnemar_exact(only_b, only_a))


def test_mcnemar_equals_the_binomial_test():
    assert mcnemar_exact(0, 0) == 1
    assert mcnemar_exact(0, 5) == pytest.approx(2 / 2**5)
    assert mcnemar_exact(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)


@given(p_lists)
def test_holm_keeps_the_order_and_never_lowers_a_p_value(p_values):
    adjusted = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    assert all(
        adjusted[i] <= adjusted[j]
        for i, j in itertools.permutations(range(len(p_values)), 2)
        if p_values[i] < p_values[j]
    )


def test_holm_by_hand():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.6]) == [1, 1]
    assert holm([]) == []


@given(counts, counts, counts)
def test_paired_interval_contains_the_difference_and_is_antisymmetric(only_a, only_b, same):
    total = only_a + only_b + same + 1
    low, high = paired_difference_interval(only_a, only_b, total)
    assert -1 <= low <= (only_b - only_a) / total <= high <= 1 and low < high
    assert paired_difference_interval(only_b, only_a, total) == pytest.approx((-high, -low))


def test_paired_interval_by_hand():
    # The cells 10 and 40 of 100 become 10.5 and 40.5 of 102.
    half = 1.959963984540054 * np.sqrt(51 - 30**2 / 102) / 102
    assert paired_difference_interval(10, 40, 100) == pytest.approx((30 / 102 - half, 30 / 102 + half))


def test_bootstrap_of_a_mean_is_close_to_the_normal_interval():
    values = np.random.default_rng(1).normal(size=400)
    low, high = bootstrap_interval(np.mean, [values])
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert bootstrap_interval(np.mean, [values]) == (low, high), "the same seed gives the same interval"
    assert bootstrap_interval(np.mean, [values], seed=1) != (low, high)


def test_bootstrap_draws_the_same_rows_from_all_arrays():
    values = np.arange(50)
    assert bootstrap_interval(lambda a, b: float(np.abs(a - b).max()), [values, values], draws=50) == (0, 0)
