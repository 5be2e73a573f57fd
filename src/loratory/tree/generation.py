"""Greedy decoding, in batches or streamed."""

import copy
import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from numpy import ndarray
from torch import nn
from transformers import DynamicCache, GenerationConfig, StoppingCriteriaList
from transformers.cache_utils import DynamicLayer

from loratory.errors import UserError
from loratory.events import ProgressCallback
from loratory.models import context_length
from loratory.text import Renderer, decode
from loratory.tree.batches import common_prefix
from loratory.tree.verification import max_unscaled_length

MIN_SHARED_PREFIX = 16  # tokens; a shorter prefix is recomputed for every prompt
CACHED_TOKENS_PER_COMPUTED = 4  # a token held only in the cache counts as a quarter of a computed one


def greedy_settings(stop_ids: Sequence[int], pad_id: int, max_new_tokens: int) -> GenerationConfig:
    """Settings that make the answer a function of the prompt alone, overriding the model's own generation settings."""
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        min_new_tokens=0,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_ids),
        pad_token_id=pad_id,
    )


def pad_id_of(renderer: Renderer) -> int:
    """A token id for padding; any id works, because padding is masked by position and never by id."""
    choices = (renderer.tokenizer.pad_token_id, *renderer.stop_ids)
    return next(i for i in choices if isinstance(i, int) and i < renderer.embeddings)


