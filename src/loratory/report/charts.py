"""How the report shows numbers: as text, and as the geometry of pictures, which the page's template draws.

Positions are in percent of the picture, so that it can take any width.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

POINTS = 120
LABELS_SHOWN = 20
WHOLE = re.compile(r"\d h \d+ min\b|\d min \d+ s\b|\d m?s\b|\d %(?: ± \S+ points)?|p [<=] \d")
OTHER_LABEL, NO_LABEL = "other label", "no label"

Number = float | int
Points = Sequence[tuple[Number, Number]]


def percent(share: Number) -> str:
    """0.67 as ``67.0 %``."""
    return f"{100 * share:.1f} %"


def points(difference: Number) -> str:
    """0.295 as ``+29.5``: percentage points."""
    return f"{100 * difference:+.1f}"


def points_interval(c: Mapping[str, Any]) -> str:
    """``+20.1 to +38.9``: the interval of a comparison, in percentage points."""
    return f"{points(c['low'])} to {points(c['high'])}"


def interval(system: Mapping[str, Any]) -> str:
    """``19.2 to 26.5``: the interval of a system's share of right answers, in percent."""
    return f"{100 * system['low']:.1f} to {100 * system['high']:.1f}"


def spread(series: Mapping[str, Any]) -> str:
    """``66.1 % ± 1.2 points (65.0, 67.2, 66.1)``: mean, standard deviation and values of several seeds."""
    values = ", ".join(f"{100 * value:.1f}" for value in series["values"])
    return f"{percent(series['mean'])} ± {100 * series['sd']:.1f} points ({values})"


def p_number(p_value: Number) -> str:
    """``< 0.001``, or ``0.012`` with as many digits as matter."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}" if p_value < 0.1 else f"{p_value:.2f}"


def p_text(p_value: Number) -> str:
    """``p < 0.001`` or ``p = 0.012``."""
    number = p_number(p_value)
    return f"p {number}" if number.startswith("<") else f"p = {number}"


def unbroken(text: str) -> str:
    """The text with "67.0 %", "1 min 5 s", "± 1.2 points" and "p = 0.01" held together at the end of a line."""
    return WHOLE.sub(lambda found: found[0].replace(" ", "\u00a0"), text)


def duration(seconds: Number) -> str:
    """Seconds as people say them: ``12 ms``, ``3.4 s``, ``5 min 20 s``, ``2 h 5 min``."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms" if seconds >= 0.01 or seconds == 0 else f"{1000 * seconds:.2g} ms"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(num_bytes: int) -> str:
    """Bytes in decimal units: ``1.9 GB``."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def short(text: str, length: int) -> str:
    """The text on one line, cut to ``length`` characters with an ellipsis."""
    line = " ".join(text[: 4 * length].split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


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
