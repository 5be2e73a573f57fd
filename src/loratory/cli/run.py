"""``loratory run``: the whole story, from file to report."""

from loratory.cli.downloads import agree_to_download
from loratory.cli.output import print_report
from loratory.cli.progress import progress_display
from loratory.cli.task_arguments import RunFlags, check_inputs, confirmation, parse_with_task
from loratory.cli.verb import Verb

COMMON_SETTINGS = (
    "model.name",
    "data.test",
    "data.limit_train",
    "adapter.rank",
    "train.epochs",
    "train.learning_rate",
    "train.batch_size",
    "train.seeds",
    "run.out",
    "run.systems",
)


def execute(arguments: list[str]) -> None:
    flags, task_file = parse_with_task(RunFlags, arguments, "run")
    check_inputs(flags.config)
    agree_to_download(flags.config.model, flags.yes)
    from loratory.finetune import finetune

    with progress_display() as on_event:
        folder = finetune(flags.config, on_event, flags.overwrite, confirmation(flags.yes, task_file), flags.force)
    print_report(folder, flags.json)


VERB = Verb(
    "run",
    "[TASK.toml | DATA --answer COLUMN]",
    RunFlags,
    ("loratory run papers.toml", "loratory run papers.csv --answer category --model.name Qwen/Qwen2.5-0.5B-Instruct"),
    COMMON_SETTINGS,
    execute,
)
