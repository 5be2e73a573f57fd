"""Reads parquet files batch by batch, without a cache: a file that was rewritten gives its new rows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from loratory.data.limits import MAX_MEMORY, check_columns
from loratory.errors import UserError

BATCH_ROWS = 64


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows; class labels stored as numbers are replaced by their names. Raises UserError."""
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
        if isinstance(value, int) and 0 <= value < len(names):
            record[column] = names[value]
    return record
