"""Reads the rows of data files and hub datasets, each with its file and line."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from loratory.errors import UserError

HUB = "hub:"
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".jsonl.gz")
MAX_DECOMPRESSED = 2**31  # bytes of a .gz file after decompression
MAX_FIELD_CHARACTERS = 10_000_000


@dataclass(frozen=True)
class Row:
    """One record of a data file. ``source`` says where it comes from, as file:line."""

    values: Mapping[str, Any]
    source: str


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
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        rows, header, start = [], None, 1
        try:
            for fields in reader:
                place, start = f"{path}:{start}", reader.line_num + 1
                if not fields:
                    continue
                if header is None:
                    header = fields
                    _check_header(header, place)
                elif len(fields) != len(header):
                    raise UserError("A row has the wrong number of columns", place, str(len(header)), str(len(fields)))
                else:
                    rows.append(Row(dict(zip(header, fields, strict=True)), place))
        except csv.Error as error:
            raise UserError("Malformed row", f"{path}:{start}", found=str(error)) from error
    return rows


def _check_header(header: list[str], place: str) -> None:
    for name in header:
        if header.count(name) > 1:
            raise UserError("Two columns have the same name", place, found=repr(name))


def _read_json_lines(path: Path) -> list[Row]:
    with path.open(encoding="utf-8-sig") as file:
        return _json_lines(file, path)


def _json_lines(file: Iterable[str], path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(file, 1):
        if line.strip():
            rows.append(_json_row(parse_json(line, f"{path}:{number}"), f"{path}:{number}"))
    return rows


def _read_compressed(path: Path) -> list[Row]:
    try:
        with gzip.open(path) as file:
            content = file.read(MAX_DECOMPRESSED + 1)
    except (OSError, EOFError, zlib.error) as error:
        fix = "decompress it by hand"
        raise UserError("The compressed file is damaged", str(path), found=str(error), fix=fix) from error
    if len(content) > MAX_DECOMPRESSED:
        raise UserError("The compressed file is too large", str(path), f"at most {MAX_DECOMPRESSED} bytes decompressed")
    return _json_lines(content.decode("utf-8-sig").splitlines(), path)


def _read_json(path: Path) -> list[Row]:
    records = parse_json(path.read_text(encoding="utf-8-sig"), str(path))
    if not isinstance(records, list):
        raise UserError("A json file must contain a list of records", str(path), found=type(records).__name__)
    return [_json_row(record, f"{path}, record {i}") for i, record in enumerate(records, 1)]


def parse_json(text: str, place: str) -> Any:
    """The value of a JSON text. Raises UserError if it is malformed."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number with too many digits
        raise UserError("Malformed JSON", place, found=str(error)) from error


def _json_row(record: Any, place: str) -> Row:
    if not isinstance(record, dict):
        raise UserError("A record must be a JSON object", place, found=type(record).__name__)
    return Row(record, place)


def _read_parquet(path: Path) -> list[Row]:
    try:
        table = datasets.Dataset.from_parquet(str(path))
    except Exception as error:  # the reader raises many types of errors, not all of them public
        raise UserError("The parquet file cannot be read", str(path), found=str(error)) from error
    return _rows_of(table, str(path))


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
    rows = []
    for i, record in enumerate(table, 1):
        labels = {k: f.int2str(record[k]) for k, f in named.items() if record[k] is not None and record[k] >= 0}
        rows.append(Row({**record, **labels}, f"{name}, row {i}"))
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
    return cell_text(row.values[name])
