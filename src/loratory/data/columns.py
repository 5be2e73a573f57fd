"""Turns the rows of a table of cells into records: whether there is a header, the names of the columns, odd rows."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

from loratory.data.findings import MOST_PLACES
from loratory.data.limits import MAX_COLUMNS, check_columns
from loratory.data.remarks import Record, Remarks, rows_in_words
from loratory.errors import UserError

Cells = Sequence[Any]
Rows = Iterator[tuple[Cells, str]]
"""Rows of cells with their places; a cell is a text, or None if there is none."""
SAMPLE = 1000  # rows from which the header is guessed
NUMBER = re.compile(r"[-+]?\d+([.,]\d+)?([eE][-+]?\d+)?%?")
YEAR = re.compile(r"(19|20)\d\d")
WHOLE = re.compile(r"\d{1,18}")
DATE = re.compile(r"\d{4}-\d\d-\d\d.*|\d{1,2}[./]\d{1,2}[./]\d{2,4}.*")
PANDAS_INDEX = re.compile(r"Unnamed: \d+")
# Names that columns have in public data sets; a first row with one of them is a header.
USUAL_NAMES = (
    "text label labels id category class title question answer answers prompt completion response input output "
    "instruction target sentence sentence1 sentence2 review name date intent body subject message messages score "
    "rating topic sentiment context premise hypothesis content description url source language lang split comment "
    "tweet summary document article index idx key value type status conversations"
)
USUAL = frozenset(USUAL_NAMES.split())


@dataclass
class _Seen:
    """What is known about a column without a name."""

    count: int = 0
    filled: int = 0
    total: int = 0
    lowest: int = 0
    highest: int = -1
    is_increasing: bool = True
    is_whole: bool = True

    def add(self, text: str) -> None:
        self.count += 1
        self.filled += bool(text)
        if not self.is_whole or not WHOLE.fullmatch(text):
            self.is_whole = False
            return
        value = int(text)
        if self.count == 1:
            self.lowest = value
        elif value <= self.highest:
            self.is_increasing = False
        self.lowest, self.highest, self.total = min(self.lowest, value), max(self.highest, value), self.total + value

    def is_index(self) -> bool:
        """Whether the values number the rows: in order, or all numbers of a range in any order."""
        if not self.is_whole or not self.count:
            return False
        is_range = self.highest - self.lowest + 1 == self.count
        return self.is_increasing or (is_range and 2 * self.total == (self.lowest + self.highest) * self.count)


ONLY_HEADER = "only_header"  # the name of the finding


@dataclass
class _Odd:
    """Rows that are unlike the others: how many, and where the first ones are."""

    count: int = 0
    places: list[str] = field(default_factory=list)

    def add(self, place: str) -> None:
        self.count += 1
        if len(self.places) < MOST_PLACES:
            self.places.append(place)


@dataclass
class _Plan:
    """How the rows are to be read."""

    header: list[str] | None
    """The cells of the header, or None if there is none."""
    names: list[str | None] = field(default_factory=list)
    """The name of each column; None if it is left out."""
    skipped: int = 0
    is_header_only: bool = False
    short: _Odd = field(default_factory=_Odd)
    repeated: _Odd = field(default_factory=_Odd)


def table_records(
    rows_of: Callable[[], Rows], header: Literal["auto"] | bool, remarks: Remarks, separator: str = ""
) -> Iterator[Record]:
    """The records of a table. ``rows_of`` starts reading from the first row, and is called several times.

    ``separator`` names what separates the cells, for messages. Raises UserError.
    """
    sample = [cells for cells, _ in islice(rows_of(), SAMPLE)]
    sample = [[_text(cell) for cell in cells] for cells in sample if not is_blank(cells)]
    if not sample:
        return
    has_header = (header is True) or (header == "auto" and not looks_like_data(sample))
    plan = _planned(rows_of, has_header, sample, remarks, separator)
    first, plan.is_header_only = has_header, has_header
    for cells, place in rows_of():
        if is_blank(cells):
            continue
        if first or (plan.header and _is_header_again(cells, plan.header)):
            first = False
            continue
        plan.is_header_only = False
        filled = [*cells, *[""] * (len(plan.names) - len(cells))]
        yield {name: cell for name, cell in zip(plan.names, filled, strict=False) if name is not None}, place
    _say(plan, has_header, header, remarks)


def _planned(
    rows_of: Callable[[], Rows], has_header: bool, sample: list[list[str]], remarks: Remarks, separator: str
) -> _Plan:
    """Reads all rows once to name the columns and count the odd rows. Raises UserError."""
    raw = sample[0] if has_header else []
    columns = [text.lstrip("\ufeff").strip() for text in raw]
    # R numbers the rows, in a column that the header does not mention.
    rest = sample[1:] if has_header else []
    if rest and all(_width(cells) == len(columns) + 1 and WHOLE.fullmatch(cells[0]) for cells in rest):
        columns = ["", *columns]
    while columns and not columns[-1]:
        columns.pop()
    width = len(columns) if has_header else Counter(map(_width, sample)).most_common(1)[0][0]
    allowed = max(width, len(raw))
    plan = _Plan(columns if has_header else None)
    unnamed: dict[int, _Seen] = {}
    blank, first, start = 0, has_header, ""
    for cells, place in rows_of():
        if is_blank(cells):
            blank += 1
            continue
        if len(cells) > MAX_COLUMNS:
            raise UserError("A row has too many columns", place, f"at most {MAX_COLUMNS}", str(len(cells)))
        plan.skipped, start = blank, start or place  # those at the end of the file do not count
        if first or (plan.header and _is_header_again(cells, plan.header)):
            if not first:
                plan.repeated.add(place)
            first = False
            continue
        used = _width(cells)
        if used > allowed:
            fix = f"put text that contains a {separator} in quotation marks" if separator else None
            found = f"{used}, the last one {_text(cells[used - 1])[:60]!r}"
            raise UserError("A row has the wrong number of columns", place, str(width), found, fix)
        if len(cells) < width:
            plan.short.add(place)
        for position in range(allowed):
            if position >= len(columns) or not columns[position] or PANDAS_INDEX.fullmatch(columns[position]):
                text = _text(cells[position]) if position < len(cells) else ""
                unnamed.setdefault(position, _Seen()).add(text)
    plan.names = _names(columns, allowed, unnamed, has_header, remarks)
    check_columns([name for name in plan.names if name is not None], start)
    return plan


def _names(
    columns: list[str], count: int, unnamed: dict[int, _Seen], has_header: bool, remarks: Remarks
) -> list[str | None]:
    """The names of the columns; None for those that are left out."""
    if not has_header:
        return [f"column_{number}" for number in range(1, count + 1)]
    names: list[str | None] = [*columns, *[""] * (count - len(columns))]
    empty, named = 0, []
    for position, seen in unnamed.items():
        name = names[position]
        if not name and not seen.filled:
            names[position], empty = None, empty + (position < len(columns))
        elif position == 0 and seen.is_index():
            names[position] = None
            remarks.add("index_column", "the first column has no name and numbers the rows, so it is left out")
        elif not name:
            names[position] = f"column_{position + 1}"
            named.append(f"column_{position + 1}")
    if empty:
        remarks.add(
            "empty_columns",
            f"{empty} {'column' if empty == 1 else 'columns'} without a name or a value left out",
            empty,
        )
    if named:
        verb = "column without a name is called" if len(named) == 1 else "columns without a name are called"
        remarks.add("unnamed_columns", f"{len(named)} {verb} {', '.join(named[:5])}", len(named))
    return names


def _say(plan: _Plan, has_header: bool, header: Literal["auto"] | bool, remarks: Remarks) -> None:
    if not has_header and header == "auto":
        names = [name for name in plan.names if name]
        shown = ", ".join(names if len(names) <= 3 else [names[0], "...", names[-1]])
        sentence = f"the first row looks like data, so the columns are called {shown} (else set data.header = true)"
        remarks.add("no_header", sentence)
    if plan.is_header_only:
        remarks.add(ONLY_HEADER, f"only a header, with the columns {', '.join(filter(None, plan.header or []))[:200]}")
    if plan.skipped:
        remarks.add("empty_rows", f"{rows_in_words(plan.skipped)} without any value left out", plan.skipped)
    if plan.repeated.count:
        count, places = plan.repeated.count, plan.repeated.places
        sentence = f"the header is repeated in {rows_in_words(count)}, which {'is' if count == 1 else 'are'} left out"
        remarks.add("repeated_headers", sentence, count, places)
    if plan.short.count:
        sentence = f"{rows_in_words(plan.short.count, 'have')} fewer cells than the header; the rest is empty"
        remarks.add("short_rows", sentence, plan.short.count, plan.short.places)


def looks_like_data(sample: Sequence[Sequence[str]]) -> bool:
    """Whether the first row is data instead of a header, by its cells and the rows below it."""
    first, rest = sample[0], [row for row in sample[1:] if list(row) != list(sample[0])]
    votes = 0
    for position, cell in enumerate(first):
        below = [row[position].strip() for row in rest if position < len(row)]
        votes += _vote(cell.lstrip("\ufeff").strip(), [text for text in below if text])
    return votes > 0


def _vote(cell: str, below: Sequence[str]) -> int:
    """How much a cell of the first row speaks for data (positive) or for a header (negative)."""
    if not below:
        return 0
    if not cell or cell.lower() in USUAL or PANDAS_INDEX.fullmatch(cell):
        return -3
    is_label = len(set(below)) <= len(below) / 2  # the values of the column repeat
    if cell in below:
        return 2 if is_label or len(below) < 6 else 1
    for kind in (NUMBER, DATE):
        share = sum(bool(kind.fullmatch(text)) for text in below) / len(below)
        if share > 0.9:
            is_kind = bool(kind.fullmatch(cell))
            return (0 if YEAR.fullmatch(cell) else 1) if is_kind else -2
    if is_label and len(below) >= 6:
        return -1
    words = sorted(len(text.split()) for text in below)
    is_long = len(cell.split()) >= 4 or len(cell) > 40
    if words[len(words) // 2] >= 4:
        return 1 if is_long else -1
    return 1 if NUMBER.fullmatch(cell) and not YEAR.fullmatch(cell) else 0


def is_blank(cells: Iterable[Any]) -> bool:
    """Whether a row has no value."""
    return not any(cell is not None and _text(cell).strip() for cell in cells)


def _is_header_again(cells: Cells, header: Sequence[str]) -> bool:
    texts = [_text(cell).strip() for cell in cells[: len(header)]]
    return len(header) > 1 and texts == list(header)


def _width(cells: Cells) -> int:
    """The number of cells up to the last one with a value."""
    width = len(cells)
    while width and not _text(cells[width - 1]).strip():
        width -= 1
    return width


def _text(cell: Any) -> str:
    return "" if cell is None else cell if isinstance(cell, str) else str(cell)
