"""What the model sees, token by token, and what of it is trained.

B: sequences.  T: tokens of the longest one.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.text import Text

from loratory.text import Renderer, TokenizedExample, pieces

IGNORED = -100  # PyTorch's cross-entropy leaves out targets of this id
TRAINED, SHADES = "bold black on green", ("default", "dim")


def highlighted(sequence: TokenizedExample) -> Text:
    """The text with its trained tokens on green; neighbouring tokens differ in shade."""
    text = Text()
    for number, (piece, trained) in enumerate(pieces(sequence)):
        text.append(piece.replace("\n", "↵\n"), style=TRAINED if trained else SHADES[number % 2])
    return text


def token_records(sequence: TokenizedExample, renderer: Renderer) -> list[dict[str, Any]]:
    """One object a token: id, token, text, whether it is trained."""
    tokens = renderer.tokenizer.convert_ids_to_tokens(sequence.token_ids.tolist())
    return [
        {"id": int(i), "token": token, "text": sequence.text[a:b], "trained": bool(weight > 0)}
        for i, token, (a, b), weight in zip(
            sequence.token_ids, tokens, sequence.char_spans, sequence.loss_weights, strict=True
        )
    ]


def padded_arrays(sequences: Sequence[TokenizedExample], pad_id: int) -> dict[str, list[list[int]]]:
    """The sequences as the arrays that other programs train on, each of shape [B, T], padded on the right.

    ``shifted_labels``: the entry at t is the id that position t is trained to predict, or -100. Transformers' own
    ``labels`` are not shifted; for masked language models neither are these.
    """
    width = max(len(s.token_ids) for s in sequences)
    arrays: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "shifted_labels": []}
    for s in sequences:
        room = width - len(s.token_ids)
        targets = np.where(s.loss_weights > 0, s.token_ids, IGNORED)
        read = s.token_ids if s.masked_ids is None else s.masked_ids
        arrays["input_ids"].append(read.tolist() + [pad_id] * room)
        arrays["attention_mask"].append([1] * len(s.token_ids) + [0] * room)
        predicted = [*targets[1:].tolist(), IGNORED] if s.masked_ids is None else targets.tolist()
        arrays["shifted_labels"].append(predicted + [IGNORED] * room)
    return arrays
