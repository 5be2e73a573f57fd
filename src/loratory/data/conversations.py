"""Reads conversations and their tools from rows, in the formats of OpenAI, ShareGPT and TRL."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loratory.data.examples import TOOLS, Example, Message
from loratory.data.findings import MOST_PLACES, Finding
from loratory.data.literals import is_list_text, parse_list
from loratory.data.rows import Row
from loratory.data.turns import CALLS, Noticed, is_turn, read_tools, read_turn, remark
from loratory.errors import UserError

CONVERSATION_COLUMNS = ("messages", "conversations", "conversation")
PROMPT = "prompt"
ANSWER_COLUMNS = ("completion", "chosen")  # TRL's: the turns after those of the prompt, if there is one
SYSTEM_COLUMNS = ("system", "system_prompt")
TOOL_COLUMNS = (TOOLS, "functions")
SAMPLE = 20  # rows


@dataclass(frozen=True)
class Conversations:
    """The conversations of some lists of rows."""

    parts: list[list[Row]]
    """The rows of each list that have an assistant turn to train on."""
    examples: dict[int, Example]
    """The example of each of these rows, by the row's ``id``."""
    findings: tuple[Finding, ...]
    """What was left out, and which keys and columns are not used."""


def read_conversations(parts: Sequence[list[Row]], column: str, system: str | None) -> Conversations:
    """The conversations of training, validation and test rows; see ``conversation`` for the arguments.

    Raises UserError if a row has no conversation, or if no row of a list has an assistant turn to train on.
    """
    remarks: Noticed = {}
    found = {id(row): conversation(row, column, system, remarks) for rows in parts for row in rows}
    examples = {key: example for key, example in found.items() if example is not None}
    kept = [[row for row in rows if id(row) in examples] for rows in parts]
    for rows, left in zip(parts, kept, strict=True):
        if rows and not left:
            raise UserError("No conversation has an assistant turn to train on", rows[0].source)
    return Conversations(kept, examples, tuple(_findings(remarks, len(found))))


def conversation(
    row: Row, column: str = "", system: str | None = None, remarks: Noticed | None = None
) -> Example | None:
    """The example of a row's conversation, whose answer is the last assistant turn that is trained.

    ``column`` has the turns; if it is empty, a usual name. ``system`` is the system message of conversations without
    one. Returns None if no assistant turn is trained. Training includes the earlier assistant turns: see
    ``loratory.text.tokenize``. Raises UserError.
    """
    remarks = {} if remarks is None else remarks
    first, turns = _messages(row, column, system, remarks)
    turns = _with_greeting_untrained(turns, row, remarks)
    trained = [i for i, turn in enumerate(turns) if turn.role == "assistant" and turn.trained]
    if not trained:
        remark(remarks, "untrained", "", row.source)
        return None
    for i in trained:
        if not turns[i].content.strip() and CALLS not in turns[i].further:
            raise UserError("An assistant turn is empty", f"{row.source}, turn {i + 1}", "a text or tool calls")
    last = trained[-1]
    if last + 1 < len(turns):
        remark(remarks, "end", turns[-1].role, row.source)
    answer = turns[last].content.strip() or json.dumps(turns[last].further[CALLS], ensure_ascii=False)
    turn = turns[last] if turns[last].fields else None
    return Example((*first, *turns[:last]), (answer,), (), row.source, turn=turn)


def question(row: Row, column: str = "", system: str | None = None, remarks: Noticed | None = None) -> Example:
    """An unanswered example from a row's conversation; an assistant turn at the end is removed. Raises UserError.

    The arguments are those of ``conversation``; a row may also have only TRL's ``prompt``.
    """
    first, turns = _messages(row, column, system, {} if remarks is None else remarks)
    turns = turns[:-1] if turns[-1].role == "assistant" else turns
    if not turns or turns[-1].role not in ("user", "tool"):
        last = turns[-1].role if turns else "no turns"
        raise UserError("The conversation has no user turn to answer", row.source, found=last)
    return Example((*first, *turns), (), (), row.source)


