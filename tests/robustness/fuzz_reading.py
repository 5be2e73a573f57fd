"""Data files to read: of every kind, type, encoding, delimiter and quoting, whole and damaged.

``make_file`` writes one by seed. Reading must end with rows, or with an error that names the file.
"""

import csv
import gzip
import io
import json
import random
import string
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

ENCODINGS = (
    "utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "latin-1", "cp1250",
    "cp1251", "shift_jis", "gb18030", "mac_roman", "cp850", "euc_kr",
)  # fmt: skip
PIECES = (
    "word", " ", ",", ";", "\t", "|", '"', "'", "\n", "\r", "\r\n", "\\", "\\N", "\\n", "\\t", '\\"', "\\.", "é", "ß",
    "“", "я", "中", "\U0001f600", "\u2028", "\x1a", "\x1f", "\ufeff", "NULL", "NaN", "nan", "1.0", "-0",
    "1e400", "007", "sep=;", "=A1", "#N/A", "{", "}", "[", "]", ":", "true", "2024-01-02", "a" * 200, ".", "\ufdd0",
)  # fmt: skip
NUMBERS = (0, 1, -1, 1.0, 2.0, -0.0, 0.1, 1e300, float("nan"), float("inf"), 2**53, 2**63, 10**40)
NAMES = ("text", "label", "", "id", "a.b", "text ", "Unnamed: 0", "ü", "a,b", "{x}", "column_1", "0", "\ufefftext")
SUFFIXES = (
    ".csv", ".csv", ".tsv", ".tab", ".json", ".json", ".jsonl", ".ndjson", ".parquet", ".txt", ".md", ".xlsx", ".xls",
    ".xlsb", ".ods",
)  # fmt: skip
SHEETS = Path(__file__).parents[1] / "data" / "files"


def make_file(folder: Path, rng: random.Random) -> Path:
    """Writes a file, and returns its path; the path of one of its parts, or a pattern, in some cases."""
    suffix = rng.choice(SUFFIXES)
    kind = suffix if rng.random() < 0.9 else rng.choice(SUFFIXES)
    content = _content(kind, rng)
    if rng.random() < 0.4:
        content = damaged(content, rng)
    if rng.random() < 0.15:
        packed = rng.choice((".gz", ".zst"))
        content = gzip.compress(content) if packed == ".gz" else _zstd(content)
        content = damaged(content, rng) if rng.random() < 0.2 else content
        suffix += packed
    name = rng.choice(
        (f"data{suffix}", f"data{suffix.upper()}", f"data{suffix}", f"part-0-of-{rng.randrange(3)}{suffix}")
    )
    path = folder / name
    path.write_bytes(content)
    return path if rng.random() < 0.95 else folder / f"*{suffix}"


def _content(kind: str, rng: random.Random) -> bytes:
    rows = [[_cell(rng) for _ in range(rng.choice((2, 2, 3)))] for _ in range(rng.choice((0, 1, 3, 30)))]
    names = rng.sample(NAMES, 3) if rng.random() < 0.5 else ["text", "label", "note"]
    if kind in (".csv", ".tsv", ".tab"):
        return _delimited(names, rows, rng)
    if kind in (".json", ".jsonl", ".ndjson"):
        return _json(kind, names, rng).encode(rng.choice(ENCODINGS), "replace")
    if kind == ".parquet":
        return _parquet(names, rng)
    if kind in (".xlsx", ".xls", ".xlsb", ".ods"):
        return _sheet(kind, rng)
    text = "".join(_cell(rng) + rng.choice(("\n", "\n\n", " ")) for _ in range(50))
    return text.encode(rng.choice(ENCODINGS), "replace")


def _cell(rng: random.Random) -> str:
    if rng.random() < 0.0005:
        return "\x00"
    if rng.random() < 0.002:
        return rng.choice(string.ascii_letters) * rng.choice((70_000, 1_100_000))
    return "".join(rng.choice(PIECES if rng.random() < 0.4 else ("word", " ")) for _ in range(rng.randrange(6)))


def _delimited(names: list[str], rows: list[list[str]], rng: random.Random) -> bytes:
    delimiter = rng.choice(",,;\t|")
    buffer = io.StringIO(newline="")
    header = [names] if rng.random() < 0.8 else []
    match rng.randrange(4):
        case 0:
            lines = [delimiter.join(row) for row in (*header, *rows)]  # without any quoting
            buffer.write(rng.choice(("\n", "\r\n", "\r")).join(lines))
        case 1:
            style: Any = {"doublequote": False, "escapechar": "\\", "quoting": rng.choice((0, 1, 3))}
            csv.writer(buffer, delimiter=delimiter, **style).writerows([*header, *rows])
        case _:
            csv.writer(buffer, delimiter=delimiter, quoting=rng.choice((0, 1))).writerows([*header, *rows])
    declared = f"sep={delimiter}\r\n" if rng.random() < 0.1 else ""
    return (declared + buffer.getvalue()).encode(rng.choice(ENCODINGS), "replace")


def _value(rng: random.Random, depth: int = 0) -> Any:
    match rng.randrange(8 if depth < 3 else 5):
        case 0 | 1 | 2:
            return _cell(rng)
        case 3:
            return rng.choice(NUMBERS)
        case 4:
            return rng.choice((None, True, False))
        case 5:
            return [_value(rng, depth + 1) for _ in range(rng.randrange(4))]
        case _:
            return {rng.choice(NAMES): _value(rng, depth + 1) for _ in range(rng.randrange(4))}


