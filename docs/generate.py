"""Writes the pages that are generated from the code: ``python docs/generate.py``.

- docs/task-file.md: keys, types, defaults and meanings of all settings, from the dataclasses of settings.py.
- docs/command-line.md: what ``--help`` prints for each verb.
- docs/data-checks.md: the table of checks, from loratory.checks.
- docs/models.md: the table of families, from families.json, which tests/models/families.py writes.
- docs/architecture.md, and the table of packages in README.md: from the docstrings, in the order of architecture.py.
- docs/decisions/README.md: the list of decisions.
- examples/*/README.md, and figures of examples in other pages: from their recorded results, see records.py.

tests/test_docs.py checks that the pages are up to date.
"""

import html
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import architecture
import records

from loratory.checks import CHECKS
from loratory.cli.help import Flag, all_settings, verb_help
from loratory.cli.main import HELP, VERBS
from loratory.schema import type_in_words

FOLDER = Path(__file__).parent
README = FOLDER.parent / "README.md"
REQUIRED = ("data.train", "data.answer")
WIDTH = "88"  # of a code block on the site
DATA_CHECKS = FOLDER / "data-checks.md"
TABLE_START, TABLE_END = "<!-- packages: generated -->\n\n", "\n<!-- end of packages -->"
MODELS, FAMILIES = FOLDER / "models.md", FOLDER / "families.json"
FAMILIES_START, FAMILIES_END = "<!-- families: generated -->\n\n", "\n<!-- end of families -->"
BATCHES = {"tree": "token trees", "packed": "packed texts", "padded": "right-padded"}
CHECKS_START, CHECKS_END = "<!-- checks: generated -->\n\n", "\n<!-- end of checks -->"

EXAMPLE = """\
task = "classification"

[model]
name = "Qwen/Qwen3-0.6B"                    # a hub id, or a folder relative to this file
revision = "main"                           # a branch, tag or commit; the resolved commit is recorded

[data]
train = ["messages-2024.csv", "messages-2025.jsonl"]   # a single file needs no list
test = "messages-test.csv"                  # no validation file: a share of train is split off
answer = "team"                             # the answer column
validation_share = 0.15

[prompt]
system = "Which team answers this message? Answer with one of: {labels}."
user = "Subject: {subject}\\nText: {text}"   # columns in braces; {{ writes a brace
template_kwargs = { enable_thinking = false }   # arguments of this model's chat template

[code]
run = false                                 # for the task "code": run answers with their tests

[adapter]
rank = 16
alpha = 32
targets = ["q_proj", "v_proj"]

[train]
epochs = 5
learning_rate = [1e-4, 3e-4]                # both are tried; the better one on validation is kept
early_stopping = 2
seeds = 3                                   # three trainings; the report gives mean and standard deviation

[speed]
compile = "off"                             # changes the speed, not the result

[run]
out = "runs/messages"
systems = ["prompt-choose", "linear", "tuned-choose"]
"""

TASK_FILE_TOP = """\
# Task file reference

A task file describes a run. It is written in [TOML](https://toml.io); a setting that it leaves out has the default
listed below. `loratory init` writes a task file from your data. A complete example:
"""

TASK_FILE_RULES = """\
## Rules

**Required settings.** Only `data.train` and `data.answer` are required; conversations and plain texts need no
`data.answer`. A key that is not listed below is an error,
and so is a value of the wrong type or out of range; the message names the key and what is expected. An integer is
accepted where a number is expected; a string is not.

**Paths.** Paths in `[data]`, and a folder in `model.name`, are relative to the task file. `run.out` and paths given
as flags are relative to the current directory.

**Flags.** Every key is a flag of `run`, `train`, `check` and `show`, and a flag overrides the task file.
`train.learning_rate` becomes `--train.learning-rate`, with hyphens instead of underscores. A list takes its values
one after another (`--train.learning-rate 1e-4 3e-4`). A boolean takes no value (`--adapter.rslora`;
`--adapter.no-rslora` if the task file says true). A table takes names and values in turn (`--prompt.template-kwargs
enable_thinking false`).

**Settings that exclude each other:**

- `adapter.kind = "full"` with `rslora`, `dora`, `lora_plus` or `layers`, which apply to LoRA only.
- `adapter.kind = "full"` with `model.dtype = "float16"`, whose range is too small for weights that are trained.
- `data.folds` with `data.test` or `data.limit_test`: cross-validation tests every row of the training data.
- `data.folds` with more than one seed in `train.seeds`.
- A list in `train.learning_rate`, or `train.early_stopping`, without validation examples: both need the validation
  loss.
"""

COMMAND_LINE_TOP = """\
# Command line reference

`loratory VERB --help` prints an example and the common flags of a verb. For `run`, `train`, `check` and `show`,
`--help-all` prints every setting of a [task file](task-file.md) as a flag.
"""

ARCHITECTURE_TOP = """\
# Architecture

The data takes one path through the code: file → `Example` → `TokenizedExample` → `Batch` → loss → optimizer step →
checkpoint. The packages are listed in the order of that path. A package imports only packages above it, a module
only modules above it in its package, and what a package offers to others is what its `__init__.py` exports; a test
checks all three. `finetune.py` is the page to read first. `python docs/architecture.py` prints which package
imports which.

"""


