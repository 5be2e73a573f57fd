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
from loratory.job import Event, Job, Tell, load_job, open_job, quiet, timed
from loratory.tune import fit, reload_trained, trained_folder
from loratory.world import peak_memory_bytes

PROMPTED = ("prompt", "prompt-choose", "few-shot", "few-shot-choose")
BEFORE = (*PROMPTED, "linear", "embed")
AFTER = ("tuned", "tuned-choose")


def finetune(config: Config, tell: Tell = quiet, overwrite: bool = False) -> Path:
    """The whole story: returns the run directory with adapter, predictions and report.

    An unfinished run of the same settings is continued. Raises UserError, and Interrupted after Ctrl-C in training.
    """
    job = open_job(config, tell, overwrite)
    measure(job, {name: before(job, name) for name in wanted(job, BEFORE)}, "baselines", tell)
    model = fit(job, tell)
    measure(job, {name: after(job, model, name) for name in wanted(job, AFTER)}, "evaluate", tell)
    return finish(job, tell)


def train_only(config: Config, tell: Tell = quiet, overwrite: bool = False) -> Path:
    """Trains and saves the adapter; measures nothing but what a list of learning rates needs."""
    job = open_job(config, tell, overwrite)
    if not isinstance(config.train.learning_rate, tuple):
        job = dataclasses.replace(job, split=dataclasses.replace(job.split, validation=()))
    fit(job, tell)
    runs.append_metric(job.run, "memory", peak_memory_bytes=peak_memory_bytes())
    return job.run


def evaluate_run(run: Path, tell: Tell = quiet) -> Path:
    """Measures all systems of an existing run again, the tuned ones with its saved adapter, and rewrites the report."""
    job = load_job(runs.read_config(run), run, tell)
    for old in (run / "systems").glob("*.json"):
        old.unlink()
    measure(job, {name: before(job, name) for name in wanted(job, BEFORE)}, "baselines", tell)
    if (trained_folder(job) / adapters.CARD).exists():
        model = reload_trained(job)
        measure(job, {name: after(job, model, name) for name in wanted(job, AFTER)}, "evaluate", tell)
    return finish(job, tell)


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
