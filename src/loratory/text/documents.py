"""Documents for continued pretraining: plain texts without a chat template, cut into windows that the model reads.

A window begins with the tokenizer's own start tokens. Every token of a document, and the token that ends it, is trained
in exactly one window; only a first token that nothing precedes has no prediction.

T: tokens of one window.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from loratory.errors import UserError
from loratory.models import LoadedTokenizer
from loratory.settings import PromptConfig
from loratory.text.masking import special_tokens
from loratory.text.renderer import Renderer, decode
from loratory.text.template import renderer_for

MAX_WINDOW = 1024  # tokens; a longer context is not used in full, which would take time quadratic in its length
CONTEXT_SHARE = 8  # a later window repeats the last eighth of a window's tokens, untrained, as context
CONTINUATION_TOKENS = 200  # how far ``predict`` continues a text


@dataclass(frozen=True)
class Window:
    """A part of a document."""

    token_ids: Int64[np.ndarray, "T"]
    text: str
    char_spans: Int64[np.ndarray, "T 2"]
    """The characters of ``text`` that each token covers."""
    context: int
    """How many of the first tokens are not trained: start tokens, and tokens of the window before."""


def renderer_of_task(task: str, text: LoadedTokenizer, prompt: PromptConfig, where: str = "task file") -> Renderer:
    """The renderer for a task: of documents for pretraining, otherwise ``renderer_for``, which raises UserError.

    A document ends with the tokens that the tokenizer itself puts after a text or, if it puts none, with its
    end-of-sequence token; without such a token, with nothing.
    """
    if task != "pretrain":
        return renderer_for(text, prompt, where)
    start, end = special_tokens(text.tokenizer)
    eos = text.tokenizer.eos_token_id
    ending = tuple(end) or ((eos,) if isinstance(eos, int) else ())
    return Renderer(
        text.tokenizer,
        {},
        "",
        ending,
        tuple(sorted({*text.stop_ids, *ending[-1:]})),
        "the end of a document",
        max_length=min(MAX_WINDOW, text.max_length),
        embeddings=text.embeddings,
        document_start=tuple(start),
    )


def document_windows(text: str, renderer: Renderer) -> Iterator[Window]:
    """The windows of a document, in order; none if it has no tokens."""
    ids, spans = renderer.encode(text)
    if not len(ids):
        return
    whole = text + renderer.ending_text
    end_spans = np.full((len(renderer.ending), 2), len(whole), dtype=np.int64)
    end_spans[:1, 0] = len(text)
    ids = np.concatenate([ids, np.array(renderer.ending, dtype=np.int64)])
    spans = np.concatenate([spans, end_spans])
    start = renderer.document_start or ()
    size = renderer.max_length - len(start)
    context = min(max(1, size // CONTEXT_SHARE), size - 1)
    for first in itertools.chain([0], range(size - context, len(ids) - context, size - context)):
        part = slice(first, first + size)
        untrained = len(start) + (context if first else 0)
        yield _with_start(ids[part], spans[part], whole, renderer, max(1, untrained))


def document_prompt(text: str, renderer: Renderer, source: str) -> Window:
    """The beginning of a document, to be continued. Raises UserError if it has no tokens.

    Of a text longer than half a window, the end is read: the other half is left to the continuation.
    """
    ids, spans = renderer.encode(text)
    if not len(ids):
        raise UserError("The text is empty, so there is nothing to continue", source or None)
    read = slice(-(renderer.max_length // 2), None)
    return _with_start(ids[read], spans[read], text, renderer, 0)


def _with_start(
    ids: Int64[np.ndarray, "_"], spans: Int64[np.ndarray, "_ 2"], whole: str, renderer: Renderer, context: int
) -> Window:
    """Some tokens of ``whole`` after the start tokens, with the text that they cover."""
    start = renderer.document_start or ()
    start_text = decode(renderer.tokenizer, start)
    first, last = int(spans[0, 0]), int(spans[-1, 1])
    start_spans = np.full((len(start), 2), len(start_text), dtype=np.int64)
    start_spans[:1, 0] = 0
    return Window(
        np.concatenate([np.array(start, dtype=np.int64), ids]),
        start_text + whole[first:last],
        np.concatenate([start_spans, spans - first + len(start_text)]),
        context,
    )
