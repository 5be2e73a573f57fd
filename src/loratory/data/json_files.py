"""Reads JSON files in the shapes that people and libraries write."""

import io
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from loratory.data.columns import table_records
from loratory.data.encodings import TextFile
from loratory.data.limits import MAX_ROW, Budget, bounded_lines
from loratory.data.remarks import Record, Remarks
from loratory.errors import UserError
from loratory.settings import DataConfig

WHITE_SPACE = re.compile(r"\s*")
MALFORMED = "Malformed JSON"
TRAILING_COMMA = "remove the comma after the last value; JSON does not allow one there"
BROKEN = "write valid JSON: texts and keys in double quotation marks, commas only between values, brackets closed"


def parse_json(text: str, place: str) -> Any:
    """The value of a JSON text. Raises UserError if it is malformed."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number with too many digits
        raise _malformed(error, text, place) from error


def _malformed(error: Exception, text: str, place: str, start: int = 0) -> UserError:
    """The error for a text that the parser rejects from ``start`` on. ``place`` names the line: the parser counts lines
    from where it began to read, so only the character is taken from it."""
    if not isinstance(error, json.JSONDecodeError):
        return UserError(MALFORMED, place, found=str(error), fix=BROKEN)
    at = start + error.pos
    is_comma = text[:at].rstrip().endswith(",") and text[at : at + 1] in ("}", "]")
    fix = TRAILING_COMMA if is_comma or "trailing comma" in error.msg else BROKEN
    character = at - text.rfind("\n", 0, at)
    return UserError(MALFORMED, place, found=f"{error.msg} at character {character} of the line", fix=fix)


def json_records(text: TextFile, is_lines: bool, data: DataConfig, remarks: Remarks) -> Iterator[Record]:
    """The records of a file: a list, a list under a key, columns, or objects one after another. ``is_lines`` is whether
    the file's name promises one object per line. Raises UserError."""
    name = str(text.path)
    with text.open() as file:
        first = file.read(MAX_ROW).lstrip().replace("\r", "\n").split("\n", 1)[0]
    if first.startswith("{") and _is_complete(first) and (is_lines or _has_more_lines(text)):
        if not is_lines:
            remarks.kinds.append("one JSON object per line")
        with text.open() as file:
            yield from _line_records(file, name)
        return
    if is_lines and not first.startswith("[") and not _begins_with_object(text):
        with text.open() as file:
            yield from _line_records(file, name)
        return
    with text.open() as file:
        content = file.read()
    start = _skip_space(content, 0)
    if content[start : start + 1] == "[":
        if is_lines:
            remarks.kinds.append("a JSON list")
        yield from _list_records(content, start, name, data, remarks)
    elif content[start : start + 1] == "{":
        yield from _object_records(content, start, name, data, remarks)
    elif content[start:]:
        value = parse_json(content[:MAX_ROW], name)
        raise UserError("A json file must contain a list of records", name, found=type(value).__name__)


