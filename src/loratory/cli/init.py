"""``loratory init``: a task file guessed from data."""

import dataclasses
from pathlib import Path

import tyro

from loratory.cli.output import print_json, print_text, print_tokens
from loratory.cli.task_arguments import is_masked_model, render_examples
from loratory.cli.verb import Verb
from loratory.config import Config
from loratory.settings import ModelConfig

EXAMPLES_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class InitFlags:
    """Guesses a task file from data: which columns the prompt shows, what it says, how the data is split."""

    data: tyro.conf.Positional[str]
    """A csv, tsv, json, jsonl, parquet, xlsx, xls, ods or txt file, or hub:owner/name."""
    answer: str = ""
    """The answer column."""
    model: str = ModelConfig().name
    """Hub id or folder of the model."""
    out: Path | None = None
    """Where to write the task file; by default in the current folder, named after the data."""
    overwrite: bool = False
    """Replace an existing task file."""
    json: bool = False
    """Print the result as JSON."""


def execute(arguments: list[str]) -> None:
    flags = tyro.cli(InitFlags, args=arguments, prog="loratory init")
    from loratory.data import check_not_overwriting, draw_few_shot, guess_task_file
    from loratory.storage import check_replaceable, write_text

    task_file = guess_task_file(flags.data, flags.answer, is_masked_model, flags.model, flags.out)
    check_replaceable(task_file.path, [Path(flags.data)])
    if not flags.overwrite:
        check_not_overwriting(task_file)
    config = Config.parse(task_file.toml, task_file.path)
    sequences, _ = render_examples(config, lambda train: draw_few_shot(train, EXAMPLES_SHOWN, config.train.seed))
    write_text(task_file.path, task_file.toml)
    if flags.json:
        columns = {"shown": task_file.shown, "left_out": task_file.left_out}
        print_json({"task_file": str(task_file.path), **columns, "toml": task_file.toml})
        return
    print_text(task_file.toml)
    print_tokens(sequences)
    print_text(f"Written: {task_file.path}\nNext: loratory run {task_file.path.name}")


VERB = Verb(
    "init",
    "DATA --answer COLUMN",
    InitFlags,
    ("loratory init papers.csv --answer category --model Qwen/Qwen2.5-0.5B-Instruct",),
    None,
    execute,
)
