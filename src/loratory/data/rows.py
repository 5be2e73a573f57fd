"""Reads the rows of data files and hub datasets, each with its file and line."""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from loratory.data.findings import Finding
from loratory.data.limits import (
    MAX_CELL,
    MAX_FILE,
    MAX_RATIO,
    MAX_ROW,
    RATIO_CHECKED,
    Budget,
    bounded_lines,
    check_columns,
    check_file_size,
    too_large,
)
from loratory.data.parquet import parquet_rows
from loratory.errors import UserError
from loratory.settings import DataConfig
from loratory.storage import check_no_pointer

WHITE_SPACE = re.compile(r"\s*")
HUB = "hub:"
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".jsonl.gz")


@dataclass(frozen=True)
class Row:
    """One record of a data file. ``source`` says where it comes from, as file:line."""

    values: Mapping[str, Any]
    source: str


@dataclass(frozen=True)
class Table:
    """The rows of a file or a hub dataset."""

    rows: list[Row]
    findings: tuple[Finding, ...]
    """How the file was understood, where that is not obvious."""
    files: tuple[str, ...]
    """The files that were read: several for a pattern or a file in parts. A hub dataset stands for itself."""


def read_table(name: str, data: DataConfig = DataConfig(), split: str = "train") -> Table:  # noqa: B008
    """Reads a file, or the ``split`` of a hub dataset, with the settings of ``data``. Raises UserError."""
    return Table(read_rows(name, split), (), (name,))


def read_rows(name: str, split: str = "train") -> list[Row]:
    """The rows of a file, or of the ``split`` of a hub dataset. Raises UserError."""
    if name.startswith(HUB):
        return _read_hub(name, split)
    path = Path(name)
    readers = (lambda p: _read_delimited(p, ","), lambda p: _read_delimited(p, "\t"), _read_json, _read_json_lines,
               _read_parquet, _read_compressed)  # fmt: skip
    suffix = data_suffix(name)
    if suffix not in SUFFIXES:
        raise UserError("Unknown type of data file", name, expected=", ".join(SUFFIXES), found=suffix or "no suffix")
    if not path.is_file():
        raise UserError("Data file not found", name, fix="check the path; in a task file it is relative to that file")
    check_file_size(name, path.stat().st_size)
    check_no_pointer(path)
    try:
        rows = readers[SUFFIXES.index(suffix)](path)
    except UnicodeDecodeError as error:
        place = name if suffix.endswith(".gz") else f"{path}:{_bad_line(path)}"
        raise UserError("The file is not UTF-8", place, fix="save it as UTF-8") from error
    if not rows:
        raise UserError("The data file has no rows", name, expected="at least one example")
    return rows


def data_suffix(name: str) -> str:
    """The lower-case suffix that gives a file's type; of a compressed file both suffixes, as in ".jsonl.gz"."""
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    return "".join(suffixes[-2:]) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


def _bad_line(path: Path) -> int:
    """The line of the first byte that is not UTF-8. The reader's own error counts from the start of a block."""
    try:
        path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        return error.object[: error.start].count(b"\n") + 1
    raise AssertionError("the file is UTF-8")


def _read_delimited(path: Path, delimiter: str) -> list[Row]:
    # The csv module instead of pandas: values stay text ("01", "NA"), and line numbers are known.
    csv.field_size_limit(MAX_CELL)
    budget = Budget(str(path))
    with path.open(encoding="utf-8-sig", newline="") as file:
        size = [0]  # of the row that is being read
        reader = csv.reader(_row_lines(file, path, size), delimiter=delimiter, strict=True)
        rows, header, start = [], None, 1
        try:
            for fields in reader:
                place, start, size[0] = f"{path}:{start}", reader.line_num + 1, 0
                if not fields:
                    continue
                if any("\0" in field for field in fields):
                    raise UserError("The file contains NUL characters", place, fix="save it as UTF-8")
                if header is None:
                    header = fields
                    check_columns(header, place)
                elif len(fields) != len(header):
                    raise UserError("A row has the wrong number of columns", place, str(len(header)), str(len(fields)))
                else:
                    rows.append(_row(dict(zip(header, fields, strict=True)), place, budget))
        except csv.Error as error:
            if "field limit" in str(error):
                raise too_large(f"{path}:{start}", MAX_CELL + 1) from error
            raise UserError("Malformed row", f"{path}:{start}", found=str(error)) from error
    return rows


def _row_lines(file: Any, path: Path, size: list[int]) -> Iterator[str]:
    """The lines of a file. Raises UserError when the lines of one row are together larger than a row may be."""
    for number, line in bounded_lines(file, str(path)):
        size[0] += len(line)
        if size[0] > MAX_ROW:
            raise UserError("A row is too large", f"{path}:{number}", f"at most {MAX_ROW} characters")
        yield line


def _row(values: Any, place: str, budget: Budget) -> Row:
    """A row that fits the limits. Raises UserError."""
    if not isinstance(values, dict):
        raise UserError("A record must be a JSON object", place, found=type(values).__name__)
    budget.admit(values, place)
    return Row(values, place)


def _read_json_lines(path: Path) -> list[Row]:
    with path.open(encoding="utf-8-sig") as file:
        return _json_lines(bounded_lines(file, str(path)), path)


