"""Continued pretraining on plain text: windows of documents, packed batches, whole runs."""

import dataclasses
import json
import math
import random
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import tokenizers
import torch
from conftest import RELATIVE, tiny_model
from hypothesis import example as case
from hypothesis import given, settings
from hypothesis import strategies as st
from test_finetune import predictions
from tiny import byte_tokenizer, gradients

from loratory.cli.main import main
from loratory.config import Config
from loratory.data.examples import Example, Message
from loratory.data.splits import load_split
from loratory.errors import UserError
from loratory.finetune import finetune
from loratory.models.loading import LoadedTokenizer
from loratory.predict.chat import open_chat
from loratory.predict.tuned import load
from loratory.run.checks import check_model_kind
from loratory.settings import (
    AdapterConfig,
    DataConfig,
    ModelConfig,
    PromptConfig,
    RunConfig,
    SpeedConfig,
    TrainConfig,
)
from loratory.text.context import fit_to_context
from loratory.text.documents import MAX_WINDOW, document_windows, renderer_of_task
from loratory.text.rendering import TokenizedExample, render_prompt, token_texts, tokenize
from loratory.text.template import Renderer
from loratory.tree.batches import micro_batches
from loratory.tree.forward import prepared, prepared_for_training
from loratory.tree.layout import Layout
from loratory.tree.loss import batch_loss
from loratory.tree.verification import choose_layout

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def with_start():
    """A byte-level tokenizer that puts a token before every text, as Llama's and Gemma's do."""
    tokenizer = byte_tokenizer()
    start = ("<|im_start|>", tokenizer.convert_tokens_to_ids("<|im_start|>"))
    core = tokenizer.backend_tokenizer
    core.post_processor = tokenizers.processors.TemplateProcessing("<|im_start|> $A", special_tokens=[start])
    return tokenizer


def with_both():
    """A byte-level tokenizer that puts a token before and after every text."""
    tokenizer = byte_tokenizer()
    ends = [(t, tokenizer.convert_tokens_to_ids(t)) for t in ("<|im_start|>", "<|endoftext|>")]
    core = tokenizer.backend_tokenizer
    core.post_processor = tokenizers.processors.TemplateProcessing("<|im_start|> $A <|endoftext|>", special_tokens=ends)
    return tokenizer


def without_end():
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    return tokenizer


TOKENIZERS = {"plain": byte_tokenizer, "start": with_start, "both": with_both, "no end": without_end}
ENDS = {"plain": "<|im_end|>", "start": "<|im_end|>", "both": "<|endoftext|>", "no end": ""}
RENDERERS = {
    kind: renderer_of_task("pretrain", LoadedTokenizer(make(), (), True, 600), PromptConfig())
    for kind, make in TOKENIZERS.items()
}


def renderer(kind: str, window: int) -> Renderer:
    return dataclasses.replace(RENDERERS[kind], max_length=window)


def document(text: str) -> Example:
    return Example((Message("user", text),), (text,), (), "texts.txt:3")


# ---- windows ---------------------------------------------------------------------------------------------------------


@given(st.sampled_from(list(TOKENIZERS)), st.text("ab é€\n", min_size=2, max_size=90), st.integers(4, 40))
@case("start", "a" * 38, 20)
@case("plain", "a" * 19, 20)
@case("plain", "a" * 20, 20)
@settings(derandomize=True, deadline=None, max_examples=150)
def test_every_token_of_a_document_is_trained_exactly_once(kind: str, text: str, window: int):
    r = renderer(kind, window)
    start = list(r.document_start or ())
    whole = [*r.tokenizer(text, add_special_tokens=False)["input_ids"], *r.ending]
    trained, windows = [], tokenize(document(text), r)
    for w in windows:
        assert len(w.token_ids) <= window and w.token_ids[: len(start)].tolist() == start
        own = w.token_ids[len(start) :].tolist()
        new = int(w.loss_weights.sum())
        assert w.loss_weights.tolist() == [0.0] * (len(w.token_ids) - new) + [1.0] * new and 0 < new < len(w.token_ids)
        if trained:  # a later window begins with the end of the window before
            assert own[:-new] == trained[len(trained) - len(own) + new :]
        elif not start:
            trained = own[:1]  # nothing predicts the first token
        trained += own[-new:]
    assert trained == whole
    assert len(windows) == 1 or len(start) + len(whole) > window


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_windows_show_the_text_with_the_tokens_around_it(kind: str):
    text = "the cat sleeps, and the dog does not"
    [whole] = tokenize(document(text), renderer(kind, 100))
    start = "<|im_start|>" if RENDERERS[kind].document_start else ""
    assert whole.text == "".join(piece for piece, _ in token_texts(whole)) == f"{start}{text}{ENDS[kind]}"
    parts = tokenize(document(text), renderer(kind, 20))
    shown = "".join(piece for s in parts for piece, is_trained in token_texts(s) if is_trained)
    assert shown == f"{text}{ENDS[kind]}"[0 if start else 1 :]
    assert all("".join(piece for piece, _ in token_texts(s)) == s.text for s in parts)


