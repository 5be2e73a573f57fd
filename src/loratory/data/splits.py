"""Builds the training, validation and test sets of a run, cross-validation folds, and few-shot examples."""

import dataclasses
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from loratory.data.answers import FIXED_LABEL_TASKS, answer_of, candidates_of, choice_of, labels_of, row_tests
from loratory.data.conversations import conversation_columns, read_conversations
from loratory.data.examples import Example
from loratory.data.findings import Finding
from loratory.data.labels import NORMALIZE, label_findings, normalized_answers, spelling_key
from loratory.data.missing import check_answers_exist, without_empty_prompts, without_missing_answers
from loratory.data.phrasings import no_search_reason
from loratory.data.prompts import check_pretraining, default_prompt, is_plain_text, prompt_writer, shown_columns
from loratory.data.rows import Row, Table, cell_text, columns_of, names_in, read_tables
from loratory.errors import UserError, did_you_mean
from loratory.settings import CodeConfig, DataConfig, PromptConfig

# The automatic share for validation. With 200 rows, the standard error of an accuracy is at most 3.5 points.
LARGEST_SHARE, ENOUGH_VALIDATION, SMALLEST_SHARE = 0.2, 200, 0.05

Item = TypeVar("Item", Row, Example)


@dataclass(frozen=True)
class Split:
    """The three sets of a run, the sorted labels, and the prompt with its default filled in."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    labels: tuple[str, ...]
    prompt: PromptConfig
    findings: tuple[Finding, ...] = ()
    """How the data was read, and what is wrong with it."""
    files: tuple[str, ...] = ()
    """The files that the examples come from."""
    columns: tuple[str, ...] = ()
    """The columns that prompts show, without those of candidates: the names of ``Example.cells``."""
    task: str = "classification"
    """The task of the settings; dialogue if the answers of the task text turn out to be lists of turns."""
    with_prompt: "Callable[[PromptConfig], Split] | None" = field(default=None, compare=False, repr=False)
    """The same split with another prompt that shows the same columns; None if the prompt is not to change."""

    def map(self, change: Callable[[Example], Example]) -> "Split":
        """The split with every example changed."""
        parts = {name: tuple(map(change, getattr(self, name))) for name in ("train", "validation", "test")}
        return dataclasses.replace(self, **parts)


@dataclass(frozen=True)
class _Usable:
    """The rows of each part that examples can be made of."""

    parts: dict[str, list[Row]]
    task: str
    prompt: PromptConfig
    findings: list[Finding]
    """What was set aside."""
    answers: dict[int, tuple[str, ...]]
    """The answers of each row, by the row's ``id``; empty for tasks without an answer column."""
    chats: dict[int, Example]
    """For dialogue, the example of each row, by the row's ``id``."""
    names: tuple[str, ...] = ()
    """All columns of the training rows."""
    shown: tuple[str, ...] = ()
    """The columns that prompts show, without those of candidates."""


def load_split(
    data: DataConfig,
    prompt: PromptConfig,
    seed: int,
    where: str = "task file",
    task: str = "classification",
    code: CodeConfig | None = None,
) -> Split:
    """Reads, splits and limits the examples of a task.

    With cross-validation, the test set contains all examples: see ``fold_splits``. For classification and sets of
    labels, ``labels`` are the labels of all training rows before ``limit_train``, because the limit may be smaller than
    the number of labels; for other tasks they are empty. Raises a UserError that names file and line.
    """
    _check_settings(data, prompt, task, where)
    tables = {
        part: read_tables(names, data, part)
        for part, names in (("train", data.train), ("validation", data.validation), ("test", data.test))
    }
    usable = _usable_rows(tables, data, prompt, task, where)
    task, answers = usable.task, usable.answers
    train, validation, test = usable.parts.values()

    def label(row: Row) -> str:
        return answers[id(row)][0] if task == "classification" else ""

    if data.folds:
        test = train
    elif not test:
        train, test = stratified_split(train, label, data.test_share, seed, "test")
    if not validation and (share := validation_share(data, len(train))):
        train, validation = stratified_split(train, label, share, seed, "validation")
    labels = sorted({name for row in train for name in answers[id(row)]}) if task in FIXED_LABEL_TASKS else []
    if labels:
        _check_labels(train, [*validation, *test], answers, labels)

    def limited(rows: list[Row], limit: int | None, purpose: str) -> list[Row]:
        return rows if limit is None else stratified_sample(rows, label, limit, seed, purpose)

    chosen = (
        limited(train, data.limit_train, "limit train"),
        limited(validation, data.limit_validation, "limit validation"),
        limited(test, data.limit_test, "limit test"),
    )
    files = [table for part in tables.values() for table in part]
    findings = [*(finding for table in files for finding in table.findings), *usable.findings]
    why_not = no_search_reason(task, data, prompt, bool(chosen[1]))
    if why_not is not None and prompt.search == "on":
        findings.append(Finding("prompt_not_searched", "note", f"The prompt is not searched for: {why_not}"))

    def with_prompt(prompt: PromptConfig) -> Split:
        example = _example_of(dataclasses.replace(usable, prompt=prompt), data, labels, code, where)
        on_train, on_validation, on_test = (tuple(example(row) for row in rows) for rows in chosen)
        return Split(
            on_train,
            on_validation,
            on_test,
            tuple(labels),
            prompt,
            tuple(findings),
            tuple(name for table in files for name in table.files),
            usable.shown,
            task,
            with_prompt if why_not is None else None,
        )

    return with_prompt(usable.prompt)


