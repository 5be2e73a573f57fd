"""Fitting examples into the model's context: measures them, then drops, cuts or rejects those that are too long."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from loratory.data import ANSWER_SLOT, Example
from loratory.errors import UserError
from loratory.text.documents import CONTINUATION_TOKENS
from loratory.text.masking import split_at_slot, with_masks
from loratory.text.renderer import Renderer
from loratory.text.rendering import completion_ids, is_plain_text_example, label_word, render_prompt


@dataclass(frozen=True)
class Fitted:
    """Examples that fit into the context, with the numbers of examples dropped and cut to get there."""

    examples: tuple[Example, ...]
    dropped: int
    cut: int


def example_length(example: Example, renderer: Renderer) -> int:
    """The length in tokens of the prompt followed by its longest candidate or answer, including the ending.

    0 for a plain text, which always fits because it is split. Raises UserError if a plain text is empty.
    """
    if renderer.reads_documents or (renderer.is_masked_lm and is_plain_text_example(example)):
        return _plain_text_length(example, renderer)
    if renderer.is_masked_lm:
        return _masked_length(example, renderer)
    prompt = render_prompt(example.messages, renderer, example.source)
    answers = example.candidates or example.answers
    if prompt.tail is not None:
        return len(prompt.token_ids) + renderer.longest_answer(prompt.tail, answers) + len(renderer.ending)
    return len(prompt.token_ids) + max(
        (len(completion_ids(prompt, a, renderer, example.source)[0]) for a in answers), default=0
    )


def _plain_text_length(example: Example, renderer: Renderer) -> int:
    text = example.messages[-1].content
    if not text.strip() or not len(renderer.encode_part(text)[0]):
        raise UserError("The text is empty, so there is nothing to learn from", example.source, fix="remove the row")
    return 0


def _masked_length(example: Example, renderer: Renderer) -> int:
    """``example_length`` for the prompts of masked language models."""
    slotted = split_at_slot(example.messages[-1].content, example.source)
    answers = example.candidates or example.answers
    texts = (slotted.leading_space + label_word(answer, renderer) for answer in answers)
    longest = max((len(renderer.encode_part(text)[0]) for text in texts), default=1)
    return len(with_masks(renderer.tokenizer, slotted, max(longest, renderer.slot_length)).token_ids)


def fit_to_context(examples: Sequence[Example], renderer: Renderer, limit: int, overlong: str) -> Fitted:
    """Applies the setting ``overlong`` to the examples longer than ``limit`` tokens.

    Raises UserError if the setting is "error" and an example is too long, or if a prompt cannot be cut enough.
    """
    lengths = [example_length(example, renderer) for example in examples]
    overlong_indices = [i for i, length in enumerate(lengths) if length > limit]
    if overlong_indices and overlong == "error":
        worst = max(overlong_indices, key=lambda i: lengths[i])
        raise UserError(
            f"{len(overlong_indices)} of {len(examples)} examples are longer than the model's context",
            examples[worst].source,
            expected=f"at most {limit} tokens, including the answer",
            found=f"{lengths[worst]} tokens in the longest example",
            fix='set [data] overlong = "cut_prompt" or "drop", or shorten the prompt',
        )
    if overlong == "drop":
        return Fitted(tuple(e for i, e in enumerate(examples) if lengths[i] <= limit), len(overlong_indices), 0)
    cut = {i: _cut_prompt(examples[i], lengths[i] - limit, renderer, limit) for i in overlong_indices}
    return Fitted(tuple(cut.get(i, e) for i, e in enumerate(examples)), 0, len(cut))


def _cut_prompt(example: Example, excess: int, renderer: Renderer, limit: int) -> Example:
    """Shortens the last user message until the example fits.

    Cuts the end of the message or, if it contains an answer slot, the part chosen by ``_cuttable``. Raises UserError if
    no text would be left.
    """
    last = max((i for i, m in enumerate(example.messages) if m.role == "user"), default=len(example.messages) - 1)
    content = example.messages[last].content
    before, content, after, from_end = _cuttable(content) if ANSWER_SLOT in content else ("", content, "", True)
    spans = renderer.encode(content)[1]
    keep = len(spans) - excess
    while keep > 0:
        kept = content[: spans[keep - 1][1]].rstrip() if from_end else content[spans[-keep][0] :].lstrip()
        shorter = dataclasses.replace(example.messages[last], content=before + kept + after)
        messages = (*example.messages[:last], shorter, *example.messages[last + 1 :])
        candidate = dataclasses.replace(example, messages=messages)
        over = example_length(candidate, renderer) - limit
        if over <= 0:
            return candidate
        keep -= over
    raise UserError(
        "The prompt does not fit the model's context even without the row's text",
        example.source,
        expected=f"at most {limit} tokens, including the answer",
    )


def _cuttable(text: str) -> tuple[str, str, str, bool]:
    """Chooses the part of a text with an answer slot that may be cut.

    This is everything above the line of the slot or, if the slot is on the first line, the longer side of the slot.
    Returns the text before the part, the part, the text after it, and whether to cut the part from its end.
    """
    start = text.index(ANSWER_SLOT)
    end = start + len(ANSWER_SLOT)
    line = text.rfind("\n", 0, start)
    if line > 0:
        return "", text[:line], text[line:], True
    if len(text) - end > start:
        return text[:end], text[end:], "", True
    return "", text[:start], text[start:], False


LONGEST_TRIED = 100  # how many texts are measured in tokens: those with the most characters


def longest_answer(examples: Sequence[Example], renderer: Renderer) -> int:
    """The length in tokens of the examples' longest candidate or answer, including the ending.

    For pretraining, where no example has an answer, how far a text is continued.
    """
    if renderer.reads_documents:
        return CONTINUATION_TOKENS
    if renderer.is_masked_lm:
        return renderer.slot_length
    texts = {text for e in examples for text in e.candidates or e.answers}
    prompt = render_prompt(examples[0].messages, renderer, examples[0].source)
    likely = sorted(texts, key=len, reverse=True)[:LONGEST_TRIED]
    return max((len(completion_ids(prompt, text, renderer)[0]) for text in likely), default=1)
