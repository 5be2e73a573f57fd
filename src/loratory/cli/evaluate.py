"""``loratory evaluate``: a run's systems, measured again."""

import dataclasses
from pathlib import Path

import tyro

from loratory.cli.output import print_report
from loratory.cli.progress import progress_display
from loratory.cli.verb import Verb


@dataclasses.dataclass(frozen=True)
class EvaluateFlags:
    """Measures all systems of a run again and rewrites its report."""

    run: tyro.conf.Positional[Path]
    """The run directory."""
    json: bool = False
    """Print the report as JSON."""


def execute(arguments: list[str]) -> None:
    flags = tyro.cli(EvaluateFlags, args=arguments, prog="loratory evaluate")
    from loratory.storage import check_is_run

    check_is_run(flags.run)
    from loratory.finetune import evaluate_run

    with progress_display() as on_event:
        folder = evaluate_run(flags.run, on_event)
    print_report(folder, flags.json)


VERB = Verb("evaluate", "RUN", EvaluateFlags, ("loratory evaluate runs/papers",), None, execute)
