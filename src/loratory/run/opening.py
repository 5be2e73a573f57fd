"""Opens a run directory for writing: starts a new run, or takes up an unfinished one, under a lock.

Every prefix of the start can be recovered: until the record says "started", nothing is worth keeping, and the same
command starts over. Afterwards the settings, the data, the base model and the packages must be those of the start.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from loratory.config import Config
from loratory.errors import UserError
from loratory.events import Event, EventCallback
from loratory.machine import different_versions, versions
from loratory.models import WEIGHTS, differing_files
from loratory.run.job import Job, data_record, environment, load_job
from loratory.storage import (
    REQUESTED_SETTINGS,
    START_FILES,
    RunRecord,
    State,
    append_metric,
    check_is_run,
    check_place,
    check_run,
    clear_run,
    damaged_files,
    deciding_files,
    hashes_of,
    is_finished,
    is_run,
    json_text,
    only_writer,
    own_files,
    parsed_json,
    read_config,
    read_json_object,
    read_metrics,
    read_record,
    remove_leftovers,
    repair_metrics,
    requested_text,
    resolved_text,
    sha256_of_text,
    write_record,
    write_text,
)

Prepare = Callable[[Job], tuple[Job, dict[str, float]]]
"""Called before a new run is written, and may raise to stop: returns the job with what is chosen for it beforehand, and
the estimated seconds of each stage."""


@contextmanager
def open_job(config: Config, on_event: EventCallback, overwrite: bool, force: bool, prepare: Prepare) -> Iterator[Job]:
    """Starts a new run, or resumes an unfinished one with the same settings. No other process writes to it meanwhile.

    Loads and checks everything before writing anything, so that a mistake leaves nothing behind. With ``force``, a run
    is resumed even if package versions or the base model differ from those at its start. Raises UserError if the folder
    cannot be used, if data, model or packages have changed, or if another process is writing to the run.
    """
    run, data = Path(config.run.out), config.data
    check_place(run, [*data.train, *data.validation, *data.test, *data.retain, config.model.name])
    with ExitStack() as held:
        resumed, is_locked = check_run(run, config, overwrite), is_run(run)
        if is_locked:
            held.enter_context(only_writer(run))
            resumed = check_run(run, config, overwrite)  # again: its writer may just have ended
        if resumed:
            what = "Repairing the finished" if is_finished(run) else "Resuming the unfinished"
            on_event(Event("message", f"{what} run in {run}"))
            yield _resume(run, config, on_event, force)
            return
        job, estimate = prepare(load_job(config, run, on_event))
        if not is_locked:
            run.mkdir(parents=True, exist_ok=True)
            held.enter_context(only_writer(run))
            if is_run(run):  # another process has started and left a run meanwhile
                raise UserError("Another process has used this run directory", str(run), fix="repeat the command")
        contents = _start_contents(job, config)  # before anything is removed
        kept = clear_run(run)
        if kept:
            names = ", ".join(kept[:3]) + (f" and {len(kept) - 3} more" if len(kept) > 3 else "")
            on_event(Event("message", f"Kept in {run}, because Loratory did not write it: {names}"))
        _start(job, contents, estimate)
        yield job


@contextmanager
def reopen_job(run: Path, on_event: EventCallback) -> Iterator[Job]:
    """Opens an existing run to measure it again. No other process writes to it meanwhile.

    Raises UserError if the folder is not a run, or if its data or base model have changed.
    """
    check_is_run(run)
    with only_writer(run):
        record = read_record(run)
        if record is not None and record.state == "starting":
            raise UserError("This run has not started properly", str(run), fix="repeat the command that started it")
        if different := _different_versions(run, record):
            on_event(Event("message", f"The run started with other package versions: {different}"))
        yield _resume(run, None, on_event, force=False)


def discard_evaluation(run: Path) -> None:
    """Marks every system as not measured, unless an interrupted evaluation has done that and is to be resumed."""
    record = read_record(run)
    if record is not None and record.state == "evaluating":
        return
    for name in own_files(run):
        if Path(name).parent.name == "systems":
            (run / name).unlink()
    mark(run, "evaluating")


def mark(run: Path, state: State) -> None:
    """Records how far the run has come; a finished run with the hash of every file that decides an answer."""
    record = read_record(run)
    assert record is not None, "the run was opened"
    names = deciding_files(run) if state == "finished" else START_FILES
    write_record(run, dataclasses.replace(record, state=state, files=hashes_of(run, names)))


# ---- a new run -------------------------------------------------------------------------------------------------------


def _start(job: Job, contents: Mapping[str, str], estimate: Mapping[str, float]) -> None:
    """Writes the files of a new run, and last the record that makes it one to resume."""
    for name, text in contents.items():
        write_text(job.run / name, text)
    append_metric(job.run, "estimate", stages=estimate)
    for tried in job.prompts_tried:
        append_metric(job.run, "prompt_tried", **tried)
    for stage, seconds in job.seconds.items():
        append_metric(job.run, "stage", name=stage, seconds=seconds)
    hashes = {name: sha256_of_text(text) for name, text in contents.items()}
    write_record(job.run, RunRecord("started", job.base.decisive_hashes, versions(), hashes))


def _start_contents(job: Job, config: Config | None) -> dict[str, str]:
    """The contents of START_FILES, from the job and the settings as requested, if they are known."""
    requested = {} if config is None else {REQUESTED_SETTINGS: requested_text(config)}
    records = {"environment.json": json_text(environment(job)), "data.json": json_text(data_record(job))}
    return {**requested, **records, "config.toml": resolved_text(job.config)}


# ---- an unfinished run -----------------------------------------------------------------------------------------------


def _resume(run: Path, config: Config | None, on_event: EventCallback, force: bool) -> Job:
    """The job of an unfinished run, after its records are checked. ``config``: the settings as requested, if known.

    Damaged files of the start are made again if they can be proven to be the same.
    """
    record, damaged = read_record(run), damaged_files(run)
    for name in damaged:
        again = "; it is made again" if config is not None else ""
        on_event(Event("message", f"{run / name} is missing or has changed{again}"))
    if config is not None and not force and (different := _different_versions(run, record)):
        fix = "install these versions, or add --force; the results are then not bit for bit those of one run"
        raise UserError("The run started with other package versions", str(run), found=different, fix=fix)
    if config is not None and "config.toml" in damaged:
        settings, source = _with_chosen_prompt(config, run), "as configured"
    else:
        settings, source = read_config(run), "as when the run started"
    job = load_job(settings, run, on_event, source, accepted=True)
    base = dict(record.base) if record else {WEIGHTS: _read_json(run / "environment.json")["model"]["weights_sha256"]}
    if (different := differing_files(base, job.base.decisive_hashes)) and not force:
        fix = f"restore the files of {job.config.model.name}, or start over with --overwrite"
        raise UserError("The base model has changed since this run started", str(run), found=different, fix=fix)
    if "data.json" not in damaged:
        _check_same_data(run, data_record(job), force)
    if record is not None:
        _make_again(job, config, record, damaged)
    remove_leftovers(run)
    if lines := repair_metrics(run):
        on_event(Event("message", f"Removed {lines} damaged lines from {run / 'metrics.jsonl'}"))
    state = "evaluating" if record is not None and record.state == "evaluating" else "started"
    started_with = record.versions if record else _read_json(run / "environment.json").get("versions", {})
    write_record(run, RunRecord(state, base, started_with, hashes_of(run, START_FILES)))
    return job


def _with_chosen_prompt(config: Config, run: Path) -> Config:
    """The settings as requested, with the prompt that the run chose at its start, if it searched for one."""
    chosen = [event for event in read_metrics(run) if event["event"] == "prompt_tried" and event["chosen"]]
    if not chosen:
        return config
    prompt = dataclasses.replace(config.prompt, system=chosen[0]["system"], user=chosen[0]["user"], search="off")
    seeds = [event["few_shot_seed"] for event in chosen if event["few_shot_seed"] is not None]
    prompt = dataclasses.replace(prompt, few_shot_seed=seeds[0]) if seeds else prompt
    return dataclasses.replace(config, prompt=prompt)


def _make_again(job: Job, config: Config | None, record: RunRecord, damaged: Sequence[str]) -> None:
    """Writes damaged files of the start again. Raises UserError if they are not what they were at the start.

    Only environment.json may differ: it describes the machine, and what must not change is in the record.
    """
    contents = _start_contents(job, config)
    for name in [name for name in START_FILES if name in damaged]:
        proven = name in contents and sha256_of_text(contents[name]) == record.files[name]
        if not proven and name != "environment.json":
            fix = "restore it from a copy, or start over with --overwrite"
            raise UserError("A record of the run is damaged", str(job.run / name), fix=fix)
        write_text(job.run / name, contents[name])


def _check_same_data(run: Path, record: dict[str, Any], force: bool) -> None:
    """Raises UserError if ``record`` differs from data.json, that is, the data has changed since the run started.

    The findings are not compared: later versions find more, and say it in other words. With ``force``, only the files
    and the examples are.
    """
    stored, found = _read_json(run / "data.json"), parsed_json(json_text(record))
    keys = ("files", "examples_sha256") if force else tuple(stored)
    if different := [key for key in keys if key in stored and key != "checks" and stored[key] != found.get(key)]:
        names = [new["path"] for old, new in zip(stored["files"], found["files"], strict=False) if old != new]
        fix = "restore the data, or start over with --overwrite"
        where = ", ".join(names) or str(run / "data.json")
        raise UserError("The data has changed since this run started", where, found=", ".join(different), fix=fix)


def _different_versions(run: Path, record: RunRecord | None) -> str:
    """The packages whose versions differ from those at the start of the run, as text; empty if there are none."""
    recorded = record.versions if record else _read_json(run / "environment.json").get("versions", {})
    return different_versions(recorded)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except ValueError as error:
        fix = "restore it from a copy, or start over with --overwrite"
        raise UserError("A record of the run is damaged", str(path), found=str(error)[:200], fix=fix) from error