def _is_complete(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _has_more_lines(text: TextFile) -> bool:
    with text.open() as file:
        lines = (line for _, line in bounded_lines(file, str(text.path)) if line.strip())
        next(lines, None)
        return next(lines, None) is not None


def _begins_with_object(text: TextFile) -> bool:
    """Whether the file begins with a complete object that spans several lines."""
    with text.open() as file:
        content = file.read(MAX_ROW)
    try:
        start = _skip_space(content, 0)
        value, end = json.JSONDecoder().raw_decode(content, start)
        return isinstance(value, dict) and "\n" in content[start:end].replace("\r", "\n")
    except (ValueError, RecursionError):
        return False


def _line_records(file: io.TextIOBase, name: str) -> Iterator[Record]:
    for number, line in bounded_lines(file, name):
        if line.strip():
            yield parse_json(line, f"{name}:{number}"), f"{name}:{number}"


# ---- lists -----------------------------------------------------------------------------------------------------------


def _list_records(text: str, start: int, name: str, data: DataConfig, remarks: Remarks) -> Iterator[Record]:
    """The records of a list, each parsed on its own."""
    first = _skip_space(text, start + 1)
    if text[first : first + 1] != "[":
        for number, (value, _) in enumerate(_list_items(text, start, name, is_last=True), 1):
            yield value, f"{name}, record {number}"
        return
    remarks.kinds.append("a list of lists")

    def rows() -> Iterator[tuple[list[Any], str]]:
        for number, (value, _) in enumerate(_list_items(text, start, name, is_last=True), 1):
            place = f"{name}, record {number}"
            if not isinstance(value, list):
                raise UserError("A record must be a list, like the first one", place, found=type(value).__name__)
            yield value, place

    yield from table_records(rows, data.header, remarks)


def _list_items(text: str, start: int, name: str, is_last: bool = False) -> Iterator[tuple[Any, int]]:
    """The items of the list at a position, each with the position after it. ``is_last`` is whether nothing may follow
    the list. Raises UserError if the list is malformed or an item is larger than a row may be."""
    position, number, expected = start, 0, r"\["
    while separator := re.compile(rf"\s*{expected}\s*").match(text, position):
        comma = _skip_space(text, position)
        position, number, expected = separator.end(), number + 1, ","
        if number == 1 and text[position : position + 1] == "]":
            break
        if text[position : position + 1] == "]":
            raise UserError(MALFORMED, _line_place(text, comma, name), found="a comma before ]", fix=TRAILING_COMMA)
        value, position = _item(text, position, name, number)
        yield value, position
    closing = re.compile(r"\s*\]\s*\Z" if is_last else r"\s*\]").match(text, position)
    if not closing:
        expected = "a comma or the end of the list after each record"
        raise UserError(MALFORMED, _line_place(text, _skip_space(text, position), name), expected, fix=BROKEN)


def _item(text: str, position: int, name: str, number: int) -> tuple[Any, int]:
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
                place = _line_place(text, position + getattr(error, "pos", 0), name)
                raise _malformed(error, text, place, position) from error
        if size == MAX_ROW:
            raise UserError("A row is too large", f"{name}, record {number}", f"at most {MAX_ROW} characters")
        size = min(8 * size, MAX_ROW)


# ---- objects ---------------------------------------------------------------------------------------------------------


def _object_records(text: str, start: int, name: str, data: DataConfig, remarks: Remarks) -> Iterator[Record]:
    """The records of one object, or of several objects one after another."""
    members, end = _members(text, start, name)
    if _skip_space(text, end) == len(text):
        yield from _records_of_object(members, name, data, remarks)
        return
    remarks.kinds.append("JSON objects one after another")
    position, number = start, 0
    while position < len(text):
        number += 1
        place = _line_place(text, position, name)
        value, position = _item(text, position, name, number)
        yield value, place
        position = _skip_space(text, position)
        if text[position : position + 1] == ",":
            position = _skip_space(text, position + 1)


def _members(text: str, start: int, name: str) -> tuple[dict[str, Any], int]:
    """The object at a position and the position after it. Lists and objects directly inside it are read item by item,
    so that no more memory is taken than a table may have. Raises UserError."""
    budget = Budget(name)

    def value_at(key: str, position: int, number: int) -> tuple[Any, int]:
        place = f"{name}, {key[:80]!r}"
        opening = text[position : position + 1]
        if opening == "[":
            values, last = [], position + 1
            for value, end in _list_items(text, position, name):
                budget.admit({"": value}, place)
                values.append(value)
                last = end
            return values, _after(text, last, "]", name)
        if opening == "{":
            return _object(text, position, name, lambda *inner: admitted(place, *inner))
        return _item(text, position, name, 1)

    def admitted(place: str, key: str, position: int, number: int) -> tuple[Any, int]:
        value, end = _item(text, position, name, number)
        budget.admit({key: value}, place)
        return value, end

    return _object(text, start, name, value_at)


def _object(
    text: str, start: int, name: str, value_at: Callable[[str, int, int], tuple[Any, int]]
) -> tuple[dict[str, Any], int]:
    """The object at a position and the position after it. ``value_at`` reads the value of a key at a position, given
    how many keys there are so far, and returns it with the position after it."""
    found: dict[str, Any] = {}
    position = _skip_space(text, start + 1)
    if text[position : position + 1] == "}":
        return found, position + 1
    while True:
        key, position = _key(text, position, name)
        found[key], position = value_at(key, position, len(found) + 1)
        position = _skip_space(text, position)
        if text[position : position + 1] != ",":
            return found, _after(text, position, "}", name)
        comma, position = position, _skip_space(text, position + 1)
        if text[position : position + 1] == "}":
            raise UserError(MALFORMED, _line_place(text, comma, name), found="a comma before }", fix=TRAILING_COMMA)


def _key(text: str, position: int, name: str) -> tuple[str, int]:
    """The key of a member, and the position of its value."""
    if text[position : position + 1] != '"':
        raise UserError(MALFORMED, _line_place(text, position, name), "a key in quotation marks", fix=BROKEN)
    key, position = _item(text, position, name, 1)
    return key, _skip_space(text, _after(text, position, ":", name))


def _after(text: str, position: int, expected: str, name: str) -> int:
    """The position after an expected character. Raises UserError if it is not there."""
    position = _skip_space(text, position)
    if text[position : position + 1] != expected:
        raise UserError(MALFORMED, _line_place(text, position, name), f"{expected!r}", fix=BROKEN)
    return position + 1


def _records_of_object(members: dict[str, Any], name: str, data: DataConfig, remarks: Remarks) -> Iterator[Record]:
    """The records of an object, which holds them under a key, or as columns, or is one record itself."""
    lists = {key: value for key, value in members.items() if _is_list_of(dict, value)}
    if set(members) >= {"columns", "data"} and _is_list_of(list, members["data"]):
        remarks.kinds.append("columns and rows")
        columns, rows = [str(column) for column in members["columns"]], members["data"]
        yield from table_records(_rows_of([columns, *rows], name), True, remarks)
    elif (chosen := _list_with(lists, data.answer)) or (len(lists) == 1 and not _are_columns(members)):
        key, values = chosen or next(iter(lists.items()))
        remarks.kinds.append(f"read from the list {key!r}")
        if "schema" in members:  # pandas' orientation "table", with an index
            columns = list(dict.fromkeys(column for value in values for column in value))
            rows = [["" if column == "index" else column for column in columns]]
            rows += [[value.get(column) for column in columns] for value in values]
            yield from table_records(_rows_of(rows, name), True, remarks)
        else:
            yield from ((value, f"{name}, record {number}") for number, value in enumerate(values, 1))
    elif _are_columns(members):
        remarks.kinds.append("one list per column")
        count = len(next(iter(members.values())))
        for i in range(count):
            yield {key: values[i] for key, values in members.items()}, f"{name}, record {i + 1}"
    elif len(members) > 0 and all(isinstance(value, dict) and value for value in members.values()):
        yield from _nested_records(members, name, remarks)
    elif len(lists) > 1:
        found = ", ".join(map(repr, lists))
        fix = "name an answer column that only one of the lists has (--answer COLUMN), or keep one list"
        raise UserError("A json file must contain a list of records", name, "one list", f"the lists {found}", fix)
    elif len(members) == 1 and isinstance(next(iter(members.values())), list):
        [(key, values)] = members.items()
        yield from ((value, f"{name}, record {number}") for number, value in enumerate(values, 1))
    elif members:
        remarks.kinds.append("a single JSON object, read as one row")
        yield members, name


def _list_with(lists: dict[str, list[dict[str, Any]]], column: str) -> tuple[str, list[dict[str, Any]]] | None:
    """The one of several lists whose objects have a column, by its name or by the beginning of its path."""
    names = {column, column.split(".")[0]} - {""}
    found = [(key, values) for key, values in lists.items() if any(not names.isdisjoint(value) for value in values)]
    return found[0] if len(lists) > 1 and len(found) == 1 else None


def _is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, kind) for item in value)


