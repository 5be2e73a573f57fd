"""Writes the pages that are made from the code: ``python docs/generate.py``.

docs/task-file.md: keys, types, defaults and meanings, from the dataclasses of config.py. docs/command-line.md: what
``--help`` prints. tests/test_docs.py compares the pages with what this file makes now.
"""

import ast
import contextlib
import dataclasses
import inspect
import io
import itertools
import os
import re
import tempfile
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loratory import config
from loratory.cli import main as cli
from loratory.config import Config

FOLDER = Path(__file__).parent
REQUIRED = ("data.train", "data.answer")
SETTINGS_VERBS = ("run", "train", "show")  # their flags are the keys of a task file
WIDTH = 100

EXAMPLE = """\
task = "classification"

[model]
name = "Qwen/Qwen3-0.6B"                    # a hub id, or a folder relative to this file
revision = "main"                           # a branch, tag or commit; the commit found is recorded

[data]
train = ["messages-2024.csv", "messages-2025.jsonl"]   # one file may stand without a list
test = "messages-test.csv"                  # no validation file: a part of train is split off
answer = "team"                             # the column that holds the answer
validation_share = 0.15

[prompt]
system = "Which team answers this message? Answer with one of: {labels}."
user = "Subject: {subject}\\nText: {text}"   # columns in braces; {{ writes a brace
template_kwargs = { enable_thinking = false }   # only what this model's chat template knows

[code]
run = false                                 # for programs: run them with their tests

[adapter]
rank = 16
alpha = 32
targets = ["q_proj", "v_proj"]

[train]
epochs = 5
learning_rate = [1e-4, 3e-4]                # each is tried, the better one on validation is kept
early_stopping = 2
seeds = 3                                   # trained three times; the report gives mean and spread

[speed]
compile = "off"                             # how it is computed; the result is the same

[run]
out = "runs/messages"
systems = ["prompt-choose", "linear", "tuned-choose"]
"""

TASK_FILE_TOP = """\
# The task file

Made by `python docs/generate.py` from `src/loratory/config.py`; a test compares.

A task file is [TOML](https://toml.io). It says everything about a run; what it leaves out has the default below.
`loratory init` writes one from your data. A complete example:
"""

TASK_FILE_RULES = """\
## Rules

**Required** are `data.train` and `data.answer`, no more. A key that is not in the tables below is refused, and so is a
value of another type or out of range; the message names the key and what is expected. A whole number may stand where a
number is asked, a text never.

**Paths** in `[data]` and a folder in `model.name` are relative to the task file. `run.out` is relative to the folder in
which you start the command, and so are paths in flags.

**Flags.** Every key is a flag of `run`, `train` and `show`, and a flag wins over the file: `train.learning_rate` is
`--train.learning-rate`, with hyphens for underscores. A list takes its values one after another
(`--train.learning-rate 1e-4 3e-4`). A key that is true or false takes no value (`--adapter.rslora`; where the file says
true, `--adapter.no-rslora`). A table takes names and values in turn (`--prompt.template-kwargs enable_thinking false`).

**Combinations that are refused**

- `adapter.kind = "full"` with `rslora`, `dora`, `lora_plus` or `layers`, which say something about LoRA's branches.
- `data.folds` with `data.test` or `data.limit_test`: with folds every row of train is tested.
- `data.folds` with `train.seeds` above 1.
- A list in `train.learning_rate`, or `train.early_stopping`, without validation examples: both choose by their loss.
"""

COMMAND_LINE_TOP = """\
# The command line

Made by `python docs/generate.py` from what `--help` prints; a test compares.
"""

SETTINGS_TEXT = """\
## Settings as flags

`run`, `train` and `show` take every key of a [task file](task-file.md) as a flag. The defaults shown are those
that hold where the task file says nothing; `loratory run TASK.toml --help` shows those of your file.
"""


# ---- task-file.md ----------------------------------------------------------------------------------------------------


