"""Predictions on disk: one JSON line per example, and the metadata of each system."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from loratory.data import LABEL_SEPARATOR, Example
from loratory.evaluation.evaluate_system import EvalRecord, Prediction
from loratory.metrics import TASKS
from loratory.storage import (
    changed_files,
    hashes_of,
    read_json_object,
    read_regular,
    seal_is_intact,
    sealed,
    write_json,
    write_json_lines,
)
from loratory.tree import Rule

ON_TRAIN, ON_VALIDATION, ON_TEST = "predictions/train", "predictions/validation", "predictions"


def save_record(
    run: Path, record: EvalRecord, train: Sequence[Example], validation: Sequence[Example], test: Sequence[Example],
    task: str,
) -> None:  # fmt: skip
    """Writes predictions/<name>.jsonl, predictions/validation/<name>.jsonl and, last, systems/<name>.json.

    Answers to training examples, if there are any, go to predictions/train/<name>.jsonl. The last file has the hashes
    of the others, and a seal.
    """
    parts = {ON_VALIDATION: (validation, record.validation), ON_TEST: (test, record.test)}
    if record.training:
        parts[ON_TRAIN] = (train, record.training)
    for folder, (examples, predictions) in parts.items():
        write_json_lines(run / folder / f"{record.name}.jsonl", lines(examples, predictions, task))
    meta = {key: getattr(record, key) for key in ("name", "note", "seconds", "seconds_per_example")}
    meta["rule"] = record.rule.name if record.rule else None
    meta["prior"] = list(record.rule.prior) if record.rule else None
    meta["threshold"] = record.rule.threshold if record.rule else None
    meta["files"] = hashes_of(run, [f"{folder}/{record.name}.jsonl" for folder in parts])
    write_json(_metadata_file(run, record.name), sealed(meta))


def _metadata_file(run: Path, name: str) -> Path:
    return run / "systems" / f"{name}.json"


def lines(examples: Sequence[Example], predictions: Sequence[Prediction], task: str) -> list[dict]:
    """Predictions in the form in which the run directory stores them."""
    return [_line(i, e, p, task) for i, (e, p) in enumerate(zip(examples, predictions, strict=True))]


def _line(index: int, example: Example, prediction: Prediction, task: str) -> dict:
    expected = LABEL_SEPARATOR.join(example.answers) if task == "labels" else example.answer
    line = {"index": index, "expected": expected, **dataclasses.asdict(prediction)}
    accepted = (expected,) if task == "labels" else example.answers
    line["correct"] = prediction.answer in accepted if prediction.failure is None else not prediction.failure
    line = {key: value for key, value in line.items() if value is not None or key not in ("turns", "failure")}
    if not TASKS[task].is_binary:
        line["worth"] = TASKS[task].score(line, example.answers)
    return line


def headline(examples: Sequence[Example], predictions: Sequence[Prediction], task: str) -> tuple[str, float]:
    """The display name and the value of the task's headline metric."""
    pairs = zip(lines(examples, predictions, task), examples, strict=True)
    scores = [TASKS[task].score(line, example.answers) for line, example in pairs]
    return TASKS[task].metric_label, sum(scores) / max(1, len(scores))


def load_record(run: Path, name: str) -> EvalRecord:
    """Reads what ``save_record`` wrote."""
    meta = read_json_object(_metadata_file(run, name))
    validation, test = (_predictions(run / folder / f"{name}.jsonl") for folder in (ON_VALIDATION, ON_TEST))
    on_train = run / ON_TRAIN / f"{name}.jsonl"
    training = _predictions(on_train) if f"{ON_TRAIN}/{name}.jsonl" in meta["files"] else ()
    rule, seconds, per_example = saved_rule(run, name), meta["seconds"], meta["seconds_per_example"]
    return EvalRecord(name, meta["note"], rule, validation, test, seconds, per_example, training)


def _predictions(path: Path) -> tuple[Prediction, ...]:
    rows = [json.loads(line) for line in read_regular(path).decode("utf-8").split("\n") if line]
    return tuple(
        Prediction(row["answer"], row["log_probs"], row["probabilities"], _turns(row.get("turns")), row.get("failure"))
        for row in rows
    )


def _turns(pairs: list[list] | None) -> tuple[tuple[float, int], ...] | None:
    return None if pairs is None else tuple((value, count) for value, count in pairs)


def is_evaluated(run: Path, name: str) -> bool:
    """Whether a system's predictions are complete on disk, as they were saved."""
    return _metadata_file(run, name).exists() and not changed_records(run, name)


def changed_records(run: Path, name: str) -> list[str]:
    """The files of an evaluated system that are missing, damaged or changed since they were saved."""
    try:
        meta = read_json_object(_metadata_file(run, name))
        if meta["name"] == name and seal_is_intact(meta):
            return changed_files(run, meta.get("files", {}))
    except (ValueError, KeyError):
        pass
    return [f"systems/{name}.json"]


def saved_rule(run: Path, name: str) -> Rule | None:
    """The rule of an evaluated system; None if it does not score labels."""
    meta = read_json_object(_metadata_file(run, name))
    return Rule(meta["rule"], tuple(meta["prior"]), meta.get("threshold")) if meta["rule"] else None
