"""A whole run: check -> baselines -> fine-tune -> evaluate -> report. Start reading here.

``finetune`` does everything, ``train_only`` stops after training, and ``evaluate_run`` evaluates an existing run again.
All report their progress as events to ``on_event``, so that a terminal, a notebook and a web page show the same run.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from torch import nn

from loratory.config import Config
from loratory.errors import Interrupted, UserError
from loratory.evaluation import NotMeasurable, System, evaluate, headline, is_evaluated, save_record, saved_rule
from loratory.events import Event, EventCallback, ProgressCallback, ignore_event, ignore_progress
from loratory.machine import peak_memory_bytes
from loratory.metrics import task_variant
from loratory.models import read_card, write_card
from loratory.report import write_report
from loratory.run import (
    BASELINE_SYSTEMS,
    Job,
    baseline_system,
    blended,
    choose_prompt,
    chooses_on_validation,
    discard_evaluation,
    fold_jobs,
    is_trained,
    load_or_train,
    log_not_measured,
    make_plan,
    mark,
    measure_retained,
    missing_fold,
    not_measured,
    open_job,
    pending_systems,
    pool_folds,
    reopen_job,
    restore_base,
    retained_texts,
    run_training,
    seed_jobs,
    timed_stage,
    trained_folder,
    tuned_system,
    unusable_systems,
)
from loratory.settings import BLEND, TUNED
from loratory.storage import CARD, append_metric

Confirm = Callable[[], bool]
"""Called after the plan is shown; returns whether to start the run."""


def always_confirm() -> bool:
    """Starts every run without a prompt."""
    return True


def finetune(
    config: Config,
    on_event: EventCallback = ignore_event,
    overwrite: bool = False,
    confirm: Confirm = always_confirm,
    force: bool = False,
) -> Path:
    """Fine-tunes a model on a task, evaluates it before and after, and writes a report.

    Loads and checks data and model, then shows the plan, calls ``confirm`` and, if the settings leave that to the run,
    chooses the prompt; nothing is written before that. If the run directory contains an unfinished run with the same
    settings, that run is resumed instead; with ``force`` even if the base model or the package versions have changed
    since. A finished run is replaced only with ``overwrite``.

    Returns the run directory with the adapter, the predictions and the report. Raises UserError if settings, data or
    model cannot be used, and Interrupted if ``confirm`` returns False or Ctrl-C or SIGTERM stops the training.
    """
    with open_job(config, on_event, overwrite, force, lambda j: prepare(j, True, on_event, confirm)) as job:
        return train_and_evaluate(job, on_event)


def train_only(
    config: Config,
    on_event: EventCallback = ignore_event,
    overwrite: bool = False,
    confirm: Confirm = always_confirm,
    force: bool = False,
) -> Path:
    """Trains and saves the adapter without evaluating it. Takes the arguments of ``finetune`` and raises its errors.

    Uses the validation examples only to choose: the prompt, the epoch that is kept, a learning rate, or when to stop
    early.
    """
    with open_job(config, on_event, overwrite, force, lambda j: prepare(j, False, on_event, confirm)) as job:
        if not chooses_on_validation(config) and config.train.keep == "last":
            job = dataclasses.replace(job, split=dataclasses.replace(job.split, validation=()))
        run_training(job, on_event)
        append_metric(job.run, "memory", peak_memory_bytes=peak_memory_bytes())
        return job.run


def evaluate_run(run: Path, on_event: EventCallback = ignore_event) -> Path:
    """Evaluates all systems of an existing run again and rewrites its report; goes on if that was interrupted.

    Loads the tuned model from disk. If training is not finished, evaluates only the baselines. Raises UserError if
    ``run`` is not a run directory, if its data or base model have changed, or if it is a cross-validation that is not
    finished.
    """
    with reopen_job(run, on_event) as job:
        trained = is_trained(job)
        if not trained and (trained_folder(job) / CARD).exists():
            read_card(trained_folder(job))  # names what has changed
        if job.config.data.folds and not trained:
            what = "This cross-validation is not finished; its folds are evaluated during training"
            raise UserError(what, str(run), fix="repeat the command that started it")
        discard_evaluation(run)
        if trained:
            return train_and_evaluate(job, on_event)
        evaluate_baselines(job, on_event)
        report = write_report(run)
        mark(run, "started")  # training can still be done
        on_event(Event("report", report["verdict"]["sentence"], report))
        return run


def prepare(job: Job, baselines: bool, on_event: EventCallback, confirm: Confirm) -> tuple[Job, dict[str, float]]:
    """Shows the plan, asks whether to start, and chooses the prompt, with which everything is measured and trained.

    Returns the job with that prompt, and the estimated seconds of each stage. Raises Interrupted if ``confirm`` returns
    False.
    """
    seconds = announce_plan(job, baselines, on_event, confirm)
    return choose_prompt(job, on_event), seconds


def announce_plan(job: Job, baselines: bool, on_event: EventCallback, confirm: Confirm) -> dict[str, float]:
    """Shows what the run will do and returns the estimated seconds of each stage, with or without baselines.

    Raises Interrupted if ``confirm`` returns False.
    """
    retained_texts(job)  # reports a mistake in these files before anything is written
    on_event(Event("stage", "plan"))
    plan = make_plan(job, baselines)
    for sentence in plan.sentences:
        on_event(Event("message", sentence, plan.seconds))
    if not confirm():
        raise Interrupted("Nothing was started")
    return plan.seconds


def train_and_evaluate(job: Job, on_event: EventCallback) -> Path:
    """Evaluates the baselines, trains, evaluates the tuned model and writes the report.

    Repeats training and evaluation for each further seed, or cross-validates if ``data.folds`` is set. Skips whatever
    an interrupted run has already completed.
    """
    if job.config.data.folds:
        cross_validate(job, on_event)
        return finish(job, on_event)
    evaluate_baselines(job, on_event)
    model = load_or_train(job, on_event)
    evaluate_tuned(job, model, on_event)
    for seed_job in seed_jobs(job):
        restore_base(job, model)
        on_event(Event("stage", f"seed {seed_job.config.train.seed}"))
        model = load_or_train(seed_job, on_event)
        evaluate_tuned(seed_job, model, on_event)
    return finish(job, on_event)


def cross_validate(job: Job, on_event: EventCallback) -> None:
    """Evaluates every example with a model that was not trained on it, then trains the final model on all folds.

    Validation examples, if the settings have any, are left out of that training too.
    """
    folds = fold_jobs(job)
    for number, fold in enumerate(folds, 1):
        on_event(Event("stage", f"fold {number} of {len(folds)}"))
        evaluate_baselines(fold, on_event)
        model = load_or_train(fold, on_event)
        evaluate_tuned(fold, model, on_event)
        restore_base(fold, model)
    on_event(Event("stage", "all examples"))
    measure_retained(job, job.base.model, "before", on_event)
    model = load_or_train(job, on_event)
    measure_retained(job, model, "after", on_event)
    log_unusable(job, on_event)
    for name in pending_systems(job, (*BASELINE_SYSTEMS, *TUNED, BLEND)):
        if reason := missing_fold(folds, name):
            log_not_measured(job.run, name, reason, on_event)
            continue
        rule = tuned_system(job, model, name)(ignore_progress).rule if name == "tuned-choose" else None
        pool_folds(job, folds, name, rule)


# ---- stages ----------------------------------------------------------------------------------------------------------


def evaluate_systems(
    job: Job, systems: dict[str, Callable[[ProgressCallback], System]], stage: str, on_event: EventCallback
) -> None:
    """Evaluates the systems one after another and saves each before the next begins, so that a run can be resumed.

    A system that cannot be measured on this data is reported and left out.
    """
    with timed_stage(job.run, stage, on_event):
        for name, make in systems.items():

            def progress(part: str, done: int, total: int, name: str = name) -> None:
                on_event(Event("progress", name, {"part": part, "done": done, "total": total}))

            try:
                record = evaluate(name, make, job.split.validation, job.split.test, progress)
            except NotMeasurable as problem:
                log_not_measured(job.run, name, str(problem), on_event)
                continue
            split = job.split
            save_record(job.run, record, split.train, split.validation, split.test, task_variant(job.config))
            metric, value = headline(job.split.test, record.test, task_variant(job.config))
            on_event(Event("system", name, {"metric": metric, "value": value, "seconds": record.seconds}))


def evaluate_baselines(job: Job, on_event: EventCallback) -> None:
    """Evaluates the systems that need no tuning: prompting, few-shot prompting, classifiers, copying."""
    measure_retained(job, job.base.model, "before", on_event)
    log_unusable(job, on_event)
    evaluate_systems(
        job,
        {name: baseline_system(job, name) for name in pending_systems(job, BASELINE_SYSTEMS)},
        "baselines",
        on_event,
    )


def log_unusable(job: Job, on_event: EventCallback) -> None:
    """Reports the selected systems that cannot be measured on this data, as is known before they are tried."""
    for name, reason in unusable_systems(job).items():
        log_not_measured(job.run, name, reason, on_event)


def evaluate_tuned(job: Job, model: nn.Module, on_event: EventCallback) -> None:
    """Evaluates the tuned model on the same examples as the baselines."""
    measure_retained(job, model, "after", on_event)
    evaluate_systems(
        job,
        {name: tuned_system(job, model, name) for name in pending_systems(job, TUNED)},
        "evaluate",
        on_event,
    )
    evaluate_systems(job, {name: blended(job) for name in pending_systems(job, (BLEND,))}, "blend", on_event)


def finish(job: Job, on_event: EventCallback) -> Path:
    """Writes the report, records in the adapter's card how to choose among labels, and marks the run as finished.

    Raises UserError if no system could be measured.
    """
    reasons = not_measured(job.run)
    if reasons and not any(is_evaluated(job.run, name) for name in (*BASELINE_SYSTEMS, *TUNED)):
        found = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        fix = "select other systems with --run.systems, or add examples with text"
        raise UserError("No system could be measured on this data", str(job.run), None, found, fix)
    append_metric(job.run, "memory", peak_memory_bytes=peak_memory_bytes())
    report = write_report(job.run)
    folder = trained_folder(job)
    rule = saved_rule(job.run, "tuned-choose") if is_evaluated(job.run, "tuned-choose") else None
    if rule and is_trained(job):
        choose = {
            "rule": rule.name,
            "prior": list(rule.prior),
            "threshold": rule.threshold,
            "best": report["verdict"]["after"] == "tuned-choose",
        }
        write_card(folder, {**read_card(folder, force=True), "choose": choose})  # is_trained has checked its files
    mark(job.run, "finished")  # the only commit: until here, the same command repeats what is missing
    on_event(Event("report", report["verdict"]["sentence"], report))
    return job.run
