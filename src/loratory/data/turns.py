"""Reads one turn of a conversation and its tool calls, in the formats of OpenAI and ShareGPT."""

import json
import math
from typing import Any

from loratory.data.examples import Message
from loratory.data.json_files import parse_json
from loratory.data.literals import is_list_text, parse_list
from loratory.errors import UserError, did_you_mean

ROLES = ("system", "user", "assistant", "tool")
OTHER_ROLES = {
    "human": "user",
    **dict.fromkeys(("gpt", "model", "chatgpt", "bing", "bard"), "assistant"),
    **dict.fromkeys(("observation", "function", "ipython"), "tool"),
    "developer": "system",
}
CALL_ROLE = "function_call"  # ShareGPT: the turn's text is the call
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value")
CALLS = "tool_calls"
OLD_CALL = "function_call"  # OpenAI's form before tool_calls
# What templates may show of a turn besides its role, text and calls.
TEMPLATE_KEYS = ("name", "tool_call_id", "reasoning_content", "reasoning", "thinking")
TEXT_PARTS = ("text", "input_text", "output_text")
Noticed = dict[tuple[str, str], list[str]]
"""What was noticed while reading: the kind of remark and its subject, such as a key, with the places."""


def remark(remarks: Noticed, kind: str, subject: str, place: str) -> None:
    """Adds a place to a remark."""
    remarks.setdefault((kind, subject), []).append(place)


def read_turn(turn: Any, place: str, remarks: Noticed) -> Message:
    """The turn as a message. Keys without a value count as absent: parquet files have every key in every turn.

    Raises UserError if it is not a turn of text.
    """
    if not isinstance(turn, dict):
        raise UserError("A turn must have a role and text content", place, found=repr(turn)[:80])
    values = {str(key): value for key, value in turn.items() if value is not None and not _is_nan(value)}
    name = _take(values, ROLE_KEYS)
    role = _role(name, place)
    content = _take(values, CONTENT_KEYS)
    calls = None
    if _spelled(name) == CALL_ROLE:
        calls, content = content, ""
    elif role == "assistant":
        calls = values.pop(CALLS, None) or None
        old_call = values.pop(OLD_CALL, None) or None
        calls = calls or old_call
    if content is None and calls is None:
        raise UserError("A turn must have a role and text content", place, found=repr(turn)[:80])
    trained = _is_trained(values, role, place, remarks)
    fields = {} if calls is None else {CALLS: read_calls(calls, place)}
    for key in [key for key in TEMPLATE_KEYS if key in values]:
        fields[key] = without_nulls(values.pop(key))
    for key, value in values.items():
        if value not in ("", [], {}):
            remark(remarks, "key", key, place)
    text = "" if content is None else _text(content, role, place, remarks)
    return Message(role, text, json.dumps(fields, ensure_ascii=False, default=str) if fields else "", trained)


def is_turn(value: Any) -> bool:
    """Whether a value looks like a turn: an object with the keys of a role and of a text or tool calls."""
    if not isinstance(value, dict) or not any(isinstance(value.get(key), str) for key in ROLE_KEYS):
        return False
    return any(key in value for key in (*CONTENT_KEYS, CALLS, OLD_CALL))


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)  # as pandas writes a missing value


def _take(values: dict[str, Any], keys: tuple[str, ...]) -> Any:
    """Removes the first of the keys that exists and returns its value; None if there is none."""
    return next((values.pop(key) for key in keys if key in values), None)


def _spelled(name: Any) -> str:
    return name.strip().lower() if isinstance(name, str) else ""


def _role(name: Any, place: str) -> str:
    role = _spelled(name)
    role = "assistant" if role == CALL_ROLE else OTHER_ROLES.get(role, role)
    if role not in ROLES:
        fix = did_you_mean(role, (*ROLES, *OTHER_ROLES))
        raise UserError("Unknown role", place, ", ".join(ROLES), repr(name), fix)
    return role


def _is_trained(values: dict[str, Any], role: str, place: str, remarks: Noticed) -> bool:
    """Whether the keys "weight" and "train" leave a turn in the training; removes them."""
    marks = {key: values.pop(key) for key in ("weight", "train") if key in values}
    for key, value in marks.items():
        if value not in (0, 1):
            expected = "0 or 1" if key == "weight" else "true or false"
            fix = "remove the turn, or train on it fully"
            raise UserError(f"A turn's {key!r} must be {expected}", place, found=repr(value), fix=fix)
        if value and role != "assistant":
            remark(remarks, "marked", key, place)
    return role != "assistant" or all(marks.values())


