"""How long to train: the number of epochs, of steps, and when to stop early."""

import dataclasses
import math

from loratory.settings import TrainConfig
from loratory.tree import steps_per_epoch

# From trainings of SmolLM2-135M on 60 to 500 short texts: docs/decisions/0026-few-examples-are-seen-more-often.md.
LEAST_EPOCHS, MOST_EPOCHS, ENOUGH_STEPS = 3, 40, 120
LEAST_PATIENCE, PATIENCE_SHARE = 2, 0.2


def resolve_schedule(settings: TrainConfig, examples: int, validated: bool) -> TrainConfig:
    """The settings with automatic epochs and early stopping as numbers, for so many training examples.

    ``validated``: whether there are validation examples.
    """
    epochs = settings.epochs
    if epochs == "auto":
        enough = math.ceil(ENOUGH_STEPS / steps_per_epoch(examples, settings.batch_size))
        epochs = min(MOST_EPOCHS, max(LEAST_EPOCHS, enough))
    patience = settings.early_stopping
    if patience == "auto":
        patience = max(LEAST_PATIENCE, math.ceil(PATIENCE_SHARE * epochs))
        patience = patience if validated and settings.keep == "best" else 0
    return dataclasses.replace(settings, epochs=epochs, early_stopping=patience)


def epochs_of(settings: TrainConfig) -> int:
    """The number of epochs of resolved settings."""
    assert settings.epochs != "auto", "resolved when the data was loaded"
    return settings.epochs


def patience_of(settings: TrainConfig) -> int:
    """The number of epochs of resolved settings after which training stops early; 0: never."""
    assert settings.early_stopping != "auto", "resolved when the data was loaded"
    return settings.early_stopping


def total_steps(examples: int, settings: TrainConfig) -> int:
    """Number of optimizer steps in the whole training run."""
    return epochs_of(settings) * steps_per_epoch(examples, settings.batch_size)