def test_no_chat_template_is_applied_and_the_model_may_have_none():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ this is no template"
    r = renderer_of_task("pretrain", LoadedTokenizer(tokenizer, (), False, 600), PromptConfig())
    [found] = tokenize(document("the cat"), r)
    assert found.token_ids.tolist() == tokenizer("the cat<|im_end|>")["input_ids"]
    assert r.stop_ids == (tokenizer.eos_token_id,)


def test_windows_are_bounded_however_long_the_context_is():
    r = renderer_of_task("pretrain", LoadedTokenizer(byte_tokenizer(), (), True, 131072), PromptConfig())
    assert max(len(w.token_ids) for w in document_windows("a cat " * 1000, r)) == MAX_WINDOW


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_prompt_is_the_beginning_of_a_document(kind: str):
    r = renderer(kind, 40)
    prompt, [whole] = (render_prompt([Message("user", "the cat")], r), tokenize(document("the cat sleeps"), r))
    assert whole.token_ids[: len(prompt.token_ids)].tolist() == prompt.token_ids.tolist()
    long = render_prompt([Message("user", "the cat sleeps " * 9 + "still")], r)
    assert long.text.endswith("sleeps still") and len(long.token_ids) <= 20 + len(r.document_start or ())
    with pytest.raises(UserError, match="nothing to continue"):
        render_prompt([Message("user", "")], r)


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_document_is_rejected_with_its_place(text: str):
    with pytest.raises(UserError, match="text is empty") as found:
        fit_to_context([document(text)], RENDERERS["plain"], 80, "error")
    assert "texts.txt:3" in str(found.value)


# ---- packed batches --------------------------------------------------------------------------------------------------


def some_windows() -> list[TokenizedExample]:
    """Windows of documents of different lengths, some with a common beginning; their ids are below 64."""
    draw = random.Random(0)
    texts = ["".join(draw.choices("ABCDEFGHIJ0123456789", k=n)) for n in (9, 30, 75, 40, 3)]
    return [s for text in [*texts, texts[1][:20] + "XYZ"] for s in tokenize(document(text), renderer("start", 32))]


