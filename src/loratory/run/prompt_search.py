"""The search for a prompt: wordings, then draws of few-shot examples, are tried on validation examples."""

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from loratory.data import Example, phrasings, stratified_sample
from loratory.errors import UserError
from loratory.evaluation import (
    NotMeasurable,
    Prediction,
    PromptedModel,
    headline,
    label_scoring_system,
    log_prob_at_best_temperature,
)
from loratory.events import Event, EventCallback, ProgressCallback, ignore_progress
from loratory.metrics import TASKS, percent, task_variant
from loratory.run.job import Job, with_prompt
from loratory.run.selection import few_shot, measures_few_shot
from loratory.settings import PromptConfig
from loratory.text import check_system_is_shown, fit_to_context

MOST_EXAMPLES = 100
DRAWS = 3


@dataclass(frozen=True)
class Trial:
    """A prompt and what it is worth on the validation examples of the search."""

    prompt: PromptConfig
    shots: int
    """The number of solved examples in it; 0 for a wording alone."""
    value: float
    """The headline metric."""
    score: float
    """What decides: see ``score_of``."""


def choose_prompt(job: Job, on_event: EventCallback) -> Job:
    """The job with the best of several wordings and of several draws of few-shot examples, and a record of all of them.

    The best is the one with the highest score on at most 100 validation examples, the earlier one if two are equal. The
    first wording is the prompt that the job has. One that the model's template or context does not allow is left out.
    Returns the same job if its prompt is not to change.
    """
    if job.split.with_prompt is None:
        return job
    started = time.perf_counter()
    on_event(Event("stage", "prompts"))
    positions = searched_positions(job)
    wordings, seeds = wordings_of(job), draws_of(job)
    done, total = 0, (len(wordings) + len(seeds)) * len(positions)

    def attempt(prompt: PromptConfig, shots: Sequence[Example]) -> list[Trial]:
        nonlocal done
        before = done

        def progress(scored: int, _: int) -> None:
            on_event(Event("progress", "prompts", {"part": "validation", "done": before + scored, "total": total}))

        done += len(positions)
        return _try(job, prompt, positions, tuple(shots), progress)

    tried = [trial for prompt in wordings for trial in attempt(prompt, ())]
    chosen = next(_usable_jobs(job, tried))
    prompt, drawn = chosen.config.prompt, []
    for seed in seeds:
        with_seed = dataclasses.replace(prompt, few_shot_seed=seed)
        shots, _ = few_shot(_with_settings(chosen, with_seed))
        drawn += attempt(with_seed, shots) if shots else []
    if drawn:
        chosen = _with_settings(chosen, _best_first(drawn)[0].prompt)
    records = tuple(_record(trial, chosen.config.prompt, len(positions)) for trial in (*tried, *drawn))
    on_event(Event("message", _sentence(records, task_variant(job.config))))
    texts = {"system": chosen.config.prompt.system, "user": chosen.config.prompt.user}
    on_event(
        Event(
            "message",
            "; ".join(f"{role}: {json.dumps(text, ensure_ascii=False)}" for role, text in texts.items() if text),
        )
    )
    seconds = {**job.seconds, "prompts": time.perf_counter() - started}
    return dataclasses.replace(chosen, seconds=seconds, prompts_tried=records)


def wordings_of(job: Job) -> list[PromptConfig]:
    """The prompts to try: the one that the job has, and other wordings with the same columns.

    If the model's chat template has no system message, its text precedes that of the user.
    """
    prompt, data = job.config.prompt, job.config.data
    written = phrasings(prompt, data.answer, job.config.task, job.split.labels, data.candidates)
    if not _shows_system(job):
        written = [(None, f"{system}\n\n{user}" if system else user) for system, user in written]
    others = [dataclasses.replace(prompt, system=system, user=user) for system, user in written]
    return [prompt, *(other for other in others if other != prompt)]


def _shows_system(job: Job) -> bool:
    try:
        check_system_is_shown(job.renderer)
    except UserError:
        return False
    return True


def draws_of(job: Job) -> list[int]:
    """The seeds of the draws of few-shot examples to try; none if the settings name one, or if nothing shows them.

    In a cross-validation, each fold draws its own examples.
    """
    fixed = job.config.prompt.few_shot_seed != "auto"
    if fixed or job.config.data.folds or not measures_few_shot(job):
        return []
    return [job.config.train.seed + i for i in range(DRAWS)]


