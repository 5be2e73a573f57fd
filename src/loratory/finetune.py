"""The page to read: check -> baselines -> fine-tune -> evaluate -> report.

Everything that happens is told to ``on_event`` as an Event, so that a terminal and a page can show the same story.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from torch import nn

from loratory.config import Config
from loratory.errors import Interrupted, UserError
from loratory.evaluation import System, evaluate, headline, is_measured, save_record, saved_rule
from loratory.events import Event, EventCallback, ProgressCallback, ignore_event
from loratory.machine import peak_memory_bytes
from loratory.metrics import task_variant
from loratory.models import CARD, read_card
from loratory.report import write_report
from loratory.run import (
    BASELINE_SYSTEMS,
    TUNED_SYSTEMS,
    Job,
    baseline_system,
    chooses_on_validation,
    fold_jobs,
    is_trained,
    load_job,
    load_or_train,
    make_plan,
    measure_retained,
    open_job,
    pending_systems,
    pool_folds,
    restore_base,
    retained_texts,
    run_training,
    seed_and_fold_folders,
    seed_jobs,
    timed_stage,
    trained_folder,
    tuned_system,
)
from loratory.storage import append_metric, read_config, write_json

Confirm = Callable[[], bool]


def always_confirm() -> bool:
    """Goes on without asking."""
    return True


def finetune(
    config: Config, on_event: EventCallback = ignore_event, overwrite: bool = False, confirm: Confirm = always_confirm
) -> Path:
    """The whole story: returns the run directory with adapter, predictions and report.

    An unfinished run of the same settings is continued. ``confirm`` is asked when the plan has been told, before
    anything is written. Raises UserError, and Interrupted after Ctrl-C in training or where ``confirm`` says no.
    """
    job = open_job(config, on_event, overwrite, lambda job: announce_plan(job, True, on_event, confirm))
    return measure_run(job, on_event)


def train_only(
    config: Config, on_event: EventCallback = ignore_event, overwrite: bool = False, confirm: Confirm = always_confirm
) -> Path:
    """Trains and saves the adapter; measures nothing but what its settings need."""
    job = open_job(config, on_event, overwrite, lambda job: announce_plan(job, False, on_event, confirm))
    if not chooses_on_validation(config):
        job = dataclasses.replace(job, split=dataclasses.replace(job.split, validation=()))
    run_training(job, on_event)
    append_metric(job.run, "memory", peak_memory_bytes=peak_memory_bytes())
    return job.run


def evaluate_run(run: Path, on_event: EventCallback = ignore_event) -> Path:
    """Measures all systems of an existing run again, the tuned ones as they are on disk, and rewrites the report.

    Raises UserError where the run is none, or is a cross-validation that was not finished.
    """
    job = load_job(read_config(run), run, on_event)
    if job.config.data.folds and not is_trained(job):
        fix = "repeat the command that started it"
        raise UserError(
            "A cross-validation is measured as it is trained, and this one is not finished", str(run), fix=fix
        )
    for folder in (run, *seed_and_fold_folders(run)):
        for old in (folder / "systems").glob("*.json"):
            old.unlink()
    if is_trained(job):
        return measure_run(job, on_event)
    measure_baselines(job, on_event)
    return finish(job, on_event)


def announce_plan(job: Job, baselines: bool, on_event: EventCallback, confirm: Confirm) -> dict[str, float]:
    """Tells what will be done and how long it will take. Raises Interrupted where that is not wanted."""
    retained_texts(job)  # a mistake in them is told now
    on_event(Event("stage", "plan"))
    plan = make_plan(job, baselines)
    for sentence in plan.sentences:
        on_event(Event("message", sentence, plan.seconds))
    if not confirm():
        raise Interrupted("Nothing was started")
    return plan.seconds


def measure_run(job: Job, on_event: EventCallback) -> Path:
    """Baselines, training, the tuned model, report; once, or with several seeds, or on folds."""
    if job.config.data.folds:
        cross_validate(job, on_event)
        return finish(job, on_event)
    measure_baselines(job, on_event)
    model = load_or_train(job, on_event)
    measure_tuned(job, model, on_event)
    for other in seed_jobs(job):
        restore_base(job, model)
        on_event(Event("stage", f"seed {other.config.train.seed}"))
        model = load_or_train(other, on_event)
        measure_tuned(other, model, on_event)
    return finish(job, on_event)


def cross_validate(job: Job, on_event: EventCallback) -> None:
    """Every example is answered by a model that did not train on it; the delivered one trains on all of them."""
    folds = fold_jobs(job)
    for number, fold in enumerate(folds, 1):
        on_event(Event("stage", f"fold {number} of {len(folds)}"))
        measure_baselines(fold, on_event)
        model = load_or_train(fold, on_event)
        measure_tuned(fold, model, on_event)
        restore_base(fold, model)
    on_event(Event("stage", "all examples"))
    measure_retained(job, job.base.model, "before")
    model = load_or_train(job, on_event)
    measure_retained(job, model, "after")
    for name in pending_systems(job, (*BASELINE_SYSTEMS, *TUNED_SYSTEMS)):
        if not all(is_measured(fold.run, name) for fold in folds):
            continue
        rule = tuned_system(job, model, name)(lambda done, total: None).rule if name == "tuned-choose" else None
        pool_folds(job, folds, name, rule)


# ---- its parts -------------------------------------------------------------------------------------------------------


def measure(
    job: Job, systems: dict[str, Callable[[ProgressCallback], System]], stage: str, on_event: EventCallback
) -> None:
    """Evaluates the systems one after another; each is on disk before the next begins."""
    with timed_stage(job.run, stage, on_event):
        for name, make in systems.items():

            def progress(done: int, total: int, name: str = name) -> None:
                on_event(Event("progress", name, {"done": done, "total": total}))

            record = evaluate(name, make, job.split.validation, job.split.test, progress)
            save_record(job.run, record, job.split.validation, job.split.test, task_variant(job.config))
            metric, value = headline(job.split.test, record.test, task_variant(job.config))
            on_event(Event("system", name, {"metric": metric, "value": value, "seconds": record.seconds}))


def measure_baselines(job: Job, on_event: EventCallback) -> None:
    """Evaluates what needs no tuning."""
    measure_retained(job, job.base.model, "before")
    measure(
        job,
        {name: baseline_system(job, name) for name in pending_systems(job, BASELINE_SYSTEMS)},
        "baselines",
        on_event,
    )


def measure_tuned(job: Job, model: nn.Module, on_event: EventCallback) -> None:
    """Evaluates the tuned model."""
    measure_retained(job, model, "after")
    measure(
        job,
        {name: tuned_system(job, model, name) for name in pending_systems(job, TUNED_SYSTEMS)},
        "evaluate",
        on_event,
    )


def finish(job: Job, on_event: EventCallback) -> Path:
    """Writes the report, and into the card how the adapter answers best."""
    append_metric(job.run, "memory", peak_memory_bytes=peak_memory_bytes())
    written = write_report(job.run)
    folder = trained_folder(job)
    rule = saved_rule(job.run, "tuned-choose") if is_measured(job.run, "tuned-choose") else None
    if rule and (folder / CARD).exists():
        card = read_card(folder)
        choose = {
            "rule": rule.name,
            "prior": list(rule.prior),
            "threshold": rule.threshold,
            "best": written["verdict"]["after"] == "tuned-choose",
        }
        write_json(folder / CARD, {**card, "choose": choose})
    on_event(Event("report", written["verdict"]["sentence"], written))
    return job.run
