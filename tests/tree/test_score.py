"""Label scores equal those of the stock model for each label alone; the rules turn them into a choice."""

import dataclasses
import functools
import string

import numpy as np
import pytest
import torch
import transformers
from conftest import CONFIGS, VOCABULARY, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from loratory.data.examples import Example, Message
from loratory.settings import PromptConfig
from loratory.text.rendering import completion_ids, render_prompt
from loratory.text.template import Renderer, make_renderer
from loratory.tree.layout import Layout
from loratory.tree.scoring import LabelScores, Rule, completion_log_probs, fit_rule, label_log_probs, probabilities

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPECIAL = ("<unk>", "<bos>", "<eos>", "<end>", "<system>", "<user>", "<assistant>")
LABELS = ["a", "ab", "abc", "b", "long label", "a b"]  # some are prefixes of others
TREE = Layout("tree", "test")


@functools.cache
def tiny_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token per character, and a template with one token per role, to fit the tiny models' vocabulary."""
    words = [*SPECIAL, *string.ascii_lowercase, *string.digits, " ", "\n", "-", ".", ",", ":", "?", "!"]
    assert len(words) <= VOCABULARY
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer_fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>"
    )
    tokenizer_fast.chat_template = TEMPLATE
    return tokenizer_fast


@functools.cache
def tiny_renderer() -> Renderer:
    tokenizer = tiny_tokenizer()
    return make_renderer(tokenizer, [tokenizer.convert_tokens_to_ids("<end>")], PromptConfig(date="2026-01-01"))


def example(*texts: str, answer: str = "a") -> Example:
    """A conversation in which user and assistant alternate."""
    roles = ("user", "assistant")
    messages = (Message("system", "say it."), *(Message(roles[i % 2], t) for i, t in enumerate(texts)))
    return Example(messages, (answer,), tuple(LABELS), f"test:{texts[-1]}")


EXAMPLES = [example("hello"), example("hello there"), example("x"), example("hello"), example("q", "b", "z")]
model_of = functools.cache(tiny_model)


def score(model, examples, labels, layout=TREE, token_budget=1000) -> LabelScores:
    with_labels = [dataclasses.replace(e, candidates=tuple(labels)) for e in examples]
    return label_log_probs(model, tiny_renderer(), with_labels, layout, token_budget, lambda done, total: None)


