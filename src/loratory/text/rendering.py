"""Example -> TokenizedExample.

For masked language models there is no template: the prompt is a text with a blank, which the answer fills.

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
from loratory.text.masking import MaskedText, masked_prompt, masked_rounds, split_at_slot, with_answer
from loratory.text.template import PROBE, Renderer, apply_template, decode, template_arguments, template_source

# Tokens for filling in the middle, as families of models have them: before the beginning, the end, and the middle.
MIDDLE_TOKENS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
)


@dataclass(frozen=True)
class TokenizedExample:
    """One sequence to train on or to score: prompt, answer, end."""

    token_ids: Int64[np.ndarray, "T"]
    loss_weights: Float32[np.ndarray, "T"]
    """0 on what is not trained."""
    text: str
    char_spans: Int64[np.ndarray, "T 2"]
    """The characters of ``text`` that each token stands for."""
    source: str
    masked_ids: Int64[np.ndarray, "T"] | None = None
    """For masked language models, what is read: the mask token in place of every trained token."""
    rotation: tuple[int, int] = (0, 1)
    """(r, n): trained in the epochs e with e % n == r. A text's sequences, which hide other tokens, take turns."""


@dataclass(frozen=True)
class RenderedPrompt:
    """The bytes that inference sees."""

    text: str
    token_ids: Int64[np.ndarray, "T"]
    char_spans: Int64[np.ndarray, "T 2"]
    tail: str | None
    """From the last special token on: tokenized independently of what stands before it. None without one."""
    lead: str
    """White space that goes with the answer."""


def render_prompt(messages: Sequence[Message], renderer: Renderer, source: str = "") -> RenderedPrompt:
    """Text and ids up to where the answer begins; for masked language models with the blank as one mask token.

    Raises UserError (two beginning-of-sequence tokens).
    """
    if renderer.masked:
        found = masked_prompt(renderer.tokenizer, messages[-1].content, source)
        return RenderedPrompt(found.text, found.token_ids, found.char_spans, None, "")
    if ANSWER_SLOT in messages[-1].content:
        text = _around_the_middle(messages, renderer, source)
        return RenderedPrompt(text, *renderer.encode(text), text[text.rindex(middle_tokens(renderer)[2]) :], "")
    text = apply_template(renderer, messages, prompt=True)
    ids, spans = renderer.encode(text)
    bos = renderer.tokenizer.bos_token_id
    if bos is not None and len(ids) > 1 and ids[0] == ids[1] == bos:
        raise UserError("The chat template begins with two beginning-of-sequence tokens", source or None)
    start = max((text.rfind(special) for special in renderer.special_texts), default=-1)
    return RenderedPrompt(text, ids, spans, text[start:] if start >= 0 else None, renderer.lead)


def middle_tokens(renderer: Renderer) -> tuple[str, str, str]:
    """The tokens that stand before a beginning, before an end, and before what is to be filled in between.

    Raises UserError where the tokenizer has none.
    """
    known = renderer.tokenizer.get_added_vocab()  # type: ignore[operator]
    for tokens in MIDDLE_TOKENS:
        if all(token in known for token in tokens):
            return tokens
    fix = "let the prompt end where the answer begins, or choose a model that was trained for it"
    raise UserError("The tokenizer has no tokens for filling in the middle", "prompt.user, {mask}", fix=fix)


def _around_the_middle(messages: Sequence[Message], renderer: Renderer, source: str) -> str:
    """Beginning, end, and the token after which the middle is written (Bavarian et al., "Efficient Training of Language
    Models to Fill in the Middle", 2022)."""
    if len(messages) > 1 or messages[0].content.count(ANSWER_SLOT) > 1:
        found = "other messages" if len(messages) > 1 else "several of them"
        raise UserError("A prompt with {mask} is one message with one of them", source or None, found=found)
    tokens = middle_tokens(renderer)
    start, _, end = messages[0].content.partition(ANSWER_SLOT)
    bos = renderer.tokenizer.bos_token
    first = renderer.tokenizer("a")["input_ids"][:1]
    begins = bos if bos and first == [renderer.tokenizer.bos_token_id] else ""
    return f"{begins}{tokens[0]}{start}{tokens[1]}{end}{tokens[2]}"


def completion_ids(prompt: RenderedPrompt, answer: str, renderer: Renderer) -> tuple[list[int], bool]:
    """The ids that follow the prompt: answer and ending; and whether the answer was tokenized in context.

    In context means: encode(prompt + answer) begins with the prompt's ids, and the rest is the answer. Where the
    tokenizer would merge the two, the answer is tokenized alone, because inference sees the prompt's ids and no others.
    The answer takes the template's white space before it along.
    """
    answer = prompt.lead + answer
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
    return answer_ids + list(renderer.ending), in_context


