"""Confidence intervals and paired tests: their properties, known values, and how often they are wrong."""

import itertools
import json
import math

import numpy as np
import pytest
import significance as simulation
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, bootstrap, multinomial, permutation_test
from sklearn.metrics import f1_score

from loratory.metrics.power import detectable_difference, examples_needed, mcnemar_power
from loratory.metrics.significance import (
    holm,
    macro_f1_interval,
    macro_f1_p_value,
    mcnemar_exact,
    mean_interval,
    mean_p_values,
    paired_difference_interval,
    paired_mean_interval,
    paired_mean_p_values,
    proportion_interval,
    sign_flip_p_values,
)

counts = st.integers(0, 400)
p_lists = st.lists(st.floats(0, 1), max_size=8)
differences = st.lists(st.sampled_from([-1, -0.5, -0.1, 0, 0, 0.1, 0.5, 2 / 3, 1]), min_size=1, max_size=60)


# ---- right or wrong answers ------------------------------------------------------------------------------------------


@given(counts, counts)
def test_proportion_interval_contains_the_proportion_and_stays_in_range(successes, failures):
    low, high = proportion_interval(successes, successes + failures)
    share = successes / (successes + failures) if successes + failures else 0.5
    assert 0 <= low <= share <= high <= 1


def test_proportion_interval_has_tails_of_2_5_percent():
    low, high = proportion_interval(10, 50)
    assert binom.sf(9, 50, low) == pytest.approx(0.025) and binom.cdf(10, 50, high) == pytest.approx(0.025)
    assert proportion_interval(0, 0) == (0, 1)


def test_higher_confidence_gives_wider_intervals():
    values = np.random.default_rng(0).random(100)
    for interval in (
        lambda confidence: proportion_interval(30, 100, confidence),
        lambda confidence: paired_difference_interval(3, 12, 100, confidence),
        lambda confidence: mean_interval(values, 0.0, 1.0, confidence),
        lambda confidence: mean_interval(values[:20], 0.0, 1.0, confidence),
    ):
        narrow, wide = interval(0.8), interval(0.99)
        assert wide[0] < narrow[0] < narrow[1] < wide[1]


@given(counts, counts)
def test_mcnemar_is_symmetric(only_a, only_b):
    p = mcnemar_exact(only_a, only_b)
    assert 0 <= p <= 1 and p == pytest.approx(mcnemar_exact(only_b, only_a))


def test_mcnemar_equals_the_binomial_test():
    assert mcnemar_exact(0, 0) == 1
    assert mcnemar_exact(0, 5) == pytest.approx(2 / 2**5)
    assert mcnemar_exact(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)


@given(counts, counts, counts)
def test_paired_interval_contains_the_difference_and_is_antisymmetric(only_a, only_b, same):
    total = only_a + only_b + same + 1
    low, high = paired_difference_interval(only_a, only_b, total)
    assert -1 <= low <= (only_b - only_a) / total <= high <= 1 and low < high
    assert paired_difference_interval(only_b, only_a, total) == pytest.approx((-high, -low))


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 400))
def test_paired_interval_contains_zero_exactly_if_mcnemars_test_is_not_significant(only_a, only_b, same):
    low, high = paired_difference_interval(only_a, only_b, only_a + only_b + same + 1)
    assert (low <= 0 <= high) == (mcnemar_exact(only_a, only_b) >= 0.05)


def test_paired_interval_where_all_pairs_differ_is_twice_that_of_the_proportion():
    low, high = proportion_interval(12, 15)
    found = paired_difference_interval(3, 12, 15)
    assert found == pytest.approx((2 * low - 1, 2 * high - 1), abs=0.02)


@pytest.mark.parametrize("size", [5, 8, 12, 20, 29])
def test_paired_interval_covers_95_percent_by_enumeration_of_all_tables(size):
    tables = [(a, b) for a in range(size + 1) for b in range(size + 1 - a)]
    low, high = np.array([paired_difference_interval(a, b, size) for a, b in tables]).T
    cells = np.array([(a, b, size - a - b) for a, b in tables])
    for only_a, only_b in itertools.product([0, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5], [0.02, 0.05, 0.1, 0.2, 0.35, 0.5]):
        within = (low <= only_b - only_a + 1e-12) & (only_b - only_a - 1e-12 <= high)
        weights = multinomial.pmf(cells, size, [only_a, only_b, 1 - only_a - only_b])
        assert weights[within].sum() >= 0.95, (only_a, only_b)


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


# ---- graded scores ---------------------------------------------------------------------------------------------------