def question_findings(rows: Sequence[Row], column: str = "", system: str | None = None) -> tuple[Finding, ...]:
    """What ``question`` leaves unused of the rows. Raises UserError."""
    remarks: Noticed = {}
    for row in rows:
        question(row, column, system, remarks)
    return tuple(_findings(remarks, len(rows)))


def conversation_columns(rows: Sequence[Row]) -> tuple[str, ...]:
    """The columns with the turns of conversations: one column, or TRL's ``prompt`` and ``completion`` or ``chosen``.

    Looks at the first rows only. Empty if they hold no conversations. If the column has none of the names that
    ``conversation`` looks for, it has to be given as its ``column``.
    """
    sample = rows[:SAMPLE]
    columns = dict.fromkeys(str(column) for row in sample for column in row.values)
    usual = [column for column in (*CONVERSATION_COLUMNS, *ANSWER_COLUMNS) if column in columns]
    with_turns = [c for c in (*usual, *(c for c in columns if c not in usual)) if _holds_turns(sample, c)]
    others = [column for column in with_turns if column not in (PROMPT, "rejected")]
    if not others:
        return ()
    return (PROMPT, others[0]) if others[0] in ANSWER_COLUMNS and PROMPT in with_turns else (others[0],)


def _holds_turns(rows: Sequence[Row], column: str) -> bool:
    values = [value for row in rows if (value := row.value(column)) not in (None, "", [])]
    return bool(values) and all(_is_turns(value) for value in values)


def _is_turns(value: Any) -> bool:
    if is_list_text(value):
        try:
            value, _ = parse_list(value, "")
        except UserError:
            return False
    return isinstance(value, list) and bool(value) and all(is_turn(turn) for turn in value)


# ---- the parts of a row ----------------------------------------------------------------------------------------------


def _messages(
    row: Row, column: str, system: str | None, remarks: Noticed
) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """What precedes a row's turns, its tools and a system message, and the turns. Raises UserError."""
    prompt, turns, used = _turns(row, column, remarks)
    tools, tools_column = _tools(row)
    own, system_column = _system(row)
    for name, value in row.values.items():
        if name not in (*used, system_column, tools_column) and value not in (None, "", "[]", [], {}):
            remark(remarks, "column", str(name), row.source)
    context = _untrained(_read(prompt, row.source, 1, remarks))
    read = (*context, *_read(turns, row.source, 1 + len(prompt), remarks))
    has_turn = any(turn.role == "system" for turn in read)
    if has_turn and own and own.strip() != next(t.content.strip() for t in read if t.role == "system"):
        remark(remarks, "system", "", row.source)
    text = None if has_turn else own or system
    return (*tools, *([Message("system", text)] if text else [])), read


def _read(turns: list[Any], source: str, start: int, remarks: Noticed) -> list[Message]:
    return [read_turn(turn, f"{source}, turn {number}", remarks) for number, turn in enumerate(turns, start)]


def _turns(row: Row, column: str, remarks: Noticed) -> tuple[list[Any], list[Any], tuple[str, ...]]:
    """The turns of the prompt, which are context only, the other turns, and the columns used. Raises UserError."""
    known = (*CONVERSATION_COLUMNS, *ANSWER_COLUMNS, PROMPT)
    name = column if column in row.values else ""
    if not column:
        name = next((c for c in known if isinstance(_list_in(row, c), list)), "") or next(
            (c for c in known if c in row.values), ""
        )
    elif column in ANSWER_COLUMNS and column not in row.values and PROMPT in row.values:
        name = PROMPT  # to be answered
    if not name:
        expected = f"column {column!r}" if column else " or ".join((*CONVERSATION_COLUMNS, *ANSWER_COLUMNS))
        raise UserError("The row has no conversation", row.source, expected, ", ".join(map(str, row.values)))
    turns = _list_in(row, name, remarks)
    if name == PROMPT and isinstance(turns, list):
        return turns, [], (PROMPT,)
    if not isinstance(turns, list) or not turns:
        raise UserError("A conversation must be a list of turns", row.source, found=repr(turns)[:80])
    prompt = _list_in(row, PROMPT) if name in ANSWER_COLUMNS else None
    if not isinstance(prompt, list):
        return [], turns, (name,)
    rest = turns[len(prompt) :] if turns[: len(prompt)] == prompt else turns  # some data repeat the prompt
    return prompt, rest, (name, PROMPT)