def _json_lines(lines: Iterable[tuple[int, str]], path: Path) -> list[Row]:
    budget = Budget(str(path))
    return [
        _row(parse_json(line, f"{path}:{number}"), f"{path}:{number}", budget) for number, line in lines if line.strip()
    ]


def _read_compressed(path: Path) -> list[Row]:
    try:
        with gzip.open(path) as file:
            return _json_lines(_decompressed_lines(file, path), path)
    except (OSError, EOFError, zlib.error) as error:
        fix = "decompress it by hand"
        raise UserError("The compressed file is damaged", str(path), found=str(error), fix=fix) from error


def _decompressed_lines(file: Any, path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a compressed file. Raises UserError as soon as they are too many bytes, absolutely or relative to
    the file."""
    compressed, size = path.stat().st_size, 0
    for number, line in bounded_lines(file, str(path)):
        size += len(line)
        if size > MAX_FILE or (size > RATIO_CHECKED and size > MAX_RATIO * compressed):
            expected = f"at most {MAX_FILE} bytes decompressed, and at most {MAX_RATIO} times its size"
            raise UserError("The compressed file is too large", f"{path}:{number}", expected)
        yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")


def _read_json(path: Path) -> list[Row]:
    """The records of a list, each parsed on its own."""
    text = path.read_text(encoding="utf-8-sig")
    budget, rows = Budget(str(path)), []
    for value in _list_items(text, path):
        rows.append(_row(value, f"{path}, record {len(rows) + 1}", budget))
    return rows


def _list_items(text: str, path: Path) -> Iterator[Any]:
    """The items of a JSON list. Raises UserError if the text is not a list or an item is larger than a row may be."""
    position = WHITE_SPACE.match(text).end()  # type: ignore[union-attr]
    if text[position : position + 1] != "[":
        value = parse_json(text[:MAX_ROW], str(path))
        raise UserError("A json file must contain a list of records", str(path), found=type(value).__name__)
    number, expected = 0, r"\["
    while True:
        separator = re.compile(rf"\s*{expected}\s*").match(text, position)
        if separator is None:
            break
        position, number, expected = separator.end(), number + 1, ","
        if number == 1 and text[position : position + 1] == "]":
            break
        value, position = _item(text, position, path, number)
        yield value
    if not re.compile(r"\s*\]\s*\Z").match(text, position):
        line = text.count("\n", 0, position) + 1
        raise UserError("Malformed JSON", f"{path}:{line}", "a comma or the end of the list after each record")


def _item(text: str, position: int, path: Path, number: int) -> tuple[Any, int]:
    """The JSON value at a position and the position after it, read from no more text than a row may have."""
    size = 1 << 12
    while True:
        window = text[position : position + size]
        try:
            value, end = json.JSONDecoder().raw_decode(window)
            if end < len(window) or position + size >= len(text):  # a number may go on after the window
                return value, position + end
        except (ValueError, RecursionError) as error:
            if position + size >= len(text):
                line = text.count("\n", 0, position + getattr(error, "pos", 0)) + 1
                raise UserError("Malformed JSON", f"{path}:{line}", found=str(error)) from error
        if size == MAX_ROW:
            raise UserError("A row is too large", f"{path}, record {number}", f"at most {MAX_ROW} characters")
        size = min(8 * size, MAX_ROW)


def parse_json(text: str, place: str) -> Any:
    """The value of a JSON text. Raises UserError if it is malformed."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number with too many digits
        raise UserError("Malformed JSON", place, found=str(error)) from error


def _read_parquet(path: Path) -> list[Row]:
    budget = Budget(str(path))
    return [_row(record, f"{path}, row {i}", budget) for i, record in enumerate(parquet_rows(path), 1)]


def _read_hub(name: str, split: str) -> list[Row]:
    try:
        table = datasets.load_dataset(name.removeprefix(HUB), split=split)
    except Exception as error:  # many types: no network, unknown name, gated, code in the dataset
        raise UserError(
            "The hub dataset cannot be loaded",
            name,
            expected=f"a public dataset with a {split!r} split, and a network connection or a cached copy",
            found=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            fix="check the name and the network, or save the data as a file and give its path",
        ) from error
    return _rows_of(table, name)


def _rows_of(table: Any, name: str) -> list[Row]:
    """The rows of a dataset; class labels stored as numbers are replaced by their names."""
    named = {key: f for key, f in table.features.items() if isinstance(f, datasets.ClassLabel)}
    rows, budget = [], Budget(name)
    for i, record in enumerate(table, 1):
        labels = {k: f.int2str(record[k]) for k, f in named.items() if record[k] is not None and record[k] >= 0}
        rows.append(_row({**record, **labels}, f"{name}, row {i}", budget))
    return rows


def cell_text(value: Any) -> str:
    """A cell as the text shown in a prompt: None as an empty string, other values that are not strings as JSON."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.encode("utf-8", "replace").decode("utf-8")  # replaces lone surrogates, which cannot be encoded


def column_text(row: Row, name: str) -> str:
    """The text of a row's cell. Raises UserError if the row does not have the column."""
    if name not in row.values:
        raise UserError(f"The row has no column {name!r}", row.source, found=", ".join(map(str, row.values)))
    text = cell_text(row.values[name])
    if len(text) > MAX_CELL:  # such as the text of binary data
        raise too_large(f"{row.source}, column {name!r}", len(text))
    return text
