"""Guesses a task file from data: the task, the columns in the prompt, and how the data is split.

The reason for each guess is written into the task file, as a comment on the setting.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from loratory.data.answers import answer_of
from loratory.data.prompts import MASK
from loratory.data.rows import HUB, Row, cell_text, is_readable, read_rows
from loratory.errors import UserError
from loratory.settings import BUILTIN, BUILTINS, ModelConfig

# Words that replace "train" in the names of the other files of a data set.
SPLIT_WORDS = {"validation": ("validation", "valid", "val", "dev"), "test": ("test", "heldout")}
GENERIC_STEMS = {"train", "training", "data", "dataset", "examples"}
ANSWER_WORDS = ("label", "category", "answer", "intent", "class", "target", "topic", "sentiment")
LONGEST_LABEL_LIST = 4_000  # characters; longer lists of labels are not part of the prompt
# Maximum number of examples: a first run should finish while the user waits.
LIMITS = {"train": 2_000, "validation": 200, "test": 500}
FEW_ROWS = 200  # with fewer rows, a single test set is too small for a reliable result
LONGEST_INLINE = 70  # a comment follows settings up to this length and precedes longer ones
MIN_STEPS, BATCH_SIZE, EPOCHS = 300, 16, (3, 10)


@dataclass(frozen=True)
class TaskFile:
    """A guessed task file, not yet written."""

    path: Path
    """Where the task file will be written."""
    toml: str
    """The text of the task file, with comments."""
    shown: tuple[str, ...]
    """The columns shown in the prompt."""
    left_out: dict[str, str]
    """The columns not shown in the prompt, with the reason."""


def guess_task_file(
    data: str, answer: str, is_masked: Callable[[ModelConfig], bool], model: str = BUILTIN, path: Path | None = None
) -> TaskFile:
    """Guesses a task file from a data file (or "hub:owner/name") and its answer column.

    If there are more than half as many different answers as rows, the answers are free text, otherwise labels.
    ``is_masked`` returns whether a model is a masked language model. ``path`` is where the task file will be written;
    by default in the current directory, named after the data. Raises UserError if the file or the column does not
    exist.
    """
    path = (path or Path(f"{_name(data)}.toml")).resolve()
    rows = read_rows(data)
    columns = list(dict.fromkeys(str(c) for row in rows for c in row.values))
    if not answer:
        raise UserError("No answer column is set", data, ", ".join(columns), fix=_answer_hint(columns))
    if isinstance(rows[0].values.get(answer), list):
        return _dialogue_task_file(data, answer, model, path, rows)
    answers = [answer_of(row, answer) for row in rows]
    free_text = len(set(answers)) > len(answers) / 2
    shown, left_out = _choose_columns(rows, answers, columns, answer, free_text)
    if not shown:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items()) or "there is no other column"
        raise UserError(
            "No column is left for the prompt to show", data, found=reasons, fix="write a task file by hand"
        )
    other = {split: _sibling(data, split, answer) for split in SPLIT_WORDS}
    masked = is_masked(ModelConfig(model))
    parts = [
        *_model_lines(
            model,
            ("fill" if masked else "text") if free_text else "classification",
            "most answers are different, so they are free text" if free_text else "answers repeat, so they are labels",
        ),
        *_data_lines(data, answer, answers, other, path.parent, free_text),
        *_prompt_lines(shown, left_out, answers, answer, free_text, masked),
        *_train_lines(min(len(rows), LIMITS["train"])),
        "[run]",
        _line("out", f"runs/{_name(data)}"),
    ]
    return TaskFile(path, "\n".join(parts) + "\n", tuple(shown), left_out)


def _dialogue_task_file(data: str, answer: str, model: str, path: Path, rows: Sequence[Row]) -> TaskFile:
    """The task file for a column of conversations."""
    parts = [
        *_model_lines(model, "dialogue", "the answer column contains lists of turns"),
        "[data]",
        _line("train", _data_path(data, path.parent), f"{len(rows)} rows"),
        _line("answer", answer),
        *([FOLDS_LINE] if len(rows) < FEW_ROWS else []),
        "",
        *_train_lines(min(len(rows), LIMITS["train"])),
        "[run]",
        _line("out", f"runs/{_name(data)}"),
    ]
    return TaskFile(path, "\n".join(parts) + "\n", (answer,), {})


def is_data(name: str) -> bool:
    """Whether a name on the command line refers to data instead of a task file."""
    return name.startswith(HUB) or is_readable(name)


def check_not_overwriting(task_file: TaskFile) -> None:
    """Raises UserError if a different file already exists at the path of the task file."""
    if task_file.path.exists() and task_file.path.read_text(encoding="utf-8", errors="replace") != task_file.toml:
        fix = f"use it (loratory run {task_file.path.name}), or remove it"
        raise UserError("A different task file for this data already exists", str(task_file.path), fix=fix)


def _answer_hint(columns: Sequence[str]) -> str:
    """The flag that names the most likely answer column."""
    likely = [c for word in ANSWER_WORDS for c in columns if word in c.lower()]
    return f"--answer {likely[0] if likely else 'COLUMN'}"


def _name(data: str) -> str:
    """A name for the task: that of the file, or of its folder if the file has a generic name such as train."""
    path = Path(data.removeprefix(HUB))
    stem = path.stem
    if stem.lower() in GENERIC_STEMS and not data.startswith(HUB) and path.resolve().parent.name:
        stem = path.resolve().parent.name
    return re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "task"


# ---- columns ---------------------------------------------------------------------------------------------------------


def _choose_columns(
    rows: Sequence[Row], answers: Sequence[str], columns: Sequence[str], answer: str, free_text: bool
) -> tuple[list[str], dict[str, str]]:
    """The columns to show in the prompt, and those to leave out with the reason."""
    shown, left_out = [], {}
    for column in columns:
        if column == answer:
            continue
        reason = _reason_to_leave_out([row.values.get(column) for row in rows], answers, column, free_text)
        if reason:
            left_out[column] = reason
        else:
            shown.append(column)
    return shown, left_out


def _reason_to_leave_out(cells: Sequence[Any], answers: Sequence[str], column: str, free_text: bool) -> str | None:
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
    pairs = set(zip(values, answers, strict=True))
    if not free_text and len(pairs) == len(different) == len(set(answers)):
        return "encodes the answer: one value per label"
    words = {"train", "training", "test", *SPLIT_WORDS["validation"]}
    if {value.lower() for value in different} <= words:
        return "names a split of the data"
    if len(different) == len(values) and all(re.fullmatch(r"\S{1,64}", value) for value in values):
        return "a different word or number in every row, probably an identifier"
    return None


# ---- the file --------------------------------------------------------------------------------------------------------


def _line(key: str, value: Any, comment: str = "") -> str:
    """A setting in TOML with its comment."""
    text = tomli_w.dumps({key: value}).strip()
    if not comment:
        return text
    return f"{text:<40} # {comment}" if len(text) <= LONGEST_INLINE else f"# {comment}\n{text}"


FOLDS = 5
FOLDS_LINE = _line("folds", FOLDS, "few rows: each is tested by a model trained on the other folds")


def _model_lines(model: str, task: str, reason: str) -> list[str]:
    lines = ["# Guessed from the data; edit as needed. docs/task-file.md lists all settings."]
    lines += [_line("task", task, reason), "", "[model]"]
    comment = "a small demonstration model; use a hub id or folder" if model in BUILTINS else "hub id or folder"
    return [*lines, _line("name", model, comment), ""]


def _data_path(name: str, folder: Path) -> str:
    """The name of a data file in a task file in ``folder``: relative if it is nearby, otherwise absolute."""
    if name.startswith(HUB):
        return name
    path = Path(name).resolve()
    return Path(os.path.relpath(path, folder)).as_posix() if path.is_relative_to(folder.parent) else str(path)


def _data_lines(
    data: str, answer: str, answers: Sequence[str], other: dict[str, str | None], folder: Path, free_text: bool
) -> list[str]:
    counts = Counter(answers)
    rare, common = min(counts.values()), max(counts.values())
    per_label = f"{rare}" if rare == common else f"{rare} to {common}"
    lines = ["[data]", _line("train", _data_path(data, folder), f"{len(answers)} rows")]
    kinds = f"{len(counts)} different answers" if free_text else f"{len(counts)} labels with {per_label} rows each"
    lines += [_line("answer", answer, kinds)]
    sizes = {"train": len(answers), "validation": round(0.1 * len(answers)), "test": round(0.2 * len(answers))}
    folds = other["test"] is None and FOLDS <= len(answers) < FEW_ROWS and (free_text or rare >= FOLDS)
    for split, name in other.items():
        if name is not None:
            sizes[split] = len(read_rows(name, split))
            lines.append(_line(split, _data_path(name, folder), f"{sizes[split]} rows"))
        elif not (folds and split == "test"):
            lines.append(f"# {split}: no {split} file found, so {_rows(sizes[split])} split off train")
    if folds:
        lines.append(FOLDS_LINE)
    for split, limit in LIMITS.items():
        if sizes[split] > limit:
            lines.append(
                _line(f"limit_{split}", limit, f"of {sizes[split]}, for a fast first run; remove for the final run")
            )
    return [*lines, ""]


def _rows(count: int) -> str:
    return "about 1 row is" if count == 1 else f"about {count} rows are"


def _prompt_lines(
    shown: Sequence[str], left_out: dict[str, str], answers: Sequence[str], answer: str, free_text: bool, masked: bool
) -> list[str]:
    labels = ", ".join(sorted(set(answers)))
    names_labels = len(labels) <= LONGEST_LABEL_LIST
    system = "Sort the text into one of these categories: {labels}. Answer with the category alone."
    comment = "{labels} is replaced by the names of all labels"
    if not names_labels:
        system, comment = "Sort the text into its category. Answer with the category alone.", "too many labels to list"
    if free_text:
        name = re.sub(r"[{}]", "", answer).replace("_", " ").strip()
        system, comment = f"Write the {name} that belongs to this text.", "describe the answer here"
    fields = [f"{{{column}}}" for column in shown]
    headed = [f"{_heading(column)}: {field}" for column, field in zip(shown, fields, strict=True)]
    user = fields[0] if len(shown) == 1 else "\n".join(headed)
    lines = ["[prompt]", *([] if masked else [_line("system", system, comment)])]
    if masked:
        lines.append("# {mask} is the answer slot; the words around it should read like ordinary text.")
        user = f"{user}\n{_heading(re.sub(r'[{}]', '', answer))}: {{{MASK}}}"
    if len(shown) > 1:
        lines.append("# Remove columns that are not known when the model is used.")
    lines.append(_line("user", user))
    return [*lines, *(f"# not shown: {column} ({reason})" for column, reason in left_out.items()), ""]


def _heading(column: str) -> str:
    words = column.replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def _train_lines(rows: int) -> list[str]:
    min_epochs, max_epochs = EPOCHS
    epochs = min(max_epochs, max(min_epochs, -(-MIN_STEPS * BATCH_SIZE // rows)))
    comment = "the weights of the epoch with the lowest validation loss are kept"
    return ["[train]", _line("epochs", epochs, comment), _line("batch_size", BATCH_SIZE), ""]


# ---- the other files of a data set -----------------------------------------------------------------------------------


def _sibling(data: str, split: str, answer: str) -> str | None:
    """The file with the validation or test data that belongs to ``data``, if it exists and has the answer column."""
    for name in _sibling_names(data, split):
        try:
            if answer in read_rows(name, split)[0].values:
                return name
        except UserError:
            continue
    return None


def _sibling_names(data: str, split: str) -> list[str]:
    """The existing files that are named like ``data`` with "train" replaced by a word for ``split``."""
    if data.startswith(HUB):
        return [data]
    path = Path(data)
    if not re.search("train", path.stem, re.IGNORECASE):
        return []
    stems = [re.sub("train(ing)?", word, path.stem, flags=re.IGNORECASE) for word in SPLIT_WORDS[split]]
    return [str(path.with_stem(stem)) for stem in stems if path.with_stem(stem).is_file()]
