"""Prints the rows of a sheet as JSON lines, and then what was found: ``python sheet_process.py FILE SHEET``.

SHEET may be empty. It runs in a process of its own, within a limit of memory, and imports nothing of this package.
"""

import datetime
import json
import sys
from pathlib import Path
from typing import Any

import python_calamine

MEMORY = 2 << 30  # bytes of address space: the reader holds a sheet as a full rectangle
ERRORS = ("#N/A", "#NULL!", "#DIV/0!", "#VALUE!", "#REF!", "#NAME?", "#NUM!", "#GETTING_DATA", "#SPILL!", "#CALC!")


def main(path: str, wanted: str) -> None:
    """Writes rows as [number, cell, ...], and at the end {"sheets", "chosen", "errors"} or {"problem"}."""
    _limit_memory()
    try:
        found = _print_sheet(path, wanted)
    except (python_calamine.CalamineError, OSError, ValueError, MemoryError) as error:
        found = {"problem": str(error)[:300] or type(error).__name__}
    print(json.dumps(found), flush=True)


def _print_sheet(path: str, wanted: str) -> dict[str, Any]:
    # The content tells the format, whatever the name says.
    with Path(path).open("rb") as file, python_calamine.CalamineWorkbook.from_filelike(file) as book:
        visible = python_calamine.SheetVisibleEnum.Visible
        sheets = [sheet.name for sheet in book.sheets_metadata if sheet.typ == python_calamine.SheetTypeEnum.WorkSheet]
        hidden = {sheet.name for sheet in book.sheets_metadata if sheet.visible != visible}
        order = [wanted] if wanted else [*(s for s in sheets if s not in hidden), *(s for s in sheets if s in hidden)]
        for name in order:
            if name not in sheets:
                break
            sheet = book.get_sheet_by_name(name)
            if sheet.height:
                errors = _print_rows(sheet)
                return {"sheets": sheets, "chosen": name, "errors": errors}
    return {"sheets": sheets, "chosen": None, "errors": 0}


def _print_rows(sheet: Any) -> int:
    """Prints the rows, and returns the number of cells with an error."""
    errors, first = 0, (sheet.start or (0, 0))[0] + 1
    for number, row in enumerate(sheet.iter_rows(), first):
        cells = [_text(cell) for cell in row]
        errors += sum(cell in ERRORS for cell in cells)
        print(json.dumps([number, *(None if cell in ERRORS else cell for cell in cells)]))
    return errors


def _text(cell: Any) -> str | None:
    """A cell as text: whole numbers without a point, dates in ISO format; None for an empty cell."""
    if cell is None or cell == "":
        return None
    if isinstance(cell, bool):
        return "TRUE" if cell else "FALSE"
    if isinstance(cell, float):
        return str(int(cell)) if cell.is_integer() and abs(cell) < 2**53 else repr(cell)
    if isinstance(cell, datetime.date | datetime.time):
        return cell.isoformat()
    return str(cell)


def _limit_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):  # not on this system
        pass


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
