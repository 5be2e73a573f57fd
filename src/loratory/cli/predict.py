"""``loratory predict``: answers for every row of a file."""

import dataclasses
import sys
from pathlib import Path

import tyro

from loratory.cli.output import print_json
from loratory.cli.progress import progress_display
from loratory.cli.verb import Verb
from loratory.printable import printable


@dataclasses.dataclass(frozen=True)
class PredictFlags:
    """Answers every row of a file with a tuned model."""

    run: tyro.conf.Positional[Path]
    """A run directory or an adapter folder."""
    data: tyro.conf.Positional[Path]
    """A csv, tsv, json, jsonl or parquet file with the columns that the prompt shows."""
    out: Path | None = None
    """Where to write the answers, one JSON object per line; by default to standard output."""
    force: bool = False
    """Accept a base model whose weights differ from those that the adapter was trained on."""


def execute(arguments: list[str]) -> None:
    flags = tyro.cli(PredictFlags, args=arguments, prog="loratory predict")
    from loratory.data import read_rows
    from loratory.events import Event
    from loratory.predict import load
    from loratory.storage import write_json_lines

    rows = read_rows(str(flags.data))
    with progress_display() as on_event:
        tuned = load(flags.run, force=flags.force)
        predictions = tuned.predictions(
            rows, lambda done, total: on_event(Event("progress", "predict", {"done": done, "total": total}))
        )
    lines = [{"answer": p.answer, "probabilities": p.probabilities} for p in predictions]
    if flags.out:
        write_json_lines(flags.out, lines)
        print(printable(f"{len(lines)} answers written to {flags.out}"), file=sys.stderr)
    else:
        for line in lines:
            print_json(line)


VERB = Verb(
    "predict", "RUN DATA", PredictFlags, ("loratory predict runs/papers new.csv --out answers.jsonl",), None, execute
)
