"""The loss on text outside the task, logged before and after training."""

from torch import nn

from loratory.evaluation import read_retained_texts
from loratory.events import EventCallback
from loratory.run.job import Job
from loratory.run.unsound import warn
from loratory.storage import append_metric, read_metrics
from loratory.text import TokenizedExample
from loratory.training import is_finite, mean_loss


def retained_texts(job: Job) -> list[TokenizedExample]:
    """The run's texts outside the task. Raises UserError if they cannot be read."""
    return read_retained_texts(job.config.data.retain, job.renderer, job.base.text.max_length)


def measure_retained(job: Job, model: nn.Module, when: str, on_event: EventCallback) -> None:
    """Logs the model's mean loss on the retained texts, unless it is logged already.

    ``when`` is "before" or "after" training. A loss that is NaN or infinite is reported and not logged.
    """
    if any(e["event"] == "retained" and e["when"] == when for e in read_metrics(job.run)):
        return
    texts = retained_texts(job)
    loss = mean_loss(model, [[text] for text in texts], job.layout, job.config.train.token_budget)
    if not is_finite(loss):
        message = f"Forgetting was not measured: the loss on text outside the task is {loss} {when} training"
        warn(job.run, "forgetting", message, on_event)
        return
    append_metric(job.run, "retained", when=when, loss=loss, texts=len(texts))
