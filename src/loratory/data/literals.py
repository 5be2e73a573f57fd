"""Reads lists that stand as text in a cell: as JSON, or as Python prints them."""

import ast
import warnings
from typing import Any

from loratory.data.json_files import parse_json
from loratory.data.limits import MAX_CELL
from loratory.errors import UserError


def is_list_text(value: Any) -> bool:
    """Whether a cell is a text that begins like a list."""
    return isinstance(value, str) and value.lstrip().startswith("[")


def parse_list(text: str, place: str) -> tuple[Any, bool]:
    """The list in a text, and whether it is a Python literal, as the ``to_csv`` of pandas writes lists, and not JSON.

    Raises UserError if it is neither.
    """
    try:
        return parse_json(text, place), False
    except UserError:
        value = _literal(text.strip())
        if value is None:
            raise
        return value, True


def _literal(text: str) -> Any:
    """The value of a Python literal with nothing but what JSON has too; None if the text is no such literal."""
    if len(text) > MAX_CELL:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of backslashes that are no escapes
            value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if _is_plain(value) else None


def _is_plain(value: Any) -> bool:
    """Whether a value has only types that JSON has. Literals are not nested deeply: Python's parser rejects that."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, str | bool | int | float)
