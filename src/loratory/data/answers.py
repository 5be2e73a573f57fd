"""Reads the answer of a row as each task stores it: a label, a set of labels, a choice, or a program with tests."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from loratory.data.examples import Tests
from loratory.data.literals import is_list_text, parse_list
from loratory.data.rows import Row, cell_text, column_text, columns_of
from loratory.errors import UserError, did_you_mean
from loratory.settings import CodeConfig

TEST_COLUMNS = ("test_list", "test")
LABEL_SEPARATOR = "; "
FIXED_LABEL_TASKS = ("classification", "labels")  # the tasks in which all rows have the same candidates


def is_missing(value: Any, texts: Iterable[str] = ()) -> bool:
    """Whether a cell is None, NaN, white space, one of ``texts``, or a list of nothing but such cells."""
    if isinstance(value, (list, tuple)):
        return all(is_missing(item, texts) for item in value)
    if isinstance(value, str):
        return not value.strip() or value.strip() in texts
    return value is None or (isinstance(value, float) and math.isnan(value))


def candidates_of(row: Row, column: str) -> tuple[str, ...]:
    """The candidates of a row, at least two and all different. Raises UserError if the column has no such list."""
    value = row.value(column)
    if is_list_text(value):  # in a csv cell
        value, _ = parse_list(value, row.source)
    if not isinstance(value, (list, tuple)):
        expected, found = "a list of strings", repr(value)[:80] if row.has(column) else "no such column"
        raise UserError(f"The candidates in column {column!r} are not a list", row.source, expected, found)
    texts = tuple(cell_text(item).strip() for item in value)
    if len(set(texts)) < max(2, len(texts)) or not all(texts):
        expected, found = "two or more, all different and not empty", "; ".join(texts)[:200]
        raise UserError("The candidates of a row are not distinct", row.source, expected, found)
    return texts


def choice_of(row: Row, answer: str, candidates: str) -> str:
    """The correct candidate, which the answer column gives as text or as an index starting at 0. Raises UserError."""
    texts, value = candidates_of(row, candidates), row.value(answer)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(texts):
        return texts[value]
    text = answer_of(row, answer)
    if text not in texts:
        expected = f"one of the {len(texts)} candidates in column {candidates!r}, or an index starting at 0"
        raise UserError("The answer is not one of the row's candidates", row.source, expected, text[:200])
    return text


def labels_of(
    row: Row, column: str, missing_texts: Sequence[str] = (), separator: str = LABEL_SEPARATOR.strip()
) -> tuple[str, ...]:
    """The sorted labels of a row, given as a list or as a text with separators, without those that are missing.

    Raises UserError if there are none.
    """
    value = row.value(column)
    parts = value if isinstance(value, (list, tuple)) else answer_of(row, column).split(separator)
    labels = tuple(sorted({cell_text(part).strip() for part in parts if not is_missing(part, missing_texts)}))
    if not labels:
        raise UserError(f"The answer in column {column!r} is empty", row.source, fix="fill it in or remove the row")
    for label in labels:
        if LABEL_SEPARATOR.strip() in label:
            raise UserError("A label contains a semicolon, which separates labels", row.source, found=repr(label))
    return labels


def answer_of(row: Row, column: str) -> str:
    """The row's answer without surrounding white space. Raises UserError if it is missing or empty."""
    if not row.has(column):
        names = columns_of([row])
        raise UserError(
            f"The answer column {column!r} is missing",
            row.source,
            found=f"columns {', '.join(names)}",
            fix=did_you_mean(column, names) or "set [data] answer to one of these columns",
        )
    text = cell_text(row.value(column)).strip()
    if not text:
        raise UserError(f"The answer in column {column!r} is empty", row.source, fix="fill it in or remove the row")
    return text


def row_tests(row: Row, code: CodeConfig) -> Tests | None:
    """The tests of a row, or None if it has none. Raises UserError if it has none and the settings run them.

    Understands the formats of MBPP (a list of statements) and HumanEval (a function ``check`` that takes the function
    to test).
    """
    column = code.tests or next((name for name in TEST_COLUMNS if row.value(name)), "")
    value = row.value(column)
    if not value:
        if code.run:
            expected = f"column {code.tests!r}" if code.tests else " or ".join(TEST_COLUMNS)
            raise UserError("The row has no tests to run", row.source, expected, ", ".join(map(str, row.values)))
        return None
    statements = "\n".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    name = str(row.value("entry_point") or "")
    if name and "def check(" in statements:
        statements += f"\ncheck({name})"
    prefix = str(row.value(code.prefix or ("prompt" if name else ""), ""))
    suffix = column_text(row, code.suffix) if code.suffix else ""
    setup = str(row.value("test_setup_code") or "")
    return Tests(prefix, name, suffix, f"{setup}\n{statements}")
