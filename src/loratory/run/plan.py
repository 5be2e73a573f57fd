"""What a run will do, and how long that will take on this machine: a little of each of its parts is tried."""

import dataclasses
from dataclasses import dataclass

import torch

from loratory.config import SYSTEMS
from loratory.data import has_answer_slot, stratified
from loratory.evaluation import evaluate
from loratory.metrics import duration
from loratory.models import attach_adapter
from loratory.run.job import Job
from loratory.run.selection import BASELINE_SYSTEMS, FEW_SHOT_SYSTEMS, TUNED_SYSTEMS, baseline_system, selected_systems
from loratory.run.tuning import learning_rates, restore_base
from loratory.training import StepResult, make_optimizer, total_steps, train

PROBED_STEPS = 2  # the first warms up
ONE_OF, AT_LEAST, AT_MOST = 50, 2, 16  # of 50 examples one is tried, but at least 2 and at most 16
LINEAR_ROWS = 200  # with fewer, the time of the linear model says nothing


@dataclass(frozen=True)
class Plan:
    """What will be done, in sentences, and the estimated seconds of each stage."""

    sentences: tuple[str, ...]
    seconds: dict[str, float]


def make_plan(job: Job, baselines: bool) -> Plan:
    """Tries two optimizer steps and a few examples of each system. Leaves the job as it was and writes nothing."""
    probed = _try_training(job)
    repeats = job.config.train.seeds + job.config.data.folds
    seconds = {"train": repeats * probed.seconds * probed.steps * len(learning_rates(job))}
    if baselines:
        # The tuned model costs what the untouched one does.
        names = {
            name: name.replace("tuned", "prompt") for name in selected_systems(job, (*BASELINE_SYSTEMS, *TUNED_SYSTEMS))
        }
        each = {name: _try_system(job, name) for name in sorted(set(names.values()))}
        total = {
            part: sum(each[names[name]] for name in part if name in names) for part in (BASELINE_SYSTEMS, TUNED_SYSTEMS)
        }
        seconds = {
            "baselines": total[BASELINE_SYSTEMS],
            **seconds,
            "evaluate": job.config.train.seeds * total[TUNED_SYSTEMS],
        }
    return Plan((*_sentences(job, probed), _time(seconds)), seconds)


def _try_training(job: Job) -> StepResult:
    """The last of a few steps at a learning rate of 0; nothing of it stays."""
    model = attach_adapter(job.base, job.config.adapter, job.config.train.seed, job.config.speed.lora == "on")
    optimizer = make_optimizer(model, job.config.train, job.config.adapter.lora_plus)
    with torch.random.fork_rng():
        steps = train(model, job.train_sequences, optimizer, job.config.train, 0.0, job.layout)
        results = [result for _, result in zip(range(PROBED_STEPS), steps, strict=False)]
    restore_base(job, model)
    return results[-1]


def _try_system(job: Job, name: str) -> float:
    """Seconds that a system would take on all examples."""
    answered = len(job.split.validation) + len(job.split.test)
    count = min(AT_MOST, max(AT_LEAST, answered // ONE_OF))
    rows = min(LINEAR_ROWS if name == "linear" else AT_MOST, len(job.split.train))
    few_train = stratified(list(job.split.train), lambda e: e.answer, rows, job.config.train.seed, "plan")
    few_test = job.split.test[:: max(1, len(job.split.test) // count)][:count]
    split = dataclasses.replace(job.split, train=tuple(few_train), validation=(), test=few_test)
    few = dataclasses.replace(job, split=split)
    found = evaluate(name, baseline_system(few, name), (), few_test, lambda done, total: None)
    making = found.seconds - found.seconds_per_example * len(few_test)
    if name == "embed":  # its fit takes little beside the states of the training examples
        return found.seconds_per_example * (answered + len(job.split.train))
    return making * len(job.split.train) / len(few_train) + found.seconds_per_example * answered


def _sentences(job: Job, probed: StepResult) -> list[str]:
    config, split = job.config, job.split
    rates = " and ".join(f"{rate:.2g}" for rate in learning_rates(job))
    what = "all parameters" if config.adapter.kind == "full" else f"LoRA of rank {config.adapter.rank}"
    seeds = f"seed {config.train.seed}"
    if config.train.seeds > 1:
        seeds = f"seeds {config.train.seed} to {config.train.seed + config.train.seeds - 1}"
    parts = f"{len(split.train):,} training, {len(split.validation):,} validation, {len(split.test):,} test examples"
    if config.data.folds:
        parts = f"{config.data.folds} folds of {len(split.test):,} examples"
    shared = probed.tokens / probed.unique_tokens
    saving = f"; shared prefixes make that {shared:.1f} times less work than one by one" if shared >= 1.05 else ""
    wanted = config.run.systems or SYSTEMS[config.task]
    none_fits = {*FEW_SHOT_SYSTEMS} & {*wanted} - {*selected_systems(job, FEW_SHOT_SYSTEMS)}
    why = "the answer stands inside of the text" if has_answer_slot(split.prompt) else "no example fits into the prompt"
    return [
        f"{parts}{f', {len(split.labels)} labels' if split.labels else ''}; {seeds}",
        f"Training {what}: {config.train.epochs} epochs, {total_steps(len(split.train), config.train):,} steps of "
        f"{config.train.batch_size} examples, peak learning rate {rates}",
        f"{probed.tokens:,} tokens a step{saving}",
        *([f"Few-shot prompting is left out: {why}"] if none_fits else []),
    ]


def _time(seconds: dict[str, float]) -> str:
    total = duration(sum(seconds.values()))
    return f"About {total}: " + ", ".join(f"{name} {duration(value)}" for name, value in seconds.items())
