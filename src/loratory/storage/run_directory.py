"""The run directory: where a run may be written, whether it can be resumed, its settings and its log."""

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w

from loratory.config import Config, config_from_dict, config_to_dict
from loratory.errors import UserError
from loratory.settings import DataConfig
from loratory.storage.contents import (
    CARD,
    REQUESTED_SETTINGS,
    check_removable,
    foreign_files,
    is_own,
    is_unused,
    remove_contents,
)
from loratory.storage.files import (
    changed_files,
    json_text,
    parsed_json,
    read_json_object,
    read_regular,
    sha256_of,
    sha256_of_text,
    write_text,
)
from loratory.storage.record import RunRecord, is_run, read_record, write_record

CHECK = "check"

# ---- the log ---------------------------------------------------------------------------------------------------------


def append_metric(run: Path, event: str, **values: Any) -> None:
    """Appends one event to metrics.jsonl, with a check sum. Raises ValueError for NaN and infinite numbers."""
    content = {"event": event, **values}
    line = json.dumps({**content, CHECK: _check_sum(content)}, allow_nan=False) + "\n"
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(line)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The events of metrics.jsonl, in order. Lines that are not valid events, as a crash may leave, are skipped."""
    return [event for line in _log_lines(run) if (event := _event_of(line))]


def repair_metrics(run: Path) -> int:
    """Removes lines that are not valid events, as a crash may leave, and returns how many.

    An incomplete last line, which a killed process leaves, does not count.
    """
    lines = _log_lines(run)
    valid = [line for line in lines[:-1] if _event_of(line)]
    if lines and (lines[-1] or len(valid) < len(lines) - 1):
        write_text(run / "metrics.jsonl", "".join(line.decode("utf-8") + "\n" for line in valid))
    return len(lines[:-1]) - len(valid)


def _log_lines(run: Path) -> list[bytes]:
    """The lines of the log; the last is empty unless it is incomplete."""
    path = run / "metrics.jsonl"
    return read_regular(path).split(b"\n") if path.exists() else []


def _event_of(line: bytes) -> dict[str, Any] | None:
    """The event in a line; None if it is damaged. Lines of earlier versions have no check sum."""
    try:
        event = parsed_json(line)
    except ValueError:
        return None
    if not isinstance(event, dict) or "event" not in event:
        return None
    check = event.pop(CHECK, None)
    return event if check in (None, _check_sum(event)) else None


def _check_sum(event: dict[str, Any]) -> str:
    return sha256_of_text(json.dumps(event, sort_keys=True))[:8]


# ---- where a run may be written --------------------------------------------------------------------------------------


def check_place(run: Path, inputs: Sequence[str]) -> None:
    """Raises UserError unless the run directory is a folder of its own.

    It must not be the working folder, the home folder or a folder above them, nor contain one of the ``inputs``, nor
    be inside another run.
    """
    fix = "choose another [run] out, such as runs/my-run"
    for name in (str(run), *inputs):
        if "\0" in name or name != name.encode("utf-8", "replace").decode("utf-8"):
            raise UserError("A path cannot be written as text", found=repr(name), fix="rename the file or folder")
    if str(run).startswith("~"):
        raise UserError("The run directory must be a folder of its own", "[run] out", "the whole path", str(run), fix)
    place = run.resolve()
    if outer := next((str(folder) for folder in place.parents if is_run(folder)), None):
        raise UserError("The run directory is inside another run", str(run), found=outer, fix=fix)
    if run.exists() and not run.is_dir():
        raise UserError("The run directory is a file", str(run), fix="choose another [run] out")
    for name, folder in (("the working folder", Path.cwd()), ("the home folder", Path("~").expanduser())):
        if folder.resolve().is_relative_to(place):
            above = "" if folder.resolve() == place else f", which contains {name}"
            found = f"{place}{above}" if above else name
            raise UserError("The run directory must be a folder of its own", "[run] out", found=found, fix=fix)
    for name in inputs:
        if Path(name).resolve().is_relative_to(place):
            raise UserError("The run directory contains an input of the run", str(run), found=name, fix=fix)


def check_replaceable(out: Path, inputs: Sequence[Path]) -> None:
    """Raises UserError if writing ``out`` would replace one of the ``inputs``, a folder or a file of a run."""
    if out.is_dir():
        raise UserError("The output is a folder", str(out), fix="give the path of a file")
    if out.exists() and any(path.exists() and out.samefile(path) for path in inputs):
        raise UserError("The output would replace the data", str(out), fix="choose another name")
    place = out.resolve()
    for folder in place.parents:
        if is_run(folder) and is_own(place.relative_to(folder).as_posix()):
            raise UserError("The output would replace a file of a run", str(out), fix="choose another name")


def check_run(run: Path, config: Config, overwrite: bool) -> bool:
    """Whether the folder contains an unfinished run with the same settings, which can be resumed.

    A finished run of which a file has been damaged or lost can be resumed too, which makes the file again. Returns
    False if a new run can start there: the folder is missing or unused, or its run may be overwritten. Raises UserError
    if the folder contains a finished run, a run with other settings, or files that are not a run.
    """
    if not run.exists() or is_unused(run):
        return False
    if not is_run(run):
        names = ", ".join(foreign_files(run)[:3])
        fix = "choose another [run] out"
        raise UserError("The run directory contains other files", str(run), found=names or None, fix=fix)
    record = read_record(run)
    if overwrite or (record is not None and record.state == "starting"):
        check_removable(run)
        return False
    fix = "choose another [run] out, or add --overwrite to replace it"
    if is_finished(run) and not damaged_files(run):
        found = None if _has_settings(run, config, record) else "it was started with other settings than these"
        fix = f"open {run / 'report.html'}; or {fix}"
        raise UserError("This run is already finished", str(run), found=found, fix=fix)
    if not _has_settings(run, config, record):
        raise UserError("The run directory contains a run with other settings", str(run), fix=fix)
    return True


def _has_settings(run: Path, config: Config, record: RunRecord | None) -> bool:
    """Whether the run was started with these settings; settings that a later version added have their defaults."""
    if record is not None and REQUESTED_SETTINGS in changed_files(run, record.files):
        return record.files[REQUESTED_SETTINGS] == sha256_of_text(requested_text(config))
    try:
        requested = read_json_object(run / REQUESTED_SETTINGS)
        return config_from_dict(requested, str(run / REQUESTED_SETTINGS)) == config_from_dict(
            config_to_dict(config), REQUESTED_SETTINGS
        )
    except (ValueError, UserError):
        return False


def is_finished(run: Path) -> bool:
    """Whether the run is complete. One of format 1 is if it has a report and a tuned model."""
    record = read_record(run)
    if record is not None:
        return record.state == "finished"
    tuned = ("adapter/adapter_model.safetensors", "model/config.json")
    return is_run(run) and (run / "report.json").exists() and any((run / name).exists() for name in tuned)


def damaged_files(run: Path) -> list[str]:
    """The files that are missing or have changed since the run recorded them, in alphabetical order."""
    record = read_record(run)
    return changed_files(run, record.files) if record else []


def clear_run(run: Path) -> list[str]:
    """Removes the files of a previous run, and returns the files that stay because Loratory did not write them.

    Call ``check_run`` first, which protects existing files. From here on, the same command starts over.
    """
    write_record(run, RunRecord("starting"))
    remove_contents(run)
    return foreign_files(run)


# ---- settings and data -----------------------------------------------------------------------------------------------


def file_records(names: Sequence[str]) -> list[dict[str, Any]]:
    """Path and SHA-256 hash of each data file; hub datasets have no hash."""
    return [
        {"path": name, "sha256": None if name.startswith("hub:") else sha256_of([Path(name)])} for name in names
    ]  # fmt: skip


def data_files(run: Path) -> list[Path]:
    """The data files that a run was made from; none if the folder is not a run."""
    try:
        records = read_json_object(run / "data.json")["files"]
        return [Path(record["path"]) for record in records]
    except (ValueError, KeyError, TypeError):
        return []


def tuned_folder(path: Path) -> Path:
    """The folder of the tuned model: that of a run, or ``path`` itself. Raises UserError if there is none."""
    for folder in (path, path / "adapter", path / "model"):
        if (folder / CARD).exists():
            return folder
    expected = "a run directory or its adapter folder"
    found, fix = "nothing at this path", "check the path; a run is in the folder that [run] out names"
    if is_run(path):
        found = "a run whose training has not finished, or whose tuned model was removed"
        fix = "repeat the command that started the run, without --overwrite; it resumes where it stopped"
    elif path.exists():
        found = "another folder" if path.is_dir() else "a file"
    raise UserError("No tuned model found", str(path), expected, found, fix)


def data_settings(path: Path) -> DataConfig:
    """The settings with which the data of a run was read, for a run directory or its adapter folder; the default ones
    for an adapter without its run."""
    run = next((folder for folder in (path, path.parent) if is_run(folder)), None)
    try:
        return read_config(run).data if run else DataConfig()
    except UserError:  # an old or damaged run: its adapter may still be used
        return DataConfig()


def requested_text(config: Config) -> str:
    """The content of asked.json."""
    return json_text(config_to_dict(config))


def resolved_text(config: Config) -> str:
    """The content of config.toml."""
    return tomli_w.dumps(config_to_dict(config))


def read_config(run: Path) -> Config:
    """The resolved settings of a run. Raises UserError if the folder is not a run directory."""
    path = run / "config.toml"
    if not path.exists():
        raise UserError("Not a run directory", str(run), expected="a folder that contains config.toml")
    try:
        values = tomllib.loads(read_regular(path).decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError("The run's settings are damaged", str(path), found=str(error)) from error
    return config_from_dict(values, str(path))
