"""Reports on runs, and comparisons of two runs.

In: the files of a run directory. Out: ``report.json``, ``report.html``, tables for the terminal, and the
comparison of two runs. No model is loaded here. Read ``report.py`` first.
"""

from loratory.report.advice import next_steps
from loratory.report.comparison import compare_runs, comparison_page, read_pair, render_comparison
from loratory.report.page import write_report
from loratory.report.terminal import render_table

__all__ = [
    "compare_runs",
    "comparison_page",
    "next_steps",
    "read_pair",
    "render_comparison",
    "render_table",
    "write_report",
]
