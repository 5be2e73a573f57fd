"""Writes a task file for data: the guessed task, the columns in the prompt, and how the data is split.

The reason for each guess is written into the task file, as a comment on the setting.
"""

import dataclasses
import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from loratory.data.answers import FIXED_LABEL_TASKS, LABEL_SEPARATOR, is_missing
from loratory.data.guessing import LEAKS, REJECTED, SPLIT_WORDS, Kind, choose_columns, labels_in, recognize
from loratory.data.missing import has_no_answer, is_unlabeled
from loratory.data.parts import NUMBERED, is_readable
from loratory.data.phrasings import LONGEST_LABEL_LIST, heading, instruction, text_template
from loratory.data.prompts import MASK
from loratory.data.rows import HUB, Row, cell_text, columns_of, read_table, read_tables
from loratory.data.splits import validation_share
from loratory.errors import UserError, did_you_mean
from loratory.settings import BUILTIN, BUILTINS, SEARCHED_TASKS, DataConfig, ModelConfig

GENERIC_STEMS = {"train", "training", "data", "dataset", "examples"}
# Maximum number of examples: a first run should finish while the user waits.
LIMITS = {"train": 2_000, "validation": 200, "test": 500}
FEW_ROWS, FOLDS = 200, 5  # with fewer rows, a single test set is too small for a reliable result
LONGEST_INLINE = 70  # a comment follows settings up to this length and precedes longer ones
READING = DataConfig(missing="skip")  # how the data is read
NO_HEADER = "no_header"  # the name of the finding


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
    remarks: tuple[str, ...]
    """Sentences on guesses that the user should know about."""


def guess_task_file(
    names: Sequence[str],
    answer: str,
    is_masked: Callable[[ModelConfig], bool],
    model: str = BUILTIN,
    path: Path | None = None,
) -> TaskFile:
    """Guesses a task file from data files (or "hub:owner/name") and their answer column.

    Conversations, instructions and plain texts are recognized and need no ``answer``. If there are more than half as
    many different answers as rows, or if they are sentences, the answers are free text, otherwise labels. ``is_masked``
    returns whether a model is a masked language model; it is called after the data has been checked. ``path`` is where
    the task file will be written; by default in the current directory, named after the data. Raises UserError if a file
    or the column does not exist.
    """
    path = (path or Path(f"{_name(names[0])}.toml")).resolve()
    reading = dataclasses.replace(READING, answer=answer)  # a file with several lists is read by it
    tables = read_tables(names, reading)
    rows, findings = [r for table in tables for r in table.rows], [f for table in tables for f in table.findings]
    columns, where = columns_of(rows), ", ".join(names)
    if answer and answer not in columns:
        fix = did_you_mean(answer, columns) or "give one of these columns as --answer"
        found = f"columns {', '.join(columns)}" + "".join(f"; {f.message}" for f in findings if f.name == NO_HEADER)
        raise UserError(f"The answer column {answer!r} is missing", rows[0].source, found=found, fix=fix)
    kind = recognize(rows, columns, answer, where)
    labeled = [row for row in rows if not kind.answer or not is_missing(row.value(kind.answer), READING.missing_texts)]
    if not labeled:
        raise UserError("Every answer is missing", where, found=f"column {kind.answer!r}", fix="fill it in")
    shown, left_out = ([], {}) if kind.task == "dialogue" else choose_columns(labeled, columns, kind)
    if kind.task != "dialogue" and not shown:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items()) or "there is no other column"
        fix = "write a task file by hand"
        raise UserError("No column is left for the prompt to show", where, found=reasons, fix=fix)
    masked = is_masked(ModelConfig(model))
    if masked and kind.task == "labels":
        kind = dataclasses.replace(kind, task="classification", separator="", remark="")
    answers = [cell_text(row.value(kind.answer)).strip() for row in labeled] if kind.answer else []
    if kind.separator:
        answers = [label for text in answers for label in labels_in(text, kind.separator)]
    header = [_line("header", False, "the first row is data")] if any(f.name == NO_HEADER for f in findings) else []
    data, folds = _data_lines(names, kind, labeled, answers, len(rows) - len(labeled), header, path.parent)
    parts = [
        *_model_lines(model, _task(kind, masked), kind.reason),
        *data,
        *_prompt_lines(shown, left_out, answers, kind, masked, folds),
        *_train_lines(),
        "[run]",
        _line("out", f"runs/{_name(names[0])}"),
    ]
    return TaskFile(path, "\n".join(parts) + "\n", tuple(shown), left_out, _remarks(kind, left_out))


