"""Reads the rows of data files and hub datasets, each with its file and line."""

import datetime
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratory.data.columns import ONLY_HEADER
from loratory.data.delimited import delimited_records
from loratory.data.encodings import TextFile
from loratory.data.findings import Finding
from loratory.data.json_files import json_records
from loratory.data.limits import MAX_CELL, Budget, check_file_size, too_large
from loratory.data.parts import SPREADSHEETS, data_suffix, files_of
from loratory.data.plain_text import text_records
from loratory.data.remarks import Record, Remarks, rows_in_words
from loratory.data.spreadsheets import sheet_records
from loratory.errors import UserError
from loratory.settings import DataConfig
from loratory.storage import check_no_pointer

HUB = "hub:"
FLOAT = re.compile(r"-?\d+\.0")
MOST_WHOLE = 1 << 53  # larger floats are not exact
PLAIN = (str, int, bool)


@dataclass(frozen=True)
class Row:
    """One record of a data file. ``source`` says where it comes from, as file:line."""

    values: Mapping[str, Any]
    source: str

    def has(self, name: str) -> bool:
        """Whether the row has a column, or a value inside of one: "ticket.body" is "body" in the object "ticket"."""
        return _found(self.values, name) is not _NOTHING

    def value(self, name: str, default: Any = None) -> Any:
        """The value of a column, or one inside of a column, as for ``has``."""
        found = _found(self.values, name)
        return default if found is _NOTHING else found


@dataclass(frozen=True)
class Table:
    """The rows of a file or a hub dataset."""

    rows: list[Row]
    findings: tuple[Finding, ...]
    """How the file was understood, where that is not obvious."""
    files: tuple[str, ...]
    """The files that were read: several for a pattern or a file in parts. A hub dataset stands for itself."""


_NOTHING = object()


def _found(values: Mapping[str, Any], name: str) -> Any:
    """A value by its name or, if there is no such key, by its path, with the longest keys first."""
    if name in values:
        return values[name]
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        inner = values.get(".".join(parts[:count]), _NOTHING)
        if isinstance(inner, Mapping):
            found = _found(inner, ".".join(parts[count:]))
            if found is not _NOTHING:
                return found
    return _NOTHING


def columns_of(rows: Iterable[Row]) -> list[str]:
    """The columns of all rows in order. An object stands for the values inside of it, as in "ticket.body"; lists stay
    whole."""
    found: dict[str, None] = {}
    for row in rows:
        _add_leaves(row.values, "", found)
    return list(found)


def names_in(rows: Iterable[Row]) -> list[str]:
    """What a prompt may show: the columns, and objects as a whole."""
    rows = list(rows)
    return list(dict.fromkeys([*columns_of(rows), *(str(name) for row in rows for name in row.values)]))


def _add_leaves(values: Mapping[Any, Any], prefix: str, found: dict[str, None]) -> None:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            _add_leaves(value, f"{name}.", found)
        else:
            found[name] = None


def read_tables(names: Sequence[str], data: DataConfig, split: str = "train") -> list[Table]:
    """Reads each file, or the ``split`` of each hub dataset. Of a file in parts, all parts are read, unless several of
    them are among the names. Raises UserError."""
    return [_read(name, data, split, names) for name in names]


def read_table(name: str, data: DataConfig = DataConfig(), split: str = "train") -> Table:  # noqa: B008
    """Reads a file, or the ``split`` of a hub dataset, with the settings of ``data``. Raises UserError."""
    return _read(name, data, split, ())


def read_rows(name: str, split: str = "train") -> list[Row]:
    """The rows of ``read_table`` with the default settings."""
    return read_table(name, split=split).rows


def _read(name: str, data: DataConfig, split: str, others: Sequence[str]) -> Table:
    if name.startswith(HUB):
        from loratory.data.hub import hub_records

        remarks = Remarks(name.rpartition("/")[2])
        rows = _rows(hub_records(name, split), name, remarks)
        return Table(rows, remarks.findings(), (name,))
    paths = files_of(name, others)
    tables = [_read_file(path, data) for path in paths]
    rows = [row for table in tables for row in table.rows]
    findings = [finding for table in tables for finding in table.findings]
    if not rows:
        found = "; ".join(f.message for f in findings if f.name == ONLY_HEADER)
        found = found or ("no records" if any(path.stat().st_size for path in paths) else "an empty file")
        fix = "add rows, or check that the program that wrote the file has finished"
        raise UserError("The data file has no rows", name, "at least one example", found, fix)
    if len(paths) > 1:
        sentence = f"{len(paths)} files with {rows_in_words(len(rows))}: {paths[0].name} to {paths[-1].name}"
        findings.insert(0, Finding("parts", "note", f"{Path(name).name}: {sentence}", len(paths)))
    return Table(rows, tuple(findings), tuple(map(str, paths)))