def searched_positions(job: Job) -> list[int]:
    """Which validation examples the search uses: all, or a sample by seed, stratified by label."""
    rows = _validation(job, job.config.prompt)
    single = job.config.task == "classification"
    seed = job.config.train.seed
    sample = stratified_sample(rows, lambda e: e.answer if single else "", MOST_EXAMPLES, seed, "prompt search")
    chosen = {id(example) for example in sample}
    return [i for i, example in enumerate(rows) if id(example) in chosen]


def _validation(job: Job, prompt: PromptConfig) -> list[Example]:
    assert job.split.with_prompt is not None, "the prompt may change"
    return list(job.split.with_prompt(prompt).validation)


def _try(
    job: Job, prompt: PromptConfig, positions: Sequence[int], shots: tuple[Example, ...], progress: ProgressCallback
) -> list[Trial]:
    """The trial of a prompt; none if it cannot be rendered or scored."""
    try:
        rows = _validation(job, prompt)
        limit = job.base.text.max_length
        examples = fit_to_context([rows[i] for i in positions], job.renderer, limit, "cut_prompt").examples
        budget, task = job.config.train.token_budget, job.config.task
        # Nothing is generated, so the length of answers does not matter.
        prompting = PromptedModel(job.base.model, job.renderer, job.layout, shots, 0, budget)
        system = label_scoring_system(prompting, examples, task, None, progress)
        predictions = system.predict(examples, ignore_progress)
    except (UserError, NotMeasurable):
        return []
    value = headline(examples, predictions, task_variant(job.config))[1]
    return [Trial(prompt, len(shots), value, score_of(task, examples, predictions, value))]


def score_of(task: str, examples: Sequence[Example], predictions: Sequence[Prediction], value: float) -> float:
    """How well the right answer is told from the others, from all probabilities; for sets of labels, the headline."""
    if task == "labels":
        return value
    return log_prob_at_best_temperature([p.probabilities or {} for p in predictions], [e.answer for e in examples])


def _best_first(trials: Sequence[Trial]) -> list[Trial]:
    return sorted(trials, key=lambda trial: -trial.score)


def _usable_jobs(job: Job, trials: Sequence[Trial]) -> Iterator[Job]:
    """The job with each prompt, the best first, without those for which some example is too long."""
    for trial in _best_first(trials):
        try:
            yield with_prompt(job, trial.prompt)
        except UserError:
            continue


def _with_settings(job: Job, prompt: PromptConfig) -> Job:
    return dataclasses.replace(job, config=dataclasses.replace(job.config, prompt=prompt))


def _record(trial: Trial, chosen: PromptConfig, examples: int) -> dict[str, Any]:
    """A trial as report.json and the log have it. ``examples``: the number of validation examples."""
    prompt = trial.prompt
    wording = dataclasses.replace(chosen, few_shot_seed=prompt.few_shot_seed)
    return {
        "system": prompt.system,
        "user": prompt.user,
        "few_shot_seed": prompt.few_shot_seed if trial.shots else None,
        "shots": trial.shots,
        "examples": examples,
        "validation_value": trial.value,
        "score": trial.score,
        "chosen": prompt == (chosen if trial.shots else wording),
    }


def announcement(job: Job) -> list[str]:
    """A sentence for the plan on what the search will try; none if the prompt is not to change."""
    if job.split.with_prompt is None:
        return []
    count, wordings = len(searched_positions(job)), len(wordings_of(job))
    draws = f", and few-shot examples as the best of {DRAWS} draws" if draws_of(job) else ""
    return [f"The prompt is chosen as the best of {wordings} wordings{draws}, on {count} validation examples"]


def search_work(job: Job) -> dict[str, int]:
    """How many examples the search scores as each system does; empty if the prompt is not to change."""
    if job.split.with_prompt is None:
        return {}
    count = len(searched_positions(job))
    work = {"prompt-choose": count * len(wordings_of(job)), "few-shot-choose": count * len(draws_of(job))}
    return {name: examples for name, examples in work.items() if examples}


def _sentence(records: Sequence[dict[str, Any]], task: str) -> str:
    """What the search has chosen."""
    chosen = [record for record in records if record["chosen"]]
    wordings, draws = ([r for r in records if bool(r["shots"]) == shown] for shown in (False, True))
    metric = TASKS[task].metric_label
    first, best = wordings[0], chosen[0]
    text = f"Prompt {wordings.index(best) + 1} of {len(wordings)} is the best on {best['examples']} validation examples"
    text += f": {metric} {percent(best['validation_value'])}"
    text += "" if best is first else f", {percent(first['validation_value'])} with the first"
    if draws:
        drawn = chosen[-1]
        text += f"; of {len(draws)} draws of few-shot examples, that of seed {drawn['few_shot_seed']}: "
        text += percent(drawn["validation_value"])
    return text
