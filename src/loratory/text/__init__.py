"""Conversion of examples to tokens and back.

In: an ``Example`` and a tokenizer with its chat template. Out: ``TokenizedExample`` objects for training and scoring,
or the prompt for inference; both come from the same functions. Read ``rendering.py`` first.
"""

from loratory.text.context import example_length, fit_to_context, longest_answer
from loratory.text.documents import renderer_of_task
from loratory.text.masking import (
    MaskedText,
    SlottedText,
    answer_end_id,
    masked_prompt,
    normalize_masks,
    split_at_slot,
    with_masks,
)
from loratory.text.renderer import Renderer, decode
from loratory.text.rendering import (
    RenderedPrompt,
    TokenizedExample,
    completion_ids,
    label_word,
    render_prompt,
    template_deviation,
    token_texts,
    tokenize,
    tokenizer_round_trip,
    with_mask_count,
)
from loratory.text.template import check_system_is_shown, renderer_for
from loratory.text.template_runner import start_template_process
from loratory.text.turns import check_turns_are_shown, with_rendered_answers

__all__ = [
    "MaskedText",
    "RenderedPrompt",
    "Renderer",
    "SlottedText",
    "TokenizedExample",
    "answer_end_id",
    "check_system_is_shown",
    "check_turns_are_shown",
    "completion_ids",
    "decode",
    "example_length",
    "fit_to_context",
    "label_word",
    "longest_answer",
    "masked_prompt",
    "normalize_masks",
    "render_prompt",
    "renderer_for",
    "renderer_of_task",
    "split_at_slot",
    "start_template_process",
    "template_deviation",
    "token_texts",
    "tokenize",
    "tokenizer_round_trip",
    "with_mask_count",
    "with_masks",
    "with_rendered_answers",
]
