"""Greedy decoding, batched and streamed."""

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
from loratory.tree.verification import length_dependent_beyond

MIN_SHARED_PREFIX = 16  # tokens; a shorter prefix is computed again for every prompt
CACHED_TOKENS_PER_COMPUTED = 4  # tokens whose keys and values are held count as a quarter of one that is computed


def greedy_settings(stop_ids: Sequence[int], pad_id: int, max_new_tokens: int) -> GenerationConfig:
    """Settings under which the answer is a function of the prompt, whatever the model's own generation settings say."""
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
    """An id for padding; any will do, because padding is masked by position and never by id."""
    found = renderer.tokenizer.pad_token_id
    return found if isinstance(found, int) else renderer.stop_ids[0]


@torch.no_grad()
def generate(
    model: nn.Module,
    prompts: Sequence[Int64[ndarray, "_"]],
    renderer: Renderer,
    max_new_tokens: int,
    token_budget: int,
    progress: ProgressCallback,
) -> list[str]:
    """The greedy answer to each prompt as text, without what ends it. At most ``max_new_tokens`` tokens each.

    What all prompts begin with is computed once.
    """
    model.eval()
    context = context_length(model.config)  # type: ignore[arg-type]
    answers = [""] * len(prompts)
    done = 0
    prefix = shared_prefix(model, prompts, max_new_tokens)
    # Tokens to compute for each prompt; those that are only held in the cache take memory, but far less.
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
    """The tokens that all prompts begin with, computed."""

    length: int
    cache: DynamicCache | None


NO_PREFIX = Prefix(0, None)


@torch.no_grad()
def shared_prefix(model: nn.Module, prompts: Sequence[ndarray], max_new_tokens: int) -> Prefix:
    """The longest shared prefix that leaves every prompt a token; none where it is short or cannot be kept exactly.

    It can where every layer keeps all keys: with a sliding window, padding between prefix and rest would count as
    distance, and where frequencies depend on the length, the prefix of a longer prompt has other keys.
    """
    if len(prompts) < 2:
        return NO_PREFIX
    first, last = min(prompts, key=lambda p: p.tolist()), max(prompts, key=lambda p: p.tolist())
    length = min(common_prefix(first, last), min(len(p) for p in prompts) - 1)
    longest = max(len(p) for p in prompts) + max_new_tokens
    if length < MIN_SHARED_PREFIX or longest > length_dependent_beyond(model):
        return NO_PREFIX
    ids = torch.from_numpy(first[:length])[None].to(next(model.parameters()).device)
    found = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    cache = getattr(found, "past_key_values", None)  # models without attention have none
    if type(cache) is not DynamicCache or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return NO_PREFIX
    return Prefix(length, cache)


def _groups(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Sequences of like length together, so that a padded batch stays within the budget."""
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
    for row, prompt in enumerate(prompts):  # the rest on the right, so that every answer begins in the same column
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
    """The tokens that follow each row of ``ids``. Once half of the rows have ended, they leave; the rest goes on."""
    width, most = ids.shape[1], settings.max_new_tokens or 0
    stops = torch.tensor(settings.eos_token_id, device=ids.device)
    found: list[list[int]] = [[] for _ in ids]
    rows = torch.arange(len(ids), device=ids.device)
    while len(rows):

        def half_ended(ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
            ended = torch.isin(ids[:, width:], stops).any(1)
            return (2 * ended.sum() >= len(ended)).expand(len(ended))

        left = copy.deepcopy(settings)
        left.max_new_tokens = width + most - ids.shape[1]
        left.return_dict_in_generate = True
        output: Any = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            generation_config=left,
            stopping_criteria=StoppingCriteriaList([half_ended]),  # type: ignore[list-item]
        )
        made = output.sequences
        ended = torch.isin(made[:, width:], stops).any(1) | (made.shape[1] >= width + most)
        for row, own in zip(rows[ended].tolist(), made[ended, width:].tolist(), strict=True):
            found[row] = own
        going = (~ended).nonzero()[:, 0]
        mask = torch.cat([mask, mask.new_ones(len(mask), made.shape[1] - ids.shape[1])], dim=1)[going]
        ids, rows, cache = made[going], rows[going], _growing(output)
        if len(rows) and cache is not None:
            cache.batch_select_indices(going)
    return found


def _growing(output: Any) -> DynamicCache | None:
    """The cache of keys and values, where all of it can lose rows; others' prompts are computed again."""
    cache = getattr(output, "past_key_values", None)
    known = type(cache) is DynamicCache and all(isinstance(layer, DynamicLayer) for layer in cache.layers)
    return cache if known else None


def decode_answer(ids: Sequence[int], renderer: Renderer) -> str:
    """The text before the first stop id."""
    stops = set(renderer.stop_ids)
    end = next((n for n, token_id in enumerate(ids) if token_id in stops), len(ids))
    return decode(renderer.tokenizer, ids[:end], skip_special=True)


def stream(model: nn.Module, prompt: Int64[ndarray, "T"], renderer: Renderer, max_new_tokens: int) -> Iterator[str]:
    """Yields the greedy answer as text, piece by piece as it is made."""
    with closing(stream_ids(model, prompt, renderer, max_new_tokens)) as ids:
        yield from decode_pieces(ids, renderer)


def stream_ids(
    model: nn.Module, prompt: Int64[ndarray, "T"], renderer: Renderer, max_new_tokens: int
) -> Generator[int, None, None]:
    """Yields the ids of the greedy answer as they are made, including the one that stops it.

    Closing the generator stops the model after the token that it is computing, and waits for that.
    Raises UserError where the prompt leaves no room for an answer in the model's context.
    """
    context = context_length(model.config.get_text_config())  # type: ignore[union-attr, operator]
    if len(prompt) >= context:
        found = f"{len(prompt)} tokens"
        raise UserError("The prompt does not fit the model's context", expected=f"under {context}", found=found)
    made: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
    closed = threading.Event()

    def told(ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        made.put(int(ids[0, -1]))
        return torch.tensor([closed.is_set()], device=ids.device)

    ids = torch.from_numpy(prompt)[None].to(next(model.parameters()).device)
    arguments = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "generation_config": greedy_settings(
            renderer.stop_ids, pad_id_of(renderer), min(max_new_tokens, context - len(prompt))
        ),
        "stopping_criteria": StoppingCriteriaList([told]),  # type: ignore[list-item]
    }

    def work() -> None:
        try:
            model.generate(**arguments)  # type: ignore[operator]
            made.put(None)
        except BaseException as error:
            made.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (found := made.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found
    finally:
        closed.set()
        thread.join()


def decode_pieces(ids: Iterable[int], renderer: Renderer) -> Iterator[str]:
    """Yields the text that each id adds up to the first stop id, then what is left.

    An id adds nothing while the bytes of a character are incomplete. The pieces together are the text of the ids, but
    for tokenizers that take back a character of single bytes when bytes that are none follow it.
    """
    stops, known = set(renderer.stop_ids), []
    start = end = 0  # the ids from start to end give the context in which later ones are decoded; their text is out

    def text(first: int, last: int | None) -> str:
        return decode(renderer.tokenizer, known[first:last], skip_special=True)

    for token_id in ids:
        if token_id in stops:
            break
        known.append(token_id)
        new = text(start, None)[len(text(start, end)) :]
        whole = bool(new) and not new.endswith("\ufffd")
        yield new if whole else ""
        if whole:
            start, end = end, len(known)
    yield text(start, None)[len(text(start, end)) :]
