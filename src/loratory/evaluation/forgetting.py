"""What a model forgets of text that its task does not cover: the loss on it, before and after."""

import dataclasses

import numpy as np
from torch import nn

from loratory.data.examples import Example, Message
from loratory.data.rows import Row, cell_text, read_rows
from loratory.errors import UserError
from loratory.models.loading import builtin_folder
from loratory.run.job import Job
from loratory.storage import run_directory as runs
from loratory.text.rendering import TokenizedExample, tokenize
from loratory.text.template import Renderer
from loratory.training.loop import mean_loss

LONGEST = 128  # tokens of a text that are read
MOST = 200  # texts
COLUMN = "text"


def measure_retained(job: Job, model: nn.Module, when: str) -> None:
    """Logs the model's loss on the retained texts, once. ``when``: before or after the training.

    Raises UserError where the texts are not to be had.
    """
    if any(e["event"] == "retained" and e["when"] == when for e in runs.read_metrics(job.run)):
        return
    texts = retained_texts(job)
    loss = mean_loss(model, [[text] for text in texts], job.layout, job.config.train.token_budget)
    runs.append_metric(job.run, "retained", when=when, loss=loss, texts=len(texts))


def retained_texts(job: Job) -> list[TokenizedExample]:
    """The texts as sequences whose tokens are all targets but the first; for masked language models a part of them."""
    names = job.config.data.retain or (str(builtin_folder().parent / "retain.jsonl"),)
    renderer = dataclasses.replace(job.renderer, longest=min(LONGEST, job.base.text.max_length))
    return [_sequence(row, renderer) for row in [row for name in names for row in read_rows(name)][:MOST]]


def _sequence(row: Row, renderer: Renderer) -> TokenizedExample:
    text = cell_text(row.values.get(COLUMN)).strip()
    ids, spans = (part[: renderer.longest] for part in renderer.encode(text))
    if len(ids) < 2:
        raise UserError(f"A retained text has no words in its column {COLUMN!r}", row.source)
    if renderer.masked:
        return tokenize(Example((Message("user", text),), (text,), (), row.source), renderer)[0]
    weights = np.ones(len(ids), dtype=np.float32)
    weights[0] = 0
    return TokenizedExample(ids, weights, text, spans, row.source)
