"""Collects what a reader found out about a file while it reads it."""

from pathlib import Path
from typing import Any

from loratory.data.findings import MOST_PLACES, Finding

Record = tuple[Any, str]
"""What a reader gives for each row: its values, and its place in the file."""


class Remarks:
    """The findings of one file: each is one sentence that begins with the file's name."""

    def __init__(self, path: Path | str):
        self.name = Path(path).name
        self.kinds: list[str] = []
        """How the file was understood, in a few words each, as in "semicolon-separated"."""
        self.noted: list[Finding] = []

    def add(self, name: str, sentence: str, count: int = 0, places: tuple[str, ...] | list[str] = ()) -> None:
        """Adds a note. ``places`` may be longer than what is kept of it."""
        self.noted.append(Finding(name, "note", f"{self.name}: {sentence}", count, tuple(places[:MOST_PLACES])))

    def findings(self) -> tuple[Finding, ...]:
        """The findings; how the file was understood comes first."""
        first = [Finding("file_format", "note", f"{self.name}: {', '.join(self.kinds)}")] if self.kinds else []
        return (*first, *self.noted)


def rows_in_words(count: int, verb: str = "") -> str:
    """The number of rows for a sentence, as in "1 row is" or "3 rows are" with the verb "are"."""
    singular = {"are": "is", "were": "was", "have": "has"}.get(verb, verb)
    return f"1 row {singular}".rstrip() if count == 1 else f"{count} rows {verb}".rstrip()
