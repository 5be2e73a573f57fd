"""Reads a run directory: settings, log, and the predictions of every system, seed and fold."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratory.errors import UserError
from loratory.evaluation import changed_records
from loratory.metrics import TASKS, Task
from loratory.settings import BLEND, PROMPTING, REFERENCES, TUNED
from loratory.storage import damaged_files, parsed_json, read_json_object, read_metrics, read_regular

ALL_SYSTEMS = (*PROMPTING, *REFERENCES, *TUNED, BLEND)
Report = dict[str, Any]


@dataclass(frozen=True)
class SystemResults:
    """One system: the facts recorded about it and its predictions as logged; ``validation`` may be empty."""

    name: str
    metadata: dict[str, Any]
    test: list[dict[str, Any]]
    validation: list[dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """The contents of a run directory."""

    folder: Path
    config: str
    """The text of config.toml."""
    settings: dict[str, Any]
    """The parsed config.toml."""
    environment: dict[str, Any]
    data: dict[str, Any]
    events: list[dict[str, Any]]
    systems: dict[str, SystemResults]
    seeds: dict[int, dict[str, SystemResults]]
    """The tuned systems of each additional seed."""
    folds: list[dict[str, SystemResults]]
    """The systems of each cross-validation fold."""
    part_events: list[dict[str, Any]]
    """The logs of the additional seeds and of the folds."""


def read_run(folder: Path) -> Run:
    """Reads a run directory. Raises UserError like ``build_report``, or if a file has changed since it was recorded."""
    systems = _read_systems(folder)
    if not systems:
        fix = "repeat the command that started the run, and let it finish"
        raise UserError("No system was measured in this run", str(folder), expected="systems/<name>.json", fix=fix)
    seed_folders = [path for path in folder.glob("seeds/*/") if path.name.isdecimal()]
    seed_folders = sorted(seed_folders, key=lambda path: int(path.name))
    seeds = {int(path.name): _read_systems(path) for path in seed_folders}
    expected = [
        [line["expected"] for line in system.test] for part in (systems, *seeds.values()) for system in part.values()
    ]
    if not expected[0] or any(answers != expected[0] for answers in expected):
        raise UserError("The systems were not measured on the same test examples", str(folder / "predictions"))
    if changed := damaged_files(folder):
        raise _changed_error(folder, changed)
    config, data = _read_text(folder / "config.toml"), _read_object(folder / "data.json")
    fold_folders = [folder / "folds" / str(k + 1) for k in range(data.get("folds") or 0)]
    return Run(
        folder=folder,
        config=config,
        settings=tomllib.loads(config),
        environment=_read_object(folder / "environment.json"),
        data=data,
        events=read_metrics(folder),
        systems=systems,
        seeds=seeds,
        folds=[_read_systems(path) for path in fold_folders],
        part_events=[event for path in (*seed_folders, *fold_folders) for event in read_metrics(path)],
    )


def _read_systems(folder: Path) -> dict[str, SystemResults]:
    """The systems measured in a run, or in one of its seeds or folds; empty if the folder does not exist."""
    return {name: _read_system(folder, name) for name in ALL_SYSTEMS if (folder / "systems" / f"{name}.json").exists()}


def _read_system(folder: Path, name: str) -> SystemResults:
    validation = folder / "predictions" / "validation" / f"{name}.jsonl"
    if changed := changed_records(folder, name):
        raise _changed_error(folder, changed)
    return SystemResults(
        name=name,
        metadata=_read_object(folder / "systems" / f"{name}.json"),
        test=_read_lines(folder / "predictions" / f"{name}.jsonl"),
        validation=_read_lines(validation) if validation.exists() else [],
    )


@dataclass(frozen=True)
class LearningCurve:
    """The losses of the trial that was chosen, as pairs of step and loss sorted by step."""

    training: list[tuple[int, float]]
    validation: list[tuple[int, float]]
    trial: dict[str, Any]
    """What was logged about the trial; only its name if it did not end."""


def learning_curve(run: Run) -> LearningCurve | None:
    """The losses of the chosen trial, or of the last one if none is chosen yet; None before the first step.

    A resumed run repeats the steps since its checkpoint; the last logged entry of each step counts.
    """
    chosen = [e for e in trials(run) if e["chosen"]] or events_named(run, "step")[-1:]
    if not chosen:
        return None

    def pairs(event: str) -> list[tuple[int, float]]:
        return sorted(
            {e["step"]: e["loss"] for e in events_named(run, event) if e["trial"] == chosen[-1]["trial"]}.items()
        )

    return LearningCurve(pairs("step"), pairs("validation"), chosen[-1])


def trials(run: Run) -> list[dict[str, Any]]:
    """The logged trials; if a trial was logged twice, its last entry counts."""
    return list({e["trial"]: e for e in events_named(run, "trial")}.values())


def not_measured(run: Run) -> list[dict[str, str]]:
    """The systems that could not be measured, each with the reason; the last one logged counts."""
    reasons = {e["name"]: e["reason"] for e in events_named(run, "not_measured") if e["name"] not in run.systems}
    return [{"name": name, "reason": reason} for name, reason in reasons.items()]


def prompts_tried(run: Run) -> list[dict[str, Any]]:
    """The prompts that the search tried, in order, with their validation figures; empty if there was no search."""
    return [{key: value for key, value in e.items() if key != "event"} for e in events_named(run, "prompt_tried")]


def _changed_error(folder: Path, changed: list[str]) -> UserError:
    found = ", ".join(changed[:3])
    fix = "repeat the command that started the run, which makes them again, or run: loratory evaluate RUN"
    return UserError("Files of the run have changed since they were recorded", str(folder), found=found, fix=fix)


def _check_exists(path: Path) -> None:
    if not path.exists():
        raise UserError("A file of the run is missing", str(path), fix="let the run finish, or start it again")


def _read_text(path: Path) -> str:
    _check_exists(path)
    return read_regular(path).decode("utf-8")


def _read_object(path: Path) -> dict[str, Any]:
    _check_exists(path)
    try:
        return read_json_object(path)
    except ValueError as error:
        raise UserError("A file of the run is damaged", str(path), found=str(error)[:200]) from error


def _read_lines(path: Path) -> list[dict[str, Any]]:
    # Not splitlines(): JSON strings may contain U+2028 and other line separators unescaped.
    try:
        return [parsed_json(line) for line in _read_text(path).split("\n") if line]
    except ValueError as error:
        raise UserError("A file of the run is damaged", str(path), found=str(error)[:200]) from error


def events_named(run: Run, event: str) -> list[dict[str, Any]]:
    return [e for e in run.events if e["event"] == event]


def task_of(run: Run) -> Task:
    return TASKS[run.data["task"]]
