"""How the report shows numbers: as text, and as the geometry of pictures, which the page's template draws.

Positions are in percent of the picture, so that it can take any width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loratory.metrics import Number

POINTS = 120
LABELS_SHOWN = 20
OTHER_LABEL, NO_LABEL = "other label", "no label"
Points = Sequence[tuple[Number, Number]]


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its text, and where it is, in percent of the axis."""

    text: str
    percent: float


@dataclass(frozen=True)
class LossChart:
    """Loss (logarithmic) against optimizer step, as SVG paths in a box of 100 x 100 whose y axis points down."""

    training: str
    validation: str
    validation_dots: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    kept: Tick | None
    """The step whose parameters were kept."""
    steps_per_point: int
    description: str


@dataclass(frozen=True)
class Cell:
    """One count of a confusion matrix; ``share`` of its row in [0, 1]."""

    count: int
    share: float
    right: bool


@dataclass(frozen=True)
class ConfusionGrid:
    """A confusion matrix to be shown: rows are expected labels, columns are answers."""

    rows: list[tuple[str, list[Cell]]]
    columns: list[str]


def tick_values(top: Number, most: int = 5) -> list[float]:
    """At most ``most + 1`` round numbers from 0 to at least ``top`` > 0, evenly spaced by 1, 2 or 5 times 10^k."""
    rough = top / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [step * i for i in range(math.ceil(top / step - 1e-9) + 1)]


def log_ticks(low: Number, high: Number) -> list[float]:
    """Round numbers (1, 2, 5 times 10^k; beyond two decades 10^k) from at most ``low`` > 0 to at least ``high``."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    factors = (1, 2, 5) if high <= 100 * low else (1,)
    values = [factor * 10.0**k for k in decades for factor in factors]
    first = max(i for i, value in enumerate(values) if value <= low * (1 + 1e-9))
    last = min(i for i, value in enumerate(values) if value >= high * (1 - 1e-9) and i > first)
    return values[first : last + 1]


def loss_chart(training: Points, validation: Points, kept_step: int | None = None) -> LossChart | None:
    """The chart of ``(step, loss)`` pairs sorted by step; None where there is nothing to draw.

    The training loss of single steps is noise: each point is the mean of so many steps that about 120 points remain.
    A loss below a ten-thousandth of the largest is drawn there.
    """
    training = [(step, loss) for step, loss in training if math.isfinite(loss)]
    validation = [(step, loss) for step, loss in validation if math.isfinite(loss)]
    if not training:
        return None
    steps_per_point = math.ceil(len(training) / POINTS)
    groups = [np.array(training[i : i + steps_per_point]) for i in range(0, len(training), steps_per_point)]
    means = [(float(group[-1, 0]), float(group[:, 1].mean())) for group in groups]
    last_step = max(1, *(step for step, _ in [*means, *validation]))
    losses = [loss for _, loss in [*means, *validation]]
    lowest = max(losses) / 1e4 or 1.0
    y_values = log_ticks(max(min(losses), lowest), max(*losses, lowest))
    x_values = [v for v in tick_values(last_step) if v <= last_step and v == int(v)]

    def height(loss: Number) -> float:
        share = math.log(max(loss, y_values[0]) / y_values[0]) / math.log(y_values[-1] / y_values[0])
        return 100 - 100 * min(1.0, share)

    def placed(points: Points) -> list[str]:
        return [f"{100 * x / last_step:.2f} {height(y):.2f}" for x, y in points]

    text = f"Training loss goes from {means[0][1]:.3g} to {means[-1][1]:.3g} in {last_step:g} steps"
    if validation:
        text += f"; validation loss from {validation[0][1]:.3g} to {validation[-1][1]:.3g}"
    if kept_step is not None:
        text += f"; the parameters of step {kept_step} were kept"
    return LossChart(
        training="M" + " L".join(placed(means)),
        validation="M" + " L".join(placed(validation)) if len(validation) > 1 else "",
        # A path of no length with round ends is a dot that stays round when the box is stretched.
        validation_dots=" ".join(f"M{point} h0" for point in placed(validation)),
        x_ticks=[Tick(f"{value:g}", 100 * value / last_step) for value in x_values],
        y_ticks=[Tick(f"{value:.3g}", height(value)) for value in y_values],
        kept=None if kept_step is None else Tick(f"kept: step {kept_step}", 100 * min(1.0, kept_step / last_step)),
        steps_per_point=steps_per_point,
        description=text + ".",
    )


def labels_to_show(counts: Sequence[Sequence[Sequence[int]]], most: int = LABELS_SHOWN) -> list[int]:
    """Positions of at most ``most`` labels, in their order: those that take part in most errors, then the frequent.

    ``counts``: confusion matrices of the same L labels, L rows of L + 1 (see ``loratory.metrics.confusion``).
    """
    total = np.sum(np.array(counts), axis=0)
    square = total[:, :-1]
    right = np.diag(square)
    errors = (total.sum(axis=1) - right) + (square.sum(axis=0) - right)
    ranked = sorted(range(len(total)), key=lambda i: (-errors[i], -total[i].sum(), i))
    return sorted(ranked[:most])


def confusion_grid(counts: Sequence[Sequence[int]], labels: Sequence[str], shown: Sequence[int]) -> ConfusionGrid:
    """The matrix cut down to the labels ``shown``; the other labels' answers are one column, "other label"."""
    cut = len(shown) < len(labels)
    rows = []
    for i in shown:
        total = max(1, sum(counts[i]))
        values = [counts[i][j] for j in shown]
        rest = [sum(counts[i][:-1]) - sum(values)] if cut else []
        cells = [Cell(n, n / total, right=j == i) for j, n in zip(shown, values, strict=True)]
        cells += [Cell(n, n / total, right=False) for n in [*rest, counts[i][-1]]]
        rows.append((labels[i], cells))
    return ConfusionGrid(rows, [*(labels[i] for i in shown), *([OTHER_LABEL] if cut else []), NO_LABEL])
