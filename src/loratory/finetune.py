"""The page to read: check -> baselines -> fine-tune -> evaluate -> report.

Everything that happens is told to ``tell`` as an Event, so that a terminal and a page can show the same story.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from torch import nn

from loratory.config import Config
from loratory.errors import Interrupted, UserError
from loratory.evaluation import evaluate
from loratory.evaluation.evaluate import System
from loratory.evaluation.forgetting import measure_retained, retained_texts
from loratory.machine.device import peak_memory_bytes
from loratory.metrics.tasks import measure_of
from loratory.models import adapters
from loratory.report import report
from loratory.run.job import Event, Job, Tell, chooses_on_validation, load_job, open_job, quiet, timed
from loratory.run.plan import make_plan
from loratory.run.seeds_and_folds import fold_jobs, other_seeds, parts_of, pool_folds
from loratory.run.systems import AFTER, BEFORE, after, before, wanted
from loratory.run.tuning import fit, is_trained, restore, trained_folder, trained_model
from loratory.storage import run_directory as runs
from loratory.tree.generation import Progress

Confirm = Callable[[], bool]


def always() -> bool:
    """Goes on without asking."""
    return True


def finetune(config: Config, tell: Tell = quiet, overwrite: bool = False, confirm: Confirm = always) -> Path:
    """The whole story: returns the run directory with adapter, predictions and report.

    An unfinished run of the same settings is continued. ``confirm`` is asked when the plan has been told, before
    anything is written. Raises UserError, and Interrupted after Ctrl-C in training or where ``confirm`` says no.
    """
    job = open_job(config, tell, overwrite, lambda job: announce(job, True, tell, confirm))
    return measure_all(job, tell)


def train_only(config: Config, tell: Tell = quiet, overwrite: bool = False, confirm: Confirm = always) -> Path:
    """Trains and saves the adapter; measures nothing but what its settings need."""
    job = open_job(config, tell, overwrite, lambda job: announce(job, False, tell, confirm))
    if not chooses_on_validation(config):
        job = dataclasses.replace(job, split=dataclasses.replace(job.split, validation=()))
    fit(job, tell)
    runs.append_metric(job.run, "memory", peak_memory_bytes=peak_memory_bytes())
    return job.run


def evaluate_run(run: Path, tell: Tell = quiet) -> Path:
    """Measures all systems of an existing run again, the tuned ones as they are on disk, and rewrites the report.

    Raises UserError where the run is none, or is a cross-validation that was not finished.
    """
    job = load_job(runs.read_config(run), run, tell)
    if job.config.data.folds and not is_trained(job):
        fix = "repeat the command that started it"
        raise UserError(
            "A cross-validation is measured as it is trained, and this one is not finished", str(run), fix=fix
        )
    for folder in (run, *parts_of(run)):
        for old in (folder / "systems").glob("*.json"):
            old.unlink()
    if is_trained(job):
        return measure_all(job, tell)
    measure_before(job, tell)
    return finish(job, tell)


def announce(job: Job, baselines: bool, tell: Tell, confirm: Confirm) -> dict[str, float]:
    """Tells what will be done and how long it will take. Raises Interrupted where that is not wanted."""
    retained_texts(job)  # a mistake in them is told now
    tell(Event("stage", "plan", {}))
    plan = make_plan(job, baselines)
    for sentence in plan.sentences:
        tell(Event("say", sentence, plan.seconds))
    if not confirm():
        raise Interrupted("Nothing was started")
    return plan.seconds


def measure_all(job: Job, tell: Tell) -> Path:
    """Baselines, training, the tuned model, report; once, or with several seeds, or on folds."""
    if job.config.data.folds:
        cross_validate(job, tell)
        return finish(job, tell)
    measure_before(job, tell)
    model = trained_model(job, tell)
    measure_after(job, model, tell)
    for other in other_seeds(job):
        restore(job, model)
        tell(Event("stage", f"seed {other.config.train.seed}", {}))
        model = trained_model(other, tell)
        measure_after(other, model, tell)
    return finish(job, tell)


def cross_validate(job: Job, tell: Tell) -> None:
    """Every example is answered by a model that did not train on it; the delivered one trains on all of them."""
    folds = fold_jobs(job)
    for number, fold in enumerate(folds, 1):
        tell(Event("stage", f"fold {number} of {len(folds)}", {}))
        measure_before(fold, tell)
        model = trained_model(fold, tell)
        measure_after(fold, model, tell)
        restore(fold, model)
    tell(Event("stage", "all examples", {}))
    measure_retained(job, job.base.model, "before")
    model = trained_model(job, tell)
    measure_retained(job, model, "after")
    for name in wanted(job, (*BEFORE, *AFTER)):
        if not all(evaluate.is_measured(fold.run, name) for fold in folds):
            continue
        rule = after(job, model, name)(lambda done, total: None).rule if name == "tuned-choose" else None
        pool_folds(job, folds, name, rule)


# ---- its parts -------------------------------------------------------------------------------------------------------


def measure(job: Job, systems: dict[str, Callable[[Progress], System]], stage: str, tell: Tell) -> None:
    """Evaluates the systems one after another; each is on disk before the next begins."""
    with timed(job.run, stage, tell):
        for name, make in systems.items():

            def progress(done: int, total: int, name: str = name) -> None:
                tell(Event("progress", name, {"done": done, "total": total}))

            record = evaluate.evaluate(name, make, job.split.validation, job.split.test, progress)
            evaluate.save_record(job.run, record, job.split.validation, job.split.test, measure_of(job.config))
            metric, value = evaluate.headline(job.split.test, record.test, measure_of(job.config))
            tell(Event("system", name, {"metric": metric, "value": value, "seconds": record.seconds}))


def measure_before(job: Job, tell: Tell) -> None:
    """Evaluates what needs no tuning."""
    measure_retained(job, job.base.model, "before")
    measure(job, {name: before(job, name) for name in wanted(job, BEFORE)}, "baselines", tell)


def measure_after(job: Job, model: nn.Module, tell: Tell) -> None:
    """Evaluates the tuned model."""
    measure_retained(job, model, "after")
    measure(job, {name: after(job, model, name) for name in wanted(job, AFTER)}, "evaluate", tell)


def finish(job: Job, tell: Tell) -> Path:
    """Writes the report, and into the card how the adapter answers best."""
    runs.append_metric(job.run, "memory", peak_memory_bytes=peak_memory_bytes())
    written = report.write_report(job.run)
    folder = trained_folder(job)
    rule = evaluate.saved_rule(job.run, "tuned-choose") if evaluate.is_measured(job.run, "tuned-choose") else None
    if rule and (folder / adapters.CARD).exists():
        card = adapters.read_card(folder)
        choose = {
            "rule": rule.name,
            "prior": list(rule.prior),
            "threshold": rule.threshold,
            "best": written["verdict"]["after"] == "tuned-choose",
        }
        runs.write_json(folder / adapters.CARD, {**card, "choose": choose})
    tell(Event("report", written["verdict"]["sentence"], written))
    return job.run
