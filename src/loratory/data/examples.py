"""Rows -> Example: prompts, answers, candidates. What can be wrong with a row of a task is said here."""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loratory.config import CodeConfig, DataConfig, PromptConfig, nearest
from loratory.data.rows import Row, cell_text, parse_json
from loratory.errors import UserError

ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
TEST_COLUMNS = ("test_list", "test")
BETWEEN_LABELS = "; "
CONVERSATION_COLUMNS = ("messages", "conversations")
LABELS = "labels"
MASK = "mask"  # the placeholder for the place that an answer fills, where it does not follow the prompt
BLANK = f"\ufffc{{{MASK}}}\ufffc"  # what it becomes in a prompt: nothing that a row would hold
TOOLS = "tools"
TEXT_COLUMN = "text"
LABELLED = ("classification", "labels")  # the tasks whose candidates are the same for all rows
# A brace, a placeholder, or plain text. Names are any text without braces: nothing is looked up inside of a value.
PIECES = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[^{}]+")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; before all turns may stand the tools that it has, as JSON."""

    role: str
    content: str


@dataclass(frozen=True)
class Tests:
    """Python source around an answer."""

    prefix: str
    """What the answer may continue."""
    name: str
    """The function that it has to define; empty if unknown."""
    after: str
    """Statements that raise where the answer is wrong."""


@dataclass(frozen=True)
class Example:
    """What the model is shown and what it should answer."""

    messages: tuple[Message, ...]
    """The prompt's turns, ending before the answer; earlier assistant turns may be among them."""
    answers: tuple[str, ...]
    """The expected answer; further entries are also right, and trained. Empty when only a prediction is wanted."""
    candidates: tuple[str, ...]
    """What can be chosen from (for classification: the labels, sorted); may be empty."""
    source: str
    """Where it came from, as file:line."""
    tests: "Tests | None" = None
    """For code: what says whether an answer works."""

    @property
    def answer(self) -> str:
        return self.answers[0]


# ---- prompts ---------------------------------------------------------------------------------------------------------


def placeholders(template: str, where: str) -> list[str]:
    """The column names in a prompt template: plain {name} only; {{ and }} are braces. Raises UserError."""
    rest = PIECES.sub("", template)
    if rest:
        raise UserError("The prompt template is malformed", where, found=rest, fix="write {{ for a brace")
    return [piece[1:-1] for piece in PIECES.findall(template) if piece[0] == "{" and piece != "{{"]


def fill(template: str, values: Mapping[str, str]) -> str:
    """The template with each {name} replaced by its value, whatever braces the value contains."""

    def value(found: re.Match) -> str:
        piece = found[0]
        if piece in ("{{", "}}"):
            return piece[0]
        return values[piece[1:-1]] if piece[0] == "{" else piece

    return PIECES.sub(value, template)


def default_user_prompt(columns: Sequence[str], answer: str, where: str = "task file") -> str:
    """Every column but the answer, one a line. Raises UserError for a column with braces in its name."""
    shown = [c for c in columns if c != answer]
    if any(set(c) & set("{}") for c in shown):
        raise UserError(
            "A column with braces in its name needs a written prompt", f"{where}, prompt.user", found=", ".join(shown)
        )
    return "\n".join(f"{c}: {{{c}}}" for c in shown)


def has_blank(prompt: PromptConfig) -> bool:
    """Whether the answer stands inside of the user message, not behind it."""
    return MASK in placeholders(prompt.user or "", "prompt.user")


def is_plain_text(task: str, data: DataConfig, prompt: PromptConfig) -> bool:
    """Whether rows are texts to read, of which some tokens are hidden, and not questions with an answer."""
    return task == "fill" and (not has_blank(prompt) if prompt.user else not data.answer)


def default_prompt(columns: Sequence[str], answer: str, where: str, task: str) -> str:
    """What the user message shows where the settings do not say."""
    if task == "fill" and not answer and TEXT_COLUMN in columns:
        return f"{{{TEXT_COLUMN}}}"
    shown = default_user_prompt(columns, answer, where)
    return f"{shown}\n{answer}: {{{MASK}}}" if task == "fill" and answer else shown


def prompt_writer(
    prompt: PromptConfig,
    answer: str,
    columns: Sequence[str],
    labels: Sequence[str],
    where: str,
    candidates: str | None = None,
) -> Callable[[Row], tuple[Message, ...]]:
    """Returns the function Row -> messages. Raises UserError for a placeholder that is no column of the data.

    ``candidates``: the column that lists a row's candidates, which are shown one a line.
    """
    templates = [("system", prompt.system), ("user", prompt.user or default_user_prompt(columns, answer, where))]
    parts = [(role, template) for role, template in templates if template is not None]
    names = {name for role, template in parts for name in _checked(template, role, answer, columns, where)}

    own = {LABELS: ", ".join(labels), MASK: BLANK}

    def shown(row: Row, name: str) -> str:
        return "\n".join(f"- {c}" for c in candidates_of(row, name)) if name == candidates else _cell(row, name)

    def write(row: Row) -> tuple[Message, ...]:
        values = {name: own[name] if name in own else shown(row, name) for name in names}
        return tuple(Message(role, fill(template, values)) for role, template in parts)

    return write


