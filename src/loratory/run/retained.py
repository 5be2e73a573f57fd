"""The loss on text outside the task, logged before and after training."""

from torch import nn

from loratory.evaluation import read_retained_texts
from loratory.run.job import Job
from loratory.storage import append_metric, read_metrics
from loratory.text import TokenizedExample
from loratory.training import mean_loss


def retained_texts(job: Job) -> list[TokenizedExample]:
    """The run's texts outside the task. Raises UserError if they cannot be read."""
    return read_retained_texts(job.config.data.retain, job.renderer, job.base.text.max_length)


def measure_retained(job: Job, model: nn.Module, when: str) -> None:
    """Logs the model's mean loss on the retained texts, unless it is logged already.

    ``when`` is "before" or "after" training.
    """
    if any(e["event"] == "retained" and e["when"] == when for e in read_metrics(job.run)):
        return
    texts = retained_texts(job)
    loss = mean_loss(model, [[text] for text in texts], job.layout, job.config.train.token_budget)
    append_metric(job.run, "retained", when=when, loss=loss, texts=len(texts))
