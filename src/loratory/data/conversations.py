"""Reads conversations and their tools, in the formats of OpenAI and ShareGPT."""

import dataclasses
import json
from typing import Any

from loratory.data.examples import TOOLS, Example, Message
from loratory.data.rows import Row, parse_json
from loratory.errors import UserError, did_you_mean

ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
CONVERSATION_COLUMNS = ("messages", "conversations")


def _messages(turns: Any, source: str) -> list[Message]:
    """The turns as messages. Raises UserError if ``turns`` is not a list of turns."""
    if not isinstance(turns, list) or not turns:
        raise UserError("A conversation must be a list of turns", source, found=repr(turns)[:80])
    messages = []
    for number, turn in enumerate(turns, 1):
        place = f"{source}, turn {number}"
        if isinstance(turn, dict) and turn.get("tool_calls"):
            fix = "write the call into the turn's content, in the format of the model's chat template"
            raise UserError("Tool calls are only read from a turn's content", place, fix=fix)
        if not isinstance(turn, dict) or not isinstance(turn.get("content"), str):
            raise UserError("A turn must have a role and text content", place, found=repr(turn)[:80])
        if turn.get("role") not in ROLES:
            role = str(turn.get("role"))
            raise UserError("Unknown role", place, ", ".join(ROLES), repr(role), did_you_mean(role, ROLES))
        messages.append(Message(turn["role"], turn["content"]))
    return messages


def conversation(turns: Any, source: str) -> Example:
    """An Example from a list of {"role", "content"} turns that ends with an assistant turn. Raises UserError.

    Training includes the earlier assistant turns: see ``loratory.text.tokenize``.
    """
    messages = _messages(turns, source)
    if messages[-1].role != "assistant" or not messages[-1].content.strip():
        raise UserError("A conversation must end with a non-empty assistant turn", source, found=messages[-1].role)
    first = next(m.role for m in messages if m.role != "system")
    if first != "user":
        raise UserError("A conversation must begin with a user turn", source, found=first)
    return Example(tuple(messages[:-1]), (messages[-1].content.strip(),), (), source)


def question(turns: Any, source: str) -> Example:
    """An unanswered Example from a list of turns; an assistant turn at the end is removed. Raises UserError."""
    messages = _messages(turns, source)
    messages = messages[:-1] if messages[-1].role == "assistant" else messages
    if not messages or messages[-1].role not in ("user", "tool"):
        last = messages[-1].role if messages else "no turns"
        raise UserError("The conversation has no user turn to answer", source, found=last)
    return Example(tuple(messages), (), (), source)


def turns_of(row: Row, column: str, system: str | None) -> Any:
    """The turns of a row's conversation as {"role", "content"}, read from OpenAI's or ShareGPT's format.

    ``system`` is added as the first turn of a conversation without a system message. Raises UserError if the row has
    no conversation.
    """
    name = column or next((c for c in CONVERSATION_COLUMNS if c in row.values), "")
    if name not in row.values:
        expected = f"column {column!r}" if column else " or ".join(CONVERSATION_COLUMNS)
        raise UserError("The row has no conversation", row.source, expected, ", ".join(map(str, row.values)))
    turns = row.values[name]
    if isinstance(turns, str) and turns.lstrip().startswith("["):  # a JSON list in a csv cell
        turns = parse_json(turns, row.source)
    if isinstance(turns, list):
        turns = [_turn(turn) for turn in turns]
        if system and turns and isinstance(turns[0], dict) and turns[0].get("role") != "system":
            turns.insert(0, {"role": "system", "content": system})
    return turns


def tools_of(row: Row) -> tuple[Message, ...]:
    """The column "tools" of a row, in OpenAI's format, as a message with the role "tools"; empty without tools."""
    value = row.values.get(TOOLS)
    if isinstance(value, str) and value.strip():
        value = parse_json(value, row.source)
    if not value:
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise UserError(f"The column {TOOLS!r} must contain a list of objects", row.source, found=repr(value)[:80])
    return (Message(TOOLS, json.dumps(value, ensure_ascii=False)),)


def with_tools(example: Example, row: Row) -> Example:
    """The example of a row's conversation with the row's tools as its first message."""
    return dataclasses.replace(example, messages=(*tools_of(row), *example.messages))


def _turn(turn: Any) -> Any:
    """Converts a turn from ShareGPT's format to OpenAI's; other values are returned unchanged."""
    if isinstance(turn, dict) and "from" in turn and "role" not in turn:
        return {"role": SHAREGPT_ROLES.get(turn["from"], turn["from"]), "content": turn.get("value")}
    return turn
