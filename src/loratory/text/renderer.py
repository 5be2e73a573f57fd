"""A tokenizer with the settings that determine how messages are rendered, and its encoding and decoding of texts.

T: tokens of a text.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from loratory.errors import UserError

# Texts that no template contains itself, used to find where a template puts the text it is given.
PROBE = {"system": "probe-of-the-system-text", "user": "probe-of-the-user-text", "assistant": "probe-of-the-answer"}
CONTEXT = 64  # tokens


@dataclass(frozen=True, eq=False)
class Renderer:
    """A tokenizer with all settings that determine how messages are rendered and tokenized."""

    tokenizer: PreTrainedTokenizerBase
    template_kwargs: Mapping[str, Any]
    date: str
    """The date, YYYY-MM-DD, shown by templates that include one."""
    ending: tuple[int, ...]
    """The tokens after an answer. They are trained; the last one stops generation."""
    stop_ids: tuple[int, ...]
    """The ids that stop generation."""
    note: str
    """How the ending was determined."""
    leading_space: str = ""
    """White space that the template puts between prompt and answer. It is trained and scored with the answer."""
    is_masked_lm: bool = False
    """Whether the model is a masked language model, which has no template and no ending."""
    label_words: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The text that fills the answer slot for a label; a label without an entry stands for itself."""
    slot_length: int = 1
    """How many mask tokens an answer slot has."""
    max_length: int = 2**31
    """The longest sequence, in tokens, that the model reads; longer plain texts are split into chunks."""
    embeddings: int = 2**31
    """How many token ids, from 0, the model has an embedding for; a tokenizer may have more tokens."""
    document_start: tuple[int, ...] | None = None
    """The tokens that begin a document, if texts are documents without a chat template (pretraining); else None."""

    @property
    def reads_documents(self) -> bool:
        """Whether texts are documents for pretraining, and no chat template is applied."""
        return self.document_start is not None

    @property
    def name(self) -> str:
        """The model's name or folder."""
        return str(getattr(self.tokenizer, "name_or_path", ""))

    @functools.cached_property
    def ending_text(self) -> str:
        """The text of the ending, decoded after an answer: on its own, some tokenizers drop its first space."""
        before = self.encode(PROBE["assistant"])[0].tolist()
        return decode(self.tokenizer, [*before, *self.ending])[len(decode(self.tokenizer, before)) :]

    @functools.cached_property
    def special_texts(self) -> tuple[str, ...]:
        """The tokenizer's added tokens, longest first; it splits them off before it tokenizes the rest."""
        return tuple(sorted(self.tokenizer.get_added_vocab(), key=len, reverse=True))  # type: ignore[operator]

    @functools.lru_cache(maxsize=10_000)  # noqa: B019 - one Renderer lives as long as a run
    def tail_answer_ids(self, tail: str, answer: str) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """The ids of ``tail``, and the ids of ``answer`` after it, or None if the two would merge into one token."""
        alone, both = self.encode(tail)[0], self.encode(tail + answer)[0]
        if both[: len(alone)].tolist() != alone.tolist():
            return tuple(alone.tolist()), None
        return tuple(alone.tolist()), tuple(both[len(alone) :].tolist())

    @functools.lru_cache(maxsize=100)  # noqa: B019
    def longest_answer(self, tail: str, answers: tuple[str, ...]) -> int:
        """The length in tokens of the longest of the answers after ``tail``, including the leading space."""
        texts = [self.leading_space + answer for answer in answers]
        ids = (self.tail_answer_ids(tail, text)[1] or self.encode(text)[0] for text in texts)
        return max(map(len, ids), default=0)

    @functools.lru_cache(maxsize=10_000)  # noqa: B019
    def text_lengths(self, token_ids: tuple[int, ...]) -> list[int]:
        """How many characters the first 0, 1, 2, ... tokens decode to.

        Decodes each prefix from ``CONTEXT`` to twice as many tokens before its end, because whole prefixes would take
        time quadratic in their length; what a token decodes to depends on few tokens before it.
        """
        lengths = [0]
        for start in range(0, len(token_ids), CONTEXT):
            first = max(0, start - CONTEXT)
            before = lengths[start] - len(decode(self.tokenizer, token_ids[first:start]))
            ends = range(start + 1, min(start + CONTEXT, len(token_ids)) + 1)
            lengths += [before + len(decode(self.tokenizer, token_ids[first:end])) for end in ends]
        return np.minimum.accumulate(lengths[::-1])[::-1].tolist()

    @functools.lru_cache(maxsize=10)  # noqa: B019
    def ending_with(self, ending: tuple[int, ...]) -> "Renderer":
        """The renderer for answers with another ending; the same object for the same ending, with its caches."""
        return self if ending == self.ending else dataclasses.replace(self, ending=ending)

    def encode(self, text: str) -> tuple[Int64[np.ndarray, "T"], Int64[np.ndarray, "T 2"]]:
        """Ids and character spans of a rendered text; its special tokens come from the template."""
        if self.boundary is None:
            return self.encode_part(text)
        cuts = [0, *(m.start() for m in self.boundary.finditer(text) if m.start()), len(text)]
        parts = [self.encode_part(text[a:b]) for a, b in itertools.pairwise(cuts)]
        spans = [span + start for (_, span), start in zip(parts, cuts, strict=False)]
        return np.concatenate([ids for ids, _ in parts]), np.concatenate(spans)

    @functools.cached_property
    def boundary(self) -> re.Pattern[str] | None:
        """Matches the special tokens before which a text can be split without changing its ids.

        These are the tokens that do not depend on the text to their left. The tokenizer splits them off before anything
        else, so recurring parts of a text are encoded only once. None if there are none.
        """
        tokens = self.tokenizer.added_tokens_decoder.values()
        splitting = [t.content for t in tokens if t.special and not (t.lstrip or t.single_word or t.normalized)]
        return re.compile("|".join(map(re.escape, sorted(splitting, key=len, reverse=True)))) if splitting else None

    @functools.lru_cache(maxsize=10_000)  # noqa: B019
    def encode_part(self, text: str) -> tuple[Int64[np.ndarray, "T"], Int64[np.ndarray, "T 2"]]:
        """Ids and character spans of a text, from one call of the tokenizer."""
        try:
            encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        except BaseException as error:  # a regular expression that gives up; it is not an Exception
            if type(error).__name__ != "PanicException":
                raise
            fix = "choose another model, or remove the row"
            raise UserError("The tokenizer fails on a text", self.name, found=str(error)[:200], fix=fix) from error
        spans = np.array(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        return np.array(encoding["input_ids"], dtype=np.int64), spans


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], skip_special: bool = False) -> str:
    """Decodes the ids to text."""
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=skip_special))


def check_embedded(token_ids: Sequence[int] | Int64[np.ndarray, "T"], renderer: Renderer, source: str | None) -> None:
    """Raises UserError if the model has no embedding for one of the tokens, which come from ``source``."""
    ids = np.asarray(token_ids)
    without = ids[ids >= renderer.embeddings]
    if not len(without):
        return
    beyond = int(without[0])
    token = renderer.tokenizer.convert_ids_to_tokens(beyond)
    raise UserError(
        "The tokenizer has a token for which the model has no embedding, and a text uses it",
        source or None,
        f"token ids below {renderer.embeddings}, the number of embeddings",
        f"{token!r}, which is token {beyond}",
        "remove it from the text, or use the tokenizer with which the model was published",
    )
