"""Reads parquet files batch by batch, without a cache: a file that was rewritten gives its new rows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from loratory.data.limits import MAX_CELL, MAX_MEMORY, check_columns
from loratory.data.remarks import Record, Remarks
from loratory.errors import UserError

BATCH_ROWS = 64


def open_zstd(path: Path) -> Any:
    """A stream of the unpacked bytes of a zstd file. Raises OSError, also while it is read."""
    return pyarrow.input_stream(str(path), compression="zstd")


def parquet_records(path: Path, remarks: Remarks) -> Iterator[Record]:
    """The records; class labels stored as numbers are replaced by their names, -1 by None, and bytes that are text by
    the text. Raises UserError."""
    decoded: set[str] = set()
    number = 0
    for number, record in enumerate(_rows(path), 1):
        for column, value in record.items():
            if isinstance(value, bytes) and len(value) <= MAX_CELL and (text := _text_of(value)) is not None:
                record[column] = text
                decoded.add(column)
        yield record, f"{path}, row {number}"
    if decoded:
        names = ", ".join(sorted(decoded)[:5])
        remarks.add("binary_text", f"bytes in {names} read as UTF-8 text")


def _text_of(value: bytes) -> str | None:
    try:
        return None if b"\0" in value else value.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        # Texts stay encoded by a dictionary, so that a short file cannot repeat a long text in memory.
        names = [field.name for field in pyarrow.parquet.read_schema(path) if _is_text(field.type)]
        with pyarrow.parquet.ParquetFile(path, read_dictionary=names) as file:
            metadata, schema = file.metadata, file.schema_arrow
            check_columns(schema.names, str(path))
            declared = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
            if declared > MAX_MEMORY:
                expected = f"at most {MAX_MEMORY} bytes decompressed"
                raise UserError("The compressed file is too large", str(path), expected, str(declared))
            labels = class_labels(schema.metadata or {})
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                if batch.nbytes > MAX_MEMORY:
                    raise UserError("The data file needs too much memory", str(path), f"at most {MAX_MEMORY} bytes")
                yield from (_with_names(record, labels) for record in batch.to_pylist())
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise UserError("The parquet file cannot be read", str(path), found=str(error)[:300]) from error


def _is_text(kind: pyarrow.DataType) -> bool:
    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)


def class_labels(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """The names of the class labels, by column, that the library ``datasets`` stores with a table."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        found = {name: f["names"] for name, f in features.items() if f.get("_type") == "ClassLabel" and f.get("names")}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return {name: [str(label) for label in names] for name, names in found.items() if isinstance(names, list)}


def _with_names(record: dict[str, Any], labels: dict[str, list[str]]) -> dict[str, Any]:
    for column, names in labels.items():
        value = record.get(column)
        if isinstance(value, int) and -1 <= value < len(names):
            record[column] = names[value] if value >= 0 else None  # -1: no label
    return record
