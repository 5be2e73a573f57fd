"""What is printed when something fails that nobody foresaw: a report that contains none of the user's data."""

import os
import platform
import re
import tempfile
import traceback
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from types import TracebackType

from loratory.errors import MachineError

PACKAGE = "loratory"
WHOLE_TRACEBACK = "LORATORY_TRACEBACK"  # the environment variable that asks for it
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def memory_problem(error: BaseException) -> MachineError | None:
    """The message if memory ran out; None for other errors."""
    text = str(error)
    if not isinstance(error, MemoryError) and not any(words in text for words in OUT_OF_MEMORY):
        return None
    first = next(iter(text.splitlines()), type(error).__name__)
    fix = "halve --train.token-budget until the run fits, or use a smaller model; see docs/troubleshooting.md"
    return MachineError("Out of memory", found=first, fix=fix)


def crash_report(error: BaseException) -> str:
    """The text to print for an unforeseen error.

    It names exceptions, functions and versions. Exception messages and source lines, which may contain parts of texts
    and file names, go only to a file that nobody but the user can read.
    """
    lines = [f"Loratory stopped because of an error in the program ({_class_name(error)}).", ""]
    for cause, opening in _chain(error):
        lines += [f"{opening}{_class_name(cause)}", *(f"  {frame}" for frame in _frames(cause.__traceback__))]
    lines += ["", *_versions(), ""]
    lines += ["Please open an issue with the text above: it contains none of your data."]
    if path := _write_traceback(error):
        lines += [
            f"The whole traceback is in {path}",
            "It may contain parts of your data: look through it before sharing it.",
        ]
    return "\n".join([*lines, f"{WHOLE_TRACEBACK}=1 prints it instead of this report."])


def whole_traceback(error: BaseException) -> str | None:
    """The traceback as Python prints it, if the environment variable LORATORY_TRACEBACK asks for it."""
    if os.environ.get(WHOLE_TRACEBACK, "") in ("", "0"):
        return None
    return "".join(traceback.format_exception(error))


def _class_name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _chain(error: BaseException) -> Iterator[tuple[BaseException, str]]:
    """The error and what it was raised from, each with the words that introduce it."""
    opening, seen = "", set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error, opening
        cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        opening = "caused by " if error.__cause__ else "while handling "
        if cause is None:
            return
        error = cause


def _frames(trace: TracebackType | None) -> Iterator[str]:
    """File, line and function of each frame, outermost first; files by the name of their module, without a folder."""
    for frame, line in traceback.walk_tb(trace):
        module = str(frame.f_globals.get("__name__", "?")).replace(".", "/")
        end = "/__init__.py" if frame.f_code.co_filename.endswith("__init__.py") else ".py"
        yield f"{module}{end}:{line}: {frame.f_code.co_name}"


def _versions() -> list[str]:
    """The versions of Python and of this package with what it requires, a few on a line."""
    try:
        required = [requirement for requirement in requires(PACKAGE) or () if "extra ==" not in requirement]
    except PackageNotFoundError:
        required = []
    found = [f"Python {platform.python_version()}", platform.system()]
    for name in (PACKAGE, *(re.split(r"[^\w.-]", requirement)[0] for requirement in required)):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} (not installed)")
    return [", ".join(found[i : i + 6]) for i in range(0, len(found), 6)]


def _write_traceback(error: BaseException) -> str | None:
    """Writes the traceback to a file in the folder for temporary files; returns its path, or None if that fails."""
    try:
        handle, path = tempfile.mkstemp(prefix="loratory-", suffix=".txt")  # readable by the user only
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write("".join(traceback.format_exception(error)))
    except OSError:
        return None
    return path
