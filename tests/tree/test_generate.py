"""Greedy decoding: the answer depends only on the prompt."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from conftest import tiny_model
from tiny import byte_tokenizer

from loratory.settings import PromptConfig
from loratory.text.template import make_renderer
from loratory.tree.generation import generate, stream


@pytest.fixture(params=["llama", "mistral", "gpt2"])
def model(request):
    model = tiny_model(request.param, seed=3)
    model.resize_token_embeddings(272, mean_resizing=False)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(3)
        model.get_input_embeddings().weight.normal_(0, 0.5)
        model.get_output_embeddings().weight.normal_(0, 0.5)
    return model


@pytest.fixture
def renderer():
    return make_renderer(byte_tokenizer(), (2,), PromptConfig())


PROMPTS = [np.array(ids, dtype=np.int64) for ids in ([5, 9, 20, 31], [7], [30] * 11, [5, 9, 20], [40, 3, 3, 8, 60, 70])]


def greedy_reference(model, prompt, count: int) -> list[int]:
    """Greedy decoding without cache and without batching."""
    ids = prompt.tolist()
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == 2:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("token_budget", [1, 30, 1000])
def test_answers_do_not_depend_on_the_batch(model, renderer, token_budget):
    answers = generate(model, PROMPTS, renderer, 8, token_budget, lambda done, total: None)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = [i for i in greedy_reference(model, prompt, 8) if i != 2]
        assert answer == renderer.tokenizer.decode(ids, skip_special_tokens=True)


SHARED = [np.array([11, 12, 13] * 10 + rest, dtype=np.int64) for rest in ([5], [6, 7, 8], [9] * 12, [11, 12, 13], [6])]


@pytest.mark.parametrize("token_budget", [1, 60, 1000])
def test_computing_a_shared_prefix_once_changes_no_answer(model, renderer, token_budget, monkeypatch):
    lengths = []
    forward = type(model).forward

    @functools.wraps(forward)  # generation inspects the signature for position ids
    def counted(self, *, input_ids, **arguments):
        lengths.append(input_ids.shape[1])
        return forward(self, input_ids=input_ids, **arguments)

    monkeypatch.setattr(type(model), "forward", counted)
    answers = generate(model, SHARED, renderer, 8, token_budget, lambda done, total: None)
    windowed = model.config.model_type == "mistral"  # padding would change distances in its sliding window
    assert (max(lengths[1:]) < 30) == (not windowed), lengths
    for prompt, answer in zip(SHARED, answers, strict=True):
        ids = [i for i in greedy_reference(model, prompt, 8) if i != 2]
        assert answer == renderer.tokenizer.decode(ids, skip_special_tokens=True)


def test_rows_that_have_ended_leave_the_batch_and_change_no_answer(model, renderer, monkeypatch):
    """The stop tokens are chosen so that rows end at different steps."""
    greedy_ids = [greedy_reference(model, prompt, 12) for prompt in PROMPTS]
    stops = tuple(sorted({ids[n] for ids, n in zip(greedy_ids, (1, 2, 11, 4, 7), strict=True)}))
    stopping = dataclasses.replace(renderer, stop_ids=stops)
    batches = []
    handle = model.get_input_embeddings().register_forward_hook(lambda m, args, out: batches.append(out.shape[0]))
    answers = generate(model, PROMPTS, stopping, 12, 10_000, lambda done, total: None)
    handle.remove()
    assert batches[0] == len(PROMPTS)
    assert batches[-1] < len(PROMPTS)
    assert batches == sorted(batches, reverse=True)
    for ids, answer in zip(greedy_ids, answers, strict=True):
        end = next((n for n, i in enumerate(ids) if i in stops), len(ids))
        assert answer == renderer.tokenizer.decode(ids[:end], skip_special_tokens=True)


def test_the_models_generation_settings_are_ignored(model, renderer):
    plain = generate(model, PROMPTS, renderer, 8, 1000, lambda done, total: None)
    settings = model.generation_config
    settings.do_sample, settings.temperature, settings.repetition_penalty, settings.top_k = True, 5.0, 3.0, 3
    assert generate(model, PROMPTS, renderer, 8, 1000, lambda done, total: None) == plain


def test_generation_stops_at_any_stop_token(model, renderer):
    first = greedy_reference(model, PROMPTS[0], 3)
    stopping = dataclasses.replace(renderer, stop_ids=(first[1],))
    answers = generate(model, PROMPTS[:1], stopping, 8, 1000, lambda done, total: None)
    end = first.index(first[1])
    assert answers == [renderer.tokenizer.decode(first[:end], skip_special_tokens=True)]


def test_streaming_gives_the_same_text(model, renderer):
    whole = generate(model, PROMPTS[:1], renderer, 8, 1000, lambda done, total: None)
    assert "".join(stream(model, PROMPTS[0], renderer, 8)) == whole[0]


def test_an_exception_while_streaming_reaches_the_consumer(model, renderer, monkeypatch):
    monkeypatch.setattr(model, "generate", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(stream(model, PROMPTS[0], renderer, 8))
