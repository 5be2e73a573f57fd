"""The plan of a run, with a time estimate from short trials of its stages on this machine."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from loratory.data import stratified_sample
from loratory.evaluation import NotMeasurable, evaluate
from loratory.events import ignore_progress
from loratory.metrics import DIFFERENCE, LARGE_SAMPLE, TASKS, detectable_difference, duration, task_variant
from loratory.run.job import Job
from loratory.run.prompt_search import announcement, search_work
from loratory.run.selection import BASELINE_SYSTEMS, baseline_system, selected_systems, unusable_systems
from loratory.run.training import learning_rates, restore_base, with_fresh_adapter
from loratory.run.unsound import base_model_error
from loratory.settings import TUNED
from loratory.training import NotFinite, StepResult, make_optimizer, patience_of, total_steps, train

PROBED_STEPS = 2  # the first step is a warm-up
TRIAL_FRACTION, MIN_TRIALS, MAX_TRIALS = 50, 2, 16  # one in 50 examples is tried, but at least 2 and at most 16
LINEAR_ROWS = 200  # the time of the linear model on fewer rows does not extrapolate


@dataclass(frozen=True)
class Plan:
    """Sentences that describe the run, and the estimated seconds of each stage."""

    sentences: tuple[str, ...]
    seconds: dict[str, float]


def make_plan(job: Job, baselines: bool) -> Plan:
    """Times two optimizer steps, and each system on a few examples if ``baselines``.

    Leaves model and random state unchanged and writes nothing.
    """
    probed = _try_training(job)
    repeats = job.config.train.seeds + job.config.data.folds
    seconds = {"train": repeats * probed.seconds * probed.steps * len(learning_rates(job))}
    # The tuned model takes as long as the base model.
    selected = selected_systems(job, (*BASELINE_SYSTEMS, *TUNED)) if baselines else []
    names, searched = {name: name.replace("tuned", "prompt") for name in selected}, search_work(job)
    times = {name: _try_system(job, name) for name in sorted({*names.values(), *searched})}
    if baselines:
        parts = (BASELINE_SYSTEMS, TUNED)
        total = {part: sum((times[names[name]] for name in part if name in names), 0.0) for part in parts}
        seconds = {
            "baselines": total[BASELINE_SYSTEMS],
            **seconds,
            "evaluate": job.config.train.seeds * total[TUNED],
        }
    if searched:
        rows = len(job.split.validation) + len(job.split.test)
        search = sum(count * times[name] / rows for name, count in searched.items())
        seconds = {"prompts": search, **seconds}
    warning = few_test_examples(job) if baselines else []
    return Plan((*_sentences(job, probed), *warning, _time(seconds)), seconds)


def _try_training(job: Job) -> StepResult:
    """The result of the last of a few steps at learning rate 0, after which the base model is restored.

    Raises UserError if the loss or its gradient is NaN or infinite.
    """
    model = with_fresh_adapter(job)
    optimizer = make_optimizer(model, job.config.train, job.config.adapter.lora_plus)
    with torch.random.fork_rng():
        steps = train(model, job.train_sequences, optimizer, job.config.train, 0.0, job.layout)
        try:
            results = [result for _, result in zip(range(PROBED_STEPS), steps, strict=False)]
        except NotFinite as problem:
            raise base_model_error(problem) from problem
    restore_base(job, model)
    return results[-1]


def _try_system(job: Job, name: str) -> float:
    """Estimated seconds that a system takes on all examples; 0 if it cannot be measured on a few of them."""
    total = len(job.split.validation) + len(job.split.test)
    count = min(MAX_TRIALS, max(MIN_TRIALS, total // TRIAL_FRACTION))
    rows = min(LINEAR_ROWS if name == "linear" else MAX_TRIALS, len(job.split.train))
    few_train = stratified_sample(list(job.split.train), lambda e: e.answer, rows, job.config.train.seed, "plan")
    few_test = job.split.test[:: max(1, len(job.split.test) // count)][:count]
    split = dataclasses.replace(job.split, train=tuple(few_train), validation=(), test=few_test)
    small_job = dataclasses.replace(job, split=split)
    try:
        record = evaluate(name, baseline_system(small_job, name), (), few_test, ignore_progress)
    except NotMeasurable:  # found again, and reported, when it is measured on all examples
        return 0.0
    fitting = record.seconds - record.seconds_per_example * len(few_test)
    if name == "embed":  # computing the states of the training examples takes most of its fitting time
        return record.seconds_per_example * (total + len(job.split.train))
    return fitting * len(job.split.train) / len(few_train) + record.seconds_per_example * total


def _sentences(job: Job, probed: StepResult) -> list[str]:
    config, split = job.config, job.split
    rates = " and ".join(f"{rate:.2g}" for rate in learning_rates(job))
    trained = "all parameters" if config.adapter.kind == "full" else f"LoRA of rank {config.adapter.rank}"
    seeds = f"seed {config.train.seed}"
    if config.train.seeds > 1:
        seeds = f"seeds {config.train.seed} to {config.train.seed + config.train.seeds - 1}"
    patience = patience_of(config.train)
    stops = f"; stops after {patience} epochs without a lower validation loss" if patience else ""
    parts = f"{len(split.train):,} training, {len(split.validation):,} validation, {len(split.test):,} test examples"
    if config.data.folds:
        parts = f"{config.data.folds} folds of {len(split.test):,} examples"
    shared = probed.tokens / probed.unique_tokens
    saving = f"; shared prefixes make that {shared:.1f} times less work than one by one" if shared >= 1.05 else ""
    return [
        f"{parts}{f', {len(split.labels)} labels' if split.labels else ''}; {seeds}",
        f"Training {trained}: {config.train.epochs} epochs, {total_steps(len(split.train), config.train):,} steps of "
        f"{config.train.batch_size} examples, peak learning rate {rates}{stops}",
        f"{probed.tokens:,} tokens per step{saving}",
        *announcement(job),
        *_skipped(unusable_systems(job)),
    ]


def _skipped(reasons: Mapping[str, str]) -> list[str]:
    """One line for each reason: the systems that are not measured, and why."""
    return [
        f"Not measured: {' and '.join(name for name in reasons if reasons[name] == why)}, because {why}"
        for why in dict.fromkeys(reasons.values())
    ]


def few_test_examples(job: Job) -> list[str]:
    """A warning if the test set is too small to show a difference of 10 points even in the best case.

    For graded scores, where that depends on their variance, a warning if there are fewer than 30 test examples.
    """
    count, data = len(job.split.test), job.config.data
    if TASKS[task_variant(job.config)].is_binary:
        shown = detectable_difference(count)
        if shown is not None and shown <= DIFFERENCE:
            return []
        what = "no difference between two systems can be significant"
        if shown is not None:
            what = f"even in the best case, a difference below {100 * shown:.0f} points cannot be shown reliably"
    elif count < LARGE_SAMPLE:
        what = f"with fewer than {LARGE_SAMPLE} graded examples, a difference is rarely significant"
    else:
        return []
    remedy = "use more" if data.folds or data.test else "use more, or test every row with --data.folds 5"
    return [f"Only {count} test examples: {what}; {remedy}"]


def _time(seconds: dict[str, float]) -> str:
    total = duration(sum(seconds.values()))
    return f"About {total}: " + ", ".join(f"{name} {duration(value)}" for name, value in seconds.items())
