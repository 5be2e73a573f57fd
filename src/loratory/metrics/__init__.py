"""Metrics, confidence intervals and significance tests, and the formatting of numbers.

In: predictions and expected answers. Out: metrics, confidence intervals, p-values, formatted numbers.
Read ``tasks.py`` first: it defines what is measured for each task.
"""

from loratory.metrics.classification import confusion, label_indices, parse_label, per_label, set_f1
from loratory.metrics.formatting import (
    Number,
    duration,
    interval,
    non_breaking,
    p_number,
    p_text,
    percent,
    points,
    points_interval,
    short,
    size,
    spread,
)
from loratory.metrics.power import DIFFERENCE, detectable_difference, examples_needed
from loratory.metrics.significance import (
    LARGE_SAMPLE,
    holm,
    macro_f1_p_value,
    mcnemar_exact,
    mean_interval,
    paired_difference_interval,
    paired_mean_interval,
    proportion_interval,
)
from loratory.metrics.tasks import TASKS, Lines, Task, parsed_answer, task_variant
from loratory.metrics.texts import rouge_l

__all__ = [
    "DIFFERENCE",
    "LARGE_SAMPLE",
    "TASKS",
    "Lines",
    "Number",
    "Task",
    "confusion",
    "detectable_difference",
    "duration",
    "examples_needed",
    "holm",
    "interval",
    "label_indices",
    "macro_f1_p_value",
    "mcnemar_exact",
    "mean_interval",
    "non_breaking",
    "p_number",
    "p_text",
    "paired_difference_interval",
    "paired_mean_interval",
    "parse_label",
    "parsed_answer",
    "per_label",
    "percent",
    "points",
    "points_interval",
    "proportion_interval",
    "rouge_l",
    "set_f1",
    "short",
    "size",
    "spread",
    "task_variant",
]
