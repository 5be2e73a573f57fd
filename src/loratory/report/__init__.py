"""Reports on runs, and comparisons of two runs.

Input: the files of a run directory. Output: ``report.json``, ``report.html``, tables for the terminal, and the
comparison of two runs. No model is loaded here. Start with ``report.py``.
"""

from loratory.report.comparison import compare_runs, comparison_page, read_pair, render_comparison
from loratory.report.page import write_report
from loratory.report.terminal import render_table

__all__ = ["compare_runs", "comparison_page", "read_pair", "render_comparison", "render_table", "write_report"]
