"""Formatting of numbers, and the geometry of the charts."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratory.metrics.formatting import duration, non_breaking, p_text, short, size
from loratory.report.charts import confusion_grid, labels_to_show, log_ticks, loss_chart, tick_values


@given(st.floats(1e-6, 1e9))
def test_ticks_are_few_even_and_reach_the_top(top):
    ticks = tick_values(top)
    assert ticks[0] == 0 and 2 <= len(ticks) <= 6
    assert ticks[-1] >= top * (1 - 1e-6) > ticks[-2] * (1 - 1e-6)


@given(st.floats(1e-6, 1e6), st.floats(1, 1e4))
def test_logarithmic_ticks_are_few_and_enclose_the_values(low, factor):
    ticks = log_ticks(low, low * factor)
    assert 2 <= len(ticks) <= 9 and ticks == sorted(set(ticks))
    assert ticks[0] <= low * (1 + 1e-6) and ticks[-1] >= low * factor * (1 - 1e-6)
    assert ticks[1] > low and ticks[-2] < low * factor * (1 + 1e-6), "no superfluous ticks"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 ms"), (0.0004, "0.4 ms"), (0.0123, "12 ms"), (0.9999, "1.0 s"), (3.44, "3.4 s"), (9.96, "10 s"),
     (59.7, "1 min 0 s"), (320, "5 min 20 s"), (3600, "1 h 0 min"), (7510, "2 h 5 min")],
)  # fmt: skip
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_p_values_sizes_and_short_texts():
    assert [p_text(p) for p in (0.0004, 0.012, 0.31)] == ["p < 0.001", "p = 0.012", "p = 0.31"]
    assert (size(1_900_000_000), size(420_000_000)) == ("1.9 GB", "420 MB")
    assert short("a  b\nc", 10) == "a b c" and short("abcdef", 4) == "abc…"


def test_numbers_and_units_are_joined_by_nonbreaking_spaces():
    assert non_breaking("67.0 % ± 1.2 points in 2 min 5 s (p < 0.001) of 5 more").split(" ") == [
        "67.0\u00a0%\u00a0±\u00a01.2\u00a0points",
        "in",
        "2\u00a0min\u00a05\u00a0s",
        "(p\u00a0<\u00a00.001)",
        "of",
        "5",
        "more",
    ]


@given(st.lists(st.floats(0, 20), min_size=1, max_size=400))
def test_loss_chart_stays_in_its_box_with_a_bounded_number_of_points(losses):
    chart = loss_chart([(i + 1, loss) for i, loss in enumerate(losses)], [(len(losses), losses[-1])], len(losses))
    numbers = [float(number) for number in re.findall(r"[\d.]+", chart.training)]
    assert all(-0.01 <= number <= 100.01 for number in numbers)
    assert 2 <= len(numbers) <= 2 * 120
    assert all(0 <= tick.percent <= 100 for tick in [*chart.x_ticks, *chart.y_ticks])
    assert chart.validation == "" and chart.validation_dots.startswith("M100.00 ")
    assert chart.selected.percent == 100


def test_loss_axis_is_logarithmic():
    chart = loss_chart([(1, 4.0), (2, 2.0), (3, 1.0)], [])
    first, second, third = (float(point.split()[1]) for point in chart.training[1:].split(" L"))
    assert second - first == pytest.approx(third - second, abs=0.02) and second > first
    assert chart.selected is None


def test_no_loss_chart_without_finite_losses():
    assert loss_chart([], []) is None
    assert loss_chart([(1, float("nan"))], []) is None


def test_confusion_grid_keeps_every_count_of_a_shown_row():
    counts = [[5, 1, 0, 2], [0, 9, 0, 0], [4, 0, 6, 1]]
    shown = labels_to_show([counts], most=2)
    assert shown == [0, 2], "the label without errors is left out first"
    grid = confusion_grid(counts, ["a", "b", "c"], shown)
    assert grid.columns == ["a", "c", "other label", "no label"]
    assert [(label, [cell.count for cell in cells]) for label, cells in grid.rows] == [
        ("a", [5, 0, 1, 2]),
        ("c", [4, 6, 0, 1]),
    ]
    assert [[cell.right for cell in cells] for _, cells in grid.rows] == [
        [True, False, False, False],
        [False, True, False, False],
    ]
    assert all(sum(cell.share for cell in cells) == pytest.approx(1) for _, cells in grid.rows)


def test_confusion_grid_of_few_labels_is_complete():
    grid = confusion_grid([[1, 0, 0], [0, 1, 0]], ["a", "b"], labels_to_show([[[1, 0, 0], [0, 1, 0]]]))
    assert grid.columns == ["a", "b", "no label"] and len(grid.rows) == 2
