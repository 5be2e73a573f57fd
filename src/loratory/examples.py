"""Files and hub datasets -> Example; labels; the split. Everything that can be wrong with a row is said here."""

import csv
import dataclasses
import gzip
import json
import random
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import datasets

from loratory.config import CodeConfig, DataConfig, PromptConfig, nearest
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
HUB = "hub:"
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".jsonl.gz")
MAX_UNPACKED = 2**31  # bytes of a packed file
MAX_FIELD_CHARACTERS = 10_000_000


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


@dataclass(frozen=True)
class Row:
    """One record of a file, with its place."""

    values: Mapping[str, Any]
    source: str


Item = TypeVar("Item", Row, Example)


@dataclass(frozen=True)
class Split:
    """The three sets of a run, the label names in sorted order, and the prompt with its default filled in."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    labels: tuple[str, ...]
    prompt: PromptConfig


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_rows(name: str, split: str = "train") -> list[Row]:
    """The records of a file or of a hub dataset's ``split``, each with its place. Raises UserError."""
    if name.startswith(HUB):
        return _read_hub(name, split)
    path = Path(name)
    readers = (lambda p: _read_delimited(p, ","), lambda p: _read_delimited(p, "\t"), _read_json, _read_json_lines,
               _read_parquet, _read_packed)  # fmt: skip
    suffix = data_suffix(name)
    if suffix not in SUFFIXES:
        raise UserError("Unknown kind of data file", name, expected=", ".join(SUFFIXES), found=suffix or "no suffix")
    if not path.is_file():
        raise UserError("Data file not found", name, fix="check the path; it is relative to the task file")
    try:
        rows = readers[SUFFIXES.index(suffix)](path)
    except UnicodeDecodeError as error:
        place = name if suffix.endswith(".gz") else f"{path}:{_bad_line(path)}"
        raise UserError("The file is not UTF-8", place, fix="save it as UTF-8") from error
    if not rows:
        raise UserError("The data file has no rows", name, expected="at least one example")
    return rows


def data_suffix(name: str) -> str:
    """The end of a file's name that says what kind of data it is; of a packed file both ends."""
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    return "".join(suffixes[-2:]) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


def _bad_line(path: Path) -> int:
    """The line of the first byte that is no UTF-8; a reader's own error counts from the block that it read."""
    try:
        path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        return error.object[: error.start].count(b"\n") + 1
    raise AssertionError("the file is UTF-8")


def _read_delimited(path: Path, delimiter: str) -> list[Row]:
    # Python's reader and not a data-frame's: values stay the text they are ("01", "NA"), and lines are known.
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        rows, header, start = [], None, 1
        try:
            for fields in reader:
                place, start = f"{path}:{start}", reader.line_num + 1
                if not fields:
                    continue
                if header is None:
                    header = fields
                    _check_header(header, place)
                elif len(fields) != len(header):
                    raise UserError("A row has the wrong number of columns", place, str(len(header)), str(len(fields)))
                else:
                    rows.append(Row(dict(zip(header, fields, strict=True)), place))
        except csv.Error as error:
            raise UserError("Malformed row", f"{path}:{start}", found=str(error)) from error
    return rows


def _check_header(header: list[str], place: str) -> None:
    for name in header:
        if header.count(name) > 1:
            raise UserError("Two columns have the same name", place, found=repr(name))


def _read_json_lines(path: Path) -> list[Row]:
    with path.open(encoding="utf-8-sig") as file:
        return _json_lines(file, path)


