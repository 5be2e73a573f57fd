"""Reads spreadsheets in a process of their own: a damaged or hostile file cannot take this one along."""

import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loratory.data.columns import table_records
from loratory.data.limits import MAX_FILE, MAX_RATIO, MAX_ROW, RATIO_CHECKED
from loratory.data.remarks import Record, Remarks
from loratory.errors import UserError, did_you_mean
from loratory.settings import DataConfig

SECONDS = 300.0  # for reading one file


def sheet_records(path: Path, data: DataConfig, remarks: Remarks) -> Iterator[Record]:
    """The records of a sheet. Raises UserError."""
    _check_unpacked_size(path)
    head, lines = _read(path, data.sheet)
    sheets, chosen = head["sheets"], head["chosen"]
    if chosen is None:
        if data.sheet not in sheets and data.sheet:
            fix = did_you_mean(data.sheet, sheets) or "set data.sheet to one of them"
            raise UserError("The spreadsheet has no such sheet", str(path), ", ".join(sheets), repr(data.sheet), fix)
        return
    others = [sheet for sheet in sheets if sheet != chosen]
    if others and not data.sheet:
        names = ", ".join(map(repr, others[:5]))
        remarks.add("sheets", f"read sheet {chosen!r}, not {names} (data.sheet chooses)", len(others))
    if head["errors"]:
        count = head["errors"]
        cells = "1 cell with an error is" if count == 1 else f"{count} cells with errors are"
        remarks.add("error_cells", f"{cells} read as missing", count)

    def rows() -> Iterator[tuple[list[Any], str]]:
        for line in lines:
            number, *cells = json.loads(line)
            yield cells, f"{path}, row {number}"

    yield from table_records(rows, data.header, remarks)


def _check_unpacked_size(path: Path) -> None:
    """Raises UserError if a spreadsheet that is a zip file unpacks to more than a file may have."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as file:
            sizes = [member.file_size for member in file.infolist()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError("The spreadsheet cannot be read", str(path), found=str(error)[:300]) from error
    size = sum(sizes)
    if size > MAX_FILE or (size > RATIO_CHECKED and size > MAX_RATIO * path.stat().st_size):
        expected = f"at most {MAX_FILE} bytes decompressed, and at most {MAX_RATIO} times its size"
        raise UserError("The compressed file is too large", str(path), expected, str(size))


def _read(path: Path, sheet: str) -> tuple[dict[str, Any], list[bytes]]:
    """What the process found, and the rows of the sheet as JSON. Raises UserError."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("sheet_process.py")), str(path), sheet]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        timer = threading.Timer(SECONDS, process.kill)
        timer.start()
        try:
            head, lines = _lines(process.stdout, path)
        finally:
            process.kill()
            timer.cancel()
    if head is None or "problem" in head:
        found = head["problem"] if head else "it needs too much memory or time, or is damaged"
        fix = "save the sheet as csv"
        raise UserError("The spreadsheet cannot be read", str(path), found=found, fix=fix)
    return head, lines


def _lines(output: Any, path: Path) -> tuple[dict[str, Any] | None, list[bytes]]:
    """The rows, then what the process says at its end; None if it says nothing."""
    lines, size = [], 0
    while line := output.readline(2 * MAX_ROW):
        if not line.endswith(b"\n"):
            number = len(lines) + 1
            raise UserError("A row is too large", f"{path}, row {number}", f"at most {MAX_ROW} characters")
        if line.startswith(b"{"):
            return json.loads(line), lines
        lines.append(line)
        size += len(line)
        if size > MAX_FILE:
            raise UserError("The data file is too large", str(path), f"at most {MAX_FILE} bytes", fix="split it")
    return None, lines