def validation_share(data: DataConfig, rows: int) -> float:
    """The share of so many rows that is split off for validation."""
    if data.validation_share == "auto":
        return max(SMALLEST_SHARE, min(LARGEST_SHARE, ENOUGH_VALIDATION / rows))
    return data.validation_share


def _check_settings(data: DataConfig, prompt: PromptConfig, task: str, where: str) -> None:
    """Raises UserError if the settings contradict each other."""
    if not data.train:
        raise UserError("No training data", f"{where}, data.train", expected="a file or hub:owner/name")
    if task == "pretrain":
        check_pretraining(data, prompt, where)
    if is_plain_text(task, data, prompt) and data.answer:
        fix = "put {mask} in the place of the answer, or remove [data] answer to mask any word of the texts"
        raise UserError("The answer column is set, but the prompt has no {mask}", f"{where}, prompt.user", fix=fix)


def _usable_rows(
    tables: Mapping[str, Sequence[Table]], data: DataConfig, prompt: PromptConfig, task: str, where: str
) -> _Usable:
    """The rows with a conversation, or with an answer and a prompt. Raises UserError."""
    parts = {part: [row for table in files for row in table.rows] for part, files in tables.items()}
    findings: list[Finding] = []
    if task == "text" and conversation_columns(parts["train"])[-1:] == (data.answer,):
        message = f"The column {data.answer!r} contains lists of turns, so the task is dialogue"
        findings.append(Finding("read_as_dialogue", "note", message))
        task, prompt = "dialogue", dataclasses.replace(prompt, user=None)
    if task == "dialogue":
        read = read_conversations(list(parts.values()), data.answer, prompt.system)
        parts = dict(zip(parts, read.parts, strict=True))
        return _Usable(parts, task, prompt, [*findings, *read.findings], {}, read.examples)
    columns, is_plain = columns_of(parts["train"]), is_plain_text(task, data, prompt)
    if not is_plain:
        if not data.answer:
            fix = 'add answer = "COLUMN" to [data], or --data.answer COLUMN to the command'
            expected = f"one of the columns {', '.join(columns)}"
            raise UserError("No answer column is set", f"{where}, data.answer", expected, "no value", fix)
        check_answers_exist(tables, data, task)
        parts, found = without_missing_answers(parts, data, task)
        findings += found
    prompt = dataclasses.replace(prompt, user=prompt.user or default_prompt(columns, data.answer, where, task))
    names = tuple(names_in(parts["train"]))
    shown = tuple(c for c in shown_columns(prompt, where) if c in names and c != data.candidates)
    parts, found = without_empty_prompts(parts, shown, data)
    findings += found
    rows = [row for part in parts.values() for row in part]
    answers = {} if is_plain else {id(row): _correct_answers(row, data, task) for row in rows}
    if task in FIXED_LABEL_TASKS:
        if data.normalize_labels:
            answers, found = normalized_answers(rows, answers)
            findings += found
        findings += label_findings(rows, answers)
    return _Usable(parts, task, prompt, findings, answers, {}, names, shown)


def _example_of(
    usable: _Usable, data: DataConfig, labels: Sequence[str], code: CodeConfig | None, where: str
) -> Callable[[Row], Example]:
    """Returns the function that makes the example of a row. Raises UserError if the prompt does not fit the columns."""
    if usable.task == "dialogue":
        return lambda row: usable.chats[id(row)]
    write = prompt_writer(usable.prompt, data.answer, usable.names, labels, where, data.candidates)

    def example(row: Row) -> Example:
        messages = write(row)
        if not usable.answers:  # a plain text is its own answer
            return Example(messages, (messages[-1].content,), (), row.source)
        cells = tuple(cell_text(row.value(name)) for name in usable.shown)
        candidates = candidates_of(row, data.candidates) if data.candidates else tuple(labels)
        tests = row_tests(row, code) if code and usable.task == "code" else None
        return Example(messages, usable.answers[id(row)], candidates, row.source, tests, cells)

    return example


def _correct_answers(row: Row, data: DataConfig, task: str) -> tuple[str, ...]:
    if task == "labels":
        return labels_of(row, data.answer, data.missing_texts, data.separator)
    return (choice_of(row, data.answer, data.candidates) if data.candidates else answer_of(row, data.answer),)