def test_five_pairs_are_never_significant():
    assert sign_flip_p_values(np.full((1, 5), 0.5)) == 2 / 2**5
    for values in (np.full(5, 0.9), np.linspace(0.2, 0.9, 5)):
        low, high, p = paired_mean_interval(values)
        assert p > 0.05 and low <= 0 < values.mean() < high


@given(differences)
def test_sign_flip_test_counts_all_flips_and_ties(values):
    values = values[:9]
    sums = [abs(np.dot(signs, values)) for signs in itertools.product([-1, 1], repeat=len(values))]
    share = np.mean(np.array(sums) >= abs(sum(values)) - 1e-9)
    assert sign_flip_p_values(np.array([values], dtype=float)) == pytest.approx(share)


def test_sign_flip_test_agrees_with_scipy():
    values = np.random.default_rng(3).normal(0.25, 1, size=40)
    reference = permutation_test((values,), np.mean, permutation_type="samples", n_resamples=20_000, rng=0)
    assert sign_flip_p_values(values[None])[0] == pytest.approx(reference.pvalue, abs=0.015)
    assert sign_flip_p_values(np.full((1, 40), 0.1)) == 1 / 10_000, "drawn flips never give a p-value of 0"


@given(differences)
def test_paired_interval_of_graded_scores_agrees_with_its_p_value_and_is_antisymmetric(values):
    values = np.array(values)
    low, high, p = paired_mean_interval(values)
    assert -1 <= low <= values.mean() + 1e-9 and values.mean() - 1e-9 <= high <= 1 and 0 < p <= 1
    assert (low <= 0 <= high) == (p >= 0.05)
    assert paired_mean_interval(-values) == pytest.approx((-high, -low, p))


@pytest.mark.parametrize("size", [12, 29, 30, 200])
def test_the_interval_of_a_mean_inverts_the_test(size):
    values = np.random.default_rng(size).beta(0.5, 2, size)
    limits = mean_interval(values, 0.0, 1.0)
    assert [mean_p_values(values[None], limit, 0.0, 1.0)[0] for limit in limits] == pytest.approx([0.05] * 2, rel=1e-3)


def test_the_interval_of_a_mean_is_close_to_the_bootstrap_if_there_are_many_values():
    values = np.random.default_rng(1).beta(2, 6, 400)
    reference = bootstrap((values,), np.mean, method="BCa", rng=0).confidence_interval
    assert mean_interval(values, 0.0, 1.0) == pytest.approx(tuple(reference), abs=0.003)


def test_intervals_of_extreme_scores():
    for size in (1, 5, 29, 30, 1000):
        low, high = mean_interval(np.ones(size), 0.0, 1.0)
        assert 0 < low < 1 == high
        low, high = mean_interval(np.zeros(size), 0.0, 1.0)
        assert low == 0 < high < 1


def test_skewed_differences_are_no_gain_just_because_the_rare_losses_were_not_seen():
    # Eight gains of 0.1 say nothing about a loss of 0.4 in one example of five.
    values = np.full((1, 8), 0.1)
    assert sign_flip_p_values(values) < 0.05 < paired_mean_p_values(values)


# ---- macro-F1 --------------------------------------------------------------------------------------------------------


def answers(seed, size=60, labels=3, right=0.6):
    generator = np.random.default_rng(seed)
    expected = generator.choice(labels, size, p=np.arange(1, labels + 1) / (labels * (labels + 1) / 2))
    guesses = generator.integers(labels + 1, size=(2, size))
    return expected, *np.where(generator.random((2, size)) < right, expected, guesses)


def macro_f1(expected, answered, labels=3):
    occurring = sorted({*expected.tolist(), *answered.tolist()} & set(range(labels)))
    return f1_score(expected, answered, labels=occurring, average="macro", zero_division=0)


@pytest.mark.parametrize("seed", range(3))
def test_macro_f1_test_swaps_the_answers_of_the_two_systems(seed):
    expected, a, b = answers(seed, size=6)
    found = []
    for swap in itertools.product([False, True], repeat=6):
        one, other = np.where(swap, b, a), np.where(swap, a, b)
        found.append(abs(macro_f1(expected, other) - macro_f1(expected, one)))
    share = np.mean(np.array(found) >= found[0] - 1e-9)
    assert macro_f1_p_value(expected, a, b, 3) == pytest.approx(share)


def test_macro_f1_test_is_symmetric_and_sees_a_large_difference():
    expected, a, b = answers(0, size=200)
    assert macro_f1_p_value(expected, a, b, 3) == macro_f1_p_value(expected, b, a, 3) > 0.05
    assert macro_f1_p_value(expected, a, expected, 3) < 0.001
    assert macro_f1_p_value(expected, a, a, 3) == 1