def _json(kind: str, names: list[str], rng: random.Random) -> str:
    count = rng.choice((0, 1, 3, 30))
    records: list[Any] = [{name: _value(rng) for name in names} for _ in range(count)]
    if rng.random() < 0.2 and records:
        records[rng.randrange(count)] = _value(rng)
    indent = rng.choice((None, None, 2))
    if kind != ".json" and rng.random() < 0.8:
        return "\n".join(json.dumps(record, indent=indent) for record in records)
    shapes = (
        records,
        {"data": records},
        {"version": 1, "data": records, "more": [_value(rng)]},
        {name: {str(i): _value(rng) for i in range(count)} for name in names},
        {str(i): record for i, record in enumerate(records)},
        {name: [_value(rng) for _ in range(count)] for name in names},
        {"columns": names, "index": list(range(count)), "data": [[_value(rng) for _ in names] for _ in range(count)]},
        {"schema": {"fields": []}, "data": records},
        [[_value(rng) for _ in names] for _ in range(count)],
        _value(rng),
    )
    text = json.dumps(rng.choice(shapes), indent=indent, ensure_ascii=rng.random() < 0.5)
    return text if rng.random() < 0.97 else text + "[" * 100_000


def _parquet(names: list[str], rng: random.Random) -> bytes:
    makers: Any = (
        lambda: pyarrow.array([_cell(rng) for _ in range(9)]),
        lambda: pyarrow.array([_cell(rng) for _ in range(9)], pyarrow.large_string()),
        lambda: pyarrow.array([rng.choice("ab") for _ in range(9)]).dictionary_encode(),
        lambda: pyarrow.array([_cell(rng).encode() + rng.randbytes(rng.choice((0, 3))) for _ in range(9)]),
        lambda: pyarrow.array([rng.choice((1.0, None, float("nan"), 2.5)) for _ in range(9)]),
        lambda: pyarrow.array([rng.choice((-1, 0, 1, 9, None)) for _ in range(9)]),
        lambda: pyarrow.array([rng.randrange(2**40) for _ in range(9)], pyarrow.timestamp("us")),
        lambda: pyarrow.array([rng.randrange(2**62) for _ in range(9)], pyarrow.timestamp("ns", "UTC")),
        lambda: pyarrow.array([rng.randrange(2**62) for _ in range(9)], pyarrow.duration("ns")),
        lambda: pyarrow.array([[{"role": "user", "content": _cell(rng)}] for _ in range(9)]),
        lambda: pyarrow.array([rng.randrange(10**6) for _ in range(9)]).cast(pyarrow.decimal128(25, 2)),
        lambda: pyarrow.array([None] * 9),
        lambda: pyarrow.array([[("k", 1)]] * 9, pyarrow.map_(pyarrow.string(), pyarrow.int64())),
    )
    features = {"info": {"features": {name: {"names": ["no", "yes"], "_type": "ClassLabel"} for name in names}}}
    arrays = [rng.choice(makers)() for _ in names]
    schema = pyarrow.schema([(name, array.type) for name, array in zip(names, arrays, strict=True)])
    table = pyarrow.Table.from_arrays(arrays, schema=schema)
    if rng.random() < 0.3:
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, compression=rng.choice(("none", "snappy", "zstd")))
    return sink.getvalue().to_pybytes()


def _sheet(kind: str, rng: random.Random) -> bytes:
    """A spreadsheet with changes inside of its zip file, so that its reader sees them."""
    content = (
        SHEETS / f"{rng.choice(('sheets', 'libreoffice'))}.{kind[1:] if kind != '.xlsb' else 'xlsx'}"
    ).read_bytes()
    if kind == ".xls":
        return damaged(content, rng) if rng.random() < 0.7 else content
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as new:
        members = old.namelist()
        chosen = rng.choice(members)
        for member in members:
            inside = old.read(member)
            if member == chosen or rng.random() < 0.1:
                inside = _changed_xml(inside, rng)
            new.writestr(member, inside)
    return changed.getvalue()


def _changed_xml(content: bytes, rng: random.Random) -> bytes:
    numbers = [i for i, byte in enumerate(content) if 48 <= byte <= 57]
    if not numbers or rng.random() < 0.4:
        return damaged(content, rng)
    place = rng.choice(numbers)
    return content[:place] + rng.choice((b"1048576", b"0", b"-1", b"999999999999", b"")) + content[place + 1 :]


def damaged(content: bytes, rng: random.Random, pieces: Sequence[str] = PIECES) -> bytes:
    """The bytes with some of them flipped, removed or repeated, or with one of the pieces between them."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0 if data:
                data[place % len(data)] ^= 1 << rng.randrange(8)
            case 1:
                del data[place:]
            case 2:
                del data[place : place + rng.randrange(1, 50)]
            case 3:
                data[place:place] = rng.choice(pieces).encode("utf-8", "surrogatepass")
            case 4:
                data[place:place] = data[: rng.randrange(1, 200)] * rng.choice((1, 100))
            case _:
                data[place:place] = rng.randbytes(rng.randrange(1, 9))
    return bytes(data)


def _zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()
