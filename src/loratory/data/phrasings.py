"""Wordings of a prompt for tasks with labels or candidates, among which a run can choose."""

import re
from collections.abc import Sequence

from loratory.data.prompts import LABELS, has_answer_slot, shown_columns
from loratory.settings import SEARCHED_TASKS, DataConfig, PromptConfig

LONGEST_LABEL_LIST = 4_000  # characters; longer lists of labels are not part of the prompt
# Names of answer columns that say nothing about what the answer is.
VAGUE = ("label", "labels", "class", "target", "answer", "output", "y", "gold")

Wording = tuple[str | None, str]
"""The templates of the system message and of the user message."""


def no_search_reason(task: str, data: DataConfig, prompt: PromptConfig, has_validation: bool) -> str | None:
    """Why a run does not choose its prompt, as a clause; None if it does. What rules out search = "on" comes first."""
    if task not in SEARCHED_TASKS:
        return "that is for tasks with labels or candidates"
    if has_answer_slot(prompt):
        return "the answer is inside the text"
    if data.folds and not data.validation:
        return "with folds, that needs a file of validation examples, which no fold tests"
    if not has_validation:
        return "there are no validation examples"
    is_written = prompt.system is not None or prompt.user is not None
    if prompt.search == "off" or (prompt.search == "auto" and is_written):
        return "the settings have a prompt"
    return None


def phrasings(
    prompt: PromptConfig, answer: str, task: str, labels: Sequence[str], candidates: str | None = None
) -> list[Wording]:
    """Other wordings of a prompt that show the same columns, with and without a list of the choices.

    ``answer`` is the name of the answer column, ``candidates`` that of the column with each row's own choices.
    """
    columns = [column for column in shown_columns(prompt, "task file") if column != candidates]
    text, named = text_template(columns), named_template(columns)
    ask = f"\n{'Answer' if candidates else answer_name(answer)}:"
    if candidates:
        choices = f"{{{candidates}}}"
        return [
            ("Choose the right one of the answers below the text. Answer with it alone.", f"{text}\n\n{choices}"),
            (None, f"{named}\n\nWhich of these is right?\n{choices}\n{ask}"),
            (None, f"{named}{ask}"),
        ]
    unlisted: list[Wording] = [(None, text), (None, f"{named}{ask}")]
    if len(", ".join(labels)) > LONGEST_LABEL_LIST:
        return unlisted
    return [(instruction(task), text), *unlisted]


def instruction(task: str) -> str:
    """The system message that lists the labels and says what to do with them."""
    if task == "labels":
        return f"Which of these categories does the text belong to? {{{LABELS}}}."
    return f"Sort the text into one of these categories: {{{LABELS}}}. Answer with the category alone."


def text_template(columns: Sequence[str]) -> str:
    """The columns of a text: a single one as it is, several with their names, one per line."""
    return f"{{{columns[0]}}}" if len(columns) == 1 else named_template(columns)


def named_template(columns: Sequence[str]) -> str:
    return "\n".join(f"{heading(column)}: {{{column}}}" for column in columns)


def answer_name(answer: str) -> str:
    """What the answer is called in a prompt."""
    return "Category" if answer.lower() in VAGUE else heading(answer)


def heading(column: str) -> str:
    """The name of a column as a heading."""
    words = re.sub(r"[{}]", "", column).replace("_", " ").replace(".", " ").strip()
    return words[:1].upper() + words[1:]