def test_macro_f1_interval_is_close_to_the_bootstrap():
    expected, a, _ = answers(2, size=300)
    low, high = macro_f1_interval(expected, a, 3)
    reference = bootstrap((expected, a), macro_f1, paired=True, vectorized=False, n_resamples=400, rng=0)
    assert (low, high) == pytest.approx(tuple(reference.confidence_interval), abs=0.02)
    assert low < macro_f1(expected, a) < high


def test_no_macro_f1_interval_on_few_examples_or_errors():
    expected, a, _ = answers(2, size=300)
    assert macro_f1_interval(expected[:29], a[:29], 3) is None
    assert macro_f1_interval(expected, expected, 3) is None, "no error was seen"
    assert macro_f1_interval(np.append(expected, 3), np.append(a, 3), 4) is None, "a label with one example"


# ---- how many examples are needed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [6, 18, 43, 78, 300])
def test_a_detectable_difference_is_the_smallest_with_enough_power(count):
    found = detectable_difference(count)
    # In the best case, n examples show a difference if the better system alone is right on at least six of them.
    assert found is not None and binom.sf(5, count, found) >= 0.8 > binom.sf(5, count, found - 0.01)
    assert detectable_difference(5) is None


def test_mcnemar_power_by_simulation():
    generator = np.random.default_rng(0)
    tables = generator.multinomial(120, [0.15, 0.3, 0.55], size=2000)
    found = np.mean([mcnemar_exact(a, b) < 0.05 for a, b, _ in tables.tolist()])
    assert mcnemar_power(0.45, 0.15, 120) == pytest.approx(found, abs=0.03)


def test_more_disagreement_needs_more_examples():
    few, many = np.repeat([1.0, -1.0, 0.0], [6, 4, 90]), np.repeat([1.0, -1.0, 0.0], [30, 30, 40])
    assert 80 < examples_needed(few, True) < 120 < 450 < examples_needed(many, True) < 600
    assert mcnemar_power(61 / 101, 0.1, examples_needed(many, True)) == pytest.approx(0.8, abs=0.01)
    assert 30 <= examples_needed(few / 4, False) < examples_needed(many / 2, False)
    # Four examples of equal difference do not prove that the variance is 0.
    assert examples_needed(np.full(4, 0.3), False) > 30 and examples_needed(np.zeros(4), True) > 150


def test_graded_scores_need_as_many_examples_as_the_formula_says():
    values = np.repeat([0.3, -0.3], 500)
    assert examples_needed(values, False) == pytest.approx((1.96 + 0.8416) ** 2 * 0.09 / 0.01, abs=4)


# ---- how often they are wrong ----------------------------------------------------------------------------------------


def check(cells, power, slack):
    """The promises of docs/statistics.md, up to the random error of a simulation."""
    assert cells and power
    for cell in cells:
        if cell["name"] != simulation.BEYOND:
            assert cell.get("false_positives", 0) <= 0.055 + slack, cell
            assert cell["n"] < 30 or cell.get("coverage", 1) >= 0.93 - slack, cell
            assert cell["n"] >= 30 or cell.get("coverage", 1) >= 0.95 - slack, cell
    for cell in power:
        assert cell["ratio"] >= 0.95 - slack, cell


def test_a_sample_of_the_simulation_keeps_the_promises():
    names = ("skewed", "60 % ties", "90 % zeros")
    pairs = [
        simulation.graded_pair(name, simulation.PAIRS[name], size, 500, flips=299) for name in names for size in (8, 30)
    ]
    others = [simulation.macro_f1("60 / 30 / 10 %", 50, 200), simulation.discordant(0.1, 0.1, 50, 1000)]
    power = [simulation.power("skewed", simulation.PAIRS["skewed"], 100, 800, flips=299)]
    check([*pairs, *others], power, slack=0.04)


@pytest.mark.slow
def test_the_simulation_keeps_the_promises():
    cells = list(simulation.simulate(4000, (5, 12, 30, 100)))
    power = [simulation.power(name, sampler, 100, 4000) for name, sampler in simulation.PAIRS.items()]
    check(cells, power, slack=3 * math.sqrt(0.05 * 0.95 / 4000))


def test_the_recorded_simulation_keeps_the_promises():
    result = json.loads(simulation.RESULT.read_text(encoding="utf-8"))
    assert result["draws"] >= 20_000 and {cell["n"] for cell in result["cells"]} == set(simulation.SIZES)
    check(result["cells"], result["power"], slack=0)


def test_the_page_shows_the_recorded_tables():
    result = json.loads(simulation.RESULT.read_text(encoding="utf-8"))
    page = (simulation.RESULT.parents[2] / "docs" / "statistics-simulation.md").read_text(encoding="utf-8")
    assert simulation.tables(result) in page
