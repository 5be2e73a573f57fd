"""run.json: the record that makes a folder a run, says how far the run has come, and by which files to check it.

It is the first file of a run and is replaced as a whole at each stage:

- starting: the folder is being filled. Nothing is worth keeping yet, and the same command starts over.
- started: the settings, the environment and the data are recorded. Training and evaluation can be resumed.
- evaluating: every system is being measured again, from scratch.
- finished: the report is complete. The record has the hash of every file that decides an answer or the report.
"""

import dataclasses
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal, get_args

from loratory.errors import UserError
from loratory.storage.files import SEAL, read_json_object, seal_is_intact, sealed, write_json

RECORD = "run.json"
FORMAT = 2  # 1: runs without this record
# The files by which runs of format 1 are recognized.
FORMAT_1 = ("config.toml", "environment.json", "data.json", "metrics.jsonl")

State = Literal["starting", "started", "evaluating", "finished"]
Hashes = dict[str, str]


@dataclass(frozen=True)
class RunRecord:
    """The contents of run.json."""

    state: State = "starting"
    base: Hashes = field(default_factory=dict)
    """The hash of each file of the base model that decides its answers."""
    versions: dict[str, str] = field(default_factory=dict)
    """The versions of the packages when the run started."""
    files: Hashes = field(default_factory=dict)
    """The hash of each file that is complete and does not change any more."""


def write_record(run: Path, record: RunRecord) -> None:
    """Writes run.json, atomically."""
    values = {"format": FORMAT, "loratory": version("loratory"), **dataclasses.asdict(record)}
    write_json(run / RECORD, sealed(values))


def read_record(run: Path) -> RunRecord | None:
    """The record of a run; None if it has none, as runs of format 1, or if it is damaged.

    Raises UserError if a later version of Loratory wrote it.
    """
    try:
        values = read_json_object(run / RECORD)
    except ValueError:
        return None
    if SEAL not in values or not seal_is_intact(values):
        return None
    if isinstance(values.get("format"), int) and values["format"] > FORMAT:
        found, fix = f"version {values.get('loratory')}", "update Loratory"
        raise UserError("A later version of Loratory wrote this run", str(run), found=found, fix=fix)
    try:
        record = RunRecord(**{f.name: values[f.name] for f in dataclasses.fields(RunRecord)})
    except KeyError:
        return None
    return record if record.state in get_args(State) else None


def check_is_run(run: Path) -> None:
    """Raises UserError if the folder is not a run."""
    if not is_run(run):
        raise UserError("Not a run directory", str(run), expected="a folder that loratory run or train has written")


def is_run(run: Path) -> bool:
    """Whether Loratory wrote the folder: it has a record, or the four files that mark a run of format 1."""
    return read_record(run) is not None or all((run / name).is_file() for name in FORMAT_1)
