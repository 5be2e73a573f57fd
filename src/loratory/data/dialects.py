"""Finds out how a text file separates and quotes its cells.

A dialect is judged by reading with it: the right one gives every row the header's number of cells. Python's
``csv.Sniffer`` counts characters instead, also inside of quotes and of text.
"""

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from loratory.data.limits import MAX_CELL, MAX_ROW, too_large
from loratory.errors import UserError

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
NONE = "\x1f"  # is in no text: the delimiter of a file with a single column
SAMPLE_LINES, SAMPLE_SIZE = 5000, 1 << 20  # lines and characters in which the delimiter is looked for
NULL = r"\N"
ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "0": "", "Z": "\x1a"}
DECLARED = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
# Stand for escaped characters while the csv module reads a row; they are no characters of any text.
STANDING = {'\\"': "\ufdd0", "\\\\": "\ufdd1", "\\,": "\ufdd2", "\\;": "\ufdd3", "\\\t": "\ufdd4", "\\|": "\ufdd5"}
ESCAPED = re.compile(r'\\["\\,;\t|]')
MEANT = str.maketrans({stand: pair[1] for pair, stand in STANDING.items()})

NumberedLines = Iterator[tuple[int, str]]
Style = Literal["quoted", "spaced", "backslash", "plain", "escaped"]


@dataclass(frozen=True)
class Dialect:
    """How a file separates and quotes cells."""

    delimiter: str
    style: Style
    """quoted: quotes, doubled inside. spaced: the same with a space after each delimiter. backslash: quotes, escaped
    inside. plain: quotes are text. escaped: quotes are text, and backslashes escape, as databases export."""


@dataclass(frozen=True)
class Fit:
    """How well a dialect explains a file."""

    rows: int
    share: float
    """The share of rows with as many cells as the header."""
    width: int
    """The number of cells of the header."""
    is_whole: bool
    """Whether no row is malformed, or longer than the header."""


def read_rows_of(numbered: NumberedLines, name: str, dialect: Dialect) -> Iterator[tuple[list[Any], int]]:
    """The rows of numbered lines, each with the number of its first line. Raises UserError for a malformed row, naming
    its line."""
    if dialect.style == "escaped":
        return _escaped_rows(numbered, name, dialect.delimiter)
    return _csv_rows(numbered, name, dialect)


def _csv_rows(numbered: NumberedLines, name: str, dialect: Dialect) -> Iterator[tuple[list[Any], int]]:
    start, size = 0, 0  # of the row that is being read
    has_backslashes = dialect.style == "backslash"

    def lines() -> Iterator[str]:
        nonlocal start, size
        for number, line in numbered:
            start = start or number
            size += len(line)
            if size > MAX_ROW:
                raise UserError("A row is too large", f"{name}:{number}", f"at most {MAX_ROW} characters")
            yield ESCAPED.sub(lambda match: STANDING[match[0]], line) if has_backslashes else line

    csv.field_size_limit(MAX_CELL)
    quoting = csv.QUOTE_NONE if dialect.style == "plain" else csv.QUOTE_MINIMAL
    spaced = dialect.style == "spaced"
    reader = csv.reader(lines(), delimiter=dialect.delimiter, quoting=quoting, skipinitialspace=spaced, strict=True)
    try:
        for fields in reader:
            yield [_unescaped(field) for field in fields] if has_backslashes else fields, start
            start = size = 0
    except csv.Error as error:
        if "field limit" in str(error):
            raise too_large(f"{name}:{start}", MAX_CELL + 1) from error
        raise UserError("Malformed row", f"{name}:{start}", found=str(error)) from error


def _unescaped(field: str) -> str | None:
    """A field of the style "backslash"."""
    if field == NULL:
        return None
    return field.replace("\\\n", "\n").translate(MEANT)


def _escaped_rows(numbered: NumberedLines, name: str, delimiter: str) -> Iterator[tuple[list[Any], int]]:
    """The rows of a file in the text formats of PostgreSQL and MySQL. A backslash may also escape the end of a line."""
    # Possessive, because a repetition that may be taken back costs memory for every character.
    field = re.compile(rf"(?:[^\\{re.escape(delimiter)}]++|\\.)*+", re.DOTALL)
    parts: list[str] = []
    start = 0
    for number, line in numbered:
        start = start if parts else number
        parts.append(line)
        if sum(map(len, parts)) > MAX_ROW:
            raise UserError("A row is too large", f"{name}:{number}", f"at most {MAX_ROW} characters")
        bare = line.rstrip("\r\n")
        if bare != line and (len(bare) - len(bare.rstrip("\\"))) % 2:
            continue
        yield from _escaped_row("".join(parts), field, f"{name}:{start}", start)
        parts = []
    if parts:
        yield from _escaped_row("".join(parts), field, f"{name}:{start}", start)


def _escaped_row(text: str, field: re.Pattern, place: str, start: int) -> Iterator[tuple[list[Any], int]]:
    text = re.sub(r"\r?\n\Z|\r\Z", "", text)
    if text == r"\.":  # the end of the data, as PostgreSQL marks it
        return
    fields, position = [], 0
    while True:
        match = field.match(text, position)
        end = match.end() if match else position
        fields.append(_value_of(text[position:end]))
        if end >= len(text):
            break
        position = end + 1
        if text[end] == "\\":  # a single backslash at the end of the file
            break
    if (longest := max(len(value or "") for value in fields)) > MAX_CELL:
        raise too_large(place, longest)
    yield fields, start


def _value_of(text: str) -> str | None:
    if text == NULL:
        return None
    return re.sub(r"\\(.)", lambda match: ESCAPES.get(match[1], match[1]), text, flags=re.DOTALL)


