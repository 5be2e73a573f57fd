"""Training: the loop, the optimizer, checkpoints, and the speed settings.

In: a model with its adapter attached, and tokenized examples. Out: one ``StepResult`` per optimizer step, and
checkpoints from which training resumes bit for bit. Read ``loop.py`` first.
"""

from loratory.training.checkpoints import checkpoint_at, latest_checkpoint, load_checkpoint, save_checkpoint
from loratory.training.loop import NotFinite, StepResult, is_finite, mean_loss, train
from loratory.training.optimizer import automatic_learning_rate, make_optimizer, trainable_parameters
from loratory.training.schedule import epochs_of, patience_of, resolve_schedule, total_steps
from loratory.training.speed import resolve_speed

__all__ = [
    "NotFinite",
    "StepResult",
    "automatic_learning_rate",
    "checkpoint_at",
    "epochs_of",
    "is_finite",
    "latest_checkpoint",
    "load_checkpoint",
    "make_optimizer",
    "mean_loss",
    "patience_of",
    "resolve_schedule",
    "resolve_speed",
    "save_checkpoint",
    "total_steps",
    "train",
    "trainable_parameters",
]
