"""The answer in a row, as each task stores it: a label, a set of labels, a choice, a program with its tests."""

from loratory.config import CodeConfig
from loratory.data.examples import Tests
from loratory.data.rows import Row, _cell, cell_text, parse_json
from loratory.errors import UserError, did_you_mean

TEST_COLUMNS = ("test_list", "test")
LABEL_SEPARATOR = "; "
LABELLED = ("classification", "labels")  # the tasks whose candidates are the same for all rows


def candidates_of(row: Row, column: str) -> tuple[str, ...]:
    """What a row lets choose from: a list of two or more different texts. Raises UserError."""
    value = row.values.get(column)
    if isinstance(value, str) and value.lstrip().startswith("["):  # a cell of a csv file
        value = parse_json(value, row.source)
    if not isinstance(value, (list, tuple)):
        expected, found = "a list of texts", repr(value)[:80] if column in row.values else "no such column"
        raise UserError(f"The candidates in column {column!r} are no list", row.source, expected, found)
    texts = tuple(cell_text(item).strip() for item in value)
    if len(set(texts)) < max(2, len(texts)) or not all(texts):
        found = "; ".join(texts)[:200]
        raise UserError("The candidates of a row cannot be told apart", row.source, "two or more, all different", found)
    return texts


def choice_of(row: Row, answer: str, candidates: str) -> str:
    """The candidate that is right: named in the answer column by its text, or by its place, counted from 0."""
    texts, value = candidates_of(row, candidates), row.values.get(answer)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(texts):
        return texts[value]
    text = answer_of(row, answer)
    if text not in texts:
        expected = f"one of the {len(texts)} in column {candidates!r}, or its number from 0"
        raise UserError("The answer is none of the row's candidates", row.source, expected, text[:200])
    return text


def labels_of(row: Row, column: str) -> tuple[str, ...]:
    """A row's set of labels, sorted: a list, or a text with semicolons between. Raises UserError where it is empty."""
    value = row.values.get(column)
    parts = value if isinstance(value, (list, tuple)) else answer_of(row, column).split(LABEL_SEPARATOR.strip())
    labels = tuple(sorted({cell_text(part).strip() for part in parts} - {""}))
    if not labels:
        raise UserError(f"The answer in column {column!r} is empty", row.source, fix="fill it in or remove the row")
    for label in labels:
        if LABEL_SEPARATOR.strip() in label:
            raise UserError("A label contains a semicolon, which stands between labels", row.source, found=repr(label))
    return labels


def answer_of(row: Row, column: str) -> str:
    """The row's answer, outer white space removed. Raises UserError when it is missing or empty."""
    if column not in row.values:
        names = [str(c) for c in row.values]
        raise UserError(
            f"The answer column {column!r} is missing",
            row.source,
            found=f"columns {', '.join(names)}",
            fix=did_you_mean(column, names) or "set [data] answer to one of them",
        )
    text = cell_text(row.values[column]).strip()
    if not text:
        raise UserError(f"The answer in column {column!r} is empty", row.source, fix="fill it in or remove the row")
    return text


def row_tests(row: Row, code: CodeConfig) -> Tests | None:
    """The tests of a row as MBPP has them (a list of statements) or HumanEval (a function that takes the one to test);
    None where it has none. Raises UserError where it has none and they are to be run."""
    column = code.tests or next((name for name in TEST_COLUMNS if row.values.get(name)), "")
    value = row.values.get(column)
    if not value:
        if code.run:
            expected = f"column {code.tests!r}" if code.tests else " or ".join(TEST_COLUMNS)
            raise UserError("The row has no tests to run", row.source, expected, ", ".join(map(str, row.values)))
        return None
    statements = "\n".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    name = str(row.values.get("entry_point") or "")
    if name and "def check(" in statements:
        statements += f"\ncheck({name})"
    prefix = str(row.values.get(code.prefix or ("prompt" if name else ""), ""))
    parts = [_cell(row, code.suffix)] if code.suffix else []
    parts += [str(row.values.get("test_setup_code") or ""), statements]
    return Tests(prefix, name, "\n".join(parts))
