"""What a model forgets of text that its task does not cover: the loss on it, before and after."""

import dataclasses

import numpy as np
from torch import nn

from loratory import runs
from loratory.errors import UserError
from loratory.examples import Example, Message
from loratory.job import Job
from loratory.models import builtin_folder
from loratory.render import TokenizedExample, tokenize
from loratory.rows import cell_text, read_rows
from loratory.train import mean_loss

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
    found, longest = [], min(LONGEST, job.base.text.max_length)
    for row in [row for name in names for row in read_rows(name)][:MOST]:
        text = cell_text(row.values.get(COLUMN)).strip()
        ids, spans = job.renderer.encode_part(text) if job.renderer.masked else job.renderer.encode(text)
        if len(ids) < 2:
            raise UserError(f"A retained text has no words in its column {COLUMN!r}", row.source)
        if job.renderer.masked:  # one part of its tokens is hidden
            short = dataclasses.replace(job.renderer, longest=longest)
            found.append(tokenize(Example((Message("user", text),), (text,), (), row.source), short)[0])
            continue
        weights = np.ones(len(ids[:longest]), dtype=np.float32)
        weights[0] = 0
        kept = np.array(ids[:longest], dtype=np.int64)
        found.append(
            TokenizedExample(kept, weights, text, np.array(spans[:longest], dtype=np.int64).reshape(-1, 2), row.source)
        )
    return found