def _are_columns(members: dict[str, Any]) -> bool:
    """Whether every member is a list, and all have the same length."""
    lists = list(members.values())
    return len(lists) > 1 and all(isinstance(v, list) for v in lists) and len({len(v) for v in lists}) == 1


def _nested_records(members: dict[str, dict[str, Any]], name: str, remarks: Remarks) -> Iterator[Record]:
    """The records of an object of objects: columns of values by row, or rows of values by column."""
    inner = list(dict.fromkeys(key for value in members.values() for key in value))
    by_row = _are_numbers(members) and not _are_numbers(inner)
    is_same = all(set(value) == set(inner) for value in members.values())
    by_column = _are_numbers(inner) and not _are_numbers(members)
    if not by_row and not by_column:
        if not is_same:
            remarks.kinds.append("a single JSON object, read as one row")
            yield members, name
            return
        by_row = len(members) > len(inner)
    if by_row:
        remarks.kinds.append("one object per row")
        yield from ((value, f"{name}, row {key}") for key, value in members.items())
        return
    remarks.kinds.append("one object per column")
    for key in inner:
        yield {column: values.get(key) for column, values in members.items()}, f"{name}, row {key}"


def _are_numbers(keys: Any) -> bool:
    return all(re.fullmatch(r"\d+", key) for key in keys)


def _rows_of(rows: list[list[Any]], name: str) -> Callable[[], Iterator[tuple[list[Any], str]]]:
    return lambda: ((row, f"{name}, record {number}") for number, row in enumerate(rows))


def _skip_space(text: str, position: int) -> int:
    return WHITE_SPACE.match(text, position).end()  # type: ignore[union-attr]


def _line_place(text: str, position: int, name: str) -> str:
    line = text.count("\n", 0, position) + 1
    return f"{name}:{line}"
