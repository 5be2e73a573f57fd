"""Reads data files and turns their rows into examples.

In: delimited text, JSON, parquet, spreadsheets, plain text or hub datasets. Out: a ``Split`` of ``Example`` objects
into training, validation and test sets, or a task file guessed from the data. Read ``examples.py`` first, then
``splits.py``.
"""

from loratory.data.answers import FIXED_LABEL_TASKS, LABEL_SEPARATOR
from loratory.data.conversations import question, question_findings
from loratory.data.examples import TOOLS, Example, Message, Tests, with_shots
from loratory.data.findings import Finding, Severity, places_of
from loratory.data.labels import set_separator, spelling_key
from loratory.data.phrasings import phrasings
from loratory.data.prompts import (
    ANSWER_SLOT,
    LABELS,
    MASK,
    fill,
    has_answer_slot,
    is_plain_text,
    placeholders,
    records_to_examples,
)
from loratory.data.rows import HUB, Row, cell_text, read_table
from loratory.data.splits import Split, draw_few_shot, fold_splits, load_split, stratified_sample
from loratory.data.task_file import TaskFile, check_not_overwriting, guess_task_file, is_data
from loratory.data.turns import CALLS

__all__ = [
    "ANSWER_SLOT",
    "CALLS",
    "FIXED_LABEL_TASKS",
    "HUB",
    "LABELS",
    "LABEL_SEPARATOR",
    "MASK",
    "TOOLS",
    "Example",
    "Finding",
    "Message",
    "Row",
    "Severity",
    "Split",
    "TaskFile",
    "Tests",
    "cell_text",
    "check_not_overwriting",
    "draw_few_shot",
    "fill",
    "fold_splits",
    "guess_task_file",
    "has_answer_slot",
    "is_data",
    "is_plain_text",
    "load_split",
    "phrasings",
    "placeholders",
    "places_of",
    "question",
    "question_findings",
    "read_table",
    "records_to_examples",
    "set_separator",
    "spelling_key",
    "stratified_sample",
    "with_shots",
]
