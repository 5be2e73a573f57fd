"""``loratory predict``: answers for every row of a file."""

import dataclasses
import shlex
import sys
from pathlib import Path

import tyro

from loratory.cli.output import print_json
from loratory.cli.progress import progress_display
from loratory.cli.verb import Verb
from loratory.errors import UserError
from loratory.printable import printable


@dataclasses.dataclass(frozen=True)
class PredictFlags:
    """Answers every row of a file with a tuned model."""

    run: tyro.conf.Positional[Path]
    """A run directory or an adapter folder."""
    data: tyro.conf.Positional[Path]
    """A data file with the columns that the prompt shows."""
    out: Path | None = None
    """Where to write the answers: a .csv or .tsv file with the columns of the data and the answers, or a .jsonl file.
    By default, JSON lines on standard output. Repeat the command to resume if it was interrupted."""
    force: bool = False
    """Accept files of the adapter or the base model that have changed since the training."""


def execute(arguments: list[str]) -> None:
    flags = tyro.cli(PredictFlags, args=arguments, prog="loratory predict")
    from loratory.data import question_findings, read_table
    from loratory.storage import data_settings, tuned_folder

    _check_order(flags.run, flags.data)
    tuned_folder(flags.run)  # raises if there is none
    table = read_table(str(flags.data), data_settings(flags.run))
    for finding in table.findings:
        print(printable(finding.message), file=sys.stderr)
    # PyTorch is loaded after a mistake in the paths or the data was told.
    from loratory.events import Event
    from loratory.predict import answer_line, check_output, load, predict_to_file

    if flags.out:
        check_output(flags.out, [Path(file) for file in table.files], flags.run)
    rows = table.rows
    with progress_display() as on_event:
        tuned = load(flags.run, force=flags.force, on_event=on_event)
        if tuned.task == "dialogue":
            for finding in question_findings(rows, tuned.answer_column, tuned.prompt.system):
                on_event(Event("message", finding.message))
        if flags.out:
            predict_to_file(tuned, rows, flags.out, on_event)
            print(printable(f"{len(rows)} answers written to {flags.out}"), file=sys.stderr)
            return
        predictions = tuned.predictions(
            rows, lambda done, total: on_event(Event("progress", "predict", {"done": done, "total": total}))
        )
    for prediction in predictions:
        print_json(answer_line(prediction))


def _check_order(run: Path, data: Path) -> None:
    """Raises UserError if the data is given where the run belongs, and a folder where the data belongs."""
    from loratory.data import is_data

    if data.is_dir() and not run.is_dir() and is_data(str(run)):
        fix = f"loratory predict {shlex.quote(str(data))} {shlex.quote(str(run))}"
        raise UserError("The run and the data are swapped", f"{run} {data}", "the run first, then the data", fix=fix)


VERB = Verb(
    "predict", "RUN DATA", PredictFlags, ("loratory predict runs/papers new.csv --out answers.jsonl",), None, execute
)