def one_by_one(model, sequences) -> tuple[float, dict[str, torch.Tensor]]:
    """Summed cross-entropy and its gradients, one plain forward pass per window."""
    loss = 0.0
    for s in sequences:
        ids = torch.from_numpy(s.token_ids)
        logits = model(input_ids=ids[None]).logits[0, :-1]
        weights = torch.from_numpy(s.loss_weights)[1:].double()
        part = (torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none") * weights).sum()
        part.backward()
        loss += part.item()
    return loss, gradients(model)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_packed_windows_have_the_loss_and_gradients_of_the_windows_one_by_one(family: str, checkpointing: bool):
    model, windows = tiny_model(family), some_windows()
    layout = choose_layout(model, windows, "tree")
    layout = dataclasses.replace(layout, gradient_checkpointing=checkpointing)
    expected, expected_gradients = one_by_one(model, windows)
    batches = micro_batches(windows, 100, layout.share)
    assert len(batches) < len(windows)
    loss = 0.0
    with prepared_for_training(model, layout):
        for batch in batches:
            part = batch_loss(model, batch, layout).total
            part.backward()
            loss += part.item()
    found = gradients(model)
    assert loss == pytest.approx(expected, rel=1e-10 if family == "gpt2" else RELATIVE)
    largest = max(g.abs().max().item() for g in expected_gradients.values())
    assert largest > 1e-3
    for name, gradient in expected_gradients.items():
        close = (1e-10 if family == "gpt2" else RELATIVE) * largest
        assert (found[name] - gradient).abs().max() <= close, name


def test_a_document_does_not_see_the_others_in_its_batch():
    model, windows = tiny_model("llama"), some_windows()
    layout = Layout("tree", "test")
    alone, together = [], []
    with torch.no_grad(), prepared(model, layout):
        for s in windows:
            [batch] = micro_batches([s], 1000, True)
            alone.append(float(batch_loss(model, batch, layout).total))
        [batch] = micro_batches(windows, 1000, True)
        for i in range(len(windows)):
            own = dataclasses.replace(batch, target_weights_N=(batch.target_sequence_N == i).float())
            together.append(float(batch_loss(model, own, layout).total))
    assert together == pytest.approx(alone, rel=RELATIVE)


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    draw, path = random.Random(0), tmp_path / "texts.jsonl"
    with path.open("w") as file:
        for n in range(60):
            pets = [draw.choice(("the cat says meow", "the dog says woof", "the cow says moo")) for _ in range(3)]
            file.write(json.dumps({"title": f"Pets {n}", "text": ", ".join(pets)}) + "\n")
    return path


def config_of(texts: Path, model: Path, out: Path, **changes) -> Config:
    config = Config(
        task="pretrain",
        model=ModelConfig(str(model), dtype="float64"),
        data=DataConfig(train=(str(texts),)),
        adapter=AdapterConfig(kind="full"),
        train=TrainConfig(epochs=2, batch_size=4, learning_rate=3e-3, token_budget=300),
        speed=SpeedConfig(compile="off"),
        run=RunConfig(out=str(out), threads=1),
    )
    return dataclasses.replace(config, **changes)


def split_of(config: Config):
    return load_split(config.data, config.prompt, 0, task=config.task)


def test_a_document_is_the_column_text_or_what_the_prompt_says(texts: Path, tmp_path: Path):
    config = config_of(texts, tmp_path, tmp_path)
    assert split_of(config).train[0].answer.startswith("the ")
    titled = dataclasses.replace(config, prompt=PromptConfig(user="{title}\n\n{text}"))
    assert split_of(titled).train[0].answer.startswith("Pets ") and "\n\nthe " in split_of(titled).train[0].answer
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"name": f"a{i}", "body": "b"}) + "\n" for i in range(9)))
    columns = dataclasses.replace(config, data=DataConfig(train=(str(other),)))
    assert split_of(columns).train[0].answer.startswith("name: a") and "\nbody: b" in split_of(columns).train[0].answer


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("data", {"answer": "text"}, "no answer column"),
        ("prompt", {"system": "Be kind."}, "no chat template"),
        ("prompt", {"template_kwargs": {"enable_thinking": False}}, "no chat template"),
        ("prompt", {"user": "the {mask}"}, "no answer slot"),
    ],
)
def test_settings_of_questions_and_answers_are_rejected(section, changes, message, texts: Path, tmp_path: Path):
    config = config_of(texts, tmp_path, tmp_path)
    config = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **changes)})
    with pytest.raises(UserError, match=message):
        split_of(config)


def test_the_wrong_kind_of_model_is_told_the_other_task():
    masked, causal = (LoadedTokenizer(byte_tokenizer(), (), False, 80, is_masked) for is_masked in (True, False))
    with pytest.raises(UserError, match='set task = "fill" without an answer'):
        check_model_kind(Config(task="pretrain"), masked, "some/bert")
    with pytest.raises(UserError, match='set task = "pretrain"'):
        check_model_kind(Config(task="fill"), causal, "some/llama")
    with pytest.raises(UserError, match="choose one") as found:
        check_model_kind(Config(task="fill", data=DataConfig(answer="label")), causal, "some/llama")
    assert "pretrain" not in str(found.value)


