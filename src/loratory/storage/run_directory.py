"""The run directory: its files, its append-only log, and the checks before a run starts or resumes.

- config.toml: all settings, with device, dtype, threads, model revision, prompt, date and optimizations resolved.
- asked.json: the settings as requested, before they were resolved. A run resumes only if they are the same.
- environment.json: base model, hardware, layout of the batches, stop tokens, package versions and git commit.
- data.json: task, labels, number of examples, data files with hashes, results of the data checks, test prompts.
- metrics.jsonl: the log, one event per line: estimate, stage, step, validation, trial, trained, retained, memory.
- checkpoints/: checkpoints of the training, in a subfolder rate-<rate>/ per learning rate if several are tried.
- adapter/ or model/: the tuned model, as a LoRA adapter in PEFT's format or, after full fine-tuning, as a whole.
- predictions/<system>.jsonl: a system's predictions for the test examples, one per line.
- predictions/validation/<system>.jsonl: the same for the validation examples.
- systems/<system>.json: a system's note, timing and decision rule. Written last: it marks the system as measured.
- seeds/<seed>/: checkpoints, tuned model, log, predictions and systems of each further seed.
- folds/<k>/: the same for each fold of a cross-validation, counted from 1.
- report.json: the report as data. It marks the run as finished.
- report.html: the report as a page.
"""

import json
import shutil
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tomli_w

from loratory.config import Config, config_from_dict, config_to_dict
from loratory.errors import UserError
from loratory.storage.files import sha256_of, write_text

REQUESTED_SETTINGS = "asked.json"


def append_metric(run: Path, event: str, **values: Any) -> None:
    """Appends one event to metrics.jsonl."""
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"event": event, **values}) + "\n")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The events of metrics.jsonl, in order. Lines that are not valid events, as a crash may leave, are skipped."""
    path = run / "metrics.jsonl"
    events = []
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        events += [event] if isinstance(event, dict) and "event" in event else []
    return events


def repair_metrics(run: Path) -> None:
    """Removes an incomplete last line, as a crash may leave, so that the next event starts on a new line."""
    path = run / "metrics.jsonl"
    if path.exists():
        complete, newline, incomplete = path.read_bytes().rpartition(b"\n")
        if incomplete:
            write_text(path, (complete + newline).decode("utf-8"))


def check_run(run: Path, config: Config, overwrite: bool) -> bool:
    """Whether the folder contains an unfinished run with the same settings, which can be resumed.

    Returns False if a new run can start there: the folder is missing or empty, or its run may be overwritten. Raises
    UserError if the folder contains a finished run, a run with other settings, or files that are not a run.
    """
    if run.exists() and not run.is_dir():
        raise UserError("The run directory is a file", str(run), fix="choose another [run] out")
    if not run.exists() or not any(run.iterdir()):
        return False
    if not (run / "config.toml").exists():
        raise UserError("The run directory contains other files", str(run), fix="choose another [run] out")
    if overwrite:
        return False
    fix = "choose another [run] out, or add --overwrite to replace it"
    if (run / "report.json").exists():
        raise UserError("This run is already finished", str(run), fix=f"open {run / 'report.html'}; or {fix}")
    requested = json.loads((run / REQUESTED_SETTINGS).read_text()) if (run / REQUESTED_SETTINGS).exists() else None
    if requested != config_to_dict(config):
        raise UserError("The run directory contains a run with other settings", str(run), fix=fix)
    return True


def create_run(run: Path, overwrite: bool) -> None:
    """Creates an empty run directory. Call ``check_run`` first, which protects existing files."""
    if overwrite and run.exists():
        shutil.rmtree(run)
    run.mkdir(parents=True, exist_ok=True)


def file_records(names: Iterable[str]) -> list[dict[str, Any]]:
    """Path and SHA-256 hash of each data file; hub datasets have no hash."""
    return [
        {"path": name, "sha256": None if name.startswith("hub:") else sha256_of([Path(name)])} for name in names
    ]  # fmt: skip


def check_same_data(run: Path, record: dict[str, Any]) -> None:
    """Raises UserError if ``record`` differs from data.json, that is, the data has changed since the run started."""
    if json.loads((run / "data.json").read_text()) != record:
        raise UserError(
            "The data has changed since this run started", str(run / "data.json"), fix="start over with --overwrite"
        )  # fmt: skip


def write_config(run: Path, config: Config) -> None:
    """Writes config.toml."""
    write_text(run / "config.toml", tomli_w.dumps(config_to_dict(config)))


def read_config(run: Path) -> Config:
    """The resolved settings of a run. Raises UserError if the folder is not a run directory."""
    path = run / "config.toml"
    if not path.exists():
        raise UserError("Not a run directory", str(run), expected="a folder that contains config.toml")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError("The run's settings are damaged", str(path), found=str(error)) from error
    return config_from_dict(values, str(path))
