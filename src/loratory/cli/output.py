"""Reports, tables and tokens on standard output."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loratory.events import Event
    from loratory.text import TokenizedExample

WIDTH_WITHOUT_TERMINAL = 400


def print_report(folder: Path, as_json: bool) -> None:
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    if as_json:
        print(json.dumps(report))
        return
    from loratory.report import next_steps, render_table

    print_wide(render_table(report, next_steps(folder, report)))
    print(f"Report: {folder / 'report.html'}")


def print_message(event: "Event") -> None:
    """Prints the text of an event on standard error."""
    print(event.text, file=sys.stderr)


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
        console.print(f"{sequence.source}: {len(sequence.token_ids)} tokens, {trained} trained", style="bold")
        console.print(highlighted(sequence), end="\n\n")