@torch.no_grad()
def one_by_one(model, examples, labels) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities and token counts of each label, each from a separate forward pass with the stock attention."""
    results = np.zeros((2, len(examples), len(labels)))
    for e, item in enumerate(examples):
        prompt = render_prompt(item.messages, tiny_renderer())
        for n, label in enumerate(labels):
            completion, _ = completion_ids(prompt, label, tiny_renderer())
            ids = torch.tensor([*prompt.token_ids.tolist(), *completion])
            log_probs = model(input_ids=ids[None], use_cache=False).logits[0].log_softmax(dim=-1)
            rows = torch.arange(len(prompt.token_ids), len(ids)) - 1
            results[:, e, n] = log_probs[rows, ids[rows + 1]].sum().item(), len(completion)
    return results[0], results[1]


def test_the_tiny_renderer_follows_its_template():
    prompt = render_prompt(EXAMPLES[0].messages, tiny_renderer())
    assert prompt.text == "<bos><system>say it.<end><user>hello<end><assistant>"
    assert len(prompt.token_ids) == 1 + 1 + 7 + 1 + 1 + 5 + 1 + 1
    expected = tiny_tokenizer().convert_tokens_to_ids(["a", "b", "<end>"])
    assert completion_ids(prompt, "ab", tiny_renderer()) == (expected, True)


@pytest.mark.parametrize("kind", ["tree", "padded", "one-by-one"])
@pytest.mark.parametrize("family", CONFIGS)
def test_scores_are_those_of_each_label_alone(family, kind):
    expected, tokens = one_by_one(model_of(family), EXAMPLES, LABELS)
    scores = score(model_of(family), EXAMPLES, LABELS, Layout(kind, "test"))
    # The norms of all models except GPT-2 round to float32.
    np.testing.assert_allclose(scores.log_probs_EL, expected, rtol=1e-9 if family == "gpt2" else 1e-5)
    np.testing.assert_array_equal(scores.tokens_EL, tokens)


SHARED = [(7 * i) % VOCABULARY for i in range(30)]


@pytest.mark.parametrize("fast", [{}, {"plain_head": True}, {"plain_head": True, "skips_rows": True}], ids=str)
@pytest.mark.parametrize("family", CONFIGS)
def test_a_beginning_that_all_prompts_share_is_computed_once_and_changes_nothing(family, fast, monkeypatch):
    model = model_of(family)
    if fast.get("skips_rows") and family == "gpt2":
        pytest.skip("its layers reshape their output to the shape of all rows")
    lengths = []
    handle = model.get_input_embeddings().register_forward_hook(lambda m, args, out: lengths.append(out.shape[1]))
    prompts = [np.array([*SHARED, *rest]) for rest in ([5], [6, 7, 8], [9] * 12, [6, 7, 9])]
    completions = [[[1, 2, 3], [1, 4], [2]], [[7]], [[3, 3], [3, 3, 3]], [[1, 2, 3]]]
    layout = Layout("tree", "test", **fast)
    scored = completion_log_probs(model, prompts, completions, layout, 40, lambda done, total: None)
    handle.remove()
    windowed = family in ("gemma3", "mistral")  # their caches discard old keys
    assert (sum(lengths) < 2 * len(SHARED) + 30) == (not windowed)
    for prompt, of_prompt, values in zip(prompts, completions, scored, strict=True):
        for completion, value in zip(of_prompt, values, strict=True):
            ids = torch.tensor([*prompt.tolist(), *completion])
            with torch.no_grad():
                token_log_probs = model(input_ids=ids[None], use_cache=False).logits[0].log_softmax(dim=-1)
            rows = torch.arange(len(prompt), len(ids)) - 1
            expected = token_log_probs[rows, ids[rows + 1]].sum().item()
            assert value == pytest.approx(expected, rel=1e-9 if family == "gpt2" else 1e-5)


@given(st.integers(1, 300), st.sampled_from(["tree", "padded", "one-by-one"]))
@settings(derandomize=True, deadline=None, max_examples=15)
def test_scores_do_not_depend_on_the_token_budget(token_budget, kind):
    expected = score(model_of("gpt2"), EXAMPLES[1:4], LABELS)
    actual = score(model_of("gpt2"), EXAMPLES[1:4], LABELS, Layout(kind, "test"), token_budget)
    np.testing.assert_allclose(actual.log_probs_EL, expected.log_probs_EL, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(actual.tokens_EL, expected.tokens_EL)


def test_scores_of_many_examples_are_assigned_correctly(monkeypatch):
    expected = score(model_of("gpt2"), EXAMPLES, LABELS).log_probs_EL
    monkeypatch.setattr("loratory.tree.scoring.GROUPS_AT_ONCE", 2)
    progress = []
    actual = label_log_probs(
        model_of("gpt2"), tiny_renderer(), EXAMPLES, TREE, 1000, lambda *counts: progress.append(counts)
    )
    np.testing.assert_allclose(actual.log_probs_EL, expected, rtol=0, atol=1e-9)
    assert progress == [(2, 5), (4, 5), (5, 5)]


def test_scoring_leaves_no_gradients_and_restores_the_stock_attention():
    model = tiny_model("llama")
    model.train()
    score(model, EXAMPLES[:1], LABELS)
    assert not model.training
    assert model.config._attn_implementation == "sdpa"
    assert all(p.grad is None for p in model.parameters())


# ---- rules -----------------------------------------------------------------------------------------------------------

log_probs = hnp.arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(2, 4)), elements=st.floats(-50, -0.01))
RIGHT_BY = {
    # Two labels, the second always correct; only the named rule chooses it every time.
    "sum": ([[-9.0, -8.0], [-8.5, -8.0]], [[9, 2], [9, 2]]),
    "mean": ([[-4.0, -8.0], [-4.0, -8.0]], [[1, 4], [1, 4]]),
}


@given(log_probs, st.data())
@settings(derandomize=True, deadline=None, max_examples=40)
def test_each_rule_matches_its_formula(log_probs_EL, data):
    tokens = data.draw(hnp.arrays(np.int64, log_probs_EL.shape, elements=st.integers(1, 6)))
    prior = data.draw(st.lists(st.floats(-50, 0), min_size=tokens.shape[1], max_size=tokens.shape[1]))
    zeros = (0.0,) * tokens.shape[1]
    scores = LabelScores(log_probs_EL, tokens)
    for rule, values in (
        (Rule("sum", zeros), log_probs_EL),
        (Rule("mean", zeros), log_probs_EL / tokens),
        (Rule("prior", tuple(prior)), log_probs_EL - np.array(prior)),
    ):
        expected = np.exp(values - values.max(axis=1, keepdims=True))
        expected /= expected.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(probabilities(scores, rule), expected, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("name", RIGHT_BY)
def test_the_fitted_rule_is_the_one_with_the_most_correct_choices(name):
    values, tokens = RIGHT_BY[name]
    scores = LabelScores(np.array(values), np.array(tokens))
    assert fit_rule(scores, [1, 1]) == Rule(name, (0.0, 0.0))


def test_the_prior_is_the_mean_over_validation_and_removes_a_bias():
    values = np.array([[-1.0, -9.0], [-1.0, -5.0], [-3.0, -5.0], [-1.0, -9.0]])
    rule = fit_rule(LabelScores(values, np.ones((4, 2), dtype=np.int64)), [0, 1, 1, 0])
    assert rule == Rule("prior", (-1.5, -7.0))


def test_the_simpler_rule_wins_a_tie():
    equal_lengths = np.ones((4, 2), dtype=np.int64)
    always_right = np.array([[-1.0, -9.0], [-9.0, -1.0], [-1.0, -9.0], [-9.0, -1.0]])
    assert fit_rule(LabelScores(always_right, equal_lengths), [0, 1, 0, 1]).name == "sum"
    # mean and prior are always correct, sum only once
    scores = LabelScores(np.array([[-3.0, -5.0], [-3.0, -7.0]]), np.array([[1, 2], [1, 2]]))
    assert probabilities(scores, Rule("prior", (-3.0, -6.0))).argmax(axis=1).tolist() == [1, 0]
    assert fit_rule(scores, [1, 0]).name == "mean"


def test_without_examples_the_rule_is_sum():
    empty = LabelScores(np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64))
    assert fit_rule(empty, []) == Rule("sum", (0.0, 0.0, 0.0))
