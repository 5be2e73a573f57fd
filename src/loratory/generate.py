"""Greedy decoding, batched and streamed."""

import threading
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Int64
from numpy import ndarray
from torch import nn
from transformers import GenerationConfig, TextIteratorStreamer

from loratory.models import context_length
from loratory.render import Renderer, decode

Progress = Callable[[int, int], None]


def greedy(stop_ids: Sequence[int], pad_id: int, max_new_tokens: int) -> GenerationConfig:
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
    progress: Progress,
) -> list[str]:
    """The greedy answer to each prompt as text, without what ends it. At most ``max_new_tokens`` tokens each."""
    model.eval()
    context = context_length(model.config)  # type: ignore[arg-type]
    answers = [""] * len(prompts)
    done = 0
    for group in _groups([len(p) + max_new_tokens for p in prompts], token_budget):
        room = context - max(len(prompts[i]) for i in group)
        settings = greedy(renderer.stop_ids, pad_id_of(renderer), max(1, min(max_new_tokens, room)))
        for i, ids in zip(group, _generate_batch(model, [prompts[i] for i in group], settings), strict=True):
            answers[i] = decode_answer(ids, renderer)
        done += len(group)
        progress(done, len(prompts))
    return answers


def _groups(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Sequences of like length together, so that a padded batch stays within the budget."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if not groups or lengths[i] * (len(groups[-1]) + 1) > token_budget:
            groups.append([])
        groups[-1].append(i)
    return groups


def _generate_batch(model: nn.Module, prompts: Sequence[ndarray], settings: GenerationConfig) -> list[list[int]]:
    device = next(model.parameters()).device
    width = max(len(p) for p in prompts)
    ids = torch.full((len(prompts), width), int(settings.pad_token_id or 0), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # on the left, so that every answer begins in the same column
        ids[row, width - len(prompt) :] = torch.from_numpy(prompt)
        mask[row, width - len(prompt) :] = 1
    output = model.generate(input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=settings)  # type: ignore[operator]
    return output[:, width:].tolist()


def decode_answer(ids: Sequence[int], renderer: Renderer) -> str:
    """The text before the first stop id."""
    stops = set(renderer.stop_ids)
    end = next((n for n, token_id in enumerate(ids) if token_id in stops), len(ids))
    return decode(renderer.tokenizer, ids[:end], skip_special=True)


def stream(model: nn.Module, prompt: Int64[ndarray, "T"], renderer: Renderer, max_new_tokens: int) -> Iterator[str]:
    """Yields the greedy answer piece by piece as it is made."""
    streamer = TextIteratorStreamer(renderer.tokenizer, skip_prompt=True, skip_special_tokens=True)  # type: ignore[arg-type]
    device = next(model.parameters()).device
    ids = torch.from_numpy(prompt)[None].to(device)
    arguments = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "generation_config": greedy(renderer.stop_ids, pad_id_of(renderer), max_new_tokens),
        "streamer": streamer,
    }
    failure: list[BaseException] = []

    def work() -> None:
        try:
            model.generate(**arguments)  # type: ignore[operator]
        except BaseException as error:
            failure.append(error)
            streamer.end()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield from streamer
    thread.join()
    if failure:
        raise failure[0]
