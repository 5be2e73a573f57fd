"""Prompt templates with {column} placeholders, and the function that fills them from a row."""

import re
from collections.abc import Callable, Mapping, Sequence

from loratory.config import DataConfig, PromptConfig
from loratory.data.answers import candidates_of
from loratory.data.examples import Example, Message
from loratory.data.rows import Row, _cell
from loratory.errors import UserError, did_you_mean

LABELS = "labels"
MASK = "mask"  # the placeholder for the place that an answer fills, where it does not follow the prompt
ANSWER_SLOT = f"\ufffc{{{MASK}}}\ufffc"  # what it becomes in a prompt: nothing that a row would hold
TEXT_COLUMN = "text"
# A brace, a placeholder, or plain text. Names are any text without braces: nothing is looked up inside of a value.
PIECES = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[^{}]+")


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


def has_answer_slot(prompt: PromptConfig) -> bool:
    """Whether the answer stands inside of the user message, not behind it."""
    return MASK in placeholders(prompt.user or "", "prompt.user")


def is_plain_text(task: str, data: DataConfig, prompt: PromptConfig) -> bool:
    """Whether rows are texts to read, of which some tokens are hidden, and not questions with an answer."""
    return task == "fill" and (not has_answer_slot(prompt) if prompt.user else not data.answer)


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

    own = {LABELS: ", ".join(labels), MASK: ANSWER_SLOT}

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
            fix = did_you_mean(name, columns) or f"columns: {', '.join(columns)}"
            raise UserError(f"The placeholder {{{name}}} has no column", place, fix=fix)
    return names


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
