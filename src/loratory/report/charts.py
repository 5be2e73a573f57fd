"""Geometry of the report's charts; the page template draws them.

Positions are in percent of the chart area, so that a chart can have any width.
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
    """A tick of an axis: its text and its position in percent of the axis."""

    text: str
    percent: float


@dataclass(frozen=True)
class LossChart:
    """Loss (log scale) by optimizer step, as SVG paths in a 100 x 100 view box whose y axis points down."""

    training: str
    validation: str
    validation_dots: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    selected: Tick | None
    """The step whose weights were selected."""
    steps_per_point: int
    description: str


@dataclass(frozen=True)
class Cell:
    """One cell of a confusion matrix; ``share`` is its fraction of the row, in [0, 1]."""

    count: int
    share: float
    right: bool


@dataclass(frozen=True)
class ConfusionGrid:
    """A confusion matrix for display: rows are expected labels, columns are predicted labels."""

    rows: list[tuple[str, list[Cell]]]
    columns: list[str]


def tick_values(top: Number, most: int = 5) -> list[float]:
    """At most ``most + 1`` tick values from 0 to at least ``top`` > 0, in steps of 1, 2 or 5 times 10^k."""
    rough = top / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [step * i for i in range(math.ceil(top / step - 1e-9) + 1)]


def log_ticks(low: Number, high: Number) -> list[float]:
    """Log-scale ticks from at most ``low`` > 0 to at least ``high``: 1, 2, 5 times 10^k, or 10^k over two decades."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    factors = (1, 2, 5) if high <= 100 * low else (1,)
    values = [factor * 10.0**k for k in decades for factor in factors]
    first = max(i for i, value in enumerate(values) if value <= low * (1 + 1e-9))
    last = min(i for i, value in enumerate(values) if value >= high * (1 - 1e-9) and i > first)
    return values[first : last + 1]


def _selected_tick(step: int | None, last_step: Number) -> Tick | None:
    return None if step is None else Tick(f"selected: step {step}", 100 * min(1.0, step / last_step))


def loss_chart(training: Points, validation: Points, selected_step: int | None = None) -> LossChart | None:
    """The chart of ``(step, loss)`` pairs sorted by step; None if there is nothing to draw.

    The training loss of single steps is noisy, so each point is the mean over consecutive steps; at most 120 points
    remain. Losses below 1/10,000 of the largest are drawn at that value.
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

    def coordinates(points: Points) -> list[str]:
        return [f"{100 * x / last_step:.2f} {height(y):.2f}" for x, y in points]

    text = f"The training loss goes from {means[0][1]:.3g} to {means[-1][1]:.3g} in {last_step:g} steps"
    if validation:
        text += f"; the validation loss goes from {validation[0][1]:.3g} to {validation[-1][1]:.3g}"
    if selected_step is not None:
        text += f"; the weights of step {selected_step} are used"
    return LossChart(
        training="M" + " L".join(coordinates(means)),
        validation="M" + " L".join(coordinates(validation)) if len(validation) > 1 else "",
        # A zero-length path with round caps is a dot that stays round when the chart is stretched.
        validation_dots=" ".join(f"M{point} h0" for point in coordinates(validation)),
        x_ticks=[Tick(f"{value:g}", 100 * value / last_step) for value in x_values],
        y_ticks=[Tick(f"{value:.3g}", height(value)) for value in y_values],
        selected=_selected_tick(selected_step, last_step),
        steps_per_point=steps_per_point,
        description=text + ".",
    )


def labels_to_show(counts: Sequence[Sequence[Sequence[int]]], most: int = LABELS_SHOWN) -> list[int]:
    """Indices of at most ``most`` labels in ascending order: those with the most errors, then the most frequent.

    ``counts``: confusion matrices of the same L labels, each of shape [L, L + 1] (see ``loratory.metrics.confusion``).
    """
    total = np.sum(np.array(counts), axis=0)
    square = total[:, :-1]
    right = np.diag(square)
    errors = (total.sum(axis=1) - right) + (square.sum(axis=0) - right)
    ranked = sorted(range(len(total)), key=lambda i: (-errors[i], -total[i].sum(), i))
    return sorted(ranked[:most])


def confusion_grid(counts: Sequence[Sequence[int]], labels: Sequence[str], shown: Sequence[int]) -> ConfusionGrid:
    """The matrix restricted to the labels ``shown``; all other predicted labels form one column, "other label"."""
    truncated = len(shown) < len(labels)
    rows = []
    for i in shown:
        total = max(1, sum(counts[i]))
        values = [counts[i][j] for j in shown]
        rest = [sum(counts[i][:-1]) - sum(values)] if truncated else []
        cells = [Cell(n, n / total, right=j == i) for j, n in zip(shown, values, strict=True)]
        cells += [Cell(n, n / total, right=False) for n in [*rest, counts[i][-1]]]
        rows.append((labels[i], cells))
    return ConfusionGrid(rows, [*(labels[i] for i in shown), *([OTHER_LABEL] if truncated else []), NO_LABEL])
