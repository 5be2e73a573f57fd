"""Training: learning rate search, checkpoints, early stopping, interruption, and saving the tuned model."""

import dataclasses
import math
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from loratory.errors import INTERRUPTED, TERMINATED, Interrupted
from loratory.events import Event, EventCallback
from loratory.machine import versions
from loratory.models import (
    WEIGHTS,
    attach_adapter,
    attach_start,
    changed_model_files,
    detach_adapter,
    load_adapter,
    load_model,
    parameter_counts,
    save_tuned_model,
)
from loratory.run.job import Job, timed_stage
from loratory.run.unsound import fingerprint, training_error, warn, warn_of_divergence, warn_of_no_change
from loratory.settings import BUILTINS, TrainConfig
from loratory.signals import stop_requested
from loratory.storage import CARD, append_metric, read_metrics
from loratory.text import longest_answer, tokenize
from loratory.training import (
    NotFinite,
    StepResult,
    automatic_learning_rate,
    checkpoint_at,
    epochs_of,
    is_finite,
    latest_checkpoint,
    load_checkpoint,
    make_optimizer,
    mean_loss,
    patience_of,
    save_checkpoint,
    train,
    trainable_parameters,
)

ValidationLosses = dict[int, float]  # optimizer step -> mean validation loss per token, in ascending order of steps


@dataclass(frozen=True)
class Trial:
    """A finished training with one learning rate."""

    peak_learning_rate: float
    selected_step: int
    """The optimizer step whose weights are kept."""
    validation_loss: float | None
    """Validation loss at that step; None without validation examples."""
    stopped_early: bool
    """Whether training stopped early."""
    unchanged: bool
    """Whether every trained weight still has its initial value."""


def load_or_train(job: Job, on_event: EventCallback) -> nn.Module:
    """The tuned model, loaded from disk if training is complete, otherwise trained."""
    if is_trained(job):
        model = reload_trained(job)
        if not any(e["event"] == "trained" for e in read_metrics(job.run)):  # it was in a part of the log that is lost
            log_trained(job, model)
        return model
    if (trained_folder(job) / CARD).exists():
        changed = ", ".join(changed_model_files(trained_folder(job)))
        text = f"The tuned model has changed since it was saved ({changed}); it is made again"
        on_event(Event("message", text))
    return run_training(job, on_event)


def run_training(job: Job, on_event: EventCallback) -> nn.Module:
    """Trains with each configured learning rate, saves the model that is best on validation, and returns it.

    A learning rate at which a number becomes NaN or infinite is left out. Raises UserError if none is left.
    """
    with timed_stage(job.run, "train", on_event):
        rates = learning_rates(job)
        trials, errors = [], []
        for rate in rates:
            model = with_fresh_adapter(job)
            try:
                trials.append(train_one(job, model, rate, on_event))
            except NotFinite as problem:
                saved, _ = latest_checkpoint(checkpoint_folder(job, rate))
                errors.append(training_error(problem, rate, saved.step if saved else None))
                if len(rates) > 1:
                    what = f"the {problem.quantity} became NaN or infinite in step {problem.step}"
                    warn(job.run, "diverged", f"Learning rate {rate:g} is left out: {what}", on_event)
            if rate != rates[-1]:
                restore_base(job, model)
        if not trials:
            raise errors[-1]
        best = min(trials, key=lambda trial: _loss_sort_key(trial.validation_loss))
        for trial in trials:
            values = {
                "learning_rate": trial.peak_learning_rate,
                "validation_loss": trial.validation_loss,
                "chosen": trial is best,
                "best_step": trial.selected_step,
                "stopped": trial.stopped_early,
            }
            append_metric(job.run, "trial", trial=f"{trial.peak_learning_rate:g}", **values)
        if best.peak_learning_rate != rates[-1]:
            restore_base(job, model)
            model = with_fresh_adapter(job)
            folder = checkpoint_folder(job, best.peak_learning_rate)
            load_checkpoint(checkpoint_at(folder, best.selected_step), model, None)
        warn_of_divergence(job.run, best.peak_learning_rate, on_event)
        if best.unchanged:
            warn_of_no_change(job.run, best.peak_learning_rate, on_event)
        log_trained(job, model)
        return save_trained(job, model)


def log_trained(job: Job, model: nn.Module) -> None:
    """Logs the size of the trained model and the speed of its training."""
    trainable, total = parameter_counts(model)
    values = {"trainable_parameters": trainable, "total_parameters": total, "tokens_per_second": tokens_per_second(job)}
    append_metric(job.run, "trained", **values)


