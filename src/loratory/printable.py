"""Makes text from data, models and files safe to show in a terminal and to print as JSON."""

import json
from collections.abc import Mapping
from typing import Any

# Control characters could drive the terminal, or reorder a line. Each has one visible character, so that positions in a
# text stay valid: control pictures for C0 and DEL, and the replacement character for C1 and for marks of direction.
BIDIRECTIONAL = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}
PICTURES |= dict.fromkeys((*range(128, 160), *BIDIRECTIONAL), 0xFFFD)
ESCAPES = {code: f"\\u{code:04x}" for code in (127, *range(128, 160), *BIDIRECTIONAL)}  # JSON itself escapes the others


def printable(text: str) -> str:
    """The text with control characters, except tab and newline, replaced by visible ones; the length stays the same."""
    return text.translate(PICTURES)


def printable_values(value: Any) -> Any:
    """A JSON value with every text in it, keys included, made printable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable_values(key): printable_values(inner) for key, inner in value.items()}
    return [printable_values(inner) for inner in value] if isinstance(value, list | tuple) else value


def json_line(value: Any) -> str:
    """The value as one line of JSON, in which control characters are escaped: it decodes to the same value."""
    return json.dumps(value, ensure_ascii=False).translate(ESCAPES)