def template_deviation(renderer: Renderer) -> str | None:
    """How prompt, answer and ending differ from the template's own rendering; None where that begins with them.

    No mistake, as training and use have the same bytes, but the model has not seen these before.
    """
    question, answer = Message("user", PROBE["user"]), PROBE["assistant"]
    prompt = render_prompt([question], renderer)
    ids = [*prompt.token_ids.tolist(), *completion_ids(prompt, answer, renderer)[0]]
    ours = prompt.text + renderer.lead + answer + renderer.ending_text
    own = apply_template(renderer, [question, Message("assistant", answer)], prompt=False)
    if renderer.encode(own)[0][: len(ids)].tolist() == ids:
        return None
    same = next((i for i, (a, b) in enumerate(zip(ours, own, strict=False)) if a != b), min(len(ours), len(own)))
    here, there = (repr(text[same:][:80].replace(answer, "ANSWER")) for text in (ours, own))
    unset = template_arguments(template_source(renderer.tokenizer)).difference(renderer.template_kwargs)
    hint = "; template_kwargs.enable_thinking = false may mend it" if "enable_thinking" in unset else ""
    return f"Training and use have {here} where the chat template's own conversations have {there}{hint}"


def tokenize(example: Example, renderer: Renderer) -> list[TokenizedExample]:
    """One sequence for each assistant turn and each right answer, rendered as inference at that turn sees it.

    Raises UserError for a turn without a trained token.
    """
    if renderer.masked:
        return _tokenize_masked(example, renderer)
    turns, sequences = example.messages, []
    for i, turn in enumerate(turns):
        if turn.role == "assistant":
            prompt = render_prompt(turns[:i], renderer, example.source)
            sequences.append(join(prompt, turn.content.strip(), renderer, example.source))
    prompt = render_prompt(turns, renderer, example.source)
    return [*sequences, *(join(prompt, answer.strip(), renderer, example.source) for answer in example.answers)]


def with_mask_count(examples: Sequence[Example], renderer: Renderer) -> Renderer:
    """For masked language models: with blanks of as many masks as the longest of the answers has tokens."""
    if not renderer.masked or is_plain_text_example(examples[0]):
        return renderer
    texts = set()
    for e in examples:
        lead = split_at_slot(e.messages[-1].content, e.source).lead
        texts |= {lead + word(answer, renderer) for answer in e.candidates or e.answers}
    return dataclasses.replace(renderer, masks=max(len(renderer.encode_part(text)[0]) for text in texts))


@functools.lru_cache(maxsize=10_000)  # the same labels for every example
def tokenizer_round_trip(text: str, renderer: Renderer) -> str:
    """What the tokenizer makes of a text, there and back."""
    return decode(renderer.tokenizer, renderer.encode_part(f" {text}")[0].tolist(), skip_special=True).strip()


def _tokenize_masked(example: Example, renderer: Renderer) -> list[TokenizedExample]:
    """The text with each right answer in its blank; without a blank, sequences that hide every token once."""
    text, source = example.messages[-1].content, example.source
    if not is_plain_text_example(example):
        slotted = split_at_slot(text, source)
        words = [word(answer, renderer) for answer in example.answers]
        found = [with_answer(renderer.tokenizer, slotted, w, renderer.masks, source) for w in words]
        return [_masked_sequence(hidden, source, (0, 1)) for hidden in found]
    pieces = list(masked_rounds(renderer.tokenizer, text, renderer.longest))
    if not pieces:
        raise UserError("The text has no tokens, so nothing would be trained", source, found=repr(text[:80]))
    return [_masked_sequence(hidden, source, (i, len(own))) for own in pieces for i, hidden in enumerate(own)]


def is_plain_text_example(example: Example) -> bool:
    """Whether the text is its own answer: any token of it may be hidden."""
    return example.answers == (example.messages[-1].content,)


def _masked_sequence(found: MaskedText, source: str, rotation: tuple[int, int]) -> TokenizedExample:
    weights = found.hidden.astype(np.float32)
    return TokenizedExample(found.token_ids, weights, found.text, found.char_spans, source, found.masked_ids, rotation)


def word(answer: str, renderer: Renderer) -> str:
    """What fills a masked language model's blank for an answer."""
    return renderer.words.get(answer, answer)


def join(prompt: RenderedPrompt, answer: str, renderer: Renderer, source: str) -> TokenizedExample:
    """Prompt, answer and ending as one sequence; answer and ending have weight 1. Raises UserError if nothing would."""
    completion, _ = completion_ids(prompt, answer, renderer)
    if len(completion) == len(renderer.ending):
        raise UserError("The answer has no tokens, so nothing would be trained", source, found=repr(answer))
    completed = prompt.lead + answer + renderer.ending_text
    text = prompt.text + completed
    lengths = np.array(renderer.text_lengths(tuple(completion)), dtype=np.int64)
    lengths[1:] += max(0, len(completed) - lengths[-1])  # decoded alone, some first tokens lose their space
    ends = len(prompt.text) + lengths
    spans = np.stack([ends[:-1], ends[1:]], axis=1)
    return TokenizedExample(
        np.concatenate([prompt.token_ids, np.array(completion, dtype=np.int64)]),
        np.repeat(np.array([0, 1], dtype=np.float32), [len(prompt.token_ids), len(completion)]),
        text,
        np.concatenate([prompt.char_spans, spans]),
        source,
    )


def pieces(sequence: TokenizedExample) -> list[tuple[str, bool]]:
    """The text of each token and whether it is trained; together they are the whole text, each character once."""
    found, shown = [], 0
    for end, weight in zip(sequence.char_spans[:, 1].tolist(), sequence.loss_weights.tolist(), strict=True):
        found.append((sequence.text[shown:end], weight > 0))  # some tokenizers' spans overlap, others leave gaps
        shown = max(shown, end)
    return found