@torch.no_grad()
def generate(
    model: nn.Module,
    prompts: Sequence[Int64[ndarray, "_"]],
    renderer: Renderer,
    max_new_tokens: int,
    token_budget: int,
    progress: ProgressCallback,
) -> list[str]:
    """The greedy answer to each prompt as text, without the stop token; at most ``max_new_tokens`` tokens each.

    The prefix that all prompts share is computed once.
    """
    model.eval()
    context = context_length(model.config)  # type: ignore[arg-type]
    answers = [""] * len(prompts)
    done = 0
    prefix = shared_prefix(model, prompts, max_new_tokens)
    # The cost of each prompt, in computed tokens; tokens that are only held in the cache take memory too, but far less.
    sizes = [
        max(len(p) - prefix.length + max_new_tokens, -(-(len(p) + max_new_tokens) // CACHED_TOKENS_PER_COMPUTED))
        for p in prompts
    ]
    for group in _groups(sizes, token_budget):
        room = context - max(len(prompts[i]) for i in group)
        settings = greedy_settings(renderer.stop_ids, pad_id_of(renderer), max(1, min(max_new_tokens, room)))
        for i, ids in zip(group, _generate_batch(model, [prompts[i] for i in group], prefix, settings), strict=True):
            answers[i] = decode_answer(ids, renderer)
        done += len(group)
        progress(done, len(prompts))
    return answers


@dataclass(frozen=True)
class Prefix:
    """The tokens that all prompts begin with, and their keys and values."""

    length: int
    cache: DynamicCache | None


NO_PREFIX = Prefix(0, None)


@torch.no_grad()
def shared_prefix(model: nn.Module, prompts: Sequence[ndarray], max_new_tokens: int) -> Prefix:
    """The longest shared prefix that leaves each prompt at least one token.

    ``NO_PREFIX`` if it is too short or cannot be cached exactly. Caching is exact if every layer keeps all keys: with a
    sliding window, the padding between prefix and remainder would count as distance, and with length-dependent rotary
    frequencies, the prefix of a longer prompt has different keys.
    """
    if len(prompts) < 2:
        return NO_PREFIX
    first, last = min(prompts, key=lambda p: p.tolist()), max(prompts, key=lambda p: p.tolist())
    length = min(common_prefix(first, last), min(len(p) for p in prompts) - 1)
    longest = max(len(p) for p in prompts) + max_new_tokens
    if length < MIN_SHARED_PREFIX or longest > max_unscaled_length(model):
        return NO_PREFIX
    ids = torch.from_numpy(first[:length])[None].to(next(model.parameters()).device)
    output = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    cache = getattr(output, "past_key_values", None)  # models without attention have none
    if type(cache) is not DynamicCache or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return NO_PREFIX
    return Prefix(length, cache)


def _groups(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Groups sequences of similar length, so that each padded batch stays within the budget."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if not groups or lengths[i] * (len(groups[-1]) + 1) > token_budget:
            groups.append([])
        groups[-1].append(i)
    return groups


def _generate_batch(
    model: nn.Module, prompts: Sequence[ndarray], prefix: Prefix, settings: GenerationConfig
) -> list[list[int]]:
    device = next(model.parameters()).device
    width = max(len(p) for p in prompts)
    ids = torch.full((len(prompts), width), int(settings.pad_token_id or 0), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # remainder aligned right, so that every answer starts in the same column
        start = width - len(prompt) + prefix.length
        ids[row, : prefix.length] = torch.from_numpy(prompt[: prefix.length])
        ids[row, start:] = torch.from_numpy(prompt[prefix.length :])
        mask[row, : prefix.length] = 1
        mask[row, start:] = 1
    cache = copy.deepcopy(prefix.cache)
    if cache is not None:
        cache.batch_repeat_interleave(len(prompts))
    return _generate_dropping_finished(model, ids.to(device), mask.to(device), cache, settings)


def _generate_dropping_finished(
    model: nn.Module, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache | None, settings: GenerationConfig
) -> list[list[int]]:
    """The tokens generated after each row of ``ids``. Once half of the rows have ended, they leave the batch."""
    width, limit = ids.shape[1], settings.max_new_tokens or 0
    stops = torch.tensor(settings.eos_token_id, device=ids.device)
    answers: list[list[int]] = [[] for _ in ids]
    rows = torch.arange(len(ids), device=ids.device)
    while len(rows):

        def half_ended(ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
            ended = torch.isin(ids[:, width:], stops).any(1)
            return (2 * ended.sum() >= len(ended)).expand(len(ended))

        remaining = copy.deepcopy(settings)
        remaining.max_new_tokens = width + limit - ids.shape[1]
        remaining.return_dict_in_generate = True
        output: Any = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            generation_config=remaining,
            stopping_criteria=StoppingCriteriaList([half_ended]),  # type: ignore[list-item]
        )
        sequences = output.sequences
        ended = torch.isin(sequences[:, width:], stops).any(1) | (sequences.shape[1] >= width + limit)
        for row, new_ids in zip(rows[ended].tolist(), sequences[ended, width:].tolist(), strict=True):
            answers[row] = new_ids
        unfinished = (~ended).nonzero()[:, 0]
        mask = torch.cat([mask, mask.new_ones(len(mask), sequences.shape[1] - ids.shape[1])], dim=1)[unfinished]
        ids, rows, cache = sequences[unfinished], rows[unfinished], _reusable_cache(output)
        if len(rows) and cache is not None:
            cache.batch_select_indices(unfinished)
    return answers


def _reusable_cache(output: Any) -> DynamicCache | None:
    """The key/value cache, if every layer of it can drop rows; otherwise None, and the sequences are recomputed."""
    cache = getattr(output, "past_key_values", None)
    reusable = type(cache) is DynamicCache and all(isinstance(layer, DynamicLayer) for layer in cache.layers)
    return cache if reusable else None


def decode_answer(ids: Sequence[int], renderer: Renderer) -> str:
    """The text before the first stop token."""
    stops = set(renderer.stop_ids)
    end = next((n for n, token_id in enumerate(ids) if token_id in stops), len(ids))
    return decode(renderer.tokenizer, ids[:end], skip_special=True)


def stream(model: nn.Module, prompt: Int64[ndarray, "T"], renderer: Renderer, max_new_tokens: int) -> Iterator[str]:
    """Yields the greedy answer as text, piece by piece as it is generated."""
    with closing(stream_ids(model, prompt, renderer, max_new_tokens)) as ids:
        yield from decode_pieces(ids, renderer)


def stream_ids(
    model: nn.Module, prompt: Int64[ndarray, "T"], renderer: Renderer, max_new_tokens: int
) -> Generator[int, None, None]:
    """Yields the token ids of the greedy answer as they are generated, including the stop token.

    Closing the generator stops the model after the current token and waits until it has stopped.
    Raises UserError if the prompt leaves no room for an answer in the model's context.
    """
    context = context_length(model.config.get_text_config())  # type: ignore[union-attr, operator]
    if len(prompt) >= context:
        limit, length = f"fewer than {context} tokens", f"{len(prompt)} tokens"
        raise UserError("The prompt does not fit the model's context", expected=limit, found=length)
    generated: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
    closed = threading.Event()

    def report_token(ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        generated.put(int(ids[0, -1]))
        return torch.tensor([closed.is_set()], device=ids.device)

    ids = torch.from_numpy(prompt)[None].to(next(model.parameters()).device)
    arguments = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "generation_config": greedy_settings(
            renderer.stop_ids, pad_id_of(renderer), min(max_new_tokens, context - len(prompt))
        ),
        "stopping_criteria": StoppingCriteriaList([report_token]),  # type: ignore[list-item]
    }

    def work() -> None:
        try:
            model.generate(**arguments)  # type: ignore[operator]
            generated.put(None)
        except BaseException as error:
            generated.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (item := generated.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        closed.set()
        thread.join()


def decode_pieces(ids: Iterable[int], renderer: Renderer) -> Iterator[str]:
    """Yields the text that each id adds, up to the first stop token, and then the remaining text.

    An id adds nothing while the bytes of a character are incomplete. The pieces concatenate to the decoded text of all
    ids, except for tokenizers that revoke a character decoded from single bytes if bytes that form none follow it.
    """
    stops, received = set(renderer.stop_ids), []
    start = end = 0  # ids[start:end] are the context for decoding later ids; their text has been yielded

    def text(first: int, last: int | None) -> str:
        return decode(renderer.tokenizer, received[first:last], skip_special=True)

    for token_id in ids:
        if token_id in stops:
            break
        received.append(token_id)
        new = text(start, None)[len(text(start, end)) :]
        complete = bool(new) and not new.endswith("\ufffd")
        yield new if complete else ""
        if complete:
            start, end = end, len(received)
    yield text(start, None)[len(text(start, end)) :]