def _checked(template: str, role: str, answer: str, columns: Sequence[str], where: str) -> list[str]:
    place = f"{where}, prompt.{role}"
    names = placeholders(template, place)
    if MASK in names and (MASK in columns or role == "system"):
        found, fix = "a column of that name", "rename the column"
        if role == "system":
            found, fix = "{mask} in the system message", "put it into [prompt] user"
        raise UserError("{mask} stands for the answer, in the user message", place, found=found, fix=fix)
    for name in names:
        if name == answer:
            raise UserError("The prompt shows the answer", place, found=f"{{{name}}}")
        if name not in (LABELS, MASK) and name not in columns:
            fix = nearest(name, columns) or f"columns: {', '.join(columns)}"
            raise UserError(f"The placeholder {{{name}}} has no column", place, fix=fix)
    return names


def _cell(row: Row, name: str) -> str:
    if name not in row.values:
        raise UserError(f"The row lacks the column {name!r}", row.source, found=", ".join(map(str, row.values)))
    return cell_text(row.values[name])


def _messages(turns: Any, source: str) -> list[Message]:
    """Raises UserError for what is no list of turns."""
    if not isinstance(turns, list) or not turns:
        raise UserError("A conversation must be a list of turns", source, found=repr(turns)[:80])
    messages = []
    for number, turn in enumerate(turns, 1):
        place = f"{source}, turn {number}"
        if isinstance(turn, dict) and turn.get("tool_calls"):
            fix = "write the call into the turn's content, in the form that the model's template has for it"
            raise UserError("Calls of tools are read from a turn's content only", place, fix=fix)
        if not isinstance(turn, dict) or not isinstance(turn.get("content"), str):
            raise UserError("A turn must have a role and a text content", place, found=repr(turn)[:80])
        if turn.get("role") not in ROLES:
            role = str(turn.get("role"))
            raise UserError("Unknown role", place, ", ".join(ROLES), repr(role), nearest(role, ROLES))
        messages.append(Message(turn["role"], turn["content"]))
    return messages


def conversation(turns: Any, source: str) -> Example:
    """An Example from a list of {"role", "content"} turns that ends with an assistant turn. Raises UserError.

    Its earlier assistant turns are trained too: see ``render.tokenize``.
    """
    messages = _messages(turns, source)
    if messages[-1].role != "assistant" or not messages[-1].content.strip():
        raise UserError("A conversation must end with an assistant's answer", source, found=messages[-1].role)
    first = next(m.role for m in messages if m.role != "system")
    if first != "user":
        raise UserError("A conversation must begin with a user's turn", source, found=first)
    return Example(tuple(messages[:-1]), (messages[-1].content.strip(),), (), source)


def question(turns: Any, source: str) -> Example:
    """An Example to answer, from turns that end with a user's; an assistant's at the end is left out."""
    messages = _messages(turns, source)
    messages = messages[:-1] if messages[-1].role == "assistant" else messages
    if not messages or messages[-1].role not in ("user", "tool"):
        raise UserError("There is no user's turn to answer", source, found=messages[-1].role if messages else "nothing")
    return Example(tuple(messages), (), (), source)


# ---- the tasks -------------------------------------------------------------------------------------------------------


def candidates_of(row: Row, column: str) -> tuple[str, ...]:
    """What a row lets choose from: a list of two or more different texts. Raises UserError."""
    value = row.values.get(column)
    if isinstance(value, str) and value.lstrip().startswith("["):  # a cell of a csv file
        value = parse_json(value, row.source)
    if not isinstance(value, (list, tuple)):
        expected, found = "a list of texts", repr(value)[:80] if column in row.values else "no such column"
        raise UserError(f"The candidates in column {column!r} are no list", row.source, expected, found)
    texts = tuple(cell_text(item).strip() for item in value)
    if len(set(texts)) < max(2, len(texts)) or not all(texts):
        found = "; ".join(texts)[:200]
        raise UserError("The candidates of a row cannot be told apart", row.source, "two or more, all different", found)
    return texts


def choice_of(row: Row, answer: str, candidates: str) -> str:
    """The candidate that is right: named in the answer column by its text, or by its place, counted from 0."""
    texts, value = candidates_of(row, candidates), row.values.get(answer)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(texts):
        return texts[value]
    text = answer_of(row, answer)
    if text not in texts:
        expected = f"one of the {len(texts)} in column {candidates!r}, or its number from 0"
        raise UserError("The answer is none of the row's candidates", row.source, expected, text[:200])
    return text