def with_fresh_adapter(job: Job) -> nn.Module:
    """The base model with what the settings train: a new adapter, initialized by seed, or all parameters; or else the
    adapter from which training goes on, as it was given."""
    fused = job.config.speed.lora == "on"
    detach_adapter(job.base.model)
    if job.base.start:
        return attach_start(job.base, trained=True, dropout=job.config.adapter.dropout, fused=fused)
    return attach_adapter(job.base, job.config.adapter, job.config.train.seed, fused)


def learning_rates(job: Job) -> list[float]:
    """The peak learning rates to try, in ascending order."""
    configured = job.config.train.learning_rate
    if configured == "auto":
        width = job.base.model.config.get_text_config().hidden_size
        return [automatic_learning_rate(job.config.adapter, width)]
    if isinstance(configured, tuple):
        return sorted(set(configured))
    return [float(configured)]


def restore_base(job: Job, model: nn.Module) -> None:
    """Restores what is measured before training: detaches the tuned adapter and attaches the one from which training
    goes on, if there is one; or reloads the weights after full fine-tuning."""
    detach_adapter(model)
    if job.base.start:
        attach_start(job.base, trained=False, fused=job.config.speed.lora == "on")
    if job.config.adapter.kind == "full":
        original = load_model(job.config.model, job.machine)
        job.base.model.load_state_dict(original.model.state_dict())


def checkpoint_folder(job: Job, rate: float) -> Path:
    """The folder for the checkpoints of a learning rate."""
    several = isinstance(job.config.train.learning_rate, tuple)
    return job.run / "checkpoints" / f"rate-{rate:g}" if several else job.run / "checkpoints"


def train_one(job: Job, model: nn.Module, rate: float, on_event: EventCallback) -> Trial:
    """Trains with one learning rate, resuming from the newest usable checkpoint.

    Raises Interrupted after Ctrl-C or SIGTERM, and NotFinite; in both cases the last sound step is saved.
    """
    settings, folder = job.config.train, checkpoint_folder(job, rate)
    initial = fingerprint(trainable_parameters(model))
    optimizer = make_optimizer(model, settings, job.config.adapter.lora_plus)
    checkpoint, skipped = latest_checkpoint(folder)
    for sentence in skipped:
        on_event(Event("message", sentence))
    done = checkpoint.step if checkpoint else 0
    # Checkpoints of earlier versions have no losses; the log could have lost a line.
    losses = dict(checkpoint.losses) if checkpoint and checkpoint.losses else logged_losses(job, rate, done)
    with torch.random.fork_rng(), stop_requested() as stopped:
        torch.manual_seed(settings.seed)  # for dropout
        if checkpoint:
            load_checkpoint(checkpoint, model, optimizer)
            on_event(Event("message", f"Resumed after step {done}"))
        stop = stops_early(losses, settings)
        steps = () if stop else train(model, job.train_sequences, optimizer, settings, rate, job.layout, done)

        def save_sound() -> None:
            if done:
                save_checkpoint(folder, model, optimizer, done, best_step(losses, settings), losses)

        for result in saving_if_not_finite(steps, save_sound):
            done = result.step
            losses |= log_step_and_validate(job, model, result, rate, on_event)
            best, stop = best_step(losses, settings), stops_early(losses, settings)
            last = stop or done == result.steps
            due = settings.checkpoint_every and done % settings.checkpoint_every == 0
            if last or due or best == done or stopped():
                save_checkpoint(folder, model, optimizer, done, best, losses)
            if stop:
                on_event(Event("message", f"Stopped early after step {done} of {result.steps}"))
            if stop or stopped():
                break
        if number := stopped():
            text = f"Interrupted after step {done}, which is saved. To resume, repeat the command without --overwrite"
            raise Interrupted(text, INTERRUPTED if number == signal.SIGINT else TERMINATED)
    kept = restore_best_checkpoint(job, model, rate, losses, done, on_event)
    return Trial(rate, kept, losses.get(kept), stop, fingerprint(trainable_parameters(model)) == initial)


def saving_if_not_finite(steps: Iterable[StepResult], save: Callable[[], None]) -> Iterator[StepResult]:
    """The steps of a training. Saves the state before a step that raises NotFinite, which that step did not change."""
    try:
        yield from steps
    except NotFinite:
        save()
        raise


def restore_best_checkpoint(
    job: Job, model: nn.Module, rate: float, losses: ValidationLosses, done: int, on_event: EventCallback
) -> int:
    """Restores the weights of the best epoch unless ``train.keep`` is "last". Returns the step whose weights are kept.

    ``done`` is the last step. If the best checkpoint cannot be loaded, the last weights are kept.
    """
    best = best_step(losses, job.config.train)
    if best in (None, done):
        return done
    try:
        load_checkpoint(checkpoint_at(checkpoint_folder(job, rate), best), model, None)
    except ValueError as error:
        on_event(
            Event("message", f"The best checkpoint, of step {best}, cannot be used: {error}. Kept the last weights")
        )
        return done
    on_event(Event("message", f"Kept the weights of step {best} of {done}, which has the lowest validation loss"))
    return best


