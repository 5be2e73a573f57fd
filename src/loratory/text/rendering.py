"""Rendering and tokenization of an example: Example -> TokenizedExample.

Masked language models have no chat template: their prompt is a text with an answer slot that the answer fills.

T: tokens of one sequence.
"""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from loratory.data import ANSWER_SLOT, Example, Message
from loratory.errors import UserError
from loratory.text.documents import document_prompt, document_windows
from loratory.text.masking import MaskedText, masked_prompt, masked_rounds, split_at_slot, with_answer
from loratory.text.renderer import PROBE, Renderer, check_embedded, decode
from loratory.text.template import apply_template, template_arguments
from loratory.text.turns import rendered_turn

# Fill-in-the-middle tokens of model families: those before the prefix, before the suffix, and before the middle.
FIM_TOKENS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
)


@dataclass(frozen=True)
class TokenizedExample:
    """One sequence to train on or to score: prompt, answer and ending."""

    token_ids: Int64[np.ndarray, "T"]
    loss_weights: Float32[np.ndarray, "T"]
    """The weight of each token in the loss; 0 for tokens that are not trained."""
    text: str
    char_spans: Int64[np.ndarray, "T 2"]
    """The characters of ``text`` that each token covers."""
    source: str
    masked_ids: Int64[np.ndarray, "T"] | None = None
    """For masked language models, the input ids: the mask token in place of every trained token."""
    rotation: tuple[int, int] = (0, 1)
    """(r, n): trained in the epochs e with e % n == r. The n sequences of a text mask different tokens."""


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt exactly as inference sees it."""

    text: str
    token_ids: Int64[np.ndarray, "T"]
    char_spans: Int64[np.ndarray, "T 2"]
    tail: str | None
    """The text from the last special token on, tokenized independently of the text before it. None if there is none."""
    leading_space: str
    """White space that is tokenized with the answer."""


def render_prompt(messages: Sequence[Message], renderer: Renderer, source: str = "") -> RenderedPrompt:
    """Renders text and ids up to where the answer begins; for masked language models, with one mask token in the slot.

    Raises UserError if the template rejects the messages or adds two beginning-of-sequence tokens, if the prompt has
    an answer slot that the model cannot fill, or if it has a token without an embedding.
    """
    prompt = _render_prompt(messages, renderer, source)
    check_embedded(prompt.token_ids, renderer, source)
    return prompt


def _render_prompt(messages: Sequence[Message], renderer: Renderer, source: str) -> RenderedPrompt:
    if renderer.is_masked_lm:
        masked = masked_prompt(renderer.tokenizer, messages[-1].content, source)
        return RenderedPrompt(masked.text, masked.token_ids, masked.char_spans, None, "")
    if renderer.reads_documents:
        begun = document_prompt(messages[-1].content, renderer, source)
        return RenderedPrompt(begun.text, begun.token_ids, begun.char_spans, None, "")
    if ANSWER_SLOT in messages[-1].content:
        text = _fim_prompt(messages, renderer, source)
        return RenderedPrompt(text, *renderer.encode(text), text[text.rindex(fim_tokens(renderer)[2]) :], "")
    text = apply_template(renderer, messages, prompt=True, source=source)
    ids, spans = renderer.encode(text)
    bos = renderer.tokenizer.bos_token_id
    if bos is not None and len(ids) > 1 and ids[0] == ids[1] == bos:
        raise UserError("The chat template begins with two beginning-of-sequence tokens", source or None)
    start = max((text.rfind(special) for special in renderer.special_texts), default=-1)
    return RenderedPrompt(text, ids, spans, text[start:] if start >= 0 else None, renderer.leading_space)


def fim_tokens(renderer: Renderer) -> tuple[str, str, str]:
    """The tokenizer's fill-in-the-middle tokens: those before the prefix, before the suffix, and before the middle.

    Raises UserError if the tokenizer has none.
    """
    added = renderer.tokenizer.get_added_vocab()  # type: ignore[operator]
    for tokens in FIM_TOKENS:
        if all(token in added for token in tokens):
            return tokens
    fix = "end the prompt where the answer begins, or choose a model that was trained to fill in the middle"
    raise UserError("The tokenizer has no fill-in-the-middle tokens", "prompt.user, {mask}", fix=fix)


def _fim_prompt(messages: Sequence[Message], renderer: Renderer, source: str) -> str:
    """Prefix, suffix, and the token after which the model writes the middle (Bavarian et al., "Efficient Training of
    Language Models to Fill in the Middle", 2022).

    Raises UserError unless the prompt is a single message with a single answer slot.
    """
    if len(messages) > 1 or messages[0].content.count(ANSWER_SLOT) > 1:
        found = f"{len(messages)} messages" if len(messages) > 1 else "several {mask}"
        raise UserError(
            "A prompt with {mask} must be a single message with a single {mask}", source or None, found=found
        )
    tokens = fim_tokens(renderer)
    start, _, end = messages[0].content.partition(ANSWER_SLOT)
    bos = renderer.tokenizer.bos_token
    first = renderer.tokenizer("a")["input_ids"][:1]
    beginning = bos if bos and first == [renderer.tokenizer.bos_token_id] else ""
    return f"{beginning}{tokens[0]}{start}{tokens[1]}{end}{tokens[2]}"


def completion_ids(prompt: RenderedPrompt, answer: str, renderer: Renderer, source: str = "") -> tuple[list[int], bool]:
    """The ids of answer and ending, which follow the prompt, and whether the answer was tokenized in context.

    In context means that encode(prompt + answer) begins with the prompt's ids and the rest is the answer. If the
    tokenizer would merge the end of the prompt with the start of the answer, the answer is tokenized on its own,
    because inference always sees the prompt's ids unchanged. The answer includes the template's leading space. Raises
    UserError if it has a token without an embedding.
    """
    answer = prompt.leading_space + answer
    if prompt.tail is None:
        both = renderer.encode(prompt.text + answer)[0]
        merged = both[: len(prompt.token_ids)].tolist() != prompt.token_ids.tolist()
        ids = None if merged else both[len(prompt.token_ids) :].tolist()
    else:
        tail_ids, ids = renderer.tail_answer_ids(prompt.tail, answer)
        if prompt.token_ids[-len(tail_ids) :].tolist() != list(tail_ids):
            ids = None
    in_context = ids is not None and len(ids) > 0
    answer_ids = list(ids) if ids else renderer.encode(answer)[0].tolist()
    check_embedded(answer_ids, renderer, source)
    return answer_ids + list(renderer.ending), in_context


def template_deviation(renderer: Renderer) -> str | None:
    """How prompt, answer and ending differ from the template's own rendering; None if that rendering begins with them.

    None if no template is used.

    A deviation is not an error, because training and inference see the same bytes, but the base model has not seen text
    in this form before.
    """
    if renderer.is_masked_lm or renderer.reads_documents:
        return None
    question, answer = Message("user", PROBE["user"]), PROBE["assistant"]
    prompt = render_prompt([question], renderer)
    ids = [*prompt.token_ids.tolist(), *completion_ids(prompt, answer, renderer)[0]]
    ours = prompt.text + renderer.leading_space + answer + renderer.ending_text
    theirs = apply_template(renderer, [question, Message("assistant", answer)], prompt=False)
    if renderer.encode(theirs)[0][: len(ids)].tolist() == ids:
        return None
    differing = (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    first = next(differing, min(len(ours), len(theirs)))
    our_end, their_end = (repr(text[first:][:80].replace(answer, "ANSWER")) for text in (ours, theirs))
    unset = template_arguments(renderer).difference(renderer.template_kwargs)
    hint = "; template_kwargs.enable_thinking = false may fix this" if "enable_thinking" in unset else ""
    return f"Training and inference use {our_end} where the chat template itself writes {their_end}{hint}"


def tokenize(example: Example, renderer: Renderer) -> list[TokenizedExample]:
    """Returns one sequence per trained assistant turn and one per correct answer, each rendered as inference would see
    it. A turn with more than text, such as tool calls, is trained as the template itself writes it after the prompt.

    For pretraining, one sequence per window of the document. Raises UserError if a turn, an answer or a document has no
    tokens to train on.
    """
    if renderer.is_masked_lm:
        return _tokenize_masked(example, renderer)
    if renderer.reads_documents:
        return _tokenize_document(example, renderer)
    turns, sequences = example.messages, []
    for i, turn in enumerate(turns):
        if turn.role == "assistant" and turn.trained:
            sequences.append(_tokenize_turn(turns[:i], turn, renderer, example.source))
    if example.turn is not None:
        return [*sequences, _tokenize_turn(turns, example.turn, renderer, example.source)]
    prompt = render_prompt(turns, renderer, example.source)
    answers = (answer.strip() for answer in example.answers)
    return [*sequences, *(join_completion(prompt, answer, renderer, example.source) for answer in answers)]


def _tokenize_document(example: Example, renderer: Renderer) -> list[TokenizedExample]:
    """The windows of a document; together, they train each of its tokens once."""
    text, source = example.messages[-1].content, example.source
    windows = list(document_windows(text, renderer))
    if all(len(window.token_ids) <= window.context for window in windows):
        raise UserError("The text has no tokens, so there is nothing to train on", source, found=repr(text[:80]))
    sequences = []
    for window in windows:
        check_embedded(window.token_ids, renderer, source)
        weights = np.ones(len(window.token_ids), dtype=np.float32)
        weights[: window.context] = 0
        sequences.append(TokenizedExample(window.token_ids, weights, window.text, window.char_spans, source))
    return sequences


def _tokenize_turn(before: Sequence[Message], turn: Message, renderer: Renderer, source: str) -> TokenizedExample:
    prompt = render_prompt(before, renderer, source)
    if not turn.fields:
        return join_completion(prompt, turn.content.strip(), renderer, source)
    target = rendered_turn(before, turn, renderer, source)
    prompt = dataclasses.replace(prompt, leading_space=target.leading_space)
    return join_completion(prompt, target.text, renderer.ending_with(target.ending), source)


def with_mask_count(examples: Sequence[Example], renderer: Renderer) -> Renderer:
    """For a masked language model, the renderer whose slots have as many masks as the longest answer has tokens."""
    if not renderer.is_masked_lm or is_plain_text_example(examples[0]):
        return renderer
    texts = set()
    for e in examples:
        space = split_at_slot(e.messages[-1].content, e.source).leading_space
        texts |= {space + label_word(answer, renderer) for answer in e.candidates or e.answers}
    return dataclasses.replace(renderer, slot_length=max(len(renderer.encode_part(text)[0]) for text in texts))


@functools.lru_cache(maxsize=10_000)  # every example has the same labels
def tokenizer_round_trip(text: str, renderer: Renderer) -> str:
    """The text after encoding and decoding it, without special tokens and outer white space."""
    return decode(renderer.tokenizer, renderer.encode_part(f" {text}")[0].tolist(), skip_special=True).strip()


def _tokenize_masked(example: Example, renderer: Renderer) -> list[TokenizedExample]:
    """One sequence per correct answer in the slot; for a plain text, sequences that together mask every token once."""
    text, source = example.messages[-1].content, example.source
    if not is_plain_text_example(example):
        slotted = split_at_slot(text, source)
        words = [label_word(answer, renderer) for answer in example.answers]
        filled = [with_answer(renderer.tokenizer, slotted, w, renderer.slot_length, source) for w in words]
        return [_masked_sequence(masked, renderer, source, (0, 1)) for masked in filled]
    chunks = list(masked_rounds(renderer.tokenizer, text, renderer.max_length))
    if not chunks:
        raise UserError("The text has no tokens, so there is nothing to train on", source, found=repr(text[:80]))
    return [
        _masked_sequence(masked, renderer, source, (i, len(chunk)))
        for chunk in chunks
        for i, masked in enumerate(chunk)
    ]


def is_plain_text_example(example: Example) -> bool:
    """Whether the text is its own answer, so that any of its tokens may be masked."""
    return example.answers == (example.messages[-1].content,)


def _masked_sequence(
    masked: MaskedText, renderer: Renderer, source: str, rotation: tuple[int, int]
) -> TokenizedExample:
    check_embedded(np.concatenate([masked.token_ids, masked.masked_ids]), renderer, source)
    weights = masked.is_masked.astype(np.float32)
    return TokenizedExample(
        masked.token_ids, weights, masked.text, masked.char_spans, source, masked.masked_ids, rotation
    )


def label_word(answer: str, renderer: Renderer) -> str:
    """The text that stands for an answer in the slot: its entry in ``[prompt.words]``, else the answer itself."""
    return renderer.label_words.get(answer, answer)


def join_completion(prompt: RenderedPrompt, answer: str, renderer: Renderer, source: str) -> TokenizedExample:
    """Joins prompt, answer and ending into one sequence; the tokens of answer and ending have weight 1.

    Raises UserError if the answer has no tokens.
    """
    completion, _ = completion_ids(prompt, answer, renderer, source)
    if len(completion) == len(renderer.ending):
        raise UserError("The answer has no tokens, so there is nothing to train on", source, found=repr(answer))
    completed = prompt.leading_space + answer + renderer.ending_text
    text = prompt.text + completed
    lengths = np.array(renderer.text_lengths(tuple(completion)), dtype=np.int64)
    lengths[1:] += max(0, len(completed) - lengths[-1])  # some tokenizers drop the space of the first token
    ends = len(prompt.text) + lengths
    spans = np.stack([ends[:-1], ends[1:]], axis=1)
    return TokenizedExample(
        np.concatenate([prompt.token_ids, np.array(completion, dtype=np.int64)]),
        np.repeat(np.array([0, 1], dtype=np.float32), [len(prompt.token_ids), len(completion)]),
        text,
        np.concatenate([prompt.char_spans, spans]),
        source,
    )


def token_texts(sequence: TokenizedExample) -> list[tuple[str, bool]]:
    """The text of each token and whether it is trained; joined, the texts are the whole text, each character once."""
    texts, shown = [], 0
    for end, weight in zip(sequence.char_spans[:, 1].tolist(), sequence.loss_weights.tolist(), strict=True):
        texts.append((sequence.text[shown:end], weight > 0))  # some tokenizers' spans overlap or leave gaps
        shown = max(shown, end)
    return texts
