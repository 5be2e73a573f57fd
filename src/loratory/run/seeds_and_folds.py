"""Sub-jobs of a job, each in its own folder: further seeds, and the folds of a cross-validation."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from loratory.data import fold_splits
from loratory.evaluation import EvalRecord, Prediction, is_evaluated, load_record, save_record
from loratory.metrics import task_variant
from loratory.run.job import Job
from loratory.run.unsound import not_measured
from loratory.text import tokenize
from loratory.tree import Rule


def seed_jobs(job: Job) -> list[Job]:
    """The job with each further seed: different initial weights and order, the same split."""
    train = job.config.train
    settings = [dataclasses.replace(train, seed=train.seed + i, seeds=1) for i in range(1, train.seeds)]
    return [_sub_job(job, f"seeds/{s.seed}", config=dataclasses.replace(job.config, train=s)) for s in settings]


def fold_jobs(job: Job) -> list[Job]:
    """The job on each fold. Raises UserError if a label has too few examples."""
    jobs = []
    for number, split in enumerate(fold_splits(job.split, job.config.data, job.config.train.seed), 1):
        train_sequences = tuple(tuple(tokenize(example, job.renderer)) for example in split.train)
        jobs.append(_sub_job(job, f"folds/{number}", split=split, train_sequences=train_sequences))
    return jobs


def _sub_job(job: Job, folder: str, **changes) -> Job:
    (job.run / folder).mkdir(parents=True, exist_ok=True)
    return dataclasses.replace(job, run=job.run / folder, **changes)


def pool_folds(job: Job, folds: Sequence[Job], name: str, rule: Rule | None) -> None:
    """Saves a system's predictions for all examples in the run, each from the fold that was not trained on the example.

    ``rule`` is the rule by which the final model chooses; None if it does not score labels.
    """
    records = [load_record(fold.run, name) for fold in folds]
    index = {id(example): i for i, example in enumerate(job.split.test)}
    test = [Prediction("", None, None)] * len(job.split.test)
    for fold, record in zip(folds, records, strict=True):
        for example, prediction in zip(fold.split.test, record.test, strict=True):
            test[index[id(example)]] = prediction
    pooled = EvalRecord(
        name,
        f"fold 1: {records[0].note}" if records[0].note else None,
        rule,
        tuple(prediction for record in records for prediction in record.validation),
        tuple(test),
        sum(record.seconds for record in records),
        sum(r.seconds_per_example * len(r.test) for r in records) / len(test),
    )
    validation = [e for fold in folds for e in fold.split.validation]
    save_record(job.run, pooled, (), validation, job.split.test, task_variant(job.config))


def missing_fold(folds: Sequence[Job], name: str) -> str | None:
    """Why a system cannot be pooled: the number of the first fold in which it was not measured, and the reason."""
    for number, fold in enumerate(folds, 1):
        if not is_evaluated(fold.run, name):
            return f"in fold {number}, {not_measured(fold.run).get(name, 'it was not reached')}"
    return None


def seed_and_fold_folders(run: Path) -> list[Path]:
    """The folders of further seeds and of folds; empty if the run has none."""
    return sorted(path for path in (*run.glob("seeds/*/"), *run.glob("folds/*/")) if path.name.isdecimal())
