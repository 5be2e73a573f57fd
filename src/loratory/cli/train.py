"""``loratory train``: fine-tuning alone."""

import dataclasses

from loratory.cli.downloads import agree_to_download
from loratory.cli.output import print_json, print_text
from loratory.cli.progress import progress_display
from loratory.cli.run import COMMON_SETTINGS
from loratory.cli.task_arguments import RunFlags, check_inputs, confirmation, parse_with_task
from loratory.cli.verb import Verb


@dataclasses.dataclass(frozen=True)
class TrainFlags(RunFlags):
    """Fine-tunes and writes the adapter; measures no baseline. The argument is the same as for run."""

    json: bool = False
    """Print the run directory as JSON."""


def execute(arguments: list[str]) -> None:
    flags, task_file = parse_with_task(TrainFlags, arguments, "train")
    check_inputs(flags.config)
    agree_to_download(flags.config.model, flags.yes)
    from loratory.finetune import train_only

    with progress_display() as on_event:
        folder = train_only(flags.config, on_event, flags.overwrite, confirmation(flags.yes, task_file), flags.force)
    if flags.json:
        print_json({"run": str(folder)})
    else:
        print_text(f"Trained: {folder}\nNext: loratory evaluate {folder}")


VERB = Verb(
    "train",
    "[TASK.toml | DATA --answer COLUMN]",
    TrainFlags,
    ("loratory train papers.toml --train.epochs 5",),
    COMMON_SETTINGS[:-1],
    execute,
)
