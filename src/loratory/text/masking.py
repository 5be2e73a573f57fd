"""Masked texts for masked language models: prompts with an answer slot, and plain texts with random tokens masked.

T: tokens of one sequence.
"""

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from jaxtyping import Bool, Int64
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from loratory.data import ANSWER_SLOT
from loratory.errors import UserError

ROUNDS = 7  # one token in seven is masked at a time, about the 15 % of BERT (Devlin et al., 2019)


@dataclass(frozen=True)
class MaskedText:
    """A sequence with some of its tokens masked."""

    token_ids: Int64[np.ndarray, "T"]
    masked_ids: Int64[np.ndarray, "T"]
    """The token ids with the mask token in place of every masked token."""
    is_masked: Bool[np.ndarray, "T"]
    """Which tokens are masked."""
    text: str
    char_spans: Int64[np.ndarray, "T 2"]
    """The characters of ``text`` that each token covers."""


@dataclass(frozen=True)
class SlottedText:
    """A text split at its answer slot."""

    before: str
    leading_space: str
    """The white space before the slot; it is tokenized with the answer, as in running text."""
    after: str


def split_at_slot(text: str, source: str) -> SlottedText:
    """Splits a text at its answer slot. Raises UserError if the text does not contain exactly one slot."""
    if text.count(ANSWER_SLOT) != 1:
        found = f"{text.count(ANSWER_SLOT)} in: {text[:80]}"
        raise UserError("The prompt of a masked language model needs exactly one {mask}", source, found=found)
    before, _, after = text.partition(ANSWER_SLOT)
    return SlottedText(before.rstrip(), before[len(before.rstrip()) :], after)


@lru_cache(maxsize=100)  # every label of a row has the same text
def with_masks(tokenizer: PreTrainedTokenizerBase, slotted: SlottedText, count: int) -> MaskedText:
    """The text with ``count`` mask tokens in its answer slot; only these count as masked."""
    mask = str(tokenizer.mask_token)
    text = slotted.before + mask * count + slotted.after
    ids, spans = _withspecial_tokens(tokenizer, *_encode(tokenizer, text))
    start, end = len(slotted.before), len(slotted.before) + count * len(mask)
    in_slot = (ids == tokenizer.mask_token_id) & (spans[:, 1] > start) & (spans[:, 1] <= end)
    return MaskedText(ids, ids, in_slot, text, spans)


def with_answer(
    tokenizer: PreTrainedTokenizerBase, slotted: SlottedText, answer: str, masks: int, source: str
) -> MaskedText:
    """The text with the answer in its slot, masked. Raises UserError if the answer has no tokens.

    The slot has ``masks`` mask tokens for every answer, because a varying number would give the answer away (Schick and
    Schütze, "It's Not Just Size That Matters", NAACL 2021). The positions that a shorter answer leaves over have the
    answer-end token as their target.
    """
    answer_ids, answer_spans = _encode(tokenizer, slotted.leading_space + answer)
    if not len(answer_ids):
        raise UserError("The answer has no tokens, so there is nothing to train on", source, found=repr(answer))
    spare = max(0, masks - len(answer_ids))
    answer_ids = np.concatenate([answer_ids, np.full(spare, answer_end_id(tokenizer), dtype=np.int64)])
    answer_spans = np.concatenate([answer_spans, np.full((spare, 2), answer_spans[-1, 1])])
    masked = with_masks(tokenizer, slotted, len(answer_ids))
    ids, spans = masked.token_ids.copy(), masked.char_spans.copy()
    ids[masked.is_masked] = answer_ids
    text = slotted.before + slotted.leading_space + answer + slotted.after
    after_slot = masked.char_spans[:, 0] >= len(masked.text) - len(slotted.after)
    spans[after_slot] += len(text) - len(masked.text)
    spans[masked.is_masked] = answer_spans + len(slotted.before)
    return MaskedText(ids, masked.masked_ids, masked.is_masked, text, spans)


def answer_end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends an answer in its slot: a special token that no answer contains."""
    special_ids = (tokenizer.sep_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return next(i for i in special_ids if isinstance(i, int))


def masked_rounds(tokenizer: PreTrainedTokenizerBase, text: str, longest: int) -> Iterator[list[MaskedText]]:
    """Splits a text into chunks of at most ``longest`` tokens and masks each chunk in several ways.

    Yields one list per chunk; across its sequences, every token is masked exactly once. Which tokens are masked
    together depends only on the text.
    """
    start, end = special_tokens(tokenizer)
    size = longest - len(start) - len(end)
    ids, spans = _encode(tokenizer, text)
    rng = np.random.default_rng(zlib.crc32(text.encode()))
    for first in range(0, len(ids), size):
        chunk_spans = spans[first : first + size]
        text_start, text_end = int(chunk_spans[0, 0]), int(chunk_spans[-1, 1])
        chunk_ids, chunk_spans = _withspecial_tokens(tokenizer, ids[first : first + size], chunk_spans - text_start)
        order = len(start) + rng.permutation(len(chunk_ids) - len(start) - len(end))
        sequences = []
        for positions in np.array_split(order, min(ROUNDS, len(order))):
            masked = np.zeros(len(chunk_ids), dtype=bool)
            masked[positions] = True
            masked_ids = np.where(masked, np.int64(tokenizer.mask_token_id), chunk_ids)  # type: ignore[arg-type]
            sequences.append(MaskedText(chunk_ids, masked_ids, masked, text[text_start:text_end], chunk_spans))
        yield sequences


def normalize_masks(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text with every mask, in any of the common notations, replaced by the tokenizer's mask token."""
    notations = ("{mask}", "[MASK]", "<mask>", str(tokenizer.mask_token))
    pattern = rf"\s*(?:{'|'.join(map(re.escape, notations))})"
    return re.sub(pattern, lambda _: str(tokenizer.mask_token), text)


def masked_prompt(tokenizer: PreTrainedTokenizerBase, text: str, source: str) -> MaskedText:
    """The text with one mask token in its answer slot, if it has one; nothing else is masked."""
    if ANSWER_SLOT in text:
        return with_masks(tokenizer, split_at_slot(text, source), 1)
    ids, spans = _withspecial_tokens(tokenizer, *_encode(tokenizer, text))
    return MaskedText(ids, ids, np.zeros(len(ids), dtype=bool), text, spans)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[Int64[np.ndarray, "T"], Int64[np.ndarray, "T 2"]]:
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    spans = np.array(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    return np.array(encoding["input_ids"], dtype=np.int64), spans


def _withspecial_tokens(
    tokenizer: PreTrainedTokenizerBase, ids: Int64[np.ndarray, "T"], spans: Int64[np.ndarray, "T 2"]
) -> tuple[Int64[np.ndarray, "_"], Int64[np.ndarray, "_ 2"]]:
    start, end = special_tokens(tokenizer)
    last = int(spans[-1, 1]) if len(spans) else 0
    edges = [np.zeros((len(start), 2), dtype=np.int64), np.full((len(end), 2), last, dtype=np.int64)]
    whole = np.concatenate([np.array(start, dtype=np.int64), ids, np.array(end, dtype=np.int64)])
    return whole, np.concatenate([edges[0], spans, edges[1]])


@cache
def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[Sequence[int], Sequence[int]]:
    """The special tokens that the tokenizer adds before and after a text."""
    bare, whole = (tokenizer("a", add_special_tokens=flag)["input_ids"] for flag in (False, True))
    starts = [i for i in range(len(whole)) if whole[i : i + len(bare)] == bare]
    return tuple(whole[: starts[0]]), tuple(whole[starts[0] + len(bare) :])
