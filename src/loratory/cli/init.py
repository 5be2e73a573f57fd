"""``loratory init``: a task file guessed from data."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from loratory.cli.output import print_json, print_text, print_tokens
from loratory.cli.task_arguments import guess, load_examples, print_notes, print_remarks, tokens_of
from loratory.cli.verb import Verb
from loratory.config import Config
from loratory.errors import UserError
from loratory.printable import printable

if TYPE_CHECKING:
    from loratory.data import Split
    from loratory.text import Renderer

EXAMPLES_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class InitFlags:
    """Guesses a task file from data: which columns the prompt shows, what it says, how the data is split."""

    data: tyro.conf.Positional[tuple[str, ...]]
    """Data files: csv, tsv, json, jsonl, parquet, xlsx, xls, ods or txt; or hub:owner/name."""
    answer: str = ""
    """The answer column. Conversations, instructions and plain texts need none."""
    model: Annotated[str, tyro.conf.arg(aliases=["--model.name"])] = ""
    """The model: a short name (see loratory models), hub id, folder, GGUF file, or ollama:NAME. Not set: the largest
    known one that is tuned in an hour on this machine and is already here; if there is none, one from the hub, after
    a yes; or else the small built-in one."""
    out: Path | None = None
    """Where to write the task file; by default in the current folder, named after the data."""
    yes: bool = False
    """Download the model without asking if none is on this machine."""
    overwrite: bool = False
    """Replace an existing task file."""
    json: bool = False
    """Print the result as JSON."""


def execute(arguments: list[str]) -> None:
    flags = tyro.cli(InitFlags, args=arguments, prog="loratory init")
    from loratory.data import check_not_overwriting, draw_few_shot
    from loratory.storage import check_replaceable, write_text

    task_file, _ = guess(flags.data, flags.answer, flags.model, flags.out, flags.yes)
    check_replaceable(task_file.path, [Path(name) for name in flags.data])
    if not flags.overwrite:
        check_not_overwriting(task_file)
    config = Config.parse(task_file.toml, task_file.path)
    print_remarks(task_file)
    split, renderer, _ = load_examples(config)
    from loratory.checks import Material, few_examples

    problem, sequences = _problem(split, renderer), []
    if problem is None:
        sequences = tokens_of(draw_few_shot(split.train, EXAMPLES_SHOWN, config.train.seed), renderer)
    material = Material(split, renderer, split.task, config.data.folds > 0, bool(config.data.test))
    for finding in few_examples(material):
        print(printable(f"  {finding.message[:1].upper()}{finding.message[1:]}"), file=sys.stderr)
    write_text(task_file.path, task_file.toml)
    if flags.json:
        columns = {"shown": task_file.shown, "left_out": task_file.left_out}
        remarks = {"remarks": task_file.remarks}
        print_json({"task_file": str(task_file.path), **columns, **remarks, "toml": task_file.toml})
        return
    print_text(task_file.toml)
    print_tokens(sequences)
    print_text(f"Written: {task_file.path}")
    command = f"loratory run {task_file.path.name}"
    if problem:
        print_text(f"The model cannot learn this data. {problem.what}; {problem.fix}")
        command += " --model.name MODEL"
    print_text(f"Next: {command}")


def _problem(split: "Split", renderer: "Renderer") -> UserError | None:
    """Why the conversations need a model with another chat template, which is no reason not to write the task file."""
    try:
        print_notes(split, renderer)
    except UserError as error:
        if error.where != renderer.name:
            raise
        return error
    return None


VERB = Verb(
    "init",
    "DATA... [--answer COLUMN]",
    InitFlags,
    ("loratory init papers.csv --answer category --model Qwen/Qwen2.5-0.5B-Instruct",),
    None,
    execute,
)
