"""Missing answers and empty prompts: what counts as missing, and the rows that are set aside because of it."""

from collections.abc import Callable, Collection, Mapping, Sequence

from loratory.data.answers import LABEL_SEPARATOR, answer_of, is_missing
from loratory.data.findings import Finding, places_of
from loratory.data.rows import Row, Table
from loratory.errors import UserError
from loratory.settings import DataConfig

Parts = Mapping[str, Sequence[Row]]
NAMES_SHOWN = 3  # columns in a message
UNLABELED = "-1"  # what published test sets have instead of a label


def has_no_answer(row: Row, data: DataConfig, task: str) -> bool:
    """Whether the row's answer is missing. A candidate of the task choice may be any text, such as "NA"."""
    value = row.value(data.answer)
    if task == "labels" and isinstance(value, str):
        value = value.split(LABEL_SEPARATOR.strip())
    return is_missing(value, () if task == "choice" else data.missing_texts)


def is_unlabeled(rows: Sequence[Row], data: DataConfig, task: str, known: Collection[str]) -> bool:
    """Whether no row has an answer, as in published test sets: every answer is missing, or is -1 in all of them.

    ``known`` are the answers of the training data; if -1 is among them, it is an answer.
    """
    unlabeled = () if UNLABELED in known else (UNLABELED,)
    return all(has_no_answer(row, data, task) or _text(row, data) in unlabeled for row in rows)


def check_answers_exist(tables: Mapping[str, Sequence[Table]], data: DataConfig, task: str) -> None:
    """Raises UserError for a file without the answer column, and for an unlabeled validation or test file."""
    known = {_text(row, data) for table in tables["train"] for row in table.rows}
    for part, rows in ((part, table.rows) for part, files in tables.items() for table in files):
        if rows and not any(row.has(data.answer) for row in rows):
            answer_of(rows[0], data.answer)  # says that the column is missing
        if part != "train" and is_unlabeled(rows, data, task, known):
            raise UserError(
                f"A {part} file has no answers",
                rows[0].source,
                expected=f"the right answers in column {data.answer!r}",
                found=f"{_text(rows[0], data)!r} in the first of {len(rows)} rows",
                fix=f"take the file out of [data] {part}; without it, a share of the training data is split off",
            )


def _text(row: Row, data: DataConfig) -> str:
    value = row.value(data.answer)
    return "" if value is None else str(value).strip()


def without_missing_answers(parts: Parts, data: DataConfig, task: str) -> tuple[dict[str, list[Row]], list[Finding]]:
    """The rows that have an answer, and what was set aside. Raises UserError if that is not allowed, or leaves none."""
    texts = sorted(
        {
            value.strip()
            for rows in parts.values()
            for row in rows
            if isinstance(value := row.value(data.answer), str) and value.strip() in data.missing_texts
        }
    )
    fix = 'fill it in, or set [data] missing = "skip" to set such rows aside'
    if texts and task != "choice":
        fix += f"; if {texts[0]!r} is an answer, take it out of [data] missing_texts"

    def error(first: Row, missing: int, total: int) -> UserError:
        found = f"{first.value(data.answer)!r}; {missing} of {total} rows have no answer"
        expected = "an answer in every row"
        return UserError(f"The answer in column {data.answer!r} is missing", first.source, expected, found, fix)

    message = "{} rows without an answer were set aside"
    return _set_aside(parts, lambda row: has_no_answer(row, data, task), data, "missing_answers", message, error)


def without_empty_prompts(
    parts: Parts, columns: Sequence[str], data: DataConfig
) -> tuple[dict[str, list[Row]], list[Finding]]:
    """The rows with text in at least one of the ``columns`` that prompts show, and what was set aside.

    Raises UserError if that is not allowed, or leaves no rows.
    """
    names = ", ".join(columns[:NAMES_SHOWN]) + (", ..." if len(columns) > NAMES_SHOWN else "")

    def error(first: Row, empty: int, total: int) -> UserError:
        found = f"{empty} of {total} rows have none"
        fix = 'fill it in, or set [data] missing = "skip" to set such rows aside'
        return UserError("The prompt of a row is empty", first.source, f"text in a column of: {names}", found, fix)

    def is_empty(row: Row) -> bool:
        # A row without one of the columns is a mistake of its own, reported where the prompt is written.
        return bool(columns) and all(row.has(name) and is_missing(row.value(name)) for name in columns)

    message = f"{{}} rows without text for the prompt ({names}) were set aside"
    return _set_aside(parts, is_empty, data, "empty_prompts", message, error)


def _set_aside(
    parts: Parts,
    is_bad: Callable[[Row], bool],
    data: DataConfig,
    name: str,
    message: str,
    error: Callable[[Row, int, int], UserError],
) -> tuple[dict[str, list[Row]], list[Finding]]:
    bad = {part: [row for row in rows if is_bad(row)] for part, rows in parts.items()}
    found = [row for rows in bad.values() for row in rows]
    if not found:
        return {part: list(rows) for part, rows in parts.items()}, []
    if data.missing == "error":
        raise error(found[0], len(found), sum(map(len, parts.values())))
    ids = {id(row) for row in found}
    kept = {part: [row for row in rows if id(row) not in ids] for part, rows in parts.items()}
    for part, rows in bad.items():
        if rows and not kept[part]:
            what = "No rows are left after rows with missing values were set aside"
            raise UserError(what, rows[0].source, found=f"{len(rows)} rows of {part}", fix="fill in the missing values")
    return kept, [Finding(name, "note", message.format(len(found)), len(found), places_of(found))]
