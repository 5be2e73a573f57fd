"""Guesses from the rows of a file what its task is, which column is the answer, and what the prompt shows."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loratory.data.conversations import ANSWER_COLUMNS, CONVERSATION_COLUMNS, conversation_columns
from loratory.data.labels import set_separator
from loratory.data.prompts import TEXT_COLUMN
from loratory.data.rows import Row, cell_text
from loratory.errors import UserError

ANSWER_WORDS = ("label", "category", "answer", "intent", "class", "target", "topic", "sentiment")
# Columns of files with instructions and of files with completions: the prompt shows the first ones, in this order.
INSTRUCTION, INSTRUCTION_INPUTS, INSTRUCTION_ANSWERS = "instruction", ("input", "context"), ("output", "response")
PROMPT, PROMPT_ANSWERS = "prompt", ("completion", "chosen", "response")
REJECTED = "rejected"  # the other answer of preference data
FEWEST_OF_LABEL = 5  # rows with a label, so that a random split does not leave training without it
MOST_NUMBER_LABELS = 10  # more different numbers are quantities, not the names of classes
LEAKS = ("encodes the answer", "ends with the answer")  # reasons to leave out a column
QUANTITY = re.compile(r"[-+]?[$€£]?\s?\d[\d.,]*([eE][-+]?\d+)?\s?[%$€£]?")
SENTENCE_WORDS, LONG_SENTENCE_WORDS = 3, 8
# Words that replace "train" in the names of the other files of a data set.
SPLIT_WORDS = {"validation": ("validation", "valid", "val", "dev"), "test": ("test", "heldout")}
SPLIT_NAMES = {"train", "training", "test", *SPLIT_WORDS["validation"]}


@dataclass(frozen=True)
class Kind:
    """What the rows of a file are."""

    task: str
    """dialogue, plain (text without an answer), classification, labels, or text (free answers)."""
    reason: str
    """Why, in a few words."""
    answer: str
    """The answer column; for conversations, the column with the turns, and empty if it has one of the usual names."""
    inputs: tuple[str, ...] | None
    """The columns that are the prompt, in the order in which they are shown; None if any column may be."""
    separator: str = ""
    """What separates the labels of a set; only for labels."""
    remark: str = ""
    """One sentence on a guess that the user should know about."""


def recognize(rows: Sequence[Row], columns: Sequence[str], answer: str, where: str) -> Kind:
    """What the rows are. ``answer`` is the column that the user named, or empty. Raises UserError if that is needed."""
    if kind := _conversations(rows, answer):
        return kind
    answer = answer or _usual_answer(columns)
    others = [column for column in columns if column != answer]
    if answer in ("", TEXT_COLUMN) and TEXT_COLUMN in columns and not _contents(rows, set(columns) - {TEXT_COLUMN}):
        return Kind("plain", f"the only column is {TEXT_COLUMN!r}, so there is no answer to learn", "", (TEXT_COLUMN,))
    if not answer:
        expected = f"--answer with one of the columns {', '.join(columns)}"
        raise UserError("No answer column is set", where, expected, "no --answer", _hint(columns))
    inputs = _usual_inputs(others, answer)
    answers = [text for row in rows if (text := cell_text(row.value(answer)).strip())]
    if inputs:
        return Kind("text", f"the columns {', '.join((*inputs, answer))} are instructions and answers", answer, inputs)
    kind = _sets(answers, answer) or _numbers(answers, answer)
    if kind:
        return kind
    if len(set(answers)) > len(answers) / 2:
        return Kind("text", "most answers are different, so they are free text", answer, None)
    if _are_sentences(set(answers)):
        return Kind("text", 'the answers are sentences; if they are labels, set "classification"', answer, None)
    return Kind("classification", "answers repeat, so they are labels", answer, None)


def _sets(answers: Sequence[str], answer: str) -> Kind | None:
    """The kind of answers that look like sets of labels, if the labels repeat."""
    separator = set_separator(answers)
    counts = Counter(label for text in answers for label in labels_in(text, separator)) if separator else Counter()
    if not separator or len(counts) > len(answers) / 2:
        return None
    what = f"the answers in {answer!r} look like sets of labels, separated by {separator!r}"
    if min(counts.values()) < FEWEST_OF_LABEL:
        remark = f"{what}; each combination is a label of its own here, because some labels are too rare for the task"
        return Kind("classification", "answers repeat", answer, None, remark=f'{remark} "labels"')
    remark = f'{what}, so the task is "labels"; if each is one label, set task = "classification"'
    return Kind("labels", "the answers look like sets of labels", answer, None, separator, remark)


def labels_in(text: str, separator: str) -> list[str]:
    """The labels of a set that is written as one text."""
    return [label for part in text.split(separator) if (label := part.strip())]


def _numbers(answers: Sequence[str], answer: str) -> Kind | None:
    """The kind of answers that are many different numbers."""
    different = set(answers)
    if len(different) <= MOST_NUMBER_LABELS or not all(QUANTITY.fullmatch(text) for text in different):
        return None
    is_text = len(different) > len(answers) / 2
    how = "written out as text" if is_text else "as labels without an order"
    remark = f"the answers in {answer!r} are numbers; regression is not offered, so they are learned {how}"
    return Kind("text" if is_text else "classification", f"the answers are numbers, learned {how}", answer, None,
                remark=remark)  # fmt: skip


def _conversations(rows: Sequence[Row], answer: str) -> Kind | None:
    """The kind of rows with lists of turns, if the user named such a column or none."""
    found = conversation_columns(rows)
    if not found or answer not in ("", *found):
        return None
    name = found[-1]
    usual = name in (*CONVERSATION_COLUMNS, *ANSWER_COLUMNS)
    return Kind("dialogue", f"the column {name!r} contains lists of turns", "" if usual else name, None)


def _usual_answer(columns: Sequence[str]) -> str:
    """The answer column of a file whose columns have the usual names of instructions or completions."""
    for first, answers in ((INSTRUCTION, INSTRUCTION_ANSWERS), (PROMPT, PROMPT_ANSWERS)):
        found = [name for name in answers if name in columns]
        if first in columns and found:
            return found[0]
    return ""


def _usual_inputs(columns: Sequence[str], answer: str) -> tuple[str, ...] | None:
    """The columns that the prompt shows, if they and the answer have the usual names."""
    if INSTRUCTION in columns and answer in INSTRUCTION_ANSWERS:
        return (INSTRUCTION, *(name for name in INSTRUCTION_INPUTS if name in columns))
    return (PROMPT,) if PROMPT in columns and answer in PROMPT_ANSWERS else None


def _contents(rows: Sequence[Row], columns: set[str]) -> bool:
    """Whether one of the columns has text that a prompt could show: not an identifier, not the same everywhere."""
    return any(reason_to_leave_out([row.value(c) for row in rows], (), c, True) is None for c in sorted(columns))


def _are_sentences(answers: set[str]) -> bool:
    """Whether at least half of the different answers read like sentences rather than names."""

    def is_sentence(text: str) -> bool:
        words = len(text.split())
        return words >= LONG_SENTENCE_WORDS or (words >= SENTENCE_WORDS and text[-1] in ".!?…。！？")

    return sum(map(is_sentence, answers)) * 2 >= max(1, len(answers))


def _hint(columns: Sequence[str]) -> str:
    """The flag that names the most likely answer column."""
    likely = [c for word in ANSWER_WORDS for c in columns if word in c.lower()]
    return f"add --answer {likely[0] if likely else 'COLUMN'}"


# ---- columns ---------------------------------------------------------------------------------------------------------


def choose_columns(rows: Sequence[Row], columns: Sequence[str], kind: Kind) -> tuple[list[str], dict[str, str]]:
    """The columns to show in the prompt, and those to leave out with the reason."""
    shown, left_out = list(kind.inputs or ()), {}
    answers = [cell_text(row.value(kind.answer)).strip() for row in rows]
    for column in columns:
        if column == kind.answer or column in shown:
            continue
        if kind.inputs:
            left_out[column] = "not part of the instruction or the prompt"
            continue
        cells = [row.value(column) for row in rows]
        reason = reason_to_leave_out(cells, answers, column, kind.task == "text")
        if reason:
            left_out[column] = reason
        else:
            shown.append(column)
    return shown, left_out


def reason_to_leave_out(cells: Sequence[Any], answers: Sequence[str], column: str, free_text: bool) -> str | None:
    """Why the prompt should not show a column, or None if it should."""
    values = [cell_text(cell).strip() for cell in cells]
    different = set(values)
    if set(column) & set("{}"):
        return "its name contains braces"
    if different == {""}:
        return "empty"
    if len(different) == 1:
        return "the same value in every row"
    if any(isinstance(cell, (list, dict)) for cell in cells):
        return "lists or objects, not text"
    if not free_text and len(set(zip(values, answers, strict=True))) == len(different) == len(set(answers)):
        return f"{LEAKS[0]}: one value per label"
    if {value.lower() for value in different} <= SPLIT_NAMES:
        return "names a split of the data"
    is_measure = all(re.fullmatch(r"-?\d+[.,]\d+", value) for value in values)
    if len(different) == len(values) and not is_measure and all(re.fullmatch(r"\S{1,64}", v) for v in values):
        return "a different word or number in every row, probably an identifier"
    if free_text and answers and all(a and v.endswith(a) for v, a in zip(values, answers, strict=True)):
        return LEAKS[1]
    return None