def declared_delimiter(first_line: str) -> str | None:
    """The delimiter that a first line such as "sep=;" declares, or None."""
    match = DECLARED.fullmatch(first_line.lstrip("\ufeff"))
    return match[1] if match and match[1] in DELIMITERS else None


def find_dialect(
    lines_of: Callable[[], NumberedLines], name: str, default: str, declared: str | None = None
) -> Dialect:
    """The dialect of a file. ``lines_of`` starts reading it, and is called several times. ``default`` is the delimiter
    that the file's name promises; ``declared`` is one that is known. Raises UserError."""
    sample, size = [], 0
    for _, line in islice(lines_of(), SAMPLE_LINES):
        sample.append(line)
        size += len(line)
        if size > SAMPLE_SIZE:
            break
    delimiter = declared or _find_delimiter(sample, name, default)
    if _looks_escaped(sample, delimiter):
        return Dialect(delimiter, "escaped")
    dialect = Dialect(delimiter, _find_style(lines_of, name, delimiter, "".join(sample)))
    if not declared:
        fit = _fit(lines_of(), name, dialect)
        single = Dialect(NONE, "quoted")
        if fit.width == 1 and not fit.is_whole and _fit(lines_of(), name, single).is_whole:
            return single
    return dialect


def _find_delimiter(sample: list[str], name: str, default: str) -> str:
    """The delimiter that gives most rows the header's number of cells; the default if none does so better."""
    best, best_score = default, (0.0, 0, 0)
    styles: tuple[Style, ...] = ("quoted", "backslash", "plain") if any('"' in line for line in sample) else ("plain",)
    for delimiter in DELIMITERS:
        for style in styles:
            fit = _fit(enumerate(sample, 1), name, Dialect(delimiter, style))
            if fit.width < 2 or fit.share < 0.5:
                continue
            score = (fit.share - 0.01 * styles.index(style), int(delimiter == default), fit.width)
            if score > best_score:
                best, best_score = delimiter, score
    return best


def _fit(numbered: NumberedLines, name: str, dialect: Dialect) -> Fit:
    """How well a dialect explains these lines; the row that the end of a sample cuts off counts as malformed."""
    width = length = rows = 0
    same, is_whole = 0.0, True
    try:
        for fields, _ in read_rows_of(numbered, name, dialect):
            used = len(fields)
            while used and not (fields[used - 1] or "").strip():
                used -= 1
            if not used:
                continue
            if not rows:
                width, length = used, len(fields)
            rows += 1
            # Spreadsheets leave out the empty cells at the end of a row, or add some.
            same += 1.0 if used == width or len(fields) == length else 0.3 if 1 < used < width else 0.0
            is_whole = is_whole and used <= length
    except UserError:
        is_whole = False
    return Fit(rows, same / rows if rows else 0.0, width, is_whole and rows > 0)


def _find_style(lines_of: Callable[[], NumberedLines], name: str, delimiter: str, sample: str) -> Style:
    """How cells are quoted: the first style, from the most usual to the least, that explains the whole file."""

    def fit(style: Style) -> Fit:
        return _fit(lines_of(), name, Dialect(delimiter, style))

    quoted = fit("quoted")
    has_escapes = bool(re.search(r'(?<!\\)(?:\\\\)*\\"', sample))
    has_nulls = NULL in sample and '"' in sample
    # A program that quotes cells quotes every cell with a quotation mark: one after a space is not inside of a cell.
    if re.search(rf'(?:^|{re.escape(delimiter)}) +"(?!["\r\n]|{re.escape(delimiter)}|\Z)', sample, re.MULTILINE):
        spaced = fit("spaced")
        if spaced.is_whole and (not quoted.is_whole or spaced.rows == quoted.rows):
            return "spaced"
    # A quotation mark in a cell without quotes is always escaped if the program that wrote it escapes them at all.
    is_sure = bool(re.search(rf'(?<!\\)(?:\\\\)*\\"(?!"|{re.escape(delimiter)}|[\r\n]|\Z)', sample))
    if quoted.is_whole and (is_sure or has_nulls):
        escaped = fit("backslash")
        if escaped.is_whole and escaped.rows >= quoted.rows:
            return "backslash"
    if quoted.is_whole:
        # Without quoting, a quotation mark at the start of a text swallows the lines up to the next mark.
        if delimiter == "\t" and '""' not in sample:
            plain = fit("plain")
            if plain.is_whole and plain.share == 1 and plain.rows > quoted.rows and plain.width == quoted.width:
                return "plain"
        return "quoted"
    if has_escapes and fit("backslash").is_whole:
        return "backslash"
    plain = fit("plain")
    return "plain" if plain.is_whole and plain.share == 1 and plain.width > 1 else "quoted"


def _looks_escaped(sample: list[str], delimiter: str) -> bool:
    """Whether backslashes escape: a cell is the null value of databases, or every backslash is part of an escape that
    their exports write, and these do not look like words, as in LaTeX."""
    text = "".join(sample)
    if "\\" not in text or re.search(rf'(?:^|{re.escape(delimiter)})"', text, re.MULTILINE):
        return False
    edge = rf"(?:^|(?<={re.escape(delimiter)}))\\N(?=$|{re.escape(delimiter)}|\r)"
    if re.search(edge, text, re.MULTILINE):
        return True
    if delimiter != "\t":
        return False
    pairs = re.findall(r"\\(.?)(.?)", text, re.DOTALL)
    like_words = sum(kind != "\\" and after.islower() for kind, after in pairs)
    return all(kind and kind in "\\nrt\t\n" for kind, _ in pairs) and like_words < len(pairs) / 2