def task_file_page() -> str:
    """docs/task-file.md."""
    sections = [f.name for f in dataclasses.fields(Config) if dataclasses.is_dataclass(f.default_factory)]
    top = [f for f in dataclasses.fields(Config) if f.name not in sections]
    parts = [TASK_FILE_TOP, f"```toml\n{EXAMPLE}```\n", TASK_FILE_RULES]
    parts.append(f"## Above the sections\n\n{_table(Config, top, '')}")
    for field in dataclasses.fields(Config):
        if field.name in sections:
            cls: Any = field.default_factory
            heading = f"## `[{field.name}]`\n\n{inspect.getdoc(cls)}\n"
            parts.append(f"{heading}\n{_table(cls, dataclasses.fields(cls), f'{field.name}.')}")
    return "\n".join(parts)


def _table(cls: type, fields: Any, prefix: str) -> str:
    meanings, hints = field_docstrings(cls), typing.get_type_hints(cls)
    rows = [("key", "type", "default", "meaning"), ("---",) * 4]
    for field in fields:
        default = "required" if f"{prefix}{field.name}" in REQUIRED else _in_toml(_default(field))
        kind = re.sub(r"a list of a (\w+( \w+)?)", r"a list of \1s", config._in_words(hints[field.name]))
        rows.append((f"`{field.name}`", kind, default, meanings[field.name]))
    return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |\n" for row in rows)


def field_docstrings(cls: type) -> dict[str, str]:
    """The string that follows each field of a class that has one."""
    body = ast.parse(inspect.getsource(cls)).body[0].body  # type: ignore[attr-defined]
    found = {}
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[field.target.id] = inspect.cleandoc(text.value.value)  # type: ignore[union-attr]
    return found


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc]


def _in_toml(value: Any) -> str:
    """A default as a task file would write it."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return f"`{value}`".lower()
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, tuple):
        return "`[" + ", ".join(f'"{item}"' for item in value) + "]`"
    return f"`{value}`"


# ---- command-line.md -------------------------------------------------------------------------------------------------


def command_line_page() -> str:
    """docs/command-line.md."""
    helps = all_helps()
    own = dict(helps)
    settings = {}
    for verb in SETTINGS_VERBS:
        # tyro heads the flags of each section with its name; the rest of the page is the verb's own.
        own[verb], start, rest = helps[verb].partition("\nmodel options:\n")
        settings[verb] = start + rest
        own[verb] += "\n  and the settings below\n"
    assert len(set(settings.values())) == 1, "run, train and show take the same settings"
    parts = [COMMAND_LINE_TOP, _block(_printed([]))]
    parts += [f"## `loratory {verb}`\n\n{_block(text)}" for verb, text in own.items()]
    parts += [SETTINGS_TEXT, _block(settings["run"])]
    return "\n".join(parts)


def all_helps() -> dict[str, str]:
    """What every verb prints for --help; with a task file that says nothing where a verb takes one."""
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "task.toml"
        empty.write_text("")
        tasks = {verb: [str(empty)] if verb in SETTINGS_VERBS else [] for verb in cli.VERBS}
        return {verb: without_boxes(_printed([verb, *task, "--help"])) for verb, task in tasks.items()}


def _printed(arguments: list[str]) -> str:
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with _plain_terminal(), contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        cli.main(arguments)
    out.flush()
    return out.buffer.getvalue().decode("utf-8")


@contextlib.contextmanager
def _plain_terminal() -> Iterator[None]:
    """A terminal of one width and without colours, whatever the real one is."""
    before = dict(os.environ)
    os.environ.update(COLUMNS=str(WIDTH), NO_COLOR="1", TERM="dumb")
    os.environ.pop("FORCE_COLOR", None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def without_boxes(text: str) -> str:
    """tyro's help without the frames around it: a headline for each, and its lines."""
    lines = []
    for line in text.splitlines():
        if heading := re.fullmatch(r"╭─ (.*?) ─+╮", line):
            lines += ["", f"{heading[1]}:"]
        elif inside := re.fullmatch(r"│ (.*?) *│", line):
            if not re.fullmatch("─+", inside[1]):
                lines.append(f"  {inside[1]}".rstrip())
        elif not line.startswith("╰"):
            lines.append(line.rstrip())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n") + "\n"


def _block(text: str) -> str:
    return f"```text\n{text.strip(chr(10))}\n```\n"


PAGES = {"task-file.md": task_file_page, "command-line.md": command_line_page}


if __name__ == "__main__":
    for name, make in PAGES.items():
        (FOLDER / name).write_text(make(), encoding="utf-8")
        print(FOLDER / name)
