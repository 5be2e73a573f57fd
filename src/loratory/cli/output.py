"""Reports, tables and tokens on standard output."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratory.printable import json_line, printable, printable_values

if TYPE_CHECKING:
    from loratory.events import Event
    from loratory.text import TokenizedExample

WIDTH_WITHOUT_TERMINAL = 400


def print_text(text: str, end: str = "\n") -> None:
    """Prints text that may come from data, models or file names."""
    print(printable(text), end=end, flush=True)


def print_json(value: Any) -> None:
    print(json_line(value))


def print_report(folder: Path, as_json: bool) -> None:
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    if as_json:
        print_json(report)
        return
    from loratory.report import next_steps, render_table

    print_wide(render_table(printable_values(report), printable_values(next_steps(folder, report))))
    print_text(f"Report: {folder / 'report.html'}")


def print_message(event: "Event") -> None:
    """Prints the text of an event on standard error."""
    print(printable(event.text), file=sys.stderr)


def print_wide(content: Any) -> None:
    """Prints tables and text; without a terminal no sentence is broken across lines, so that programs can read it."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL).print(content)


def print_tokens(sequences: Iterable["TokenizedExample"]) -> None:
    """Prints each sequence with its trained tokens on green."""
    from rich.console import Console

    from loratory.predict import highlighted

    console = Console(highlight=False, soft_wrap=True)
    for sequence in sequences:
        trained = int((sequence.loss_weights > 0).sum())
        heading = f"{printable(sequence.source)}: {len(sequence.token_ids)} tokens, {trained} trained"
        console.print(heading, style="bold", markup=False)
        console.print(highlighted(sequence), end="\n\n")
