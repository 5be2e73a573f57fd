"""How often the intervals and tests of the report are wrong, by simulation: results/significance.json.

``python benchmarks/significance.py`` draws 20,000 samples for every cell and takes about 20 minutes on one core;
``--table`` prints the recorded results as the tables of docs/statistics-simulation.md.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from common import RESULTS, provenance, save, versions
from scipy.stats import t as student

from loratory.metrics.significance import (
    FLIPS,
    macro_f1_interval,
    macro_f1_p_value,
    mcnemar_exact,
    mean_interval,
    mean_p_values,
    paired_difference_interval,
    paired_mean_p_values,
    proportion_interval,
)

SIZES = (5, 8, 12, 20, 30, 50, 100, 200, 500)
POWER_SIZES = (100, 300)
DRAWS = 20_000
WIDTHS = 300  # draws whose intervals are computed in full, for the mean width
MACRO_SWAPS = 199  # drawn swaps a test; it is valid for any number
LEVEL = 0.05
RESULT = RESULTS / "significance.json"
Sampler = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


# ---- Distributions ---------------------------------------------------------------------------------------------------


def values(*pairs: tuple[float, float]) -> Sampler:
    """Draws from a discrete distribution, given as pairs of value and probability."""
    numbers, shares = zip(*pairs, strict=True)
    return lambda g, shape: np.array(numbers)[np.searchsorted(np.cumsum(shares)[:-1], g.random(shape), side="right")]


def scores(a: float, b: float) -> Sampler:
    return lambda g, shape: g.beta(a, b, shape)


def minus(one: Sampler, other: Sampler) -> Sampler:
    return lambda g, shape: one(g, shape) - other(g, shape)


def sometimes(share: float, sampler: Sampler) -> Sampler:
    """0, except in this share of the draws."""
    return lambda g, shape: np.where(g.random(shape) < share, sampler(g, shape), 0.0)


def with_gains(sampler: Sampler, share: float) -> Sampler:
    """In this share of the examples, a loss becomes a gain of the same size."""

    def draw(g: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        differences = sampler(g, shape)
        return np.where(g.random(shape) < share, np.abs(differences), differences)

    return draw


SKEWED = minus(scores(0.5, 1.5), scores(2, 6))
# Differences of two systems that are equally good on average.
PAIRS: dict[str, Sampler] = {
    "symmetric": minus(scores(4, 4), scores(4, 4)),
    "skewed": SKEWED,
    "small gains, rare large losses": values((0.1, 0.8), (-0.4, 0.2)),
    "three scores": minus(values((0, 0.3), (0.5, 0.4), (1, 0.3)), values((0, 0.3), (0.5, 0.4), (1, 0.3))),
    "different scores": minus(values((0, 0.2), (2 / 3, 0.6), (1, 0.2)), values((0, 0.3), (0.5, 0.2), (1, 0.5))),
    "60 % ties": sometimes(0.4, values((-0.5, 0.25), (-0.25, 0.25), (0.25, 0.25), (0.5, 0.25))),
    "70 % zeros, skewed": sometimes(0.3, SKEWED),
    "90 % zeros": sometimes(0.1, minus(scores(1, 1), scores(1, 1))),
    "rare successes": minus(sometimes(0.05, scores(2, 2)), sometimes(0.05, scores(2, 2))),
}
# One answer in 21 loses everything that the others gain, which a small sample often does not show.
BEYOND = "one total loss in 21"


def total_losses(g: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return np.where(g.random(shape) < 1 / 21, -1.0, g.random(shape) / 10)


# Scores of one system, and their means.
SYSTEMS: dict[str, tuple[Sampler, float]] = {
    "ROUGE-like": (scores(2, 6), 0.25),
    "all or nothing": (scores(0.3, 0.3), 0.5),
    "mostly low": (scores(0.3, 3), 1 / 11),
    "80 % zeros": (sometimes(0.2, scores(2, 2)), 0.1),
    "95 % zeros": (sometimes(0.05, scores(2, 2)), 0.025),
    "set F1": (values((0, 0.1), (0.5, 0.1), (2 / 3, 0.2), (1, 0.6)), 0.05 + 0.4 / 3 + 0.6),
    "95 % perfect": (lambda g, shape: 1 - sometimes(0.05, scores(2, 2))(g, shape), 0.975),
}
PROPORTIONS = (0.02, 0.1, 0.5, 0.9)
# Shares of the examples that only a, and only b, answers correctly.
DISCORDANT = ((0.01, 0.01), (0.1, 0.1), (0.4, 0.4), (0.0, 0.05), (0.1, 0.2))
# Shares of the labels, and how often each is answered correctly; wrong answers are spread over the other labels.
LABELS = {
    "10 / 90 %": ((0.1, 0.9), (0.6, 0.95)),
    "60 / 30 / 10 %": ((0.6, 0.3, 0.1), (0.9, 0.7, 0.4)),
    "six labels": ((0.3, 0.2, 0.2, 0.1, 0.1, 0.1), (0.8, 0.7, 0.6, 0.6, 0.5, 0.4)),
}


# ---- Cells -----------------------------------------------------------------------------------------------------------


def simulate(draws: int, sizes: tuple[int, ...], flips: int = FLIPS) -> Iterator[dict[str, Any]]:
    """The cells of the table, one by one."""
    for name, sampler in PAIRS.items():
        for size in sizes:
            yield graded_pair(name, sampler, size, draws, flips)
    for size in sizes:
        yield graded_pair(BEYOND, total_losses, size, draws, flips)
    for name, (sampler, mean) in SYSTEMS.items():
        for size in sizes:
            yield graded_system(name, sampler, mean, size, draws)
    for size in sizes:
        yield from (proportion(share, size, draws) for share in PROPORTIONS)
        yield from (discordant(only_a, only_b, size, draws) for only_a, only_b in DISCORDANT)
        yield from (macro_f1(name, size, draws) for name in LABELS)


def graded_pair(name: str, sampler: Sampler, size: int, draws: int, flips: int) -> dict[str, Any]:
    """False positives of the test under the null hypothesis, and coverage with and without a true difference."""
    g = np.random.default_rng(size)
    null = sampler(g, (draws, size))
    p_null = paired_mean_p_values(null, flips)
    improved = with_gains(sampler, 0.4)
    difference = float(improved(np.random.default_rng(1), (max(1, draws // 20), 4000)).mean())
    shifted = improved(g, (draws, size))
    within = mean_p_values(shifted, difference, -1.0, 1.0) >= LEVEL
    return {
        "metric": "graded, two systems", "name": name, "n": size,
        "false_positives": rate(p_null < LEVEL),
        "t_test": rate(t_test(null) < LEVEL),
        # The interval contains 0 exactly if p is not below 0.05.
        "coverage": rate(np.append(p_null >= LEVEL, within)),
        "width": width(mean_interval(row, -1.0, 1.0) for row in null[: min(WIDTHS, draws // 50)]),
    }  # fmt: skip


def graded_system(name: str, sampler: Sampler, mean: float, size: int, draws: int) -> dict[str, Any]:
    sample = sampler(np.random.default_rng(size), (draws, size))
    return {
        "metric": "graded, one system", "name": name, "n": size,
        "coverage": rate(mean_p_values(sample, mean, 0.0, 1.0) >= LEVEL),
        "width": width(mean_interval(row, 0.0, 1.0) for row in sample[: min(WIDTHS, draws // 50)]),
    }  # fmt: skip


def proportion(share: float, size: int, draws: int) -> dict[str, Any]:
    successes = np.random.default_rng(size).binomial(size, share, draws)
    limits = np.array([proportion_interval(k, size) for k in range(size + 1)])[successes]
    return {
        "metric": "right or wrong, one system", "name": f"{share:.0%} right", "n": size,
        "coverage": rate((limits[:, 0] <= share) & (share <= limits[:, 1])), "width": width(limits),
    }  # fmt: skip


def discordant(only_a: float, only_b: float, size: int, draws: int) -> dict[str, Any]:
    shares = (only_a, only_b, 1 - only_a - only_b)
    counts = np.random.default_rng(size).multinomial(size, shares, draws)[:, :2]
    tables, which = np.unique(counts, axis=0, return_inverse=True)
    limits = np.array([paired_difference_interval(int(a), int(b), size) for a, b in tables])[which]
    p_values = np.array([mcnemar_exact(int(a), int(b)) for a, b in tables])[which]
    difference = only_b - only_a
    cell = {
        "metric": "right or wrong, two systems", "name": f"only one right: {only_a:.0%}, {only_b:.0%}", "n": size,
        "coverage": rate((limits[:, 0] <= difference + 1e-12) & (difference - 1e-12 <= limits[:, 1])),
        "width": width(limits),
    }  # fmt: skip
    return cell | ({"false_positives": rate(p_values < LEVEL)} if difference == 0 else {})


def macro_f1(name: str, size: int, draws: int) -> dict[str, Any]:
    """Two systems that answer alike; coverage over the draws with enough examples for an interval."""
    table, g = answer_table(*LABELS[name]), np.random.default_rng(size)
    shares, num_labels = table.sum(axis=1), len(table)
    true = float(np.mean(2 * np.diag(table) / (shares + table.sum(axis=0))))
    cumulated = np.cumsum(table / shares[:, None], axis=1)
    cumulated[:, -1] = 1.0
    false_positives, covered, widths = 0, 0, []
    for _ in range(draws):
        expected = g.choice(num_labels, size, p=shares)
        a, b = ((g.random(size)[:, None] > cumulated[expected]).sum(axis=1) for _ in range(2))
        false_positives += macro_f1_p_value(expected, a, b, num_labels, MACRO_SWAPS) < LEVEL
        interval = macro_f1_interval(expected, a, num_labels)
        if interval:
            covered += interval[0] <= true <= interval[1]
            widths.append(interval[1] - interval[0])
    # Coverage is not estimated where an interval is a rare exception.
    enough = len(widths) >= draws / 20
    return {
        "metric": "macro-F1, two systems", "name": name, "n": size, "false_positives": false_positives / draws,
        "given": len(widths) / draws,
        **({"coverage": covered / len(widths), "width": float(np.mean(widths))} if enough else {}),
    }  # fmt: skip


def answer_table(shares: tuple[float, ...], right: tuple[float, ...]) -> np.ndarray:
    """Probability of each expected label (row) and answer (column)."""
    table = np.array([[(1 - r) * other / (1 - own) for other in shares] for own, r in zip(shares, right, strict=True)])
    np.fill_diagonal(table, right)
    return table * np.array(shares)[:, None]


def power(name: str, sampler: Sampler, size: int, draws: int, flips: int = FLIPS) -> dict[str, Any]:
    """Power of the test where that of the paired t-test is about 0.8."""
    low, high = 0.0, 1.0
    for _ in range(12):
        share = (low + high) / 2
        found = rate(t_test(with_gains(sampler, share)(np.random.default_rng(2), (4000, size))) < LEVEL)
        low, high = (share, high) if found < 0.8 else (low, share)
    sample = with_gains(sampler, share)(np.random.default_rng(3), (draws, size))
    own, reference = rate(paired_mean_p_values(sample, flips) < LEVEL), rate(t_test(sample) < LEVEL)
    return {"name": name, "n": size, "t_test": reference, "power": own, "ratio": round(own / reference, 4)}


def t_test(differences_SN: np.ndarray) -> np.ndarray:
    """Two-sided p-values of the paired t-test; 1 if all differences are 0."""
    num = differences_SN.shape[1]
    mean, deviation = differences_SN.mean(axis=1), differences_SN.std(axis=1, ddof=1)
    statistic = np.divide(
        np.abs(mean) * np.sqrt(num), deviation, out=np.where(mean == 0, 0.0, np.inf), where=deviation > 1e-12
    )
    return 2 * student.sf(statistic, num - 1)


def rate(flags: np.ndarray) -> float:
    return round(float(np.mean(flags)), 5)


def width(intervals: Any) -> float:
    return round(float(np.mean([high - low for low, high in intervals])), 4)


# ---- Tables ----------------------------------------------------------------------------------------------------------


def tables(result: dict[str, Any]) -> str:
    """The recorded results in Markdown, as docs/statistics-simulation.md shows them."""
    blocks = []
    for metric in dict.fromkeys(cell["metric"] for cell in result["cells"]):
        cells = [cell for cell in result["cells"] if cell["metric"] == metric]
        sizes = sorted({cell["n"] for cell in cells})
        for key, heading in (
            ("false_positives", "false positives at 0.05, in %"),
            ("coverage", "coverage of the 95 % interval, in %"),
            ("width", "mean width of the interval, in points"),
        ):
            rows = {
                name: {cell["n"]: cell[key] for cell in cells if cell["name"] == name and key in cell}
                for name in dict.fromkeys(cell["name"] for cell in cells)
            }
            rows = {name: row for name, row in rows.items() if row}
            if rows:
                lines = [
                    [name, *(f"{100 * row[n]:.1f}" if n in row else "–" for n in sizes)] for name, row in rows.items()
                ]
                blocks.append(markdown([f"{metric}: {heading}", *map(str, sizes)], lines))
    lines = [
        [c["name"], str(c["n"]), *(f"{100 * c[key]:.1f}" for key in ("t_test", "power", "ratio"))]
        for c in result["power"]
    ]
    blocks.append(markdown(["power, in %", "n", "paired t-test", "this test", "ratio"], lines))
    return "\n".join(blocks)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--table", action="store_true", help="print the recorded results as tables")
    flags = parser.parse_args()
    if flags.table:
        print(tables(json.loads(RESULT.read_text(encoding="utf-8"))), end="")
        return
    cells = []
    for cell in simulate(flags.draws, SIZES):
        cells.append(cell)
        print(json.dumps(cell), flush=True)
    powers = [power(name, sampler, size, flags.draws) for size in POWER_SIZES for name, sampler in PAIRS.items()]
    settings = {
        "draws": flags.draws,
        "flips": FLIPS,
        "macro_f1_swaps": MACRO_SWAPS,
        "versions": versions("numpy", "scipy"),
    }
    save(provenance("significance") | settings | {"cells": cells, "power": powers}, RESULT)


if __name__ == "__main__":
    main()