def _json_lines(file: Iterable[str], path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(file, 1):
        if line.strip():
            rows.append(_json_row(_parse(line, f"{path}:{number}"), f"{path}:{number}"))
    return rows


def _read_packed(path: Path) -> list[Row]:
    try:
        with gzip.open(path) as file:
            content = file.read(MAX_UNPACKED + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError("The packed file is damaged", str(path), found=str(error), fix="unpack it by hand") from error
    if len(content) > MAX_UNPACKED:
        raise UserError("The packed file is too large", str(path), f"at most {MAX_UNPACKED} bytes unpacked")
    return _json_lines(content.decode("utf-8-sig").splitlines(), path)


def _read_json(path: Path) -> list[Row]:
    records = _parse(path.read_text(encoding="utf-8-sig"), str(path))
    if not isinstance(records, list):
        raise UserError("A json file must hold a list of records", str(path), found=type(records).__name__)
    return [_json_row(record, f"{path}, record {i}") for i, record in enumerate(records, 1)]


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: a number of too many digits
        raise UserError("Malformed JSON", place, found=str(error)) from error


def _json_row(record: Any, place: str) -> Row:
    if not isinstance(record, dict):
        raise UserError("A record must be an object with columns", place, found=type(record).__name__)
    return Row(record, place)


def _read_parquet(path: Path) -> list[Row]:
    try:
        table = datasets.Dataset.from_parquet(str(path))
    except Exception as error:  # the reader's own error types are many and not public
        raise UserError("The parquet file cannot be read", str(path), found=str(error)) from error
    return _rows_of(table, str(path))


def _read_hub(name: str, split: str) -> list[Row]:
    try:
        table = datasets.load_dataset(name.removeprefix(HUB), split=split)
    except Exception as error:  # no network, unknown name, gated, code in the dataset: many types, one remedy
        raise UserError(
            "The hub dataset cannot be loaded",
            name,
            expected=f"a public dataset with a {split!r} split, and a network (or a local copy in the cache)",
            found=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            fix="check the name and the network, or save the data as a file and give its path",
        ) from error
    return _rows_of(table, name)


def _rows_of(table: Any, name: str) -> list[Row]:
    """Rows of an Arrow table; class labels stored as numbers become their names."""
    named = {key: f for key, f in table.features.items() if isinstance(f, datasets.ClassLabel)}
    rows = []
    for i, record in enumerate(table, 1):
        labels = {k: f.int2str(record[k]) for k, f in named.items() if record[k] is not None and record[k] >= 0}
        rows.append(Row({**record, **labels}, f"{name}, row {i}"))
    return rows


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


def _default_prompt(columns: Sequence[str], answer: str, where: str, task: str) -> str:
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


def cell_text(value: Any) -> str:
    """A cell as the text that the prompt shows; nothing becomes the empty text, lists and tables JSON."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.encode("utf-8", "replace").decode("utf-8")  # half a character (a lone surrogate) has no encoding


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
        value = _parse(value, row.source)
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


def load_split(
    data: DataConfig,
    prompt: PromptConfig,
    seed: int,
    where: str = "task file",
    task: str = "classification",
    code: CodeConfig | None = None,
) -> Split:
    """Reads, splits and limits the examples of a task.

    With folds, the test examples are all examples: see ``fold_splits``.
    Labels, which only classification has, are those of all training rows before ``limit_train``: the limit may be
    smaller than their number. Raises UserError naming file and line.
    """
    if not data.train:
        raise UserError("No training data", f"{where}, data.train", expected="a file or hub:owner/name")
    converses, plain = task == "dialogue", is_plain_text(task, data, prompt)
    if plain and data.answer:
        fix = "put {mask} where the answer stands, or remove [data] answer to hide any word of the texts"
        raise UserError("An answer is named, and the prompt has no {mask} for it", f"{where}, prompt.user", fix=fix)
    if not data.answer and not (converses or plain):
        raise UserError("The answer column is not named", f"{where}, data.answer", expected="a column of the data")
    train = _read_all(data.train, "train")
    validation = _read_all(data.validation, "validation")
    test = _read_all(data.test, "test")
    rows = [*train, *validation, *test]
    answers = {} if converses or plain else {id(row): _right_answers(row, data, task) for row in rows}

    def label(row: Row) -> str:
        return answers[id(row)][0] if task == "classification" else ""

    if data.folds:
        test = train
    elif not test:
        train, test = split_off(train, label, data.test_share, seed, "test")
    if not validation and data.validation_share:
        train, validation = split_off(train, label, data.validation_share, seed, "validation")
    labels = sorted({name for row in train for name in answers[id(row)]}) if task in LABELLED else []
    if labels:
        _check_labels(train, [*validation, *test], answers, labels)
    if not converses:
        columns = list(dict.fromkeys(str(c) for row in train for c in row.values))
        prompt = dataclasses.replace(prompt, user=prompt.user or _default_prompt(columns, data.answer, where, task))
        write = prompt_writer(prompt, data.answer, columns, labels, where, data.candidates)

    def example(row: Row) -> Example:
        if converses:
            found = conversation(turns_of(row, data.answer, prompt.system), row.source)
            return dataclasses.replace(found, messages=(*tools_of(row), *found.messages))
        if plain:
            return Example(messages := write(row), (messages[-1].content,), (), row.source)
        candidates = candidates_of(row, data.candidates) if data.candidates else tuple(labels)
        tests = row_tests(row, code) if code and task == "code" else None
        return Example(write(row), answers[id(row)], candidates, row.source, tests)

    def examples(rows: list[Row], limit: int | None, purpose: str) -> tuple[Example, ...]:
        chosen = rows if limit is None else stratified(rows, label, limit, seed, purpose)
        return tuple(example(row) for row in chosen)

    return Split(
        examples(train, data.limit_train, "limit train"),
        examples(validation, data.limit_validation, "limit validation"),
        examples(test, data.limit_test, "limit test"),
        tuple(labels),
        prompt,
    )


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
        turns = _parse(turns, row.source)
    if isinstance(turns, list):
        turns = [_turn(turn) for turn in turns]
        if system and turns and isinstance(turns[0], dict) and turns[0].get("role") != "system":
            turns.insert(0, {"role": "system", "content": system})
    return turns


def tools_of(row: Row) -> tuple[Message, ...]:
    """The tools of a row's conversation, its column "tools" as OpenAI has it: as a message of their own, or none."""
    value = row.values.get(TOOLS)
    if isinstance(value, str) and value.strip():
        value = _parse(value, row.source)
    if not value:
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise UserError(f"The column {TOOLS!r} must hold a list of objects", row.source, found=repr(value)[:80])
    return (Message(TOOLS, json.dumps(value, ensure_ascii=False)),)


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


def _right_answers(row: Row, data: DataConfig, task: str) -> tuple[str, ...]:
    if task == "labels":
        return labels_of(row, data.answer)
    return (choice_of(row, data.answer, data.candidates) if data.candidates else answer_of(row, data.answer),)


def _check_labels(
    train: list[Row], others: list[Row], answers: Mapping[int, tuple[str, ...]], labels: list[str]
) -> None:
    if len(labels) < 2:
        raise UserError(
            "All training rows have the same answer", train[0].source, "two labels or more", repr(labels[0])
        )
    for row, name in ((other, name) for other in others for name in answers[id(other)]):
        if name not in labels:
            fix = nearest(name, labels)
            raise UserError("A label does not occur in the training data", row.source, found=repr(name), fix=fix)


def _read_all(names: Iterable[str], split: str) -> list[Row]:
    return [row for name in names for row in read_rows(name, split)]


def fold_splits(split: Split, data: DataConfig, seed: int) -> list[Split]:
    """Cross-validation: each example of ``split.test`` is tested in one fold and trained on in the others.

    Raises UserError where a label is too rare to be in more than one fold.
    """
    splits, label = [], _label_in(split)
    for tested in stratified_folds(split.test, data.folds, seed, label):
        inside = {id(e) for e in tested}
        rest, validation = [e for e in split.test if id(e) not in inside], list(split.validation)
        if not data.validation and data.validation_share:
            rest, validation = split_off(rest, label, data.validation_share, seed, "validation")
        if data.limit_train is not None:
            rest = stratified(rest, label, data.limit_train, seed, "limit train")
        splits.append(dataclasses.replace(split, train=tuple(rest), validation=tuple(validation), test=tuple(tested)))
    return splits


def stratified_folds(
    examples: Sequence[Example], count: int, seed: int, label: Callable[[Example], str]
) -> list[list[Example]]:
    """The examples in ``count`` parts of nearly equal size, each label spread evenly, by seed; in the file's order."""
    draw = random.Random(f"folds {seed}")
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        groups[label(example)].append(example)
    for name, group in groups.items():
        if len(group) < 2:
            fix = "add examples of it, or remove it"
            raise UserError("A label has too few examples for folds", group[0].source, "2 or more", repr(name), fix)
    dealt = [e for name in sorted(groups) for e in draw.sample(groups[name], len(groups[name]))]
    if len(dealt) < count:
        raise UserError("There are more folds than examples", "[data] folds", f"at most {len(dealt)}", str(count))
    number = {id(e): i % count for i, e in enumerate(dealt)}
    return [[e for e in examples if number[id(e)] == i] for i in range(count)]


def _label_in(split: Split) -> Callable[[Example], str]:
    """What examples are stratified by: their label, where each has one."""
    single = bool(split.labels) and all(len(e.answers) == 1 for e in split.test)
    return lambda example: example.answer if single else ""


def split_off(
    rows: list[Item], label: Callable[[Item], str], share: float, seed: int, purpose: str
) -> tuple[list[Item], list[Item]]:
    """Takes ``share`` of the rows away, stratified, at least one. Both parts keep the file's order.

    One row of every label stays, so that no label is unknown to training. Raises UserError when none can be taken.
    """
    first: dict[str, Item] = {}
    for row in rows:
        first.setdefault(label(row), row)
    kept = {id(row) for row in first.values()}
    free = [row for row in rows if id(row) not in kept]
    taken = {id(row) for row in stratified(free, label, max(1, round(len(rows) * share)), seed, purpose)}
    if not taken:
        raise UserError(f"Too few rows to split off a {purpose} set", rows[0].source, found=f"{len(rows)} rows")
    return [row for row in rows if id(row) not in taken], [row for row in rows if id(row) in taken]


def stratified(rows: list[Item], label: Callable[[Item], str], count: int, seed: int, purpose: str) -> list[Item]:
    """``count`` of the rows, each label in proportion (largest remainder), chosen by seed, in the file's order.

    Labels with equal claims are drawn by seed too, so that a count below the number of labels favours none.
    """
    if count >= len(rows):
        return rows
    draw = random.Random(f"{purpose} {seed}")
    groups: dict[str, list[Item]] = defaultdict(list)
    for row in rows:
        groups[label(row)].append(row)
    share = {name: count * len(group) / len(rows) for name, group in groups.items()}
    quota = {name: int(s) for name, s in share.items()}
    tie = {name: draw.random() for name in sorted(groups)}
    order = sorted(groups, key=lambda name: (quota[name] - share[name], tie[name]))
    for name in order[: count - sum(quota.values())]:
        quota[name] += 1
    chosen = {id(row) for name in sorted(groups) for row in draw.sample(groups[name], quota[name])}
    return [row for row in rows if id(row) in chosen]


def draw_few_shot(train: Sequence[Example], count: int, seed: int) -> list[Example]:
    """The examples that few-shot prompts show: drawn once by seed, of different labels as far as there are."""
    draw = random.Random(f"few-shot {seed}")
    shuffled = draw.sample(list(train), len(train))
    first: dict[str, Example] = {}
    for example in shuffled:
        first.setdefault(example.answer, example)
    chosen = list(first.values())[:count]
    chosen += [e for e in shuffled if not any(e is c for c in chosen)][: count - len(chosen)]
    return chosen


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
