"""Formatting of numbers, intervals, durations and sizes for people."""

import re
from collections.abc import Mapping
from typing import Any

Number = float | int
WHOLE = re.compile(r"\d h \d+ min\b|\d min \d+ s\b|\d m?s\b|\d %(?: ± \S+ points)?|p [<=] \d")


def percent(share: Number) -> str:
    """Formats 0.67 as ``67.0 %``."""
    return f"{100 * share:.1f} %"


def points(difference: Number) -> str:
    """Formats 0.295 as ``+29.5``, in percentage points."""
    return f"{100 * difference:+.1f}"


def points_interval(c: Mapping[str, Any]) -> str:
    """``+20.1 to +38.9``: the confidence interval of a comparison, in percentage points."""
    return f"{points(c['low'])} to {points(c['high'])}"


def interval(system: Mapping[str, Any]) -> str:
    """``19.2 to 26.5``: the confidence interval of a system's headline metric, in percent."""
    return f"{100 * system['low']:.1f} to {100 * system['high']:.1f}"


def spread(series: Mapping[str, Any]) -> str:
    """``66.1 % ± 1.2 points (65.0, 67.2, 66.1)``: mean, standard deviation and the value of each seed."""
    values = ", ".join(f"{100 * value:.1f}" for value in series["values"])
    return f"{percent(series['mean'])} ± {100 * series['sd']:.1f} points ({values})"


def p_number(p_value: Number) -> str:
    """``< 0.001``, ``0.012`` or ``0.35``: a p-value with its meaningful digits."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}" if p_value < 0.1 else f"{p_value:.2f}"


def p_text(p_value: Number) -> str:
    """``p < 0.001`` or ``p = 0.012``."""
    number = p_number(p_value)
    return f"p {number}" if number.startswith("<") else f"p = {number}"


def non_breaking(text: str) -> str:
    """Puts non-breaking spaces into "67.0 %", "1 min 5 s", "± 1.2 points" and "p = 0.01"."""
    return WHOLE.sub(lambda match: match[0].replace(" ", "\u00a0"), text)


def duration(seconds: Number) -> str:
    """Formats seconds as ``12 ms``, ``3.4 s``, ``5 min 20 s`` or ``2 h 5 min``."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms" if seconds >= 0.01 or seconds == 0 else f"{1000 * seconds:.2g} ms"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(num_bytes: int) -> str:
    """Formats bytes in decimal units: ``640 MB``, ``1.9 GB``."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def short(text: str, length: int) -> str:
    """Puts the text on one line and truncates it to ``length`` characters with an ellipsis."""
    line = " ".join(text[: 4 * length].split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"