# ---- whole runs ------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_run_is_measured_by_the_perplexity_of_all_held_out_tokens(tiny_folder, texts, tmp_path, capsys):
    config = config_of(texts, tiny_folder, tmp_path / "run", data=DataConfig(train=(str(texts),), test_share=0.5))
    run = finetune(config)
    report = json.loads((run / "report.json").read_text())
    before, after = report["systems"]
    assert (before["name"], after["name"], report["metric"]) == ("prompt", "tuned", "token_probability")
    assert after["metrics"]["perplexity"] < 0.7 * before["metrics"]["perplexity"]
    assert report["verdict"]["state"] == "best" and report["comparisons"][0]["p_value"] < 0.05
    assert f"perplexity {after['metrics']['perplexity']:.2f} against" in report["verdict"]["sentence"]
    assert report["forgetting"]["after"] != report["forgetting"]["before"]
    tuned, total, count = load(run, dtype="float64"), 0.0, 0
    for example, line in zip(split_of(config).test, predictions(run, "tuned"), strict=True):
        ids = tuned.base.text.tokenizer(example.answer + "<|im_end|>", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            log_probs = tuned.model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        own = log_probs[torch.arange(ids.shape[1] - 1), ids[0, 1:]].sum().item()
        assert line["turns"] == [[pytest.approx(own, rel=1e-6), ids.shape[1] - 1]]
        assert line["worth"] == pytest.approx(math.exp(own / (ids.shape[1] - 1)), rel=1e-6)
        total, count = total + own, count + ids.shape[1] - 1
    assert after["metrics"]["perplexity"] == pytest.approx(np.exp(-total / count), rel=1e-6)
    check_use(run, tuned, capsys)
    page = (run / "report.html").read_text()
    assert "empty answer" not in page and "apply_chat_template" not in page and "free-form" not in page


def check_use(run: Path, tuned, capsys) -> None:
    """``ask`` and ``predict`` continue a text with the same words; a conversation is not possible."""
    [continued] = tuned.answers([{"text": "the cat says meow, the d", "title": ""}])
    assert continued == "".join(tuned.ask("the cat says meow, the d", None, 200)) and continued
    with pytest.raises(UserError, match="takes no system message"):
        tuned.ask("the cat", "Be kind.", 9)
    with pytest.raises(UserError, match="holds no conversation"):
        open_chat(run, "builtin", None, 9, False)
    assert main(["ask", "the cat", "--run", str(run), "--max-new-tokens", "3"]) == 0
    assert len(capsys.readouterr().out.strip("\n")) <= 3


def test_show_prints_the_windows_of_a_document(tiny_folder, texts, tmp_path, capsys):
    task = tmp_path / "task.toml"
    task.write_text(f'task = "pretrain"\n[model]\nname = "{tiny_folder}"\n[data]\ntrain = "{texts.name}"\n')
    assert main(["show", str(task), "--count", "1", "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert [t["trained"] for t in row["tokens"]] == [False] + [True] * (len(row["tokens"]) - 1)
    assert row["tokens"][-1]["text"] == "<|im_end|>"


@pytest.mark.thorough
def test_an_interrupted_pretraining_resumes_bit_for_bit(tiny_folder, texts, tmp_path, interrupted):
    model = Path(copytree(tiny_folder, tmp_path / "model"))
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 40}))

    def config(out: str) -> Config:
        train = TrainConfig(epochs=2, batch_size=8, learning_rate=3e-3, checkpoint_every=2, keep="last")
        data = DataConfig(train=(str(texts),), limit_train=16, limit_validation=2, limit_test=4)
        return config_of(texts, model, tmp_path / out, adapter=AdapterConfig(), train=train, data=data)

    whole = finetune(config("whole"))
    rows = json.loads((whole / "data.json").read_text())["rendered"]
    assert [is_trained for _, is_trained in rows[0]["tokens"]][:6] == [False] * 5 + [True]  # a later window
    interrupted(lambda: finetune(config("resumed")), 5)
    resumed = finetune(config("resumed"))
    name = "adapter/adapter_model.safetensors"
    assert (whole / name).read_bytes() == (resumed / name).read_bytes()
    assert [line["turns"] for line in predictions(whole, "tuned")] == [
        line["turns"] for line in predictions(resumed, "tuned")
    ]


@pytest.mark.thorough
def test_folds_limits_and_several_learning_rates(tiny_folder, texts, tmp_path):
    train = TrainConfig(epochs=2, batch_size=8, learning_rate=(1e-3, 3e-3), early_stopping=1)
    data = DataConfig(train=(str(texts),), folds=2, limit_train=16)
    run = finetune(config_of(texts, tiny_folder, tmp_path / "run", train=train, data=data))
    report = json.loads((run / "report.json").read_text())
    assert report["test_examples"] == 60 and len(report["folds"]["values"]["tuned"]) == 2
    perplexities = {s["name"]: s["metrics"]["perplexity"] for s in report["systems"]}
    assert perplexities["tuned"] < perplexities["prompt"]
