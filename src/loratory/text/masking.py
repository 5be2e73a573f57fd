"""Texts with hidden tokens, for models that see both ways: a blank to be filled, or parts of a text to be found again.

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

ROUNDS = 7  # one token in seven is hidden at a time: the 15 % of BERT (Devlin et al., 2019)


@dataclass(frozen=True)
class MaskedText:
    """A sequence of which some tokens are hidden."""

    token_ids: Int64[np.ndarray, "T"]
    masked_ids: Int64[np.ndarray, "T"]
    """The mask token in place of what is hidden."""
    hidden: Bool[np.ndarray, "T"]
    text: str
    char_spans: Int64[np.ndarray, "T 2"]


@dataclass(frozen=True)
class SlottedText:
    """A text around its blank."""

    before: str
    lead: str
    """The white space before the blank; it goes with the answer, as in running text."""
    after: str


def split_at_slot(text: str, source: str) -> SlottedText:
    """Raises UserError where the text has not exactly one blank."""
    if text.count(ANSWER_SLOT) != 1:
        found = f"{text.count(ANSWER_SLOT)} of them in: {text[:80]}"
        raise UserError("The prompt of a masked language model needs one {mask}", source, found=found)
    before, _, after = text.partition(ANSWER_SLOT)
    return SlottedText(before.rstrip(), before[len(before.rstrip()) :], after)


@lru_cache(maxsize=100)  # each label of a row asks for the same
def with_masks(tokenizer: PreTrainedTokenizerBase, slotted: SlottedText, count: int) -> MaskedText:
    """The text with ``count`` mask tokens for its blank."""
    mask = str(tokenizer.mask_token)
    text = slotted.before + mask * count + slotted.after
    ids, spans = _with_special_tokens(tokenizer, *_encode(tokenizer, text))
    start, end = len(slotted.before), len(slotted.before) + count * len(mask)
    own = (ids == tokenizer.mask_token_id) & (spans[:, 1] > start) & (spans[:, 1] <= end)
    return MaskedText(ids, ids, own, text, spans)


def with_answer(
    tokenizer: PreTrainedTokenizerBase, slotted: SlottedText, answer: str, masks: int, source: str
) -> MaskedText:
    """The text with its blank filled, the answer hidden. Raises UserError for an answer without tokens.

    The blank has ``masks`` masks whatever the answer, because their number would betray it (Schick and Schütze, "It's
    Not Just Size That Matters", NAACL 2021); those that a shorter answer leaves stand for the token that ends it.
    """
    filled, inside = _encode(tokenizer, slotted.lead + answer)
    if not len(filled):
        raise UserError("The answer has no tokens, so nothing would be trained", source, found=repr(answer))
    spare = max(0, masks - len(filled))
    filled = np.concatenate([filled, np.full(spare, answer_end_id(tokenizer), dtype=np.int64)])
    inside = np.concatenate([inside, np.full((spare, 2), inside[-1, 1])])
    found = with_masks(tokenizer, slotted, len(filled))
    ids, spans = found.token_ids.copy(), found.char_spans.copy()
    ids[found.hidden] = filled
    text = slotted.before + slotted.lead + answer + slotted.after
    later = found.char_spans[:, 0] >= len(found.text) - len(slotted.after)
    spans[later] += len(text) - len(found.text)
    spans[found.hidden] = inside + len(slotted.before)
    return MaskedText(ids, found.masked_ids, found.hidden, text, spans)


def answer_end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends an answer: one that no answer holds."""
    known = (tokenizer.sep_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return next(i for i in known if isinstance(i, int))


def masked_rounds(tokenizer: PreTrainedTokenizerBase, text: str, longest: int) -> Iterator[list[MaskedText]]:
    """The text in pieces of at most ``longest`` tokens; of each, sequences that hide every token once between them.

    Which tokens are hidden together depends on the text alone.
    """
    start, end = _special_tokens(tokenizer)
    room = longest - len(start) - len(end)
    ids, spans = _encode(tokenizer, text)
    draw = np.random.default_rng(zlib.crc32(text.encode()))
    for first in range(0, len(ids), room):
        own = spans[first : first + room]
        begin, stop = int(own[0, 0]), int(own[-1, 1])
        piece, where = _with_special_tokens(tokenizer, ids[first : first + room], own - begin)
        order = len(start) + draw.permutation(len(piece) - len(start) - len(end))
        found = []
        for chosen in np.array_split(order, min(ROUNDS, len(order))):
            hidden = np.zeros(len(piece), dtype=bool)
            hidden[chosen] = True
            shown = np.where(hidden, np.int64(tokenizer.mask_token_id), piece)  # type: ignore[arg-type]
            found.append(MaskedText(piece, shown, hidden, text[begin:stop], where))
        yield found


def normalize_masks(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text with the tokenizer's mask token wherever somebody wrote one, in any of the usual ways."""
    ways = ("{mask}", "[MASK]", "<mask>", str(tokenizer.mask_token))
    pattern = rf"\s*(?:{'|'.join(map(re.escape, ways))})"
    return re.sub(pattern, lambda _: str(tokenizer.mask_token), text)


def masked_prompt(tokenizer: PreTrainedTokenizerBase, text: str, source: str) -> MaskedText:
    """The text with one mask token for its blank, if it has one; nothing else is hidden."""
    if ANSWER_SLOT in text:
        return with_masks(tokenizer, split_at_slot(text, source), 1)
    ids, spans = _with_special_tokens(tokenizer, *_encode(tokenizer, text))
    return MaskedText(ids, ids, np.zeros(len(ids), dtype=bool), text, spans)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[Int64[np.ndarray, "T"], Int64[np.ndarray, "T 2"]]:
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    spans = np.array(found["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    return np.array(found["input_ids"], dtype=np.int64), spans


def _with_special_tokens(
    tokenizer: PreTrainedTokenizerBase, ids: Int64[np.ndarray, "T"], spans: Int64[np.ndarray, "T 2"]
) -> tuple[Int64[np.ndarray, "_"], Int64[np.ndarray, "_ 2"]]:
    start, end = _special_tokens(tokenizer)
    last = int(spans[-1, 1]) if len(spans) else 0
    edges = [np.zeros((len(start), 2), dtype=np.int64), np.full((len(end), 2), last, dtype=np.int64)]
    whole = np.concatenate([np.array(start, dtype=np.int64), ids, np.array(end, dtype=np.int64)])
    return whole, np.concatenate([edges[0], spans, edges[1]])


@cache
def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[Sequence[int], Sequence[int]]:
    """The special tokens that the tokenizer puts before and after a text."""
    bare, whole = (tokenizer("a", add_special_tokens=flag)["input_ids"] for flag in (False, True))
    starts = [i for i in range(len(whole)) if whole[i : i + len(bare)] == bare]
    return tuple(whole[: starts[0]]), tuple(whole[starts[0] + len(bare) :])
