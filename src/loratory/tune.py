"""The training of a run: learning rates, checkpoints, interruption, and the trained model as it is on disk."""

import dataclasses
from pathlib import Path

import torch
from torch import nn

from loratory import adapters, models, render, runs
from loratory.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from loratory.config import BUILTIN
from loratory.errors import Interrupted
from loratory.job import Event, Job, Tell, timed
from loratory.optim import automatic_learning_rate, make_optimizer
from loratory.train import StepResult, mean_loss, train
from loratory.world import interrupt_requested


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
    """The peak learning rates to try, ascending."""
    asked = job.config.train.learning_rate
    if asked == "auto":
        width = job.base.model.config.get_text_config().hidden_size
        return [automatic_learning_rate(job.config.adapter, width)]
    if isinstance(asked, tuple):
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