def labels_of(row: Row, column: str) -> tuple[str, ...]:
    """A row's set of labels, sorted: a list, or a text with semicolons between. Raises UserError where it is empty."""
    value = row.values.get(column)
    parts = value if isinstance(value, (list, tuple)) else answer_of(row, column).split(BETWEEN_LABELS.strip())
    labels = tuple(sorted({cell_text(part).strip() for part in parts} - {""}))
    if not labels:
        raise UserError(f"The answer in column {column!r} is empty", row.source, fix="fill it in or remove the row")
    for label in labels:
        if BETWEEN_LABELS.strip() in label:
            raise UserError("A label contains a semicolon, which stands between labels", row.source, found=repr(label))
    return labels


def answer_of(row: Row, column: str) -> str:
    """The row's answer, outer white space removed. Raises UserError when it is missing or empty."""
    if column not in row.values:
        names = [str(c) for c in row.values]
        raise UserError(
            f"The answer column {column!r} is missing",
            row.source,
            found=f"columns {', '.join(names)}",
            fix=nearest(column, names) or "set [data] answer to one of them",
        )
    text = cell_text(row.values[column]).strip()
    if not text:
        raise UserError(f"The answer in column {column!r} is empty", row.source, fix="fill it in or remove the row")
    return text


def turns_of(row: Row, column: str, system: str | None) -> Any:
    """The turns of a row's conversation as {"role", "content"}, whether they stand in OpenAI's form or in ShareGPT's.

    ``system`` is put before a conversation that has no system message. Raises UserError where there is no such column.
    """
    name = column or next((c for c in CONVERSATION_COLUMNS if c in row.values), "")
    if name not in row.values:
        expected = f"column {column!r}" if column else " or ".join(CONVERSATION_COLUMNS)
        raise UserError("The row has no conversation", row.source, expected, ", ".join(map(str, row.values)))
    turns = row.values[name]
    if isinstance(turns, str) and turns.lstrip().startswith("["):  # a cell of a csv file
        turns = parse_json(turns, row.source)
    if isinstance(turns, list):
        turns = [_turn(turn) for turn in turns]
        if system and turns and isinstance(turns[0], dict) and turns[0].get("role") != "system":
            turns.insert(0, {"role": "system", "content": system})
    return turns


def tools_of(row: Row) -> tuple[Message, ...]:
    """The tools of a row's conversation, its column "tools" as OpenAI has it: as a message of their own, or none."""
    value = row.values.get(TOOLS)
    if isinstance(value, str) and value.strip():
        value = parse_json(value, row.source)
    if not value:
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise UserError(f"The column {TOOLS!r} must hold a list of objects", row.source, found=repr(value)[:80])
    return (Message(TOOLS, json.dumps(value, ensure_ascii=False)),)


def with_tools(example: Example, row: Row) -> Example:
    """The row's conversation with its tools."""
    return dataclasses.replace(example, messages=(*tools_of(row), *example.messages))


def _turn(turn: Any) -> Any:
    """A turn of ShareGPT's form in OpenAI's; any other value as it is."""
    if isinstance(turn, dict) and "from" in turn and "role" not in turn:
        return {"role": SHAREGPT_ROLES.get(turn["from"], turn["from"]), "content": turn.get("value")}
    return turn


def row_tests(row: Row, code: CodeConfig) -> Tests | None:
    """The tests of a row as MBPP has them (a list of statements) or HumanEval (a function that takes the one to test);
    None where it has none. Raises UserError where it has none and they are to be run."""
    column = code.tests or next((name for name in TEST_COLUMNS if row.values.get(name)), "")
    value = row.values.get(column)
    if not value:
        if code.run:
            expected = f"column {code.tests!r}" if code.tests else " or ".join(TEST_COLUMNS)
            raise UserError("The row has no tests to run", row.source, expected, ", ".join(map(str, row.values)))
        return None
    statements = "\n".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    name = str(row.values.get("entry_point") or "")
    if name and "def check(" in statements:
        statements += f"\ncheck({name})"
    prefix = str(row.values.get(code.prefix or ("prompt" if name else ""), ""))
    parts = [_cell(row, code.suffix)] if code.suffix else []
    parts += [str(row.values.get("test_setup_code") or ""), statements]
    return Tests(prefix, name, "\n".join(parts))


def with_shots(example: Example, shots: Sequence[Example]) -> Example:
    """The example with solved ones before it, as turns of the same conversation."""
    system = tuple(m for m in example.messages if m.role == "system")
    turns = []
    for shot in shots:
        turns += [m for m in shot.messages if m.role != "system"] + [Message("assistant", shot.answer)]
    own = tuple(m for m in example.messages if m.role != "system")
    return dataclasses.replace(example, messages=(*system, *turns, *own))


def records_to_examples(
    rows: Sequence[Row], prompt: PromptConfig, answer: str, labels: Sequence[str], candidates: str | None = None
) -> list[Example]:
    """Rows to predict: the same prompts as in training; the answer column may be absent. Raises UserError."""
    if not rows:
        return []
    columns = list(dict.fromkeys(str(c) for row in rows for c in row.values))
    write = prompt_writer(prompt, answer, columns, labels, rows[0].source, candidates)
    return [
        Example(write(row), (), candidates_of(row, candidates) if candidates else tuple(labels), row.source)
        for row in rows
    ]
