"""`loratory show` prints exactly the training data: the same ids, and labels shifted by one position."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED, needs_shared, sequence
from hypothesis import given, settings
from hypothesis import strategies as st

from loratory.cli.main import main
from loratory.data.examples import Example, Message
from loratory.models.loading import load_tokenizer
from loratory.predict.tokens import IGNORED, TRAINED, highlighted, padded_arrays, token_records
from loratory.settings import ModelConfig, PromptConfig
from loratory.text.rendering import TokenizedExample, tokenize
from loratory.text.template import Renderer, make_renderer

STORIES = SHARED / "data" / "models" / "stories260K"
token_lists = st.lists(
    st.lists(st.tuples(st.integers(0, 63), st.sampled_from([0.0, 1.0, 0.5])), min_size=2, max_size=9),
    min_size=1,
    max_size=4,
)


@given(token_lists, st.integers(0, 63))
@settings(derandomize=True, deadline=None, max_examples=80)
def test_padded_arrays_predict_each_target_from_the_position_before_it(drawn, pad_id: int):
    ids = [[token for token, _ in pairs] for pairs in drawn]
    weights = [[weight for _, weight in pairs] for pairs in drawn]
    arrays = padded_arrays([sequence(i, w) for i, w in zip(ids, weights, strict=True)], pad_id)
    shape = (len(ids), max(map(len, ids)))
    assert {name: np.array(rows).shape for name, rows in arrays.items()} == {
        "input_ids": shape, "attention_mask": shape, "shifted_labels": shape,
    }  # fmt: skip
    for i, w, padded, mask, labels in zip(ids, weights, *arrays.values(), strict=True):
        length = len(i)
        assert padded == i + [pad_id] * (shape[1] - length)
        assert mask == [1] * length + [0] * (shape[1] - length)
        for t in range(shape[1]):
            is_trained = t + 1 < length and w[t + 1] > 0
            assert labels[t] == (i[t + 1] if is_trained else IGNORED)


def test_ignored_labels_have_the_ignore_index_of_cross_entropy():
    assert IGNORED == -100


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    text = load_tokenizer(ModelConfig(str(STORIES)))
    return make_renderer(text.tokenizer, text.stop_ids, PromptConfig(date="2025-01-01"))


def tokenized(renderer: Renderer, question: str, reply: str) -> TokenizedExample:
    return tokenize(Example((Message("user", question),), (reply,), (), "a.csv:2"), renderer)[0]


texts = st.text("ab é日🤖\n", min_size=1, max_size=9)


@needs_shared
@given(texts, texts.filter(lambda t: bool(t.strip())))
@settings(derandomize=True, deadline=None, max_examples=40)
def test_token_records_match_the_tokenized_example(renderer: Renderer, question: str, reply: str):
    example = tokenized(renderer, question, reply)
    rows = token_records(example, renderer)
    assert [row["id"] for row in rows] == example.token_ids.tolist()
    assert [row["trained"] for row in rows] == (example.loss_weights > 0).tolist()
    assert renderer.tokenizer.convert_tokens_to_ids([row["token"] for row in rows]) == example.token_ids.tolist()
    assert "".join(row["text"] for row in rows if row["trained"]) == reply.strip() + renderer.ending_text


@needs_shared
@given(texts, texts.filter(lambda t: bool(t.strip())))
@settings(derandomize=True, deadline=None, max_examples=40)
def test_highlighted_text_is_complete_and_marks_the_targets(renderer: Renderer, question: str, reply: str):
    example = tokenized(renderer, question, reply)
    shown = highlighted(example)
    assert shown.plain.replace("↵\n", "\n") == example.text
    marked_text = "".join(shown.plain[s.start : s.end] for s in shown.spans if s.style == TRAINED)
    assert marked_text.replace("↵\n", "\n") == reply.strip() + renderer.ending_text


def test_characters_of_overlapping_spans_are_shown_once():
    tokens = sequence([1, 2, 3], 1)
    spans = np.array([[0, 2], [1, 2], [1, 4]], dtype=np.int64)
    assert highlighted(dataclasses.replace(tokens, text="abcd", char_spans=spans)).plain == "abcd"


# ---- command line ----------------------------------------------------------------------------------------------------


@pytest.fixture
def task(tmp_path) -> str:
    lines = [f"{animal} number {i},{sound}" for i in range(8) for animal, sound in (("cow", "moo"), ("cat", "meow"))]
    (tmp_path / "sounds.csv").write_text("\n".join(["text,sound", *lines]) + "\n")
    path = tmp_path / "task.toml"
    system = "prompt.system = 'One of: {labels}'"
    path.write_text(f"model.name = '{STORIES}'\n{system}\n[data]\ntrain = 'sounds.csv'\nanswer = 'sound'")
    return str(path)


def show(capsys, *arguments: str) -> str:
    assert main(["show", *arguments]) == 0
    return capsys.readouterr().out


@needs_shared
def test_show_prints_the_tokens_of_training_examples_as_json(task, capsys):
    examples = json.loads(show(capsys, task, "--count", "3", "--json"))
    assert len(examples) == 3
    for shown in examples:
        file, _, line = shown["source"].rpartition(":")
        animal, sound = Path(file).read_text().splitlines()[int(line) - 1].split(",")
        text = "".join(token["text"] for token in shown["tokens"])
        assert "One of: meow, moo" in text and f"text: {animal}" in text
        assert "".join(t["text"] for t in shown["tokens"] if t["trained"]) == f"{sound}</s>"


@needs_shared
def test_show_prints_the_padded_arrays(task, capsys):
    tokens = json.loads(show(capsys, task, "--count", "2", "--json"))
    arrays = json.loads(show(capsys, task, "--count", "2", "--padded", "--json"))
    assert set(arrays) == {"input_ids", "attention_mask", "shifted_labels"}
    for shown, ids, mask, labels in zip(tokens, *arrays.values(), strict=True):
        length = sum(mask)
        assert ids[:length] == [token["id"] for token in shown["tokens"]]
        trained = [token["id"] for token in shown["tokens"] if token["trained"]]
        assert [label for label in labels if label != IGNORED] == trained
        assert labels[length - 2] == trained[-1] and labels[length - 1] == IGNORED
    table = show(capsys, task, "--count", "2", "--padded").splitlines()
    assert table[0] == "input_ids" and [int(x) for x in table[1].split()] == arrays["input_ids"][0]


@needs_shared
def test_show_prints_readable_text(task, capsys):
    shown = show(capsys, task, "--count", "1")
    assert "tokens" in shown and "trained" in shown and "One of: meow, moo" in shown and "</s>" in shown
