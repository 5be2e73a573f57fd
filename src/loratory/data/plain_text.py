"""Reads plain text files as documents."""

from collections.abc import Iterable, Iterator

from loratory.data.encodings import TextFile
from loratory.data.limits import bounded_lines
from loratory.data.remarks import Record, Remarks

COLUMN = "text"
MOST = 4000  # characters of a document: about a thousand tokens
DOCUMENTS = 50  # about so many are made of a short file, so that some can be set aside for the test


def text_records(text: TextFile, remarks: Remarks) -> Iterator[Record]:
    """Documents of whole paragraphs or, in a file without blank lines, of whole lines. Raises UserError.

    Paragraphs are joined up to MOST characters, and in a short file up to a fiftieth of it. A longer paragraph is
    divided between its lines.
    """
    name = str(text.path)
    with text.open() as file:
        size, has_paragraphs = _measured(line for _, line in bounded_lines(file, name))
    most = min(MOST, size // DOCUMENTS)
    count = 0
    with text.open() as file:
        for document, start in _joined(_units(bounded_lines(file, name), has_paragraphs), most):
            count += 1
            yield {COLUMN: document}, f"{name}:{start}"
    parts = "paragraphs" if has_paragraphs else "lines"
    remarks.add("documents", f"plain text, read as {count} documents of one or more {parts}", count)


def _measured(lines: Iterable[str]) -> tuple[int, bool]:
    """The number of characters, and whether a blank line stands between others."""
    size, began, was_blank, has_paragraphs = 0, False, False, False
    for line in lines:
        size += len(line)
        is_blank = not line.strip()
        has_paragraphs = has_paragraphs or (began and was_blank and not is_blank)
        began, was_blank = began or not is_blank, is_blank
    return size, has_paragraphs


def _units(numbered: Iterable[tuple[int, str]], has_paragraphs: bool) -> Iterator[tuple[str, int]]:
    """The parts that documents are made of, with the blank lines after them, and the number of their first line."""
    lines: list[str] = []
    start = size = 0
    for number, line in numbered:
        line = line.replace("\r\n", "\n").replace("\r", "\n")
        is_blank = not line.strip()
        ends = bool(lines) and (not has_paragraphs or not lines[-1].strip() or size + len(line) > MOST)
        if ends and not is_blank:
            yield "".join(lines), start
            lines, size = [], 0
        if lines or not is_blank:
            start = start if lines else number
            lines.append(line)
            size += len(line)
    if lines:
        yield "".join(lines), start


def _joined(units: Iterable[tuple[str, int]], most: int) -> Iterator[tuple[str, int]]:
    document, start = "", 0
    for unit, line in units:
        if document and len(document) + len(unit) > most:
            yield document.strip("\n"), start
            document = ""
        start = start if document else line
        document += unit
    if document:
        yield document.strip("\n"), start
