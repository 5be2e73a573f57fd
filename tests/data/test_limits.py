"""Data that is too large is rejected with its place, before it takes long or fills the memory."""

import datetime
import decimal
import gzip
import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from loratory.data.limits import MAX_CELL, MAX_COLUMNS, MAX_DEPTH, MAX_ROW
from loratory.data.rows import column_text, read_rows
from loratory.errors import UserError


def error_of(path: Path) -> UserError:
    """The error, which comes within seconds and without much memory."""
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as caught:
        read_rows(str(path))
    assert time.monotonic() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB
    return caught.value


def nested(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


CELL = "x" * (MAX_CELL + 1)
LARGE = {
    "a cell of a csv file": ("a.csv", f"a,b\n1,2\n{CELL},3\n", "A cell is too large", ":3"),
    "a quoted cell": ("a.csv", f'a,b\n1,2\n"{CELL}",3\n', "A cell is too large", ":3"),
    "an open quote": ("a.csv", 'a,b\n1,"2\n' + "x\n" * MAX_CELL, "A cell is too large", ":2"),
    "a jsonl cell": ("a.jsonl", '{"a": 1}\n' + json.dumps({"a": CELL}), "cell is too large", ":2, column 'a'"),
    "texts in a list": ("a.jsonl", json.dumps({"a": ["x" * 1000] * 1001}), "A cell is too large", ":1, column 'a'"),
    "a record": ("a.json", json.dumps([{"a": 1}, {"a": CELL}]), "A cell is too large", ", record 2, column 'a'"),
    "a line": ("a.jsonl", '{"a": 1}\n{"a": "' + "x" * MAX_ROW + '"}', "A row is too large", ":2"),
    "a line of commas": ("a.csv", "a,b\n" + "," * (MAX_ROW + 1), "A row is too large", ":2"),
    "a row of many lines": ("a.csv", 'a,b\n' + '"\n",' * (MAX_ROW // 3), "A row is too large", ""),
    "an open record": ("a.json", '[{"a": 1}, {"a": "' + "x" * (2 * MAX_ROW), "A row is too large", ", record 2"),
    "columns": ("a.csv", ",".join(map(str, range(MAX_COLUMNS + 1))), "too many columns", ":1"),
    "keys": ("a.jsonl", json.dumps({str(i): 0 for i in range(MAX_COLUMNS + 1)}), "too many columns", ":1"),
    "nesting": ("a.jsonl", json.dumps({"a": nested(MAX_DEPTH)}), "nested too deeply", ":1, column 'a'"),
    "nesting beyond the parser": ("a.jsonl", '{"a": ' + "[" * 10**6, "Malformed JSON", ":1"),
    "digits": ("a.jsonl", '{"a": ' + "1" * 10**6 + "}", "Malformed JSON", ":1"),
    "NUL characters": ("a.csv", "a,b\n1,\0\n", "contains NUL characters", ":2"),
}  # fmt: skip


@pytest.mark.parametrize("what", LARGE)
def test_data_that_is_too_large_is_rejected_with_its_place(tmp_path, what):
    name, content, message, place = LARGE[what]
    path = tmp_path / name
    path.write_text(content)
    error = error_of(path)
    assert message in error.what and str(error.where).startswith(f"{path}{place}")


def test_the_largest_cells_and_the_deepest_lists_are_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"a": CELL[:-1], "b": nested(MAX_DEPTH - 1), "c": "\u2028"}, ensure_ascii=False))
    assert read_rows(str(path))[0].values == {"a": CELL[:-1], "b": nested(MAX_DEPTH - 1), "c": "\u2028"}