def _remarks(kind: Kind, left_out: dict[str, str]) -> tuple[str, ...]:
    """Sentences on guesses that are easily overlooked in the task file."""
    leaks = [f"{column} ({reason})" for column, reason in left_out.items() if reason.startswith(LEAKS)]
    leak = f"not shown in the prompt, because the answer could be read from it: {', '.join(leaks)}" if leaks else ""
    rejected = "the column 'rejected' is not used: only the chosen answers are learned" if REJECTED in left_out else ""
    return tuple(filter(None, (kind.remark, leak, rejected)))


def _task(kind: Kind, masked: bool) -> str:
    """The name of the task for a causal or a masked model."""
    if kind.task == "plain":
        return "fill" if masked else "pretrain"
    return "fill" if masked and kind.task == "text" else kind.task


def is_data(name: str) -> bool:
    """Whether a name on the command line refers to data instead of a task file."""
    return name.startswith(HUB) or is_readable(name)


def check_not_overwriting(task_file: TaskFile) -> None:
    """Raises UserError if a different file already exists at the path of the task file."""
    if task_file.path.exists() and task_file.path.read_text(encoding="utf-8", errors="replace") != task_file.toml:
        fix = f"use it (loratory run {task_file.path.name}), or remove it"
        raise UserError("A different task file for this data already exists", str(task_file.path), fix=fix)


def _name(data: str) -> str:
    """A name for the task: that of the file, or of its folder if the file has a generic name such as train."""
    path = Path(data.removeprefix(HUB))
    stem = re.sub(r"(\.[A-Za-z]\w{1,6}){1,2}$", "", path.name) if is_readable(path.name) else path.stem
    stem = re.sub(NUMBERED, "", stem)
    is_generic = stem.lower() in GENERIC_STEMS or not re.search(r"\w", stem)
    if is_generic and not data.startswith(HUB) and path.resolve().parent.name:
        stem = path.resolve().parent.name
    return re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "task"


# ---- the file --------------------------------------------------------------------------------------------------------


def _line(key: str, value: Any, comment: str = "") -> str:
    """A setting in TOML with its comment."""
    text = tomli_w.dumps({key: value}).strip() if not isinstance(value, list) else f"{key} = {_list(value)}"
    if not comment:
        return text
    return f"{text:<40} # {comment}" if len(text) <= LONGEST_INLINE else f"# {comment}\n{text}"


def _list(values: list[str]) -> str:
    """A list of texts in TOML, on one line."""
    return "[" + ", ".join(tomli_w.dumps({"k": value}).strip().removeprefix("k = ") for value in values) + "]"


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
    names: Sequence[str],
    kind: Kind,
    rows: Sequence[Row],
    answers: Sequence[str],
    missing: int,
    header: list[str],
    folder: Path,
) -> tuple[list[str], bool]:
    """The section [data], and whether it has folds. ``rows`` are those with an answer, ``missing`` is the number of the
    others."""
    paths = [_data_path(name, folder) for name in names]
    lines = ["[data]", _line("train", paths[0] if len(paths) == 1 else paths, f"{len(rows) + missing} rows"), *header]
    counts = Counter(answers)
    rare, common = (min(counts.values()), max(counts.values())) if counts else (0, 0)
    if kind.answer:
        per_label = f"{rare}" if rare == common else f"{rare} to {common}"
        is_label = kind.task in FIXED_LABEL_TASKS
        shown = f"{len(counts)} labels with {per_label} rows each" if is_label else f"{len(counts)} different answers"
        lines.append(_line("answer", kind.answer, shown if answers else ""))
        if kind.separator and kind.separator != LABEL_SEPARATOR.strip():
            lines.append(_line("separator", kind.separator, "between the labels of a row"))
        comment = (
            f"{missing} rows without an answer are set aside" if missing else "rows without an answer are set aside"
        )
        lines.append(_line("missing", "skip", comment))
    others = {split: _sibling(names, split, kind, counts) for split in SPLIT_WORDS}
    folds = others["test"][0] is None and FOLDS <= len(rows) < FEW_ROWS
    too_rare = folds and kind.task in FIXED_LABEL_TASKS and rare < FOLDS
    folds = folds and not too_rare
    sizes = {"train": len(rows), "test": round(0.2 * len(rows))}
    rest = round(len(rows) * (1 - 1 / FOLDS)) if folds else len(rows) - sizes["test"] * (others["test"][0] is None)
    sizes["validation"] = round(rest * validation_share(DataConfig(), rest))
    for split, (name, labeled, unlabeled) in others.items():
        if name is not None:
            sizes[split] = labeled
            lines.append(_line(split, _data_path(name, folder), f"{labeled} rows"))
        elif not (folds and split == "test"):
            each = " in each fold" if folds else ""
            why = f"{unlabeled} has no answers" if unlabeled else f"no {split} file found"
            lines.append(f"# {split}: {why}, so {_rows(sizes[split])} split off train{each}")
        elif unlabeled:
            lines.append(f"# test: {unlabeled} has no answers, so it is not used")
    if folds:
        lines.append(_line("folds", FOLDS, "few rows: each is tested by a model trained on the other folds"))
    elif too_rare:
        lines.append(f"# folds: few rows, but a label with fewer than {FOLDS} of them cannot be in every fold")
    for split, limit in LIMITS.items():
        if sizes[split] > limit:
            comment = f"of {sizes[split]}, for a fast first run; remove for the final run"
            lines.append(_line(f"limit_{split}", limit, comment))
    return [*lines, ""], folds


