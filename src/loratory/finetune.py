"""The page to read: check -> baselines -> fine-tune -> evaluate -> report.

Everything that happens is told to ``tell`` as an Event, so that a terminal and a page can show the same story.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from loratory import adapters, baselines, evaluate, report, runs
from loratory.config import Config
from loratory.evaluate import Prompting, System
from loratory.examples import Example, draw_few_shot
from loratory.generate import Progress
from loratory.job import Event, Job, Tell, chooses_on_validation, load_job, open_job, quiet, timed
from loratory.repeats import fold_jobs, other_seeds, parts_of, pool_folds
from loratory.tune import fit, is_trained, restore, trained_folder, trained_model
from loratory.world import peak_memory_bytes

PROMPTED = ("prompt", "prompt-choose", "few-shot", "few-shot-choose")
BEFORE = (*PROMPTED, "linear", "embed")
AFTER = ("tuned", "tuned-choose")


def finetune(config: Config, tell: Tell = quiet, overwrite: bool = False) -> Path:
    """The whole story: returns the run directory with adapter, predictions and report.

    An unfinished run of the same settings is continued. Raises UserError, and Interrupted after Ctrl-C in training.
    """
    job = open_job(config, tell, overwrite)
    return measure_all(job, tell)


def train_only(config: Config, tell: Tell = quiet, overwrite: bool = False) -> Path:
    """Trains and saves the adapter; measures nothing but what its settings need."""
    job = open_job(config, tell, overwrite)
    if not chooses_on_validation(config):
        job = dataclasses.replace(job, split=dataclasses.replace(job.split, validation=()))
    fit(job, tell)
    runs.append_metric(job.run, "memory", peak_memory_bytes=peak_memory_bytes())
    return job.run


def evaluate_run(run: Path, tell: Tell = quiet) -> Path:
    """Measures all systems of an existing run again, the tuned ones as they are on disk, and rewrites the report."""
    job = load_job(runs.read_config(run), run, tell)
    for folder in (run, *parts_of(run)):
        for old in (folder / "systems").glob("*.json"):
            old.unlink()
    if is_trained(job):
        return measure_all(job, tell)
    measure_before(job, tell)
    return finish(job, tell)


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
    model = trained_model(job, tell)
    for name in wanted(job, (*BEFORE, *AFTER)):
        rule = after(job, model, name)(lambda done, total: None).rule if name == "tuned-choose" else None
        pool_folds(job, folds, name, rule)


# ---- the systems -----------------------------------------------------------------------------------------------------


def wanted(job: Job, names: Sequence[str]) -> list[str]:
    """The systems of ``names`` that the settings ask for and that are not measured yet."""
    return [n for n in names if n in job.config.run.systems and not evaluate.is_measured(job.run, n)]


def before(job: Job, name: str) -> Callable[[Progress], System]:
    """How to make a system that needs no tuning."""

    def make(progress: Progress) -> System:
        seed, budget = job.config.train.seed, job.config.train.token_budget
        if name == "linear":
            return evaluate.classifying(*baselines.linear_classifier(job.split.train, seed))
        if name == "embed":
            found = baselines.embedding_classifier(
                job.base, job.renderer, job.split.train, job.layout, budget, seed, progress
            )
            return evaluate.classifying(*found)
        shots, note = few_shot(job) if name.startswith("few-shot") else ((), None)
        return prompted(job, job.base.model, shots, note, name.endswith("choose"), progress)

    return make


def few_shot(job: Job) -> tuple[tuple[Example, ...], str]:
    """The examples that few-shot prompts show, and a note on how many fit."""
    asked = draw_few_shot(job.split.train, job.config.prompt.few_shot, job.config.train.seed)
    rows = [*job.split.validation, *job.split.test]
    shots = evaluate.shots_that_fit(asked, rows, job.renderer, job.base.text.max_length)
    return shots, f"{len(shots)} of {len(asked)} few-shot examples fit"


def prompted(
    job: Job, model: nn.Module, shots: tuple[Example, ...], note: str | None, choose: bool, progress: Progress
) -> System:
    """The model, answering freely or choosing among the labels."""
    budget = job.config.train.token_budget
    prompting = Prompting(model, job.renderer, job.layout, job.split.labels, shots, budget)
    if choose:
        return evaluate.choosing(prompting, job.split.validation, note, progress)
    return evaluate.answering(prompting, note)


def measure(job: Job, systems: dict[str, Callable[[Progress], System]], stage: str, tell: Tell) -> None:
    """Evaluates the systems one after another; each is on disk before the next begins."""
    with timed(job.run, stage, tell):
        for name, make in systems.items():

            def progress(done: int, total: int, name: str = name) -> None:
                tell(Event("progress", name, {"done": done, "total": total}))

            record = evaluate.evaluate(name, make, job.split.validation, job.split.test, progress)
            evaluate.save_record(job.run, record, job.split.validation, job.split.test)
            right = sum(p.answer == e.answer for p, e in zip(record.test, job.split.test, strict=True))
            tell(Event("system", name, {"accuracy": right / len(job.split.test), "seconds": record.seconds}))


def measure_before(job: Job, tell: Tell) -> None:
    """Evaluates what needs no tuning."""
    measure(job, {name: before(job, name) for name in wanted(job, BEFORE)}, "baselines", tell)


def measure_after(job: Job, model: nn.Module, tell: Tell) -> None:
    """Evaluates the tuned model."""
    measure(job, {name: after(job, model, name) for name in wanted(job, AFTER)}, "evaluate", tell)


def after(job: Job, model: nn.Module, name: str) -> Callable[[Progress], System]:
    """How to make a tuned system."""
    return lambda progress: prompted(job, model, (), None, name.endswith("choose"), progress)


def finish(job: Job, tell: Tell) -> Path:
    """Writes the report, and into the card how the adapter answers best."""
    runs.append_metric(job.run, "memory", peak_memory_bytes=peak_memory_bytes())
    written = report.write_report(job.run)
    folder = trained_folder(job)
    rule = evaluate.saved_rule(job.run, "tuned-choose") if evaluate.is_measured(job.run, "tuned-choose") else None
    if rule and (folder / adapters.CARD).exists():
        card = adapters.read_card(folder)
        choose = {"rule": rule.name, "prior": list(rule.prior), "best": written["verdict"]["after"] == "tuned-choose"}
        runs.write_json(folder / adapters.CARD, {**card, "choose": choose})
    tell(Event("report", written["verdict"]["sentence"], written))
    return job.run
