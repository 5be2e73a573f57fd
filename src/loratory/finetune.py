"""The page to read: check -> baselines -> fine-tune -> evaluate -> report.

Everything that happens is told to ``tell`` as an Event, so that a terminal and a page can show the same story.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from loratory import adapters, baselines, evaluate, models, render, report, runs
from loratory.attention import Layout, choose_layout
from loratory.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from loratory.config import BUILTIN, Config, config_to_dict
from loratory.errors import UserError
from loratory.evaluate import Prompting, System
from loratory.examples import Example, Split, draw_few_shot, load_split
from loratory.generate import Progress
from loratory.optim import automatic_learning_rate, make_optimizer
from loratory.render import Renderer, TokenizedExample
from loratory.train import StepResult, mean_loss, train
from loratory.world import World, describe, interrupt_requested, peak_memory_bytes, resolve_world

PROMPTED = ("prompt", "prompt-choose", "few-shot", "few-shot-choose")
BEFORE = (*PROMPTED, "linear", "embed")
AFTER = ("tuned", "tuned-choose")


@dataclass(frozen=True)
class Event:
    """Something to show: ``kind`` is stage, say, progress, step, system or report."""

    kind: str
    text: str
    values: dict[str, Any]


Tell = Callable[[Event], None]


class Interrupted(Exception):
    """Training was interrupted and saved; the same call goes on from there."""


@dataclass(frozen=True)
class Job:
    """All that a run needs once model and data are loaded and checked."""

    config: Config
    run: Path
    world: World
    base: models.LoadedModel
    renderer: Renderer
    split: Split
    layout: Layout
    trained: tuple[tuple[TokenizedExample, ...], ...]
    """The sequences of each training example."""
    checks: tuple[dict[str, Any], ...]


def quiet(_event: Event) -> None:
    """Tells nobody."""


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


# ---- load and check --------------------------------------------------------------------------------------------------


def open_job(config: Config, tell: Tell, overwrite: bool) -> Job:
    """Loads and checks everything, and only then writes: a mistake leaves nothing behind."""
    run = Path(config.run.out)
    resumed = runs.check_run(run, config, overwrite)
    if resumed:
        tell(Event("say", f"Going on with the unfinished run in {run}", {}))
        job = load_job(runs.read_config(run), run, tell)
        runs.check_same_data(run, data_record(job))
        runs.mend_metrics(run)
        return job
    job = load_job(config, run, tell)
    runs.create_run(run, overwrite)
    runs.write_json(run / runs.ASKED, config_to_dict(config))
    runs.write_json(run / "environment.json", environment(job))
    runs.write_json(run / "data.json", data_record(job))
    runs.write_config(run, job.config)
    return job


def load_job(config: Config, run: Path, tell: Tell) -> Job:
    """Loads data and model and checks that one fits the other. Raises UserError."""
    tell(Event("stage", "load", {}))
    split = load_split(config.data, config.prompt, config.train.seed)
    dtype = "float32" if config.adapter.kind == "full" and config.model.dtype == "auto" else config.model.dtype
    world = resolve_world(config.model.device, dtype, config.run.threads)
    tell(
        Event(
            "say",
            f"{len(split.train)} training, {len(split.validation)} validation, {len(split.test)} test examples",
            {},
        )
    )
    tell(Event("say", f"Device: {world.why}", {}))
    base = models.load_model(config.model, world)
    if base.text.plain_template:
        tell(Event("say", "The model has no chat template; a plain one is used (docs/rendering.md)", {}))
    renderer = render.make_renderer(base.text.tokenizer, base.text.stop_ids, split.prompt)
    if config.prompt.system is not None:
        render.check_system_is_shown(renderer)
    tell(Event("say", f"Answers end with {renderer.ending_text!r}: {renderer.note}", {}))

    tell(Event("stage", "check", {}))
    split, checks = fit_split(split, renderer, base.text.max_length, config.data.overlong)
    trained = tuple(tuple(render.tokenize(example, renderer)) for example in split.train)
    layout = choose_layout(base.model, [s for group in trained for s in group], config.train.batching)
    tell(Event("say", f"Batches: {layout.kind} ({layout.why})", {}))
    for check in checks:
        tell(Event("say", check["message"], check))
    resolved = dataclasses.replace(
        config,
        model=dataclasses.replace(
            config.model,
            device=str(world.device),
            dtype=world.dtype_name,
            revision=base.revision or config.model.revision,
        ),
        prompt=dataclasses.replace(split.prompt, date=renderer.date),
        run=dataclasses.replace(config.run, threads=world.threads),
    )
    return Job(resolved, run, world, base, renderer, split, layout, trained, tuple(checks))


def fit_split(split: Split, renderer: Renderer, limit: int, overlong: str) -> tuple[Split, list[dict[str, Any]]]:
    """The split with over-long examples treated as the settings say, and what the checks found."""
    parts, checks = {}, []
    for name in ("train", "validation", "test"):
        fitted = render.fit_to_context(getattr(split, name), renderer, limit, overlong)
        parts[name] = fitted.examples
        for what, count in (("dropped", fitted.dropped), ("cut", fitted.cut)):
            if count:
                message = f"{count} {name} examples were {what}, being longer than {limit} tokens"
                checks.append({"name": f"overlong_{what}", "count": count, "message": message})
    if not parts["train"] or not parts["test"]:
        raise UserError("No examples are left", "[data] overlong", fix="use a model with a longer context")
    seen = {example.messages for example in parts["train"]}
    repeated = sum(example.messages in seen for example in parts["test"])
    if repeated:
        message = f"{repeated} test examples have the same text as a training example"
        checks.append({"name": "test_in_train", "count": repeated, "message": message})
    text = " ".join(m.content for m in parts["train"][0].messages)
    unnamed = sum(label not in text for label in split.labels)
    if unnamed:
        message = f"The prompt does not name {unnamed} of {len(split.labels)} labels, so prompting cannot know them"
        checks.append({"name": "labels_not_in_prompt", "count": unnamed, "message": f"{message}: use {{labels}}"})
    return dataclasses.replace(split, **parts), checks


def environment(job: Job) -> dict[str, Any]:
    """environment.json: model, machine, versions."""
    model = {"name": job.base.name, "revision": job.base.revision, "weights_sha256": job.base.weights_sha256}
    batches = {"kind": job.layout.kind, "why": job.layout.why}
    ending = {"text": job.renderer.ending_text, "stop_ids": list(job.renderer.stop_ids), "why": job.renderer.note}
    git = runs.git_state(Path.cwd())
    machine = describe(job.world)
    return {"model": model, **machine, "batches": batches, "ending": ending, "versions": runs.versions(), "git": git}


def data_record(job: Job) -> dict[str, Any]:
    """data.json: what was read, and what was found in it."""
    data, split = job.config.data, job.split
    counts = {f"{name}_examples": len(getattr(split, name)) for name in ("train", "validation", "test")}
    return {
        "task": job.config.task,
        "labels": list(split.labels),
        **counts,
        "files": runs.file_records([*data.train, *data.validation, *data.test]),
        "checks": list(job.checks),
        "test_prompts": [e.messages[-1].content for e in split.test],
    }


# ---- before ----------------------------------------------------------------------------------------------------------


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


# ---- fine-tune -------------------------------------------------------------------------------------------------------


def fit(job: Job, tell: Tell) -> nn.Module:
    """Trains, with every learning rate of a list; saves the best on validation and returns it as saved."""
    with timed(job.run, "train", tell):
        rates = learning_rates(job)
        losses = {}
        for rate in rates:
            model = fresh(job, again=rate != rates[0])
            train_one(job, model, rate, tell)
            losses[rate] = validation_loss(job, model) if len(rates) > 1 else None
            if rate != rates[-1]:
                adapters.detach(model)
        best = min(rates, key=lambda rate: losses[rate] or 0.0)
        for rate in rates:
            values = {"learning_rate": rate, "validation_loss": losses[rate], "chosen": rate == best}
            runs.append_metric(job.run, "trial", trial=f"{rate:g}", **values)
        if best != rates[-1]:
            adapters.detach(model)
            model = fresh(job, again=True)
            found, _ = latest_checkpoint(checkpoint_folder(job, best))
            assert found is not None
            load_checkpoint(found, model, None)
        trainable, total = adapters.parameter_counts(model)
        rate = tokens_per_second(job)
        runs.append_metric(
            job.run, "trained", trainable_parameters=trainable, total_parameters=total, tokens_per_second=rate
        )
        return save_trained(job, model)


def learning_rates(job: Job) -> list[float]:
    """The peak learning rates to try. Raises UserError for a list without validation examples."""
    asked = job.config.train.learning_rate
    if asked == "auto":
        width = job.base.model.config.get_text_config().hidden_size
        return [automatic_learning_rate(job.config.adapter, width)]
    if isinstance(asked, tuple):
        if len(set(asked)) > 1 and not job.split.validation:
            raise UserError("A list of learning rates needs validation examples", "[train] learning_rate")
        return sorted(set(asked))
    return [float(asked)]


def fresh(job: Job, again: bool) -> nn.Module:
    """The untouched base model, ready to train. ``again``: it was trained before."""
    if again and job.config.adapter.kind == "full":
        untouched = models.load_model(job.config.model, job.world)
        job.base.model.load_state_dict(untouched.model.state_dict())
    return adapters.attach(job.base, job.config.adapter, job.config.train.seed)


def checkpoint_folder(job: Job, rate: float) -> Path:
    """Where the checkpoints of a learning rate are kept."""
    several = isinstance(job.config.train.learning_rate, tuple)
    return job.run / "checkpoints" / f"rate-{rate:g}" if several else job.run / "checkpoints"


def train_one(job: Job, model: nn.Module, rate: float, tell: Tell) -> None:
    """One training, from its newest good checkpoint to the end. Raises Interrupted, with everything saved."""
    settings, folder = job.config.train, checkpoint_folder(job, rate)
    optimizer = make_optimizer(model, settings)
    found, skipped = latest_checkpoint(folder)
    for sentence in skipped:
        tell(Event("say", sentence, {}))
    first = found.step if found else 0
    with torch.random.fork_rng(), interrupt_requested() as interrupted:
        torch.manual_seed(settings.seed)  # dropout draws from here
        if found:
            load_checkpoint(found, model, optimizer)
            tell(Event("say", f"Resumed after step {first}", {}))
        for result in train(model, job.trained, optimizer, settings, rate, job.layout, first):
            log_step(job, model, result, rate, tell)
            last = result.step == result.steps
            due = settings.checkpoint_every and result.step % settings.checkpoint_every == 0
            if last or due or interrupted():
                save_checkpoint(folder, model, optimizer, result.step)
            if interrupted() and not last:
                raise Interrupted(f"Interrupted after step {result.step} of {result.steps}; it is saved")


def log_step(job: Job, model: nn.Module, result: StepResult, rate: float, tell: Tell) -> None:
    """Logs and tells a step, and at the end of an epoch the loss on validation."""
    values = dataclasses.asdict(result)
    runs.append_metric(job.run, "step", trial=f"{rate:g}", **values)
    tell(Event("step", f"{rate:g}", values))
    ends_epoch = result.step % (result.steps // job.config.train.epochs) == 0
    if ends_epoch and job.split.validation:
        loss = validation_loss(job, model)
        runs.append_metric(job.run, "validation", trial=f"{rate:g}", step=result.step, loss=loss)


def validation_loss(job: Job, model: nn.Module) -> float:
    """Mean loss a token of the right answers to the validation examples."""
    sequences = [render.tokenize(example, job.renderer) for example in job.split.validation]
    return mean_loss(model, sequences, job.layout, job.config.train.token_budget)


def tokens_per_second(job: Job) -> float | None:
    """Tokens of the training sequences a second, over all steps of the log."""
    steps = [m for m in runs.read_metrics(job.run) if m["event"] == "step"]
    seconds = sum(m["seconds"] for m in steps)
    return sum(m["tokens"] for m in steps) / seconds if seconds else None


# ---- after -----------------------------------------------------------------------------------------------------------


def trained_folder(job: Job) -> Path:
    """adapter/ for LoRA, model/ for full fine-tuning."""
    return job.run / ("adapter" if job.config.adapter.kind == "lora" else "model")


def save_trained(job: Job, model: nn.Module) -> nn.Module:
    """Writes what was trained and, for an adapter, reads it back: what is measured is what is on disk."""
    prompt = dataclasses.asdict(job.config.prompt)
    name = BUILTIN if job.config.model.name == BUILTIN else job.base.name
    base = {"name": name, "revision": job.base.revision, "weights_sha256": job.base.weights_sha256}
    card = {
        "adapter": job.config.adapter.kind,
        "base": base,
        "prompt": {key: value for key, value in prompt.items() if value is not None},
        "answer": job.config.data.answer,
        "labels": list(job.split.labels),
        "ending": list(job.renderer.ending),
        "stop_ids": list(job.renderer.stop_ids),
        "choose": None,
    }
    adapters.save_trained(model, trained_folder(job), job.base.text.tokenizer, job.renderer.stop_ids, card)
    if job.config.adapter.kind == "full":
        return model
    adapters.detach(model)
    return reload_trained(job)


def reload_trained(job: Job) -> nn.Module:
    """The tuned model from disk."""
    if job.config.adapter.kind == "lora":
        return adapters.load_trained(job.base, trained_folder(job))
    config = dataclasses.replace(job.config.model, name=str(trained_folder(job)), revision=None)
    return models.load_model(config, job.world).model


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


@contextmanager
def timed(run: Path, stage: str, tell: Tell) -> Iterator[None]:
    """Tells the stage and logs its seconds, also when it is interrupted."""
    tell(Event("stage", stage, {}))
    started = time.perf_counter()
    try:
        yield
    finally:
        runs.append_metric(run, "stage", name=stage, seconds=time.perf_counter() - started)
