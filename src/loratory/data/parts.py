"""Finds the files that a name in the data settings stands for: one file, the parts of one, or those of a pattern."""

import glob
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from loratory.data.encodings import COMPRESSED
from loratory.errors import UserError

SUFFIXES = (
    ".csv", ".tsv", ".tab", ".json", ".jsonl", ".ndjson", ".parquet", ".txt", ".md", ".xlsx", ".xlsm", ".xls", ".xlsb",
    ".ods",
)  # fmt: skip
SPREADSHEETS = (".xlsx", ".xlsm", ".xls", ".xlsb", ".ods")
TEXTS = tuple(suffix for suffix in SUFFIXES if suffix not in (*SPREADSHEETS, ".parquet"))
ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar", ".bz2", ".xz")
NUMBERED = r"-(?P<number>\d{1,6})-of-(?P<count>\d{1,6})"
PART = re.compile(rf"(?P<stem>.*){NUMBERED}(?P<suffix>(\.\w+)+)")
MOST_NAMED = 5


def data_suffix(name: str) -> str:
    """The lower-case suffix that gives a file's type; of a compressed file both suffixes, as in ".jsonl.gz"."""
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    is_compressed = len(suffixes) > 1 and suffixes[-1] in COMPRESSED
    return "".join(suffixes[-2:]) if is_compressed else "".join(suffixes[-1:])


def is_readable(name: str) -> bool:
    """Whether a file with this name can be read as data."""
    suffix = data_suffix(name)
    return suffix in SUFFIXES or (suffix.endswith(COMPRESSED) and suffix.rsplit(".", 1)[0] in TEXTS)


def files_of(name: str, others: Sequence[str] = ()) -> list[Path]:
    """The files that a name stands for, in order. ``others`` are names of the same list: a part whose other parts are
    listed there stands for itself. Raises UserError if a file is missing or cannot be data."""
    path = Path(name)
    if not path.exists() and glob.has_magic(name):
        matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207
        found = [Path(match) for match in matches if Path(match).is_file()]
        if not found:
            raise UserError("No file matches the pattern", name, fix="check the folder and the pattern")
        kinds = sorted({data_suffix(str(file)) for file in found})
        for file in found:
            _check_kind(str(file))
        if len(kinds) > 1:
            fix = f"end the pattern in one of them, as in *{kinds[0]}"
            raise UserError("The files of a pattern must be of one kind", name, found=", ".join(kinds), fix=fix)
        _check_complete(found)
        return found
    part = PART.fullmatch(path.name)
    if part and not any(_is_sibling(other, path, part) for other in others if other != name):
        siblings = _siblings(path, part)
        if siblings:
            _check_kind(name)
            _check_complete(siblings)
            return siblings
    if path.is_dir():
        _refuse_folder(path)
    _check_kind(name)
    if not path.is_file():
        raise UserError("Data file not found", name, fix="check the path; in a task file it is relative to that file")
    return [path]


def _check_kind(name: str) -> None:
    if is_readable(name):
        return
    suffix = Path(name).suffix.lower()
    fix = None
    if suffix in ARCHIVES:
        fix = "unpack it, and give the file inside"
        if suffix in (".bz2", ".xz"):
            fix = "unpack it, or compress it with gzip or zstd"
    elif suffix in COMPRESSED:
        fix = f"name it after what is inside, as in data.csv{suffix}"
    expected = f"{', '.join(SUFFIXES)}, text files also with {' or '.join(COMPRESSED)}"
    raise UserError("Unknown type of data file", name, expected, data_suffix(name) or "no suffix", fix)


def _refuse_folder(path: Path) -> None:
    kinds = Counter(
        data_suffix(file.name) for file in sorted(path.iterdir()) if file.is_file() and is_readable(file.name)
    )
    fix = f"give a pattern for its files: {path / '*'}{kinds.most_common(1)[0][0]}" if kinds else None
    raise UserError("The data is a folder", str(path), "a file or a pattern", fix=fix)


def _is_sibling(other: str, path: Path, part: re.Match) -> bool:
    match = PART.fullmatch(Path(other).name)
    return bool(match) and Path(other).parent == path.parent and _set_of(match) == _set_of(part)  # type: ignore[arg-type]


def _set_of(part: re.Match) -> tuple[str, str, str]:
    return part["stem"], part["count"], part["suffix"]


def _siblings(path: Path, part: re.Match) -> list[Path]:
    """The existing parts of the file that a part belongs to."""
    try:
        names = sorted(file.name for file in path.parent.iterdir() if file.is_file())
    except OSError:
        return []
    matches = [(name, PART.fullmatch(name)) for name in names]
    return [path.parent / name for name, match in matches if match and _set_of(match) == _set_of(part)]


def _check_complete(files: Sequence[Path]) -> None:
    """Raises UserError if a part is missing of a file whose other parts are there. Parts are numbered from 0 or 1."""
    sets: dict[tuple[Path, tuple[str, str, str]], list[re.Match]] = {}
    for file in files:
        if match := PART.fullmatch(file.name):
            sets.setdefault((file.parent, _set_of(match)), []).append(match)
    for (folder, (stem, total, suffix)), matches in sets.items():
        there, count = {int(match["number"]) for match in matches}, int(total)
        first = 1 if count in there and 0 not in there else 0
        missing = [number for number in range(first, first + count) if number not in there]
        if missing:
            width = len(matches[0]["number"])
            names = [f"{stem}-{number:0{width}}-of-{total}{suffix}" for number in missing[:MOST_NAMED]]
            more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
            where = str(folder / f"{stem}-*-of-{total}{suffix}")
            fix = f"add {', '.join(names)}{more}, or list the parts in a pattern of your own"
            raise UserError("Parts of the data file are missing", where, f"{total} parts", str(len(matches)), fix)