def logged_losses(job: Job, rate: float, done: int) -> ValidationLosses:
    """The validation losses in the log up to step ``done``."""
    events = [m for m in read_metrics(job.run) if m["event"] == "validation" and m["trial"] == f"{rate:g}"]
    return dict(sorted((m["step"], m["loss"]) for m in events if m["step"] <= done))


def best_step(losses: ValidationLosses, settings: TrainConfig) -> int | None:
    """The step with the lowest validation loss; None if ``train.keep`` is "last" or nothing was measured."""
    if settings.keep == "last":
        return None
    return min(losses, key=lambda step: _loss_sort_key(losses[step]), default=None)


def stops_early(losses: ValidationLosses, settings: TrainConfig) -> bool:
    """Whether the validation loss has not improved for ``train.early_stopping`` epochs (0: never stops early)."""
    values, patience = [_loss_sort_key(loss) for loss in losses.values()], patience_of(settings)
    return 0 < patience < len(values) and min(values[-patience:]) >= min(values[:-patience])


def _loss_sort_key(loss: float | None) -> float:
    """A loss as a number to compare: unmeasured losses are equal, and NaN is worse than any other."""
    return 0.0 if loss is None else math.inf if math.isnan(loss) else loss


def log_step_and_validate(
    job: Job, model: nn.Module, result: StepResult, rate: float, on_event: EventCallback
) -> ValidationLosses:
    """Logs and reports a step. At the end of an epoch, also measures, logs and returns the validation loss."""
    values = dataclasses.asdict(result)
    append_metric(job.run, "step", trial=f"{rate:g}", **values)
    on_event(Event("step", f"{rate:g}", values))
    ends_epoch = result.step % (result.steps // epochs_of(job.config.train)) == 0
    if not ends_epoch or not job.split.validation:
        return {}
    loss = validation_loss(job, model)
    if not is_finite(loss):
        raise NotFinite("validation loss", result.step, f"{loss}")
    append_metric(job.run, "validation", trial=f"{rate:g}", step=result.step, loss=loss)
    return {result.step: loss}


def validation_loss(job: Job, model: nn.Module) -> float:
    """Mean loss per token of the expected answers to the validation examples."""
    sequences = [tokenize(example, job.renderer) for example in job.split.validation]
    return mean_loss(model, sequences, job.layout, job.config.train.token_budget)


def tokens_per_second(job: Job) -> float | None:
    """Training throughput in tokens per second over all logged steps; None if there are none."""
    steps = [m for m in read_metrics(job.run) if m["event"] == "step"]
    seconds = sum(m["seconds"] for m in steps)
    return sum(m["tokens"] for m in steps) / seconds if seconds else None


def trained_folder(job: Job) -> Path:
    """The folder for the tuned model: adapter/ for LoRA, model/ for full fine-tuning."""
    return job.run / ("adapter" if job.config.adapter.kind == "lora" else "model")


def is_trained(job: Job) -> bool:
    """Whether the tuned model is complete on disk, as it was saved."""
    return not changed_model_files(trained_folder(job))


def save_trained(job: Job, model: nn.Module) -> nn.Module:
    """Saves the tuned model and its card. An adapter is loaded back, so that the saved weights are evaluated."""
    prompt = dataclasses.asdict(job.config.prompt)
    named = job.base.start.base.name if job.base.start else job.config.model.name
    name = named if named in BUILTINS else job.base.name
    others = {file: digest for file, digest in job.base.hashes.items() if file != WEIGHTS}
    base = {"name": name, "revision": job.base.revision, "weights_sha256": job.base.hashes[WEIGHTS], "files": others}
    card = {
        "adapter": job.config.adapter.kind,
        "base": base,
        "versions": versions(),
        "prompt": {key: value for key, value in prompt.items() if value is not None},
        "answer": job.config.data.answer,
        "task": job.config.task,
        "labels": list(job.split.labels),
        "candidates": job.config.data.candidates,
        "longest_answer": longest_answer(job.split.train, job.renderer),
        "ending": list(job.renderer.ending),
        "stop_ids": list(job.renderer.stop_ids),
        "choose": None,
    }
    save_tuned_model(model, trained_folder(job), job.base.text.tokenizer, job.renderer.stop_ids, card)
    if job.config.adapter.kind == "full":
        return model
    return reload_trained(job)


def reload_trained(job: Job) -> nn.Module:
    """Loads the tuned model from disk."""
    if job.config.adapter.kind == "lora":
        detach_adapter(job.base.model)
        return load_adapter(job.base, trained_folder(job), fused=job.config.speed.lora == "on")
    config = dataclasses.replace(job.config.model, name=str(trained_folder(job)), revision=None)
    return load_model(config, job.machine).model
