"""Metrics, confidence intervals and significance tests, and the formatting of numbers.

In: predictions and expected answers. Out: metrics, confidence intervals, p-values, formatted numbers.
Read ``tasks.py`` first: it defines what is measured for each task.
"""

from loratory.metrics.classification import confusion, parse_label, per_label, set_f1
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
from loratory.metrics.significance import (
    bootstrap_interval,
    holm,
    mcnemar_exact,
    paired_bootstrap,
    paired_difference_interval,
    wilson_interval,
)
from loratory.metrics.tasks import TASKS, Lines, Task, parsed_answer, task_variant
from loratory.metrics.texts import rouge_l

__all__ = [
    "TASKS",
    "Lines",
    "Number",
    "Task",
    "bootstrap_interval",
    "confusion",
    "duration",
    "holm",
    "interval",
    "mcnemar_exact",
    "non_breaking",
    "p_number",
    "p_text",
    "paired_bootstrap",
    "paired_difference_interval",
    "parse_label",
    "parsed_answer",
    "per_label",
    "percent",
    "points",
    "points_interval",
    "rouge_l",
    "set_f1",
    "short",
    "size",
    "spread",
    "task_variant",
    "wilson_interval",
]
