"""Retained texts: a model's loss on text outside the task, before and after tuning, shows what it forgot."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from loratory.data import Example, Message, Row, cell_text, read_table
from loratory.errors import UserError
from loratory.models import builtin_folder
from loratory.text import Renderer, TokenizedExample, tokenize

MAX_TOKENS = 128  # per text; the rest is ignored
MAX_TEXTS = 200
COLUMN = "text"


def read_retained_texts(files: Sequence[str], renderer: Renderer, max_length: int) -> list[TokenizedExample]:
    """The texts as sequences in which every token except the first is a target.

    For a masked language model, only the masked tokens are targets. If ``files`` is empty, the texts that come with the
    package are used. ``max_length`` is the model's context length in tokens. Raises UserError if a file cannot be read
    or a text has fewer than two tokens.
    """
    names = files or (str(builtin_folder().parent / "retain.jsonl"),)
    renderer = dataclasses.replace(renderer, max_length=min(MAX_TOKENS, max_length))
    rows = [row for name in names for row in read_table(name).rows][:MAX_TEXTS]
    return [_sequence(row, renderer) for row in rows]


def _sequence(row: Row, renderer: Renderer) -> TokenizedExample:
    text = cell_text(row.value(COLUMN)).strip()
    ids, spans = (part[: renderer.max_length] for part in renderer.encode(text))
    if len(ids) < 2:
        raise UserError(f"A retained text has no words in its column {COLUMN!r}", row.source)
    if renderer.is_masked_lm:
        return tokenize(Example((Message("user", text),), (text,), (), row.source), renderer)[0]
    weights = np.ones(len(ids), dtype=np.float32)
    weights[0] = 0
    return TokenizedExample(ids, weights, text, spans, row.source)
