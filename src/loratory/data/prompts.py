"""Prompt templates with {column} placeholders, and their rendering into messages."""

import re
from collections.abc import Callable, Mapping, Sequence

from loratory.data.answers import candidates_of
from loratory.data.examples import Example, Message
from loratory.data.rows import Row, column_text, names_in
from loratory.errors import UserError, did_you_mean
from loratory.settings import DataConfig, PromptConfig

LABELS = "labels"
MASK = "mask"  # the placeholder of the answer slot, for answers inside the prompt instead of after it
ANSWER_SLOT = f"\ufffc{{{MASK}}}\ufffc"  # the slot in a rendered prompt; no row contains this text
TEXT_COLUMN = "text"
# An escaped brace, a placeholder, or plain text. A name is any text without braces; attributes, indices and format
# specifications are not supported, so a template cannot reach into a value.
PIECES = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[^{}]+")


def placeholders(template: str, where: str) -> list[str]:
    """The names of the {name} placeholders in a template; {{ and }} are literal braces. Raises UserError."""
    rest = PIECES.sub("", template)
    if rest:
        raise UserError("The prompt template is malformed", where, found=rest, fix="write {{ or }} for a literal brace")
    return [piece[1:-1] for piece in PIECES.findall(template) if piece[0] == "{" and piece != "{{"]


def fill(template: str, values: Mapping[str, str]) -> str:
    """The template with each {name} replaced by its value. Braces in a value stay as they are."""

    def replacement(match: re.Match) -> str:
        piece = match[0]
        if piece in ("{{", "}}"):
            return piece[0]
        return values[piece[1:-1]] if piece[0] == "{" else piece

    return PIECES.sub(replacement, template)


def filled_lines(template: str, values: Mapping[str, str]) -> str:
    """``fill``, without the lines of which every placeholder is empty.

    So a heading such as "Input: {input}" does not stand alone in rows that have no input.
    """

    def is_shown(line: str) -> bool:
        names = [piece[1:-1] for piece in PIECES.findall(line) if piece[0] == "{" and piece != "{{"]
        return not names or any(values[name].strip() for name in names)

    lines = template.split("\n")
    shown = [line for line in lines if is_shown(line)]
    text = fill("\n".join(shown), values)
    return text if len(shown) == len(lines) else text.strip("\n")


def default_user_prompt(columns: Sequence[str], answer: str, where: str = "task file") -> str:
    """A template with every column except the answer, one per line.

    Raises UserError if a column has braces in its name, because a template cannot refer to it.
    """
    shown = [c for c in columns if c != answer]
    if any(set(c) & set("{}") for c in shown):
        raise UserError(
            "The default prompt cannot show a column with braces in its name",
            f"{where}, prompt.user",
            found=", ".join(shown),
            fix="set [prompt] user, or rename the column",
        )
    return "\n".join(f"{c}: {{{c}}}" for c in shown)


def shown_columns(prompt: PromptConfig, where: str) -> list[str]:
    """The placeholders of a prompt that stand for columns, each once. Raises UserError if a template is malformed."""
    parts = (("system", prompt.system), ("user", prompt.user))
    names = [name for role, text in parts for name in placeholders(text or "", f"{where}, prompt.{role}")]
    return [name for name in dict.fromkeys(names) if name not in (LABELS, MASK)]


def has_answer_slot(prompt: PromptConfig) -> bool:
    """Whether the answer is inside the user message instead of after it."""
    return MASK in placeholders(prompt.user or "", "prompt.user")


def is_plain_text(task: str, data: DataConfig, prompt: PromptConfig) -> bool:
    """Whether rows are plain texts of which any token is learned, instead of prompts with an answer."""
    return task == "pretrain" or (task == "fill" and (not has_answer_slot(prompt) if prompt.user else not data.answer))


def check_pretraining(data: DataConfig, prompt: PromptConfig, where: str) -> None:
    """Raises UserError for settings that a text without question and answer cannot have."""
    if data.answer:
        fix = "remove [data] answer; [prompt] user says which columns are the text"
        raise UserError("Pretraining has no answer column: all of a text is learned", f"{where}, data.answer", fix=fix)
    for key in ("system", "template_kwargs"):
        if getattr(prompt, key) not in (None, {}):
            fix = "remove it; text that belongs to every document can be part of [prompt] user"
            raise UserError("Pretraining uses no chat template", f"{where}, prompt.{key}", fix=fix)
    if has_answer_slot(prompt):
        fix = 'remove {mask}, or set task = "fill" with a masked language model'
        raise UserError("Pretraining has no answer slot", f"{where}, prompt.user", found="{mask}", fix=fix)


def default_prompt(columns: Sequence[str], answer: str, where: str, task: str) -> str:
    """The template of the user message if the settings have none."""
    if task in ("fill", "pretrain") and not answer and TEXT_COLUMN in columns:
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
    """Returns a function that renders the messages of a row. Raises UserError if a placeholder matches no column.

    ``candidates`` is the column with a row's candidates, which are shown as a list, one per line.
    """
    templates = [("system", prompt.system), ("user", prompt.user or default_user_prompt(columns, answer, where))]
    parts = [(role, template) for role, template in templates if template is not None]
    names = {name for role, template in parts for name in _checked_names(template, role, answer, columns, where)}

    reserved = {LABELS: ", ".join(labels), MASK: ANSWER_SLOT}

    def shown(row: Row, name: str) -> str:
        return "\n".join(f"- {c}" for c in candidates_of(row, name)) if name == candidates else column_text(row, name)

    def write(row: Row) -> tuple[Message, ...]:
        values = {name: reserved[name] if name in reserved else shown(row, name) for name in names}
        return tuple(Message(role, filled_lines(template, values)) for role, template in parts)

    return write


def _checked_names(template: str, role: str, answer: str, columns: Sequence[str], where: str) -> list[str]:
    """The placeholders of a template. Raises UserError if one of them is not allowed or matches no column."""
    place = f"{where}, prompt.{role}"
    names = placeholders(template, place)
    if MASK in names and (MASK in columns or role == "system"):
        found, fix = "a column named mask", "rename the column"
        if role == "system":
            found, fix = "{mask} in the system message", "move it to [prompt] user"
        raise UserError("{mask} is reserved for the answer slot of the user message", place, found=found, fix=fix)
    for name in names:
        if name == answer:
            raise UserError("The prompt shows the answer", place, found=f"{{{name}}}")
        if name not in (LABELS, MASK) and name not in columns:
            others = [c for c in columns if c != answer]
            fix = did_you_mean(name, others) or "write the name of a column in braces, or remove the placeholder"
            expected = f"one of the columns {', '.join(others)}" if others else None
            raise UserError(f"The placeholder {{{name}}} does not match a column", place, expected, fix=fix)
    return names


def records_to_examples(
    rows: Sequence[Row], prompt: PromptConfig, answer: str, labels: Sequence[str], candidates: str | None = None
) -> list[Example]:
    """Examples for prediction, with the prompts of training; rows need no answer column. Raises UserError."""
    if not rows:
        return []
    write = prompt_writer(prompt, answer, names_in(rows), labels, rows[0].source, candidates)
    return [
        Example(write(row), (), candidates_of(row, candidates) if candidates else tuple(labels), row.source)
        for row in rows
    ]
