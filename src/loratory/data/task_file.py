"""A first task file, guessed from the data: what is asked, which columns are shown, how the data is split.

Every guess is written down with its reason, as a comment beside the setting that it led to.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from loratory.config import BUILTIN, BUILTINS, ModelConfig
from loratory.data.answers import answer_of
from loratory.data.prompts import MASK
from loratory.data.rows import HUB, SUFFIXES, Row, cell_text, data_suffix, read_rows
from loratory.errors import UserError

# What the other files of a data set are called, where the training file's name says "train".
SPLIT_WORDS = {"validation": ("validation", "valid", "val", "dev"), "test": ("test", "heldout")}
GENERIC_STEMS = {"train", "training", "data", "dataset", "examples"}
ANSWER_WORDS = ("label", "category", "answer", "intent", "class", "target", "topic", "sentiment")
LONGEST_LABEL_LIST = 4_000  # characters that a prompt may spend on naming the labels
# More of any makes a first run long: it should end while one waits.
LIMITS = {"train": 2_000, "validation": 200, "test": 500}
FEW_ROWS = 200  # below this a single test set is too small to tell anything
LONGEST_BESIDE = 70  # a comment stands beside shorter settings, and above longer ones
STEPS_AT_LEAST, BATCH_SIZE, EPOCHS = 300, 16, (3, 10)


@dataclass(frozen=True)
class TaskFile:
    """A guessed task file, not yet written."""

    path: Path
    """Where its task file belongs."""
    toml: str
    """The commented task file."""
    shown: tuple[str, ...]
    """Columns that the prompt shows."""
    left_out: dict[str, str]
    """Columns that it does not, and why."""


def guess_task_file(
    data: str, answer: str, is_masked: Callable[[ModelConfig], bool], model: str = BUILTIN, path: Path | None = None
) -> TaskFile:
    """Guesses the task from a data file (or "hub:owner/name") and its answer column.

    If most answers are unique they are taken for free text, otherwise for labels. ``is_masked`` says whether a model is
    a masked language model. ``path`` is where the task file will be written; by default the current folder, named after
    the data. Raises UserError if the file or the column does not exist.
    """
    path = (path or Path(f"{_name(data)}.toml")).resolve()
    rows = read_rows(data)
    columns = list(dict.fromkeys(str(c) for row in rows for c in row.values))
    if not answer:
        raise UserError("The answer column is not named", data, ", ".join(columns), fix=_answer_hint(columns))
    if isinstance(rows[0].values.get(answer), list):
        return _dialogue(data, answer, model, path, rows)
    answers = [answer_of(row, answer) for row in rows]
    free = len(set(answers)) > len(answers) / 2
    shown, left_out = _choose_columns(rows, answers, columns, answer, free)
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
            ("fill" if masked else "text") if free else "classification",
            "hardly an answer repeats, so they are free texts" if free else "answers repeat, so they are labels",
        ),
        *_data_lines(data, answer, answers, other, path.parent, free),
        *_prompt_lines(shown, left_out, answers, answer, free, masked),
        *_train_lines(min(len(rows), LIMITS["train"])),
        "[run]",
        _line("out", f"runs/{_name(data)}"),
    ]
    return TaskFile(path, "\n".join(parts) + "\n", tuple(shown), left_out)


def _dialogue(data: str, answer: str, model: str, path: Path, rows: Sequence[Row]) -> TaskFile:
    """The task file for a column of conversations."""
    parts = [
        *_model_lines(model, "dialogue", "the column holds lists of turns"),
        "[data]",
        _line("train", _written(data, path.parent), f"{len(rows)} rows"),
        _line("answer", answer),
        *([FOLDS_LINE] if len(rows) < FEW_ROWS else []),
        "",
        *_train_lines(min(len(rows), LIMITS["train"])),
        "[run]",
        _line("out", f"runs/{_name(data)}"),
    ]
    return TaskFile(path, "\n".join(parts) + "\n", (answer,), {})


def is_data(name: str) -> bool:
    """Whether a name means data and not a task file."""
    return name.startswith(HUB) or data_suffix(name) in SUFFIXES


def check_not_overwriting(task_file: TaskFile) -> None:
    """Raises UserError where another file stands in the place of the task file."""
    if task_file.path.exists() and task_file.path.read_text(encoding="utf-8", errors="replace") != task_file.toml:
        fix = f"use it: loratory run {task_file.path.name}; or remove it"
        raise UserError(
            "There is a task file for this data already, and it says something else", str(task_file.path), fix=fix
        )


def _answer_hint(columns: Sequence[str]) -> str:
    likely = [c for word in ANSWER_WORDS for c in columns if word in c.lower()]
    return f"--answer {likely[0] if likely else 'COLUMN'}"


def _name(data: str) -> str:
    """The file's name, or its folder's where the file is just called train; fit for a folder name."""
    path = Path(data.removeprefix(HUB))
    stem = path.stem
    if stem.lower() in GENERIC_STEMS and not data.startswith(HUB) and path.resolve().parent.name:
        stem = path.resolve().parent.name
    return re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "task"


# ---- columns ---------------------------------------------------------------------------------------------------------


def _choose_columns(
    rows: Sequence[Row], answers: Sequence[str], columns: Sequence[str], answer: str, free: bool
) -> tuple[list[str], dict[str, str]]:
    """The columns that help to answer, and those that do not with the reason."""
    shown, left_out = [], {}
    for column in columns:
        if column == answer:
            continue
        reason = _why_not([row.values.get(column) for row in rows], answers, column, free)
        if reason:
            left_out[column] = reason
        else:
            shown.append(column)
    return shown, left_out


def _why_not(cells: Sequence[Any], answers: Sequence[str], column: str, free: bool) -> str | None:
    """Why a column should not be shown, or None. ``free``: the answers are free texts."""
    values = [cell_text(cell).strip() for cell in cells]
    different = set(values)
    if set(column) & set("{}"):
        return "its name has braces"
    if different == {""}:
        return "empty"
    if len(different) == 1:
        return "the same in every row"
    if any(isinstance(cell, (list, dict)) for cell in cells):
        return "lists or tables, not text"
    pairs = set(zip(values, answers, strict=True))
    if not free and len(pairs) == len(different) == len(set(answers)):
        return "stands for the answer, one value for each"
    words = {"train", "training", "test", *SPLIT_WORDS["validation"]}
    if {value.lower() for value in different} <= words:
        return "names a part of the data"
    if len(different) == len(values) and all(re.fullmatch(r"\S{1,64}", value) for value in values):
        return "a different word or number in every row, like an identifier"
    return None


# ---- the file --------------------------------------------------------------------------------------------------------


def _line(key: str, value: Any, comment: str = "") -> str:
    text = tomli_w.dumps({key: value}).strip()
    if not comment:
        return text
    return f"{text:<40} # {comment}" if len(text) <= LONGEST_BESIDE else f"# {comment}\n{text}"


FOLDS_LINE = _line("folds", 5, "few rows: each is tested by a model trained on the others")


def _model_lines(model: str, task: str, why: str) -> list[str]:
    lines = ["# Guessed from the data; change what you like. docs/task-file.md lists all settings."]
    lines += [_line("task", task, why), "", "[model]"]
    comment = "the small demonstration model; give a hub id or a folder" if model in BUILTINS else "hub id or folder"
    return [*lines, _line("name", model, comment), ""]


def _written(name: str, folder: Path) -> str:
    """A data file as the task file in ``folder`` names it."""
    if name.startswith(HUB):
        return name
    path = Path(name).resolve()
    return Path(os.path.relpath(path, folder)).as_posix() if path.is_relative_to(folder.parent) else str(path)


def _data_lines(
    data: str, answer: str, answers: Sequence[str], other: dict[str, str | None], folder: Path, free: bool
) -> list[str]:
    counts = Counter(answers)
    rare, common = min(counts.values()), max(counts.values())
    per_label = f"{rare}" if rare == common else f"{rare} to {common}"
    lines = ["[data]", _line("train", _written(data, folder), f"{len(answers)} rows")]
    kinds = f"{len(counts)} different answers" if free else f"{len(counts)} labels, {per_label} rows each"
    lines += [_line("answer", answer, kinds)]
    sizes = {"train": len(answers), "validation": round(0.1 * len(answers)), "test": round(0.2 * len(answers))}
    folds = other["test"] is None and len(answers) < FEW_ROWS and (free or rare >= 5)
    for split, name in other.items():
        if name is not None:
            sizes[split] = len(read_rows(name, split))
            lines.append(_line(split, _written(name, folder), f"{sizes[split]} rows"))
        elif not (folds and split == "test"):
            lines.append(f"# {split}: no such file was found beside it, so {sizes[split]} rows are split off train")
    if folds:
        lines.append(FOLDS_LINE)
    for split, limit in LIMITS.items():
        if sizes[split] > limit:
            lines.append(
                _line(f"limit_{split}", limit, f"of {sizes[split]}, for a first run; remove it for the final one")
            )
    return [*lines, ""]


def _prompt_lines(
    shown: Sequence[str], left_out: dict[str, str], answers: Sequence[str], answer: str, free: bool, masked: bool
) -> list[str]:
    labels = ", ".join(sorted(set(answers)))
    named = len(labels) <= LONGEST_LABEL_LIST
    system = "Sort the text into one of these categories: {labels}. Answer with the category alone."
    comment = "{labels}: the names of all labels"
    if not named:
        system, comment = "Sort the text into its category. Answer with the category alone.", "too many labels to name"
    if free:
        name = re.sub(r"[{}]", "", answer).replace("_", " ").strip()
        system, comment = f"Write the {name} that belongs to this text.", "say here what you want"
    places = [f"{{{column}}}" for column in shown]
    headed = [f"{_heading(column)}: {place}" for column, place in zip(shown, places, strict=True)]
    user = places[0] if len(shown) == 1 else "\n".join(headed)
    lines = ["[prompt]", *([] if masked else [_line("system", system, comment)])]
    if masked:
        lines.append("# {mask} stands for the answer: say around it what is asked, in words that a text might have.")
        user = f"{user}\n{_heading(re.sub(r'[{}]', '', answer))}: {{{MASK}}}"
    if len(shown) > 1:
        lines.append("# Remove a column that will not be known when the model is used.")
    lines.append(_line("user", user))
    return [*lines, *(f"# not shown: {column} ({reason})" for column, reason in left_out.items()), ""]


def _heading(column: str) -> str:
    words = column.replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def _train_lines(rows: int) -> list[str]:
    fewest, most = EPOCHS
    epochs = min(most, max(fewest, -(-STEPS_AT_LEAST * BATCH_SIZE // rows)))
    comment = "the weights of the best epoch on validation are kept"
    return ["[train]", _line("epochs", epochs, comment), _line("batch_size", BATCH_SIZE), ""]


# ---- the split -------------------------------------------------------------------------------------------------------


def _sibling(data: str, split: str, answer: str) -> str | None:
    """The file of another part of the same data, by its name, if it has the answer column."""
    for name in _sibling_names(data, split):
        try:
            if answer in read_rows(name, split)[0].values:
                return name
        except UserError:
            continue
    return None


def _sibling_names(data: str, split: str) -> list[str]:
    if data.startswith(HUB):
        return [data]
    path = Path(data)
    if not re.search("train", path.stem, re.IGNORECASE):
        return []
    stems = [re.sub("train(ing)?", word, path.stem, flags=re.IGNORECASE) for word in SPLIT_WORDS[split]]
    return [str(path.with_stem(stem)) for stem in stems if path.with_stem(stem).is_file()]
