"""The baselines that tuning is compared with."""

import pytest
import torch
from conftest import byte_tokenizer, tiny_model

from loratory.config import PromptConfig
from loratory.data.examples import Example, Message
from loratory.evaluation.baselines import embedding_classifier, linear_classifier, mean_states
from loratory.models.loading import LoadedModel, LoadedTokenizer
from loratory.text.rendering import render_prompt
from loratory.text.template import make_renderer
from loratory.tree.layout import Layout


def nothing(done: int, total: int) -> None:
    """A progress callback that does nothing."""


def example(text: str, answer: str) -> Example:
    system = Message("system", "Which animal?")
    return Example((system, Message("user", text)), (answer,), ("Meow", "Woof"), "here")


EXAMPLES = [example(f"the {a} {i} is here", s) for i in range(6) for a, s in (("cat", "Meow"), ("dog", "Woof"))]


@pytest.fixture
def base() -> LoadedModel:
    model = tiny_model("llama")
    model.resize_token_embeddings(272, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(0, 0.15)
    return LoadedModel(model, LoadedTokenizer(byte_tokenizer(), (2,), False, 512), "tiny", None, {})


def test_the_linear_model_learns_a_word_and_notes_its_regularization():
    classify, note = linear_classifier(EXAMPLES, 0)
    rows = classify([example("a dog", "Woof"), example("a cat", "Meow")], nothing)
    assert [max(row, key=row.__getitem__) for row in rows] == ["Woof", "Meow"]
    assert all(sum(row.values()) == pytest.approx(1) for row in rows)
    assert "cross-validation" in note


def test_the_linear_model_handles_one_example_per_label():
    classify, note = linear_classifier([example("a cat", "Meow"), example("a dog", "Woof")], 0)
    assert "too few" in note
    assert len(classify([example("a dog", "Woof")], nothing)) == 1


def test_the_linear_model_handles_a_single_label():
    classify, note = linear_classifier([example("a cat", "Meow"), example("the cat", "Meow")], 0)
    assert "same label" in note
    assert classify([example("a dog", "Woof")], nothing) == [{"Meow": 1.0}]


@pytest.mark.parametrize("kind", ["tree", "padded", "one-by-one"])
@pytest.mark.parametrize("token_budget", [40, 1000])
def test_mean_states_equal_plain_forward_passes(base, kind, token_budget):
    renderer = make_renderer(base.text.tokenizer, base.text.stop_ids, PromptConfig())
    found = mean_states(base, renderer, EXAMPLES[:5], Layout(kind, ""), token_budget, nothing)
    for row, e in zip(found, EXAMPLES, strict=False):
        ids = torch.from_numpy(render_prompt(e.messages, renderer).token_ids)
        with torch.no_grad():
            states = base.model.base_model(input_ids=ids[None]).last_hidden_state[0]
        torch.testing.assert_close(torch.from_numpy(row), states[:-1].mean(0).float(), rtol=1e-5, atol=1e-6)


def test_the_embedding_classifier_returns_label_probabilities(base):
    renderer = make_renderer(base.text.tokenizer, base.text.stop_ids, PromptConfig())
    classify, note = embedding_classifier(base, renderer, EXAMPLES, Layout("tree", ""), 1000, 0, nothing)
    rows = classify(EXAMPLES[:3], nothing)
    assert all(set(row) == {"Meow", "Woof"} and sum(row.values()) == pytest.approx(1) for row in rows)
    assert "C =" in note
