"""The run directory: settings as resolved, what the data and the machine were, and an append-only log."""

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
    """Adds one line to metrics.jsonl. The log is only ever appended to."""
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"event": event, **values}) + "\n")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; one torn by a crash is passed over."""
    path = run / "metrics.jsonl"
    found = []
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        found += [event] if isinstance(event, dict) and "event" in event else []
    return found


def repair_metrics(run: Path) -> None:
    """Removes a last line that a crash tore, so that the next one is not glued to it."""
    path = run / "metrics.jsonl"
    if path.exists():
        whole, newline, torn = path.read_bytes().rpartition(b"\n")
        if torn:
            write_text(path, (whole + newline).decode("utf-8"))


def check_run(run: Path, config: Config, overwrite: bool) -> bool:
    """Whether the folder holds an unfinished run of the same settings, to be continued.

    Raises UserError when it holds something else: a finished run, other settings, or no run at all.
    """
    if run.exists() and not run.is_dir():
        raise UserError("The run directory is a file", str(run), fix="choose another [run] out")
    if not run.exists() or not any(run.iterdir()):
        return False
    if not (run / "config.toml").exists():
        raise UserError("The run directory holds other files", str(run), fix="choose another [run] out")
    if overwrite:
        return False
    fix = "choose another [run] out, or add --overwrite to replace it"
    if (run / "report.json").exists():
        raise UserError("This run is finished already", str(run), fix=f"open {run / 'report.html'}; or {fix}")
    asked = json.loads((run / REQUESTED_SETTINGS).read_text()) if (run / REQUESTED_SETTINGS).exists() else None
    if asked != config_to_dict(config):
        raise UserError("The run directory holds a run with other settings", str(run), fix=fix)
    return True


def create_run(run: Path, overwrite: bool) -> None:
    """Makes the folder, empty; check_run has said that it may."""
    if overwrite and run.exists():
        shutil.rmtree(run)
    run.mkdir(parents=True, exist_ok=True)


def file_records(names: Iterable[str]) -> list[dict[str, Any]]:
    """Path and hash of each data file; a hub name stands as it is."""
    return [
        {"path": name, "sha256": None if name.startswith("hub:") else sha256_of([Path(name)])} for name in names
    ]  # fmt: skip


def check_same_data(run: Path, record: dict[str, Any]) -> None:
    """Raises UserError where the data changed since the run began."""
    if json.loads((run / "data.json").read_text()) != record:
        raise UserError(
            "The data changed since this run began", str(run / "data.json"), fix="start anew with --overwrite"
        )  # fmt: skip


def write_config(run: Path, config: Config) -> None:
    write_text(run / "config.toml", tomli_w.dumps(config_to_dict(config)))


def read_config(run: Path) -> Config:
    """The settings of a run, as resolved. Raises UserError if the folder is no run."""
    path = run / "config.toml"
    if not path.exists():
        raise UserError("Not a run directory", str(run), expected="a folder with a config.toml")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError("The settings of the run are damaged", str(path), found=str(error)) from error
    return config_from_dict(values, str(path))