def _check_labels(
    train: list[Row], others: list[Row], answers: Mapping[int, tuple[str, ...]], labels: list[str]
) -> None:
    if len(labels) < 2:
        raise UserError(
            "All training rows have the same answer", train[0].source, "two or more labels", repr(labels[0])
        )
    for row, name in ((other, name) for other in others for name in answers[id(other)]):
        if name not in labels:
            alike = [label for label in labels if spelling_key(label) == spelling_key(name)]
            fix = f"correct it to {alike[0]!r}, or set {NORMALIZE}" if alike else None
            fix = fix or did_you_mean(name, labels)
            raise UserError("A label does not occur in the training data", row.source, found=repr(name), fix=fix)


def fold_splits(split: Split, data: DataConfig, seed: int) -> list[Split]:
    """The splits of a cross-validation.

    Each example of ``split.test`` is tested in exactly one fold and belongs to the training or validation set of the
    others. Raises UserError if a label has too few examples to be in more than one fold.
    """
    splits, label = [], _stratification_label(split)
    for tested in stratified_folds(split.test, data.folds, seed, label):
        tested_ids = {id(e) for e in tested}
        rest, validation = [e for e in split.test if id(e) not in tested_ids], list(split.validation)
        if not data.validation and (share := validation_share(data, len(rest))):
            rest, validation = stratified_split(rest, label, share, seed, "validation")
        if data.limit_train is not None:
            rest = stratified_sample(rest, label, data.limit_train, seed, "limit train")
        splits.append(dataclasses.replace(split, train=tuple(rest), validation=tuple(validation), test=tuple(tested)))
    return splits


def stratified_folds(
    examples: Sequence[Example], count: int, seed: int, label: Callable[[Example], str]
) -> list[list[Example]]:
    """Deals the examples into ``count`` folds by seed, stratified by label. Each fold keeps the order of the file.

    Fold sizes differ by at most one. Raises UserError if a label has a single example or there are too few examples.
    """
    rng = random.Random(f"folds {seed}")
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        groups[label(example)].append(example)
    for name, group in groups.items():
        if len(group) < 2:
            fix = "add examples with this label, or remove it"
            raise UserError("A label has too few examples for folds", group[0].source, "2 or more", repr(name), fix)
    dealt = [e for name in sorted(groups) for e in rng.sample(groups[name], len(groups[name]))]
    if len(dealt) < count:
        raise UserError("There are more folds than examples", "[data] folds", f"at most {len(dealt)}", str(count))
    number = {id(e): i % count for i, e in enumerate(dealt)}
    return [[e for e in examples if number[id(e)] == i] for i in range(count)]


def _stratification_label(split: Split) -> Callable[[Example], str]:
    """The key to stratify examples by: their label, if each example has exactly one; otherwise a constant."""
    single = bool(split.labels) and all(len(e.answers) == 1 for e in split.test)
    return lambda example: example.answer if single else ""


def stratified_split(
    rows: list[Item], label: Callable[[Item], str], share: float, seed: int, purpose: str
) -> tuple[list[Item], list[Item]]:
    """Splits off ``share`` of the rows, stratified by label, and at least one row. Both parts keep the file's order.

    One row of each label stays in the first part, so that training sees every label. Raises UserError if no row can be
    split off.
    """
    first: dict[str, Item] = {}
    for row in rows:
        first.setdefault(label(row), row)
    kept = {id(row) for row in first.values()}
    available = [row for row in rows if id(row) not in kept]
    taken = {id(row) for row in stratified_sample(available, label, max(1, round(len(rows) * share)), seed, purpose)}
    if not taken:
        raise UserError(f"Too few rows to split off a {purpose} set", rows[0].source, found=f"{len(rows)} rows")
    return [row for row in rows if id(row) not in taken], [row for row in rows if id(row) in taken]


def stratified_sample(
    rows: list[Item], label: Callable[[Item], str], count: int, seed: int, purpose: str
) -> list[Item]:
    """A sample of ``count`` rows by seed, stratified by label (largest remainder method), in the order of the file.

    Ties between labels are broken by seed, so that a count below the number of labels favors none of them.
    """
    if count >= len(rows):
        return rows
    rng = random.Random(f"{purpose} {seed}")
    groups: dict[str, list[Item]] = defaultdict(list)
    for row in rows:
        groups[label(row)].append(row)
    share = {name: count * len(group) / len(rows) for name, group in groups.items()}
    quota = {name: int(s) for name, s in share.items()}
    tie = {name: rng.random() for name in sorted(groups)}
    order = sorted(groups, key=lambda name: (quota[name] - share[name], tie[name]))
    for name in order[: count - sum(quota.values())]:
        quota[name] += 1
    chosen = {id(row) for name in sorted(groups) for row in rng.sample(groups[name], quota[name])}
    return [row for row in rows if id(row) in chosen]


def draw_few_shot(train: Sequence[Example], count: int, seed: int) -> list[Example]:
    """Draws the examples of few-shot prompts by seed, with as many different labels as possible."""
    rng = random.Random(f"few-shot {seed}")
    shuffled = rng.sample(list(train), len(train))
    first: dict[str, Example] = {}
    for example in shuffled:
        first.setdefault(example.answer, example)
    chosen = list(first.values())[:count]
    chosen += [e for e in shuffled if not any(e is c for c in chosen)][: count - len(chosen)]
    return chosen
