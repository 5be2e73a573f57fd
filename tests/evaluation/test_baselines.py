"""The baselines that tuning is compared with."""

import numpy as np
import pytest
import torch
from conftest import tiny_model
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from tiny import byte_tokenizer

from loratory.data.examples import Example, Message
from loratory.evaluation.baselines import (
    embedding_classifier,
    encoder_classifier,
    linear_classifier,
    linear_multilabel_classifier,
    mean_states,
    similarity_classifier,
    word_features,
)
from loratory.evaluation.evaluate_system import NotMeasurable, Prediction, System, evaluate
from loratory.models.encoder import Encoder
from loratory.models.loading import LoadedModel, LoadedTokenizer
from loratory.settings import PromptConfig
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
    fitted = linear_classifier(EXAMPLES, 0)
    rows = fitted.classify([example("a dog", "Woof"), example("a cat", "Meow")], nothing)
    assert [max(row, key=row.__getitem__) for row in rows] == ["Woof", "Meow"]
    assert all(sum(row.values()) == pytest.approx(1) for row in rows)
    assert "cross-validation" in fitted.note


def test_the_linear_model_handles_one_example_per_label():
    fitted = linear_classifier([example("a cat", "Meow"), example("a dog", "Woof")], 0)
    assert "too few" in fitted.note
    assert len(fitted.classify([example("a dog", "Woof")], nothing)) == 1


def test_the_linear_model_handles_a_single_label():
    fitted = linear_classifier([example("a cat", "Meow"), example("the cat", "Meow")], 0)
    assert "same label" in fitted.note
    assert fitted.classify([example("a dog", "Woof")], nothing) == [{"Meow": 1.0}]


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
    fitted = embedding_classifier(base, renderer, EXAMPLES, Layout("tree", ""), 1000, 0, nothing)
    rows = fitted.classify(EXAMPLES[:3], nothing)
    assert all(set(row) == {"Meow", "Woof"} and sum(row.values()) == pytest.approx(1) for row in rows)
    assert "C =" in fitted.note


# ---- what cannot be measured -----------------------------------------------------------------------------------------

TEXTS = {
    "single letters": ("a", "b"),
    "digits": ("1", "2"),
    "Chinese characters": ("猫", "狗"),
    "signs": ("+", "-"),
    "emoji": ("🐈", "🐕"),
}


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("repeats", [1, 6])
def test_texts_of_one_character_can_be_learned(kind: str, repeats: int):
    train = [example(text, label) for text, label in zip(TEXTS[kind], ("Meow", "Woof"), strict=True)] * repeats
    classify = linear_classifier(train, 0).classify
    rows = classify(train, nothing)
    assert [max(row, key=row.__getitem__) for row in rows] == [e.answer for e in train]
    candidates = similarity_classifier(train).classify
    assert all(sum(row.values()) == pytest.approx(1) for row in candidates(train, nothing))
    sets = linear_multilabel_classifier(train, ("Meow", "Woof")).classify
    assert len(sets(train, nothing)) == len(train)


def test_ordinary_texts_have_the_words_of_scikit_learn():
    assert word_features(["I am a cat", "b"]).token_pattern == TfidfVectorizer().token_pattern
    assert word_features(["a b"]).fit(["a b"]).vocabulary_.keys() == {"a", "b", "a b"}


@pytest.mark.parametrize(
    "fit", [lambda e: linear_classifier(e, 0), lambda e: linear_multilabel_classifier(e, ("Meow",))]
)
def test_texts_without_words_cannot_be_measured(fit):
    with pytest.raises(NotMeasurable, match="contain no words"):
        fit([example(" ", "Meow"), example("", "Woof")])


@pytest.mark.parametrize("error", [ValueError("Found array with 0 sample(s)\nand more"), MemoryError()])
def test_what_scikit_learn_cannot_fit_is_a_reason_and_not_a_crash(error, monkeypatch):
    def fit(*_):
        raise error

    monkeypatch.setattr(LogisticRegression, "fit", fit)
    with pytest.raises(NotMeasurable, match=r"Found array with 0 sample\(s\)\)$|memory ran out"):
        linear_classifier(EXAMPLES[:2], 0)


def test_a_bug_in_a_baseline_is_not_hidden(monkeypatch):
    monkeypatch.setattr(LogisticRegression, "fit", lambda *_: {}["missing"])
    with pytest.raises(KeyError):
        linear_classifier(EXAMPLES[:2], 0)


def test_hidden_states_that_are_not_finite_cannot_be_measured(base):
    with torch.no_grad():
        base.model.get_input_embeddings().weight[byte_tokenizer().convert_tokens_to_ids("q")] = float("nan")
    renderer = make_renderer(base.text.tokenizer, base.text.stop_ids, PromptConfig())
    last = Example((Message("user", "q"),), ("Meow",), (), "a.csv:9")
    with pytest.raises(NotMeasurable, match=r"hidden states are NaN or infinite, first for the example a\.csv:9"):
        embedding_classifier(base, renderer, [*EXAMPLES, last], Layout("one-by-one", ""), 1000, 0, nothing)


NAN, INFINITE = float("nan"), float("-inf")


@pytest.mark.parametrize(
    "bad",
    [
        Prediction("Meow", {"Meow": NAN, "Woof": -1.0}, None),
        Prediction("Meow", {"Meow": -1.0, "Woof": INFINITE}, {"Meow": 1.0, "Woof": 0.0}),
        Prediction("Meow", None, {"Meow": NAN, "Woof": NAN}),
        Prediction("Meow", None, None, ((-1.0, 2), (NAN, 3))),
    ],
)
@pytest.mark.parametrize("in_validation", [True, False])
def test_a_system_with_scores_that_are_not_finite_cannot_be_measured(bad: Prediction, in_validation: bool):
    good = Prediction("Meow", {"Meow": -1.0}, {"Meow": 1.0}, ((-1.0, 2),))
    validation, test = EXAMPLES[:2], EXAMPLES[2:4]
    answers = {id(validation): [good, good], id(test): [good, good]}
    answers[id(validation if in_validation else test)][1] = bad
    system = System(lambda examples, progress: answers[id(examples)], None, None)
    with pytest.raises(NotMeasurable, match="scores are NaN or infinite, first for the example here"):
        evaluate("prompt-choose", lambda progress: system, validation, test, nothing)


class Vectors(Encoder):
    """Stands for a sentence encoder: the vector of a text says how many cats and dogs are in it."""

    def __init__(self):
        object.__setattr__(self, "name", "counting")

    def encode(self, texts, progress):
        counts = np.array([[t.count("cat") + 0.1, t.count("dog") + 0.1] for t in texts], dtype=np.float32)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def test_the_classifier_on_an_encoder_is_sure_where_the_vectors_tell_the_labels_apart():
    train = [
        example(f"a {animal} {i}", label) for i in range(6) for animal, label in (("cat", "Meow"), ("dog", "Woof"))
    ]
    fitted = encoder_classifier(Vectors(), train, 0, nothing)  # type: ignore[arg-type]
    [row] = fitted.classify([example("the dog", "Woof")], nothing)
    assert row["Woof"] > 0.9 and fitted.note.startswith("counting; C = ")
    assert len(fitted.out_of_fold) == len(train)
    assert all(row[e.answer] > 0.8 for row, e in zip(fitted.out_of_fold, train, strict=True))
