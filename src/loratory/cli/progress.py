"""Shows the events of a run on standard error."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from loratory.printable import printable

if TYPE_CHECKING:
    from loratory.events import Event, EventCallback

SECONDS_BETWEEN_LINES = 10
# What is counted while a system is measured.
PARTS = {
    "preparation": "examples in preparation",
    "validation": "validation examples",
    "test": "test examples",
}


@contextmanager
def progress_display() -> Iterator["EventCallback"]:
    """Yields an event callback: a live progress bar in a terminal, a line every few seconds elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("  {task.description:<16}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    bars = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
    tasks: dict[str, Any] = {}
    last_line = [time.monotonic()]

    def advance(name: str, done: int, total: int, note: str) -> None:
        if name not in tasks:
            bars.start()  # not earlier: a question may be asked first
            tasks[name] = bars.add_task(name, total=total, note="")
        bars.update(tasks[name], completed=done, total=total, note=note)
        due = done == total or time.monotonic() - last_line[0] > SECONDS_BETWEEN_LINES
        if not console.is_terminal and due:
            last_line[0] = time.monotonic()
            console.print(f"  {name}: {done}/{total} {note}".rstrip(), soft_wrap=True, markup=False)

    def show(event: "Event") -> None:
        values, text = event.values, printable(event.text)
        match event.kind:
            case "stage":
                console.print(text, style="bold", markup=False)
            case "message":
                console.print(f"  {text}", soft_wrap=True, markup=False)
            case "progress":
                advance(text, values["done"], values["total"], PARTS.get(values.get("part", ""), ""))
            case "step":
                left = (values["steps"] - values["step"]) * values["seconds"]
                speed = values["tokens"] / values["seconds"]
                note = f"steps, loss {values['loss']:.3f}, {speed:.0f} tokens/s, about {left:.0f} s left"
                advance(f"training at learning rate {float(text):.3g}", values["step"], values["steps"], note)
            case "system":
                if text in tasks:
                    bars.remove_task(tasks.pop(text))
                result = f"{values['metric']} {values['value']:.1%} on the test examples ({values['seconds']:.1f} s)"
                console.print(f"  {text}: {result}", markup=False)

    try:
        yield show
    finally:
        bars.stop()
