"""The systems of a run, made for its job: what a person would otherwise pick, and the tuned model."""

from collections.abc import Callable, Sequence

from torch import nn

from loratory.config import SYSTEMS, TUNED
from loratory.data.examples import Example, has_blank
from loratory.data.splits import draw_few_shot
from loratory.evaluation import baselines, evaluate
from loratory.evaluation.evaluate import Prompting, System
from loratory.metrics.tasks import measure_of
from loratory.run.job import Job
from loratory.tree.generation import Progress

FEW_SHOT = ("few-shot", "few-shot-choose")
BEFORE = ("prompt", "prompt-choose", *FEW_SHOT, "linear", "embed", "copy")
AFTER = TUNED


def asked(job: Job, names: Sequence[str]) -> list[str]:
    """The systems of ``names`` that the settings ask for; few-shot prompting only where an example fits the prompt."""
    chosen = job.config.run.systems or SYSTEMS[job.config.task]
    found = [name for name in names if name in chosen]
    if has_blank(job.split.prompt):  # a solved text beside a text with a blank is nothing that a model has seen
        return [name for name in found if name not in FEW_SHOT]
    if any(name in FEW_SHOT for name in found) and not few_shot(job)[0]:
        return [name for name in found if name not in FEW_SHOT]
    return found


def wanted(job: Job, names: Sequence[str]) -> list[str]:
    """Those of ``asked`` that are not measured yet."""
    return [name for name in asked(job, names) if not evaluate.is_measured(job.run, name)]


def before(job: Job, name: str) -> Callable[[Progress], System]:
    """How to make a system that needs no tuning."""

    def make(progress: Progress) -> System:
        seed, budget = job.config.train.seed, job.config.train.token_budget
        if name == "copy":
            return evaluate.copying(*baselines.copy_rule(job.split.train))
        if name == "linear" and job.config.task == "labels":
            found = baselines.linear_marker(job.split.train, job.split.labels)
            return evaluate.classifying_sets(*found, job.split.validation, progress)
        if name == "linear" and job.config.task == "choice":
            return evaluate.classifying(*baselines.most_similar(job.split.train))
        if name == "linear":
            return evaluate.classifying(*baselines.linear_classifier(job.split.train, seed))
        if name == "embed":
            found = baselines.embedding_classifier(
                job.base, job.renderer, job.split.train, job.layout, budget, seed, progress
            )
            return evaluate.classifying(*found)
        shots, note = few_shot(job) if name.startswith("few-shot") else ((), None)
        return prompted(job, job.base.model, name, shots, note, progress)

    return make


def few_shot(job: Job) -> tuple[tuple[Example, ...], str]:
    """The examples that few-shot prompts show, and a note on how many fit."""
    asked = draw_few_shot(job.split.train, job.config.prompt.few_shot, job.config.train.seed)
    rows = [*job.split.validation, *job.split.test]
    shots = evaluate.shots_that_fit(asked, rows, job.renderer, job.base.text.max_length)
    return shots, f"{len(shots)} of {len(asked)} few-shot examples fit"


def prompted(
    job: Job, model: nn.Module, name: str, shots: tuple[Example, ...], note: str | None, progress: Progress
) -> System:
    """The model, answering freely or choosing among the labels, as the system's name says."""
    budget = job.config.train.token_budget
    longest = evaluate.longest_answer(job.split.train, job.renderer)
    prompting = Prompting(model, job.renderer, job.layout, shots, longest, budget)
    if measure_of(job.config) == "fill-text":
        return evaluate.restoring(prompting)
    if job.config.task == "code":
        return evaluate.programming(prompting, job.config.code.seconds if job.config.code.run else None, note)
    if job.config.task == "dialogue":
        return evaluate.conversing(prompting)
    if name.endswith("choose"):
        return evaluate.choosing(prompting, job.split.validation, job.config.task, note, progress)
    if job.renderer.masked:
        return evaluate.filling(prompting, tuned=name in TUNED)
    return evaluate.answering(prompting, note)


def after(job: Job, model: nn.Module, name: str) -> Callable[[Progress], System]:
    """How to make a tuned system."""
    return lambda progress: prompted(job, model, name, (), None, progress)
