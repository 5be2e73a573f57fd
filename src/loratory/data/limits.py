"""The largest cells, rows and files that are read; larger ones are rejected early (docs/limits.md)."""

import io
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loratory.errors import UserError

MAX_CELL = 1_000_000  # characters of a cell's text; of lists and objects, the characters of all texts in it
MAX_ROW = 4_000_000  # characters or bytes of a row as it stands in the file
MAX_COLUMNS = 10_000
MAX_DEPTH = 100  # of lists and objects inside each other
MAX_FILE = 1 << 29  # bytes of a file, after decompression
MAX_MEMORY = 1 << 30  # bytes of the rows of one file
MAX_RATIO, RATIO_CHECKED = 200, 1 << 24  # decompressed over compressed bytes, from so many decompressed bytes on
ROW_BYTES = 500  # what a row costs besides its values


class Budget:
    """Admits the rows of one file one by one and adds up their memory."""

    def __init__(self, name: str):
        self.name, self.used = name, 0

    def admit(self, values: Mapping[Any, Any], place: str) -> None:
        """Raises UserError if the row, one of its cells, or the file up to this row is too large."""
        if len(values) > MAX_COLUMNS:
            raise UserError("A row has too many columns", place, f"at most {MAX_COLUMNS}", str(len(values)))
        self.used += ROW_BYTES
        for column, value in values.items():
            characters, memory = _measured(value, f"{place}, column {str(column)[:80]!r}")
            self.used += memory
            if characters > MAX_CELL:
                raise too_large(f"{place}, column {str(column)[:80]!r}", characters)
        if self.used > MAX_MEMORY:
            fix = "split it, or leave out rows and columns that are not needed"
            raise UserError("The data file needs too much memory", place, f"at most {MAX_MEMORY} bytes", fix=fix)


def too_large(place: str, characters: int) -> UserError:
    """The error for a cell of this size."""
    fix = "shorten it, split it into several rows, or remove the row"
    return UserError("A cell is too large", place, f"at most {MAX_CELL} characters", str(characters), fix)


def _measured(value: Any, place: str) -> tuple[int, int]:
    """The characters of all texts of a cell, and the bytes of memory that it takes. Raises UserError if the cell is
    nested too deeply."""
    if isinstance(value, str):
        return len(value), sys.getsizeof(value)
    characters = memory = 0
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for item in level:
            memory += sys.getsizeof(item)
            if isinstance(item, str):
                characters += len(item)
            elif isinstance(item, Mapping):
                inner += [*item, *item.values()]
            elif isinstance(item, list | tuple):
                inner += item
        level = inner
        if not level:
            return characters, memory
    raise UserError("A cell is nested too deeply", place, expected=f"at most {MAX_DEPTH} levels")


def check_columns(names: Sequence[str], place: str) -> None:
    """Raises UserError if there are too many columns, or two with the same name."""
    if len(names) > MAX_COLUMNS:
        raise UserError("A row has too many columns", place, f"at most {MAX_COLUMNS}", str(len(names)))
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        fix = "rename one of them in the first row of the file"
        raise UserError("Two columns have the same name", place, found=repr(twice[0]), fix=fix)


def check_file_size(name: str, size: int) -> None:
    """Raises UserError if a file has too many bytes."""
    if size > MAX_FILE:
        raise UserError("The data file is too large", name, f"at most {MAX_FILE} bytes", str(size), "split it")


def bounded_lines(file: io.TextIOBase, name: str) -> Iterator[tuple[int, str]]:
    """The numbered lines of a file. Raises UserError, without reading more, for a line that is longer than a row."""
    number = 0
    while line := file.readline(MAX_ROW + 1):
        number += 1
        if len(line) > MAX_ROW:
            raise UserError("A row is too large", f"{name}:{number}", f"at most {MAX_ROW} characters")
        yield number, line
