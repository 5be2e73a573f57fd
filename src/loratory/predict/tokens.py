"""Shows training examples as tokens, with the target tokens marked.

B: number of sequences.  T: number of tokens of the longest sequence.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.text import Text

from loratory.printable import printable
from loratory.text import Renderer, TokenizedExample, token_texts

IGNORED = -100  # the default ignore_index of PyTorch's cross-entropy
TRAINED, SHADES = "bold black on green", ("default", "dim")


def highlighted(sequence: TokenizedExample) -> Text:
    """The text with target tokens on green; adjacent tokens alternate in shade."""
    text = Text()
    for number, (piece, trained) in enumerate(token_texts(sequence)):
        text.append(printable(piece).replace("\n", "↵\n"), style=TRAINED if trained else SHADES[number % 2])
    return text


def token_records(sequence: TokenizedExample, renderer: Renderer) -> list[dict[str, Any]]:
    """One object per token: id, token, text, and whether the token is a target."""
    tokens = renderer.tokenizer.convert_ids_to_tokens(sequence.token_ids.tolist())
    return [
        {"id": int(i), "token": token, "text": sequence.text[a:b], "trained": bool(weight > 0)}
        for i, token, (a, b), weight in zip(
            sequence.token_ids, tokens, sequence.char_spans, sequence.loss_weights, strict=True
        )
    ]


def padded_arrays(sequences: Sequence[TokenizedExample], pad_id: int) -> dict[str, list[list[int]]]:
    """The sequences as right-padded arrays of shape [B, T], as other training programs use them.

    ``shifted_labels``: entry t is the id that position t is trained to predict, or -100. For masked language models
    the entries are not shifted. The ``labels`` of Transformers are never shifted.
    """
    width = max(len(s.token_ids) for s in sequences)
    arrays: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "shifted_labels": []}
    for s in sequences:
        num_padding = width - len(s.token_ids)
        targets = np.where(s.loss_weights > 0, s.token_ids, IGNORED)
        inputs = s.token_ids if s.masked_ids is None else s.masked_ids
        arrays["input_ids"].append(inputs.tolist() + [pad_id] * num_padding)
        arrays["attention_mask"].append([1] * len(s.token_ids) + [0] * num_padding)
        predicted = [*targets[1:].tolist(), IGNORED] if s.masked_ids is None else targets.tolist()
        arrays["shifted_labels"].append(predicted + [IGNORED] * num_padding)
    return arrays
