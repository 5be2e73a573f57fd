"""``loratory check``: faults of the data, found before anything is trained."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loratory.cli.output import print_json, print_text
from loratory.cli.task_arguments import Settings, load_examples, parse_with_task
from loratory.cli.verb import Verb
from loratory.config import Config
from loratory.errors import DONE, FAILED

if TYPE_CHECKING:
    from loratory.data import Finding

HEADINGS = {"error": "Errors: a run would stop", "warning": "Warnings", "note": "Notes"}


@dataclasses.dataclass(frozen=True)
class CheckFlags:
    """Looks for faults of the data: duplicates, leaks, labels that look alike, missing values, and others.

    The argument is the same as for run. Needs the model's tokenizer, but not its weights. The exit code is 1 if there
    are errors, with which a run would stop.
    """

    config: Settings = dataclasses.field(default_factory=Config)
    json: bool = False
    """Print JSON, with all findings and places."""


def execute(arguments: list[str]) -> int:
    flags, _ = parse_with_task(CheckFlags, arguments, "check")
    data = flags.config.data
    # Rows with missing values are set aside, so that the other checks can go on.
    config = dataclasses.replace(flags.config, data=dataclasses.replace(data, missing="skip"))
    split, renderer, context = load_examples(config)
    from loratory.checks import CHECKS, Material, check_data, with_waivers

    material = Material(
        split, renderer, split.task, data.folds > 0, bool(data.test), context=context, overlong=data.overlong
    )
    findings = with_waivers(check_data(material, data.missing), data.waive)
    examples = {name: len(getattr(split, name)) for name in ("train", "validation", "test")}
    if flags.json:
        records = [dataclasses.asdict(f) for f in findings]
        names = [check.name for check in CHECKS]
        print_json({"findings": records, "examples": examples, "labels": list(split.labels), "checks": names})
    else:
        counts = ", ".join(f"{count:,} {name}" for name, count in examples.items())
        if data.folds:
            counts = f"{examples['test']:,} examples, each tested in one of {data.folds} folds"
        labels = f", {len(split.labels)} labels" if split.labels else ""
        print_text(
            _listing(findings) + f"Checked {counts}{'' if data.folds else ' examples'}{labels}: {_summary(findings)}."
        )
    return FAILED if any(f.severity == "error" for f in findings) else DONE


def _listing(findings: Sequence["Finding"]) -> str:
    """The findings by severity, each with its places."""
    lines = []
    for severity, heading in HEADINGS.items():
        group = [f for f in findings if f.severity == severity]
        lines += [heading] if group else []
        for f in group:
            lines.append(f"  {f.name}: {f.message}")
            if f.places:
                more = ", ..." if f.count > len(f.places) else ""
                lines.append(f"    {', '.join(map(_shortened, f.places))}{more}")
        lines += [""] if group else []
    return "".join(f"{line}\n" for line in lines)


def _shortened(place: str) -> str:
    """A place relative to the current directory, if it is inside."""
    return place.removeprefix(f"{Path.cwd()}/")


def _summary(findings: Sequence["Finding"]) -> str:
    counts = [(sum(f.severity == severity for f in findings), severity) for severity in HEADINGS]
    return ", ".join(f"{n} {severity}{'' if n == 1 else 's'}" for n, severity in counts if n) or "nothing found"


VERB = Verb(
    "check",
    "[TASK.toml | DATA --answer COLUMN]",
    CheckFlags,
    ("loratory check papers.toml", "loratory check papers.csv --answer category --json"),
    ("model.name", "data.train", "data.test", "data.answer", "data.missing", "data.normalize_labels", "prompt.user"),
    execute,
)
