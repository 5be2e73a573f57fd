"""What goes wrong and is reported: trainings with unsound numbers, systems that cannot be measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

from loratory.errors import UserError
from loratory.events import Event, EventCallback
from loratory.storage import append_metric, read_metrics
from loratory.training import NotFinite

ROWS_NAMED = 10
LAST_STEPS = 5  # the final loss is the mean of so many steps
# A training has diverged if its final loss is this many times its first one, and this many nats per token above it.
DIVERGED_FACTOR, DIVERGED_RISE = 1.5, 0.5


def log_once(run: Path, event: str, **values: Any) -> None:
    """Appends an event to the run's log unless it is there already, as in a run that was resumed."""
    if {"event": event, **values} not in read_metrics(run):
        append_metric(run, event, **values)


def warn(run: Path, name: str, message: str, on_event: EventCallback) -> None:
    """Reports a warning, and logs it for the report."""
    log_once(run, "warning", name=name, message=message)
    on_event(Event("message", message))


def log_not_measured(run: Path, name: str, reason: str, on_event: EventCallback) -> None:
    """Reports that a system was not measured, and logs it for the report."""
    log_once(run, "not_measured", name=name, reason=reason)
    on_event(Event("message", f"{name} was not measured: {reason}"))


def not_measured(run: Path) -> dict[str, str]:
    """The systems that were not measured, each with the latest reason."""
    return {e["name"]: e["reason"] for e in read_metrics(run) if e["event"] == "not_measured"}


# ---- numbers that are not finite -------------------------------------------------------------------------------------


def training_error(problem: NotFinite, rate: float, saved_step: int | None) -> UserError:
    """The error that ends a training. ``saved_step``: the step of the last checkpoint, or None."""
    resumes = f"Step {saved_step} is saved, where the same command resumes" if saved_step else "No step is saved"
    looks = "look at these rows, " if problem.rows and not problem.each_is_finite else ""
    return UserError(
        f"The {problem.quantity} became NaN or infinite",
        f"step {problem.step}, peak learning rate {rate:g}{_rows(problem)}",
        None,
        problem.found,
        f'{looks}lower --train.learning-rate, or set [model] dtype = "float32". {resumes}; with the same settings it '
        "stops here again, and other settings need --overwrite or another --run.out",
    )


def base_model_error(problem: NotFinite) -> UserError:
    """The error for a model that is unsound before any training."""
    return UserError(
        f"The {problem.quantity} of the base model is NaN or infinite before any training",
        _rows(problem).removeprefix("; ") or None,
        None,
        problem.found,
        'set [model] dtype = "float32", look at these rows, or use another model',
    )


def _rows(problem: NotFinite) -> str:
    """The rows in question, as a clause."""
    if not problem.rows:
        return ""
    more = len(problem.rows) - ROWS_NAMED
    names = ", ".join(problem.rows[:ROWS_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"; each loss alone is finite, of the rows {names}" if problem.each_is_finite else f"; rows {names}"


# ---- trainings that end, but did not work ----------------------------------------------------------------------------


def has_diverged(losses: Sequence[float]) -> bool:
    """Whether the mean loss of the last steps is far above the loss of the first step, which no update has changed."""
    if len(losses) < 2:
        return False
    final = fmean(losses[1:][-LAST_STEPS:])
    return final > DIVERGED_FACTOR * losses[0] and final > losses[0] + DIVERGED_RISE


def warn_of_divergence(run: Path, rate: float, on_event: EventCallback) -> None:
    """Reports that the logged training losses at a learning rate have risen, if they have."""
    by_step = {m["step"]: m["loss"] for m in read_metrics(run) if m["event"] == "step" and m["trial"] == f"{rate:g}"}
    losses = [by_step[step] for step in sorted(by_step)]
    if has_diverged(losses):
        final = fmean(losses[1:][-LAST_STEPS:])
        message = f"Training diverged: the loss rose from {losses[0]:.3g} to {final:.3g} nats per token"
        warn(run, "diverged", f"{message}. Lower --train.learning-rate, which was {rate:g}", on_event)


def fingerprint(tensors: Mapping[str, nn.Parameter]) -> dict[str, int]:
    """A number for each tensor that differs if any of its bits does."""
    return {name: torch.hash_tensor(p.detach()).view(torch.int64).item() for name, p in tensors.items()}  # type: ignore[misc]


def warn_of_no_change(run: Path, rate: float, on_event: EventCallback) -> None:
    """Reports that training moved no weight."""
    message = "Training changed nothing: every trained weight has its initial value, bit for bit"
    warn(run, "unchanged", f"{message}. Raise --train.learning-rate, which was {rate:g}", on_event)
