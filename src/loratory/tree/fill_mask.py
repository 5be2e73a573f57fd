"""Fill-mask with masked language models: the most probable tokens for masks and blanks.

T: tokens of a text.  K: masks in the text.  N: guesses per mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import nn

from loratory.data import Example
from loratory.errors import UserError
from loratory.events import ProgressCallback
from loratory.text import (
    MaskedText,
    Renderer,
    SlottedText,
    TokenizedExample,
    answer_end_id,
    decode,
    masked_prompt,
    normalize_masks,
    split_at_slot,
    with_masks,
)
from loratory.tree.batches import micro_batches
from loratory.tree.forward import prepared, target_logits
from loratory.tree.layout import Layout

AT_ONCE = 64  # texts whose blanks are filled in one batch
MOST_MASKS, LENGTHS_TRIED = 32, 8  # for models that were not trained to end an answer


@dataclass(frozen=True)
class MaskPredictions:
    """The most probable tokens for each mask of a text, in descending order of probability."""

    token_ids_KN: Int64[np.ndarray, "K N"]
    log_probs_KN: Float64[np.ndarray, "K N"]
    """Natural logarithm; special tokens are excluded and the probabilities of the others renormalized."""


@torch.no_grad()
def predict_masks(
    model: nn.Module,
    renderer: Renderer,
    texts: Sequence[Int64[np.ndarray, "_"]],
    count: int,
    layout: Layout,
    budget: int,
    allowed: Sequence[int] = (),
) -> list[MaskPredictions]:
    """The ``count`` most probable tokens for each mask of each text; all masks of a text are predicted at once.

    ``texts``: token ids, including the mask tokens. ``budget``: the most tokens to compute at once. ``allowed``:
    special tokens that may be predicted too.
    """
    model.eval()
    device = next(model.parameters()).device
    special = torch.tensor(sorted({*renderer.tokenizer.all_special_ids} - {*allowed}), device=device)
    sequences = [_masks_as_targets(ids, renderer) for ids in texts]
    guesses = [MaskPredictions(np.zeros((0, count), dtype=np.int64), np.zeros((0, count)))] * len(texts)
    with prepared(model, layout):
        for batch in micro_batches(sequences, budget, layout.share):
            logits_UV, inverse_N = target_logits(model, batch.to(device), layout)
            logits_UV = logits_UV.to(torch.promote_types(logits_UV.dtype, torch.float32))
            logits_UV[:, special] = -torch.inf
            best = logits_UV.topk(min(count, logits_UV.shape[1] - len(special)))
            log_probs = best.values.cpu().double() - logits_UV.logsumexp(dim=-1, keepdim=True).cpu().double()
            ids_NN, log_probs_NN = best.indices[inverse_N].cpu().numpy(), log_probs[inverse_N.cpu()].numpy()
            for i in batch.target_sequence_N.unique().tolist():
                rows = (batch.target_sequence_N == i).numpy()
                guesses[i] = MaskPredictions(ids_NN[rows], log_probs_NN[rows])
    return guesses


def _masks_as_targets(ids: Int64[np.ndarray, "T"], renderer: Renderer) -> TokenizedExample:
    weights = (ids == renderer.tokenizer.mask_token_id).astype(np.float32)
    return TokenizedExample(ids, weights, "", np.zeros((len(ids), 2), dtype=np.int64), "", ids)


def fill_masks(
    model: nn.Module, renderer: Renderer, text: str, count: int
) -> tuple[list[list[tuple[str, float]]], str]:
    """The ``count`` most probable tokens with their probabilities for each mask of a text, and the completed text.

    A mask is written as {mask}, [MASK], <mask>, or the tokenizer's mask token. Raises UserError if the text has no mask
    or is too long.
    """
    tokenizer = renderer.tokenizer
    normalized = normalize_masks(tokenizer, text)
    ids = masked_prompt(tokenizer, normalized, "the text").token_ids
    if not (ids == tokenizer.mask_token_id).any():
        raise UserError("The text has no mask", expected=str(tokenizer.mask_token), found=text[:80])
    if len(ids) > renderer.max_length:
        limit, length = f"at most {renderer.max_length} tokens", f"{len(ids)} tokens"
        raise UserError("The text is too long", expected=limit, found=length)
    layout = Layout("padded", "one text", masked=True)
    [guesses] = predict_masks(model, renderer, [ids], count, layout, len(ids))
    [filled] = _fill(model, renderer, [ids], layout, len(ids))
    pairs = zip(guesses.token_ids_KN.tolist(), np.exp(guesses.log_probs_KN).tolist(), strict=True)
    words = [[(decode(tokenizer, [i]), p) for i, p in zip(*of_mask, strict=True)] for of_mask in pairs]
    return words, decode(tokenizer, filled.tolist(), skip_special=True).strip()


def fill_slots(
    model: nn.Module,
    renderer: Renderer,
    examples: Sequence[Example],
    longest: int,
    tuned: bool,
    layout: Layout,
    budget: int,
    progress: ProgressCallback,
) -> list[str]:
    """The text that the model fills into the blank of each example, at most ``longest`` tokens.

    A tuned model fills ``longest`` masks at once, as in training, and ends its answer itself. For an untuned model,
    several numbers of masks are tried, and the number whose most probable tokens have the highest mean log-probability
    is used. Its masks are then filled one after another, the most confident first, so that the tokens fit together.
    """
    answers = []
    for start in range(0, len(examples), AT_ONCE):
        slotted_texts = [split_at_slot(e.messages[-1].content, e.source) for e in examples[start : start + AT_ONCE]]
        if tuned:
            texts = [with_masks(renderer.tokenizer, slotted, longest) for slotted in slotted_texts]
            ends = [answer_end_id(renderer.tokenizer)]
            guesses = predict_masks(model, renderer, [t.masked_ids for t in texts], 1, layout, budget, ends)
            slot_ids = [g.token_ids_KN[_in_slot(t, renderer), 0].tolist() for g, t in zip(guesses, texts, strict=True)]
            words = [_before_end(ids, ends) for ids in slot_ids]
        else:
            texts = _with_best_mask_count(model, renderer, slotted_texts, longest, layout, budget)
            filled = _fill(model, renderer, [t.masked_ids for t in texts], layout, budget)
            words = [ids[t.is_masked].tolist() for ids, t in zip(filled, texts, strict=True)]
        answers += [decode(renderer.tokenizer, ids, skip_special=True).strip() for ids in words]
        progress(min(start + AT_ONCE, len(examples)), len(examples))
    return answers


def _in_slot(text: MaskedText, renderer: Renderer) -> Bool[np.ndarray, "K"]:
    """Which of a text's masks belong to its blank; the row's own text may contain the mask token too."""
    return text.is_masked[text.masked_ids == renderer.tokenizer.mask_token_id]


def _before_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    return ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]


def _with_best_mask_count(
    model: nn.Module,
    renderer: Renderer,
    slotted_texts: Sequence[SlottedText],
    longest: int,
    layout: Layout,
    budget: int,
) -> list[MaskedText]:
    lengths = np.unique(np.linspace(1, min(longest, MOST_MASKS), LENGTHS_TRIED).astype(int)).tolist()
    variants = [[with_masks(renderer.tokenizer, b, k) for k in lengths] for b in slotted_texts]
    flat = [t for of_text in variants for t in of_text]
    guesses = predict_masks(model, renderer, [t.masked_ids for t in flat], 1, layout, budget)
    means = [g.log_probs_KN[_in_slot(t, renderer)].mean() for g, t in zip(guesses, flat, strict=True)]
    confidence = np.array(means).reshape(len(slotted_texts), len(lengths))
    return [of_text[int(i)] for of_text, i in zip(variants, confidence.argmax(axis=1), strict=True)]


def _fill(
    model: nn.Module, renderer: Renderer, texts: Sequence[Int64[np.ndarray, "_"]], layout: Layout, budget: int
) -> list[Int64[np.ndarray, "_"]]:
    """The texts with all masks filled in, one token at a time, the most confident first."""
    filled = [ids.copy() for ids in texts]
    mask_id = renderer.tokenizer.mask_token_id
    while unfinished := [ids for ids in filled if (ids == mask_id).any()]:
        for ids, guesses in zip(unfinished, predict_masks(model, renderer, unfinished, 1, layout, budget), strict=True):
            most_confident = int(guesses.log_probs_KN[:, 0].argmax())
            ids[np.flatnonzero(ids == mask_id)[most_confident]] = guesses.token_ids_KN[most_confident, 0]
    return filled


def predict_masked_tokens(
    model: nn.Module, renderer: Renderer, sequences: Sequence[TokenizedExample], layout: Layout, budget: int
) -> list[str]:
    """Each text with every masked token replaced by the most probable one, all at once."""
    masked_texts = [s.masked_ids for s in sequences if s.masked_ids is not None]
    restored = []
    for ids, guesses in zip(masked_texts, predict_masks(model, renderer, masked_texts, 1, layout, budget), strict=True):
        ids = ids.copy()
        ids[ids == renderer.tokenizer.mask_token_id] = guesses.token_ids_KN[:, 0]
        restored.append(decode(renderer.tokenizer, ids.tolist(), skip_special=True).strip())
    return restored