# ---- task-file.md ----------------------------------------------------------------------------------------------------


def task_file_page() -> str:
    parts = [TASK_FILE_TOP, f"```toml\n{EXAMPLE}```\n", TASK_FILE_RULES]
    for section, flags in all_settings().items():
        heading = f"## `[{section}]`" if section else "## Top level"
        parts.append(f"{heading}\n\n{_settings_table(flags)}")
    return "\n".join(parts)


def _settings_table(flags: list[Flag]) -> str:
    rows = [("key", "type", "default", "meaning"), ("---",) * 4]
    for flag in flags:
        default = "required" if flag.name in REQUIRED else _in_toml(flag.default)
        rows.append((f"`{flag.name.rpartition('.')[2]}`", type_in_words(flag.type), default, flag.meaning))
    return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |\n" for row in rows)


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
    with mock.patch.dict(os.environ, COLUMNS=WIDTH):  # whatever the terminal at hand
        parts = [COMMAND_LINE_TOP, _block(HELP)]
        for verb in VERBS.values():
            parts.append(f"## `loratory {verb.name}`\n\n{_block(verb_help(verb, everything=False))}")
        whole = verb_help(VERBS["run"], everything=True)
    heading = "## Settings as flags\n\nWhat `--help-all` adds for `run`, `train`, `check` and `show`:\n"
    settings = whole[whole.index("\nSettings:\n") :]
    return "\n".join([*parts, f"{heading}\n{_block(settings)}"])


def _block(text: str) -> str:
    return f"```text\n{text.strip(chr(10))}\n```\n"


# ---- the order of the packages ---------------------------------------------------------------------------------------


def architecture_page() -> str:
    return ARCHITECTURE_TOP + architecture.package_table() + "\n" + architecture.module_tables()


def readme() -> str:
    """README.md with its table of packages and its figures brought up to date."""
    return records.filled(_with_table(README, TABLE_START, architecture.package_table(), TABLE_END))


def _with_table(page: Path, start: str, table: str, end: str) -> str:
    """A page with what stands between two marks replaced."""
    text = page.read_text(encoding="utf-8")
    return text[: text.index(start) + len(start)] + table + text[text.index(end) :]


def data_checks_page() -> str:
    """data-checks.md with its table of checks brought up to date."""
    rows = ["| name | severity | what it finds |", "| --- | --- | --- |"]
    rows += [f"| `{check.name}` | {check.severity} | {check.finds} |" for check in CHECKS]
    return _with_table(DATA_CHECKS, CHECKS_START, "\n".join(rows) + "\n", CHECKS_END)


def models_page() -> str:
    """models.md with its table of families brought up to date."""
    rows = ["| family | models | batches | system message | stop token | notes |", "|" + " --- |" * 6]
    for family, found in json.loads(FAMILIES.read_text(encoding="utf-8")).items():
        stops = ", ".join(f"<code>{html.escape(stop)}</code>" for stop in found["stop"])
        notes = html.escape("; ".join(found["notes"]), quote=False)
        cells = [family, found["models"], BATCHES[found["batches"]], found["system"], stops, notes]
        rows.append(f"| {' | '.join(cell.replace('|', '&#124;') or '–' for cell in cells)} |")
    return _with_table(MODELS, FAMILIES_START, "\n".join(rows) + "\n", FAMILIES_END)


def decisions_page() -> str:
    """The list of all decisions."""
    files = sorted((FOLDER / "decisions").glob("[0-9]*.md"))
    titles = {path: path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for path in files}
    links = [f"- [{int(path.name[:4])}. {title}]({path.name})" for path, title in titles.items()]
    return "# Decisions\n\nWhy things are as they are, one page each.\n\n" + "\n".join(links) + "\n"


# ---- figures ---------------------------------------------------------------------------------------------------------


def pages_with_figures() -> dict[Path, Callable[[], str]]:
    """The pages written by hand that show figures of examples, and how each is brought up to date."""
    pages = (records.EXAMPLES / "README.md", *records.EXAMPLES.glob("*/notes.md"), *FOLDER.glob("*.md"))
    return {
        path: partial(page_with_figures, path)
        for path in pages
        if records.MARK.search(path.read_text(encoding="utf-8"))
    }


def page_with_figures(path: Path) -> str:
    return records.filled(path.read_text(encoding="utf-8"))


PAGES: dict[Path, Callable[[], str]] = {
    FOLDER / "task-file.md": task_file_page,
    FOLDER / "command-line.md": command_line_page,
    DATA_CHECKS: data_checks_page,
    MODELS: models_page,
    FOLDER / "architecture.md": architecture_page,
    FOLDER / "decisions" / "README.md": decisions_page,
    README: readme,
    **pages_with_figures(),
    **records.example_pages(),
}


if __name__ == "__main__":
    for path, make in PAGES.items():
        text = make()
        if not path.exists() or text != path.read_text(encoding="utf-8"):
            path.write_text(text, encoding="utf-8")
            print(path)