def _read_file(path: Path, data: DataConfig) -> Table:
    remarks = Remarks(path)
    check_file_size(str(path), path.stat().st_size)
    check_no_pointer(path)
    rows = _rows(_records(path, data, remarks), str(path), remarks)
    return Table(rows, remarks.findings(), (str(path),))


def _records(path: Path, data: DataConfig, remarks: Remarks) -> Iterator[Record]:
    kind = "." + data_suffix(path.name).split(".")[1]
    if kind == ".parquet":
        from loratory.data.parquet import parquet_records

        return parquet_records(path, remarks)
    if kind in SPREADSHEETS:
        return sheet_records(path, data, remarks)
    text = TextFile(path, remarks, _open_zstd)
    if kind in (".txt", ".md"):
        return text_records(text, remarks)
    if kind in (".json", ".jsonl", ".ndjson"):
        return json_records(text, kind != ".json", data, remarks)
    return delimited_records(text, "," if kind == ".csv" else "\t", data, remarks)


def _open_zstd(path: Path) -> Any:
    from loratory.data.parquet import open_zstd

    return open_zstd(path)


def _rows(records: Iterable[Record], name: str, remarks: Remarks) -> list[Row]:
    """The rows that fit the limits. Raises UserError."""
    rows, budget, not_numbers = [], Budget(name), 0
    for values, place in records:
        if not isinstance(values, dict):
            raise UserError("A record must be a JSON object", place, found=type(values).__name__)
        budget.admit(values, place)
        if any(type(value) not in PLAIN and value is not None for value in values.values()):
            clean = {key: _without_nan(value) for key, value in values.items()}
            not_numbers += clean != values
            values = clean
        rows.append(Row(values, place))
    if not_numbers:
        remarks.add("nan_values", f"NaN in {rows_in_words(not_numbers)} read as missing", not_numbers)
    return _with_whole_numbers(rows, remarks)


def _without_nan(value: Any) -> Any:
    """The value with None in the place of every NaN."""
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return value


def _with_whole_numbers(rows: list[Row], remarks: Remarks) -> list[Row]:
    """The rows with 1 in the place of 1.0 in the columns that have no other values: data frames turn whole numbers into
    these when one of them is missing."""
    possible: dict[str, None] = {}  # the columns with such values, in order
    excluded: set[str] = set()
    for row in rows:
        for column, value in row.values.items():
            if column in excluded or value is None or value == "":
                continue
            if not _is_whole_float(value):
                excluded.add(column)
                possible.pop(column, None)
            else:
                possible[column] = None
    if not possible:
        return rows
    names = ", ".join(list(possible)[:5])
    remarks.add("whole_numbers", f"numbers such as 1.0 in {names} read as 1")
    return [
        Row({key: _whole(v) if key in possible else v for key, v in row.values.items()}, row.source) for row in rows
    ]


def _is_whole_float(value: Any) -> bool:
    if isinstance(value, float):
        return value.is_integer() and abs(value) < MOST_WHOLE
    return isinstance(value, str) and bool(FLOAT.fullmatch(value.strip()))


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return value.strip().removesuffix(".0")
    return value if value is None else int(value)


def cell_text(value: Any) -> str:
    """A cell as the text shown in a prompt: None as an empty string, dates in ISO format, lists and objects as JSON."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else _text_of(value)
    return text.encode("utf-8", "replace").decode("utf-8")  # replaces lone surrogates, which cannot be encoded


def _text_of(value: Any) -> str:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    is_json = isinstance(value, bool | int | float | list | tuple | dict)
    return json.dumps(value, ensure_ascii=False, default=_text_of) if is_json else str(value)


def column_text(row: Row, name: str) -> str:
    """The text of a row's cell; see ``Row.value`` for names. Raises UserError if the row does not have the column."""
    if not row.has(name):
        raise UserError(f"The row has no column {name!r}", row.source, found=", ".join(map(str, row.values)))
    text = cell_text(row.value(name))
    if len(text) > MAX_CELL:  # such as the text of binary data
        raise too_large(f"{row.source}, column {name!r}", len(text))
    return text