def _list_in(row: Row, column: str, remarks: Noticed | None = None) -> Any:
    """The value of a cell; a list that is written as text, as in a csv file, is parsed."""
    value = row.value(column)
    if not is_list_text(value):
        return value
    found, is_literal = parse_list(value, row.source)
    if is_literal and remarks is not None:
        remark(remarks, "literal", "", row.source)
    return found


def _tools(row: Row) -> tuple[tuple[Message, ...], str]:
    """The tools of a row as a message with the role "tools", empty without tools, and their column."""
    for column in TOOL_COLUMNS:
        if tools := read_tools(row.value(column), f"{row.source}, column {column!r}"):
            return (Message(TOOLS, json.dumps(tools, ensure_ascii=False, default=str)),), column
    return (), ""


def _system(row: Row) -> tuple[str, str]:
    """The row's own system text and its column, both empty if it has none. Raises UserError if it is not a text."""
    for column in SYSTEM_COLUMNS:
        value = row.value(column)
        if value is not None and not isinstance(value, str):
            raise UserError(f"The column {column!r} must contain a text", row.source, found=repr(value)[:80])
        if value and value.strip():
            return value, column
    return "", ""


def _with_greeting_untrained(turns: tuple[Message, ...], row: Row, remarks: Noticed) -> tuple[Message, ...]:
    """The turns, where assistant turns before the first turn of a user or tool are only context: they answer nothing,
    and a model that is used is always asked something."""
    start = next((i for i, turn in enumerate(turns) if turn.role in ("user", "tool")), len(turns))
    if all(turn.role != "assistant" for turn in turns[:start]):
        return turns
    remark(remarks, "greeting", "", row.source)
    return (*_untrained(turns[:start]), *turns[start:])


def _untrained(turns: Sequence[Message]) -> list[Message]:
    return [dataclasses.replace(turn, trained=turn.role != "assistant") for turn in turns]


# ---- findings --------------------------------------------------------------------------------------------------------

SENTENCES = {
    "system": "have a system turn and another system text in their row; the turn is used",
    "literal": "are written as Python literals, as data frames write lists to csv files; they are read as lists",
    "greeting": "begin with an assistant turn; it is context and not trained",
    "untrained": "have no assistant turn to train on; they are set aside",
}
NAMES = {"end": "unanswered_turns", "untrained": "conversations_set_aside", "greeting": "assistant_begins",
         "literal": "python_literals"}  # fmt: skip


def _findings(remarks: Noticed, total: int) -> list[Finding]:
    """One finding for each kind of remark. ``total``: how many conversations there are."""
    findings = []
    for (kind, subject), places in remarks.items():
        if kind in ("end", *SENTENCES):
            article = "an" if subject == "assistant" else "a"
            what = "turn that is not trained" if subject == "assistant" else "turn"
            rest = SENTENCES.get(kind) or f"end with {article} {subject} {what}; it is left out"
            text = f"{len(places)} of {total} conversations {rest}"
            severity = "warning" if kind == "untrained" else "note"
            name = NAMES.get(kind, "system_turns")
            findings.append(Finding(name, severity, text, len(places), tuple(places[:MOST_PLACES])))
    for kind, name, text in (
        ("key", "unused_keys", "Keys of turns that are not used, with the number of turns"),
        ("column", "unused_columns", "Columns that are not used, with the number of rows"),
        ("marked", "trained_marks", "Only assistant turns are trained. Other turns are marked for it by"),
    ):
        found = {subject: places for (other, subject), places in remarks.items() if other == kind}
        if found:
            counts = ", ".join(f"{subject} ({len(places)})" for subject, places in found.items())
            places = tuple(places[0] for places in found.values())[:MOST_PLACES]
            findings.append(Finding(name, "note", f"{text}: {counts}", max(map(len, found.values())), places))
    return findings