# ---- content ---------------------------------------------------------------------------------------------------------


def _text(content: Any, role: str, place: str, remarks: Noticed) -> str:
    """The text of a content: a text, parts of text, which are joined, or, as the result of a tool, any value."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict) and isinstance(content.get("type"), str) and "text" in content:
        content = [content]
    is_parts = isinstance(content, list) and all(_is_part(part) for part in content)
    if role == "tool" and not is_parts:
        return json.dumps(content, ensure_ascii=False, default=str)
    if not is_parts:
        raise UserError("A turn must have a role and text content", place, found=repr(content)[:80])
    return "".join(_part_text(part, place, remarks) for part in content)


def _is_part(part: Any) -> bool:
    return isinstance(part, str) or (isinstance(part, dict) and ("type" in part or "text" in part))


def _part_text(part: Any, place: str, remarks: Noticed) -> str:
    if isinstance(part, str):
        return part
    values = {key: value for key, value in part.items() if value is not None}
    kind, text = values.pop("type", "text"), values.pop("text", None)
    if kind not in TEXT_PARTS or not isinstance(text, str):
        fix = "remove the part; training is on text only"
        raise UserError("A turn contains something other than text", place, found=f"a part of type {kind!r}", fix=fix)
    for key in values:
        remark(remarks, "key", str(key), place)
    return text


# ---- tool calls ------------------------------------------------------------------------------------------------------


def read_calls(value: Any, place: str) -> list[dict[str, Any]]:
    """Tool calls in OpenAI's format, with the arguments as objects, which is what chat templates expect.

    ``value``: a list of calls or a single one, or JSON text of it; a call may also be a bare name with arguments.
    Raises UserError.
    """
    value = parse_json(value, place) if isinstance(value, str) else value
    calls = [value] if isinstance(value, dict) else value
    if not isinstance(calls, list) or not calls:
        raise UserError("Tool calls must be a list of calls with name and arguments", place, found=repr(value)[:80])
    return [_call(call, place) for call in calls]


def _call(call: Any, place: str) -> dict[str, Any]:
    """The call with its keys in OpenAI's order: templates may print a call as a whole."""
    rest = dict(call) if isinstance(call, dict) else {}
    bare = {key: rest.pop(key, None) for key in ("name", "arguments")}
    function = rest.pop("function", None) or bare
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name.strip():
        raise UserError("Tool calls must be a list of calls with name and arguments", place, found=repr(call)[:80])
    function = {"name": name, "arguments": None, **without_nulls(function)}
    function["arguments"] = _arguments(function["arguments"], place)
    ordered = {"id": None, "type": "function", "function": function, **without_nulls(rest)}
    return {key: value for key, value in ordered.items() if value is not None}


def _arguments(value: Any, place: str) -> dict[str, Any]:
    if isinstance(value, str) and value.strip():
        value = parse_json(value, f"{place}, arguments of a tool call")
    value = value or {}
    if not isinstance(value, dict):
        raise UserError("The arguments of a tool call must be an object", place, found=repr(value)[:80])
    return value


def without_nulls(value: Any) -> Any:
    """The value without the keys of objects that are null: parquet files have every key of a column in every row."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def read_tools(value: Any, place: str) -> list[dict[str, Any]]:
    """Tool definitions in OpenAI's format. Raises UserError.

    ``value``: a list of definitions, which may be JSON texts, or JSON text of the list. A definition without "function"
    becomes the function of one.
    """
    if is_list_text(value):
        value, _ = parse_list(value, place)
    elif isinstance(value, str):
        value = parse_json(value, place) if value.strip() else []
    elif isinstance(value, list):
        value = without_nulls(value)
    value = [] if value is None else value
    tools = [parse_json(t, place) if isinstance(t, str) else t for t in value] if isinstance(value, list) else [value]
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UserError("The tools of a conversation must be a list of objects", place, found=repr(value)[:80])
    return [_tool(tool) for tool in tools]


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    if "function" in tool or "name" not in tool:
        return tool
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}
