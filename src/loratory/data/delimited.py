"""Reads csv and tsv files, whatever program wrote them."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from loratory.data.columns import table_records
from loratory.data.dialects import DELIMITERS, NONE, declared_delimiter, find_dialect, read_rows_of
from loratory.data.encodings import TextFile
from loratory.data.limits import bounded_lines
from loratory.data.remarks import Record, Remarks
from loratory.errors import UserError
from loratory.settings import DataConfig

STYLES = {
    "spaced": "a space after each delimiter", "backslash": "quotation marks escaped by a backslash",
    "plain": "quotation marks are part of the text", "escaped": "backslash escapes of a database export",
}  # fmt: skip


def delimited_records(text: TextFile, default: str, data: DataConfig, remarks: Remarks) -> Iterator[Record]:
    """The records of a file. ``default`` is the delimiter that its name promises. Raises UserError."""
    # Cells stay text ("01", "NA"), and line numbers are known: that is why the csv module reads them.
    name = str(text.path)
    with text.open() as file:
        declared = declared_delimiter(next((line for _, line in bounded_lines(file, name)), ""))

    def lines() -> Iterator[tuple[int, str]]:
        with text.open() as file:
            yield from islice(bounded_lines(file, name), int(declared is not None), None)

    dialect = find_dialect(lines, name, default, declared)
    if dialect.delimiter == NONE:
        remarks.kinds.insert(0, "a single column")
    elif dialect.delimiter != default:
        remarks.kinds.insert(0, f"{DELIMITERS[dialect.delimiter]}-separated")
    if dialect.style in STYLES:
        remarks.kinds.append(STYLES[dialect.style])

    def rows() -> Iterator[tuple[list[Any], str]]:
        for fields, line in read_rows_of(lines(), name, dialect):
            if any("\0" in field for field in fields if field):
                raise UserError("The file contains NUL characters", f"{name}:{line}", fix="save it as UTF-8")
            yield fields, f"{name}:{line}"

    return table_records(rows, data.header, remarks, DELIMITERS.get(dialect.delimiter, ""))