def test_a_compressed_file_is_rejected_while_it_unpacks(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    line = b'{"a": "' + b"x" * 900_000 + b'"}\n'
    path.write_bytes(gzip.compress(line * 40))
    assert error_of(path).what == "The compressed file is too large"
    path.write_bytes(gzip.compress(b'{"a": "' + bytes(2**28)))
    assert error_of(path).what == "The compressed file is too large"
    path.write_bytes(gzip.compress(b'{"a": 1}\n{"a": "\xff"}\n'))
    assert error_of(path).what == "The file is not UTF-8"


def test_rows_that_need_too_much_memory_are_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr("loratory.data.limits.MAX_MEMORY", 10**6)
    path = tmp_path / "a.jsonl"
    path.write_text("{}\n" * 10_000)
    error = error_of(path)
    assert error.what == "The data file needs too much memory" and ":20" in str(error.where)


def test_a_json_list_is_read_record_by_record(tmp_path):
    path = tmp_path / "a.json"
    records = [{"a": i, "b": ["ü", None, {"c": "x" * i}]} for i in range(0, 20_000, 999)]
    for indent in (None, 2):
        path.write_text(json.dumps(records, indent=indent))
        assert [row.values for row in read_rows(str(path))] == records
    for content in ('[{"a": 1} {"a": 2}]', '[{"a": 1},]', '[{"a": 1}', '[{"a": 1}] x', '[,{"a": 1}]'):
        path.write_text(content)
        assert error_of(path).what == "Malformed JSON"


# ---- parquet ---------------------------------------------------------------------------------------------------------


def parquet(folder: Path, columns: dict[str, Any], **options: Any) -> Path:
    path = folder / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)
    return path


def test_a_parquet_file_that_is_rewritten_gives_its_new_rows(tmp_path):
    path = parquet(tmp_path, {"a": ["old"]})
    before = path.stat()
    assert read_rows(str(path))[0].values == {"a": "old"}
    parquet(tmp_path, {"a": ["new"]})
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert read_rows(str(path))[0].values == {"a": "new"}


def test_types_of_parquet_columns_have_their_values(tmp_path):
    day = datetime.datetime(2020, 1, 2, 3, 4, 5)
    columns = {
        "nested": [[{"role": "user", "content": "Q"}]], "when": [day], "price": [decimal.Decimal("1.10")],
        "kind": pyarrow.array(["x"]).dictionary_encode(), "none": [None], "flag": [True],
        "bytes": [b"x" * (2 * MAX_CELL)],
    }  # fmt: skip
    [row] = read_rows(str(parquet(tmp_path, columns)))
    expected = {
        "nested": columns["nested"][0],
        "when": day,
        "price": decimal.Decimal("1.10"),
        "kind": "x",
        "none": None,
    }
    assert {key: row.values[key] for key in expected} == expected
    assert column_text(row, "when") == "2020-01-02T03:04:05" and column_text(row, "price") == "1.10"
    assert column_text(row, "flag") == "true"
    with pytest.raises(UserError, match="A cell is too large"):
        column_text(row, "bytes")


def test_an_unknown_class_label_stays_as_it_is_and_minus_one_is_missing(tmp_path):
    features = datasets.Features({"label": datasets.ClassLabel(names=["no", "yes"])})
    metadata = {"huggingface": json.dumps({"info": {"features": features.to_dict()}})}
    table = pyarrow.table({"label": [0, 1, -1, None, 7]}).replace_schema_metadata(metadata)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    labels = [row.values["label"] for row in read_rows(str(tmp_path / "a.parquet"))]
    assert labels == ["no", "yes", None, None, 7]


def test_a_parquet_file_that_is_too_large_damaged_or_empty_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr("loratory.data.limits.MAX_MEMORY", 10**8)
    assert error_of(parquet(tmp_path, {"a": ["x", CELL]})).where == f"{tmp_path}/a.parquet, row 2, column 'a'"
    repeated = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 10**6, pyarrow.int32()), ["x" * 900_000])
    path = parquet(tmp_path, {"a": repeated}, compression="zstd")
    assert path.stat().st_size < 2_000_000
    assert error_of(path).what == "The data file needs too much memory"
    assert error_of(parquet(tmp_path, {"a": [[]] * 0})).what == "The data file has no rows"
    whole = parquet(tmp_path, {"a": ["x"] * 1000}).read_bytes()
    for content in (b"", b"PAR1", whole[:-20], whole[: len(whole) // 2], whole[:50] + bytes(100) + whole[150:]):
        path.write_bytes(content)
        assert "parquet" in error_of(path).what