def _rows(count: int) -> str:
    return "about 1 row is" if count == 1 else f"about {count} rows are"


def _prompt_lines(
    shown: Sequence[str], left_out: dict[str, str], answers: Sequence[str], kind: Kind, masked: bool, folds: bool
) -> list[str]:
    """The section [prompt]; none for conversations. ``folds``: whether the section [data] has folds."""
    if kind.task == "dialogue":
        return []
    lines, user = ["[prompt]"], text_template(shown)
    if kind.task in SEARCHED_TASKS and not masked:
        comment = "other wordings are tried too, on validation examples; off: only this one"
        on_folds = "# search: with folds, other wordings are tried only if there is a validation file"
        lines.append(on_folds if folds else _line("search", "on", comment))
    if kind.inputs:  # a text as it stands, or an instruction, which says what to do by itself
        user = f"{{{shown[0]}}}" + "".join(f"\n\n{{{column}}}" for column in shown[1:])
    elif not masked:
        lines.append(_line("system", *_system_prompt(answers, kind)))
    if masked and kind.answer:
        lines.append("# {mask} is the answer slot; the words around it should read like ordinary text.")
        user = f"{user}\n{heading(kind.answer)}: {{{MASK}}}"
    if len(shown) > 1 and not kind.inputs:
        lines.append("# Remove columns that are not known when the model is used.")
    lines.append(_line("user", user))
    return [*lines, *(f"# not shown: {column} ({reason})" for column, reason in left_out.items()), ""]


def _system_prompt(answers: Sequence[str], kind: Kind) -> tuple[str, str]:
    """The system message and a comment on it."""
    if kind.task == "text":
        name = re.sub(r"[{}]", "", kind.answer).replace("_", " ").strip()
        return f"Write the {name} that belongs to this text.", "describe the answer here"
    if len(", ".join(sorted(set(answers)))) > LONGEST_LABEL_LIST:
        return "Sort the text into its category. Answer with the category alone.", "too many labels to list"
    return instruction(kind.task), "{labels} is replaced by the names of all labels"


def _train_lines() -> list[str]:
    comment = "more for few rows; the weights of the epoch with the lowest validation loss are kept"
    return ["[train]", _line("epochs", "auto", comment), ""]


# ---- the other files of a data set -----------------------------------------------------------------------------------


def _sibling(names: Sequence[str], split: str, kind: Kind, known: Collection[str]) -> tuple[str | None, int, str]:
    """The file with the validation or test data that belongs to the data, and its number of rows with an answer.

    Without such a file, None, 0 and the name of a file that is unlabeled, if there is one. ``known`` are the answers of
    the training data.
    """
    unlabeled = ""
    for name in _sibling_names(names[0], split) if len(names) == 1 else []:
        try:
            rows = read_table(name, dataclasses.replace(READING, answer=kind.answer), split).rows
        except UserError:
            continue
        columns = columns_of(rows)
        if not kind.answer:
            if _is_of_kind(rows, columns, kind, name):
                return name, len(rows), ""
        elif kind.answer in columns:
            reading = dataclasses.replace(READING, answer=kind.answer)
            if not is_unlabeled(rows, reading, kind.task, known):
                return name, sum(not has_no_answer(row, reading, kind.task) for row in rows), ""
            unlabeled = name
    return None, 0, Path(unlabeled).name


def _is_of_kind(rows: Sequence[Row], columns: Sequence[str], kind: Kind, name: str) -> bool:
    try:
        return recognize(rows, columns, "", name).task == kind.task
    except UserError:
        return False


def _sibling_names(data: str, split: str) -> list[str]:
    """The existing files that are named like ``data`` with "train" replaced by a word for ``split``."""
    if data.startswith(HUB):
        return [data]
    path = Path(data)
    if not re.search("train", path.stem, re.IGNORECASE):
        return []
    stems = [re.sub("train(ing)?", word, path.stem, flags=re.IGNORECASE) for word in SPLIT_WORDS[split]]
    # Another part of the data may have another number of parts.
    patterns = [re.sub(NUMBERED, "-*-of-*", glob.escape(path.with_stem(stem).name)) for stem in stems]
    found = [sorted(path.parent.glob(pattern)) for pattern in patterns]
    return [str(files[0]) for files in found if files and files[0].is_file()]
