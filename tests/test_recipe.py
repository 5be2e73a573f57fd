"""The recipe of the built-in model: its inputs, its documents, and that a run depends only on its seed."""

import dataclasses
import itertools
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes" / "builtin"))

import pretrain as recipe
from corpus import Windows, make_corpus, packed
from documents import CHAT_TEMPLATE, FORMS, SEVERAL_TURNS, Source, chat, conversation, count_words, make_document
from evaluate import evaluate
from muon import StackedMuon, make_optimizer
from objectives import hidden_tokens
from papers import read_papers
from settings import RECIPES, learning_rate_at
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerFast

from loratory.machine.device import resolve_machine
from loratory.storage.run_directory import read_metrics
from loratory.training.checkpoints import latest_checkpoint

TINY = RECIPES["tiny"]
HELD_OUT = 24
TOPICS = ("glaciers", "enzymes", "galaxies", "harmonics", "markets", "lattices", "beetles", "turbines", "dialects")


@pytest.fixture(scope="module")
def papers_file(tmp_path_factory) -> Path:
    """Papers whose other fields contain words that occur nowhere else."""
    draw, path = random.Random(0), tmp_path_factory.mktemp("papers") / "papers.jsonl"
    with path.open("w") as file:
        for n in range(240):
            topic, other = draw.sample(TOPICS, 2)
            sentences = [f"The {topic} of kind {draw.randrange(99)} resemble {other} closely." for _ in range(5)]
            row = {"id": f"zzid{n}", "title": f"On {topic} number {n}", "abstract": " ".join(sentences)}
            file.write(json.dumps({**row, "category": "zzcategory", "authors": "zzauthor"}) + "\n")
    return path


@pytest.fixture(scope="module")
def source(papers_file) -> Source:
    papers = list(read_papers([papers_file]))
    return Source(papers, count_words(papers))


@pytest.fixture
def work(papers_file, tmp_path) -> Path:
    make_corpus([papers_file], tmp_path / "work", TINY, HELD_OUT, None)
    return tmp_path / "work"


def pretrained(work: Path, steps: int, minutes: float = 1.0) -> dict[str, torch.Tensor]:
    machine = resolve_machine("cpu", "float32", 0)
    return recipe.pretrain(work, TINY, machine, minutes, steps, compiled=False).state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_only_titles_and_abstracts_are_read(work):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    text = tokenizer.decode(Windows(work, 1).tokens.astype(int))
    assert "glaciers" in text
    held_out = (work / "held-out.jsonl").read_text()
    assert "zz" not in text + held_out + (work / "tokenizer" / "tokenizer.json").read_text()


def test_held_out_papers_are_not_trained_on(work):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    text = tokenizer.decode(Windows(work, 1).tokens.astype(int))
    held_out = [p.title for p in read_papers([work / "held-out.jsonl"])]
    assert held_out
    assert not [title for title in held_out if title + "\n" in text]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_the_answer_of_every_form_comes_from_the_paper(form, source):
    for seed in range(20):
        [paper] = source.others[seed : seed + 1]
        questions = form([paper], source, random.Random(seed))
        [(text, answer)] = questions.turns
        known = f"{paper.title} {paper.abstract}".lower()
        assert answer
        assert all(word in known for word in answer.lower().replace(",", "").split())
        assert text in (paper.title, paper.abstract, paper.text) or text[-40:] in paper.abstract or "On " in text


@pytest.mark.parametrize("form", [f for f in FORMS if f not in SEVERAL_TURNS], ids=lambda form: form.__name__)
def test_several_papers_give_one_turn_each(form, source):
    questions = form(source.others[:3], source, random.Random(0))
    assert len(questions.turns) == 3


@pytest.mark.parametrize("form", SEVERAL_TURNS, ids=lambda form: form.__name__)
def test_multiple_choice_lists_every_answer_and_may_repeat_it(form, source):
    repeated = 0
    for seed in range(20):
        questions = form(source.others[seed : seed + 1 + seed % 3], source, random.Random(seed))
        answers = [answer for _, answer in questions.turns]
        assert all(answer in questions.instruction for answer in answers)
        repeated += len(set(answers)) < len(answers)
    assert repeated


def test_conversations_equal_those_of_the_chat_template(source, work):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    assert tokenizer.chat_template == CHAT_TEMPLATE
    for seed, form in enumerate(FORMS):
        messages = conversation(form(source.others[:2], source, random.Random(seed)), random.Random(seed))
        as_dicts = [{"role": role, "content": content} for role, content in messages]
        assert tokenizer.apply_chat_template(as_dicts, tokenize=False) == chat(messages)


def test_documents_depend_only_on_their_random_draws(source):
    def documents(seed: int) -> list[str]:
        draw = random.Random(seed)
        return [make_document(source.others[n : n + 8], source, draw) for n in range(50)]

    assert documents(1) == documents(1) != documents(2)


def test_a_tokenizer_in_the_work_folder_is_used_again(papers_file, work):
    files = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    settings = dataclasses.replace(TINY, vocabulary=600)
    make_corpus([papers_file], work, settings, HELD_OUT, None)
    assert files == {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}


def test_few_documents_cross_a_window_boundary():
    draw = random.Random(0)
    documents = [np.full(draw.randint(5, 150), n, dtype=np.uint16) for n in range(500)]
    tokens = np.concatenate(list(packed(iter(documents), 100, 999)))
    numbers, starts, counts = np.unique(tokens, return_index=True, return_counts=True)
    assert numbers[:-1].tolist() == list(range(500))
    assert counts[:-1].tolist() == [len(ids) for ids in documents]
    assert counts[-1] < 0.05 * len(tokens)
    within = starts[:-1] % 100
    cut = [start + len(ids) > 100 for start, ids in zip(within, documents, strict=True) if len(ids) <= 100]
    assert sum(cut) < 0.15 * len(cut)


def test_windows_cover_the_token_file_once_and_include_the_next_token(work):
    windows = Windows(work, 64)
    rows = windows.rows(range(len(windows)))
    assert rows.shape == (len(windows), 65)
    assert torch.equal(rows[:-1, -1], rows[1:, 0])
    assert rows[:, :-1].flatten().tolist() == windows.tokens[:-1].tolist()


def test_every_step_reads_different_windows_of_its_length(work):
    settings = dataclasses.replace(TINY, long_every=8)
    steps = [inputs_of(batches) for batches in recipe.batches_of(work, settings, 0, 16)]
    lengths = [{len(row) for row in step} for step in steps]
    assert lengths == ([{TINY.window}] * 7 + [{TINY.context}]) * 2
    short = [row for step, length in zip(steps, lengths, strict=True) if length == {TINY.window} for row in step]
    assert len(set(short)) == len(short)
    assert [inputs_of(batches) for batches in recipe.batches_of(work, settings, 9, 16)] == steps[9:]


def inputs_of(batches) -> list[tuple[int, ...]]:
    return [tuple(row.tolist()) for inputs, *_ in batches for row in inputs]


def test_the_learning_rate_warms_up_stays_constant_and_decays_to_zero():
    rates = [learning_rate_at(step, 100, TINY) for step in range(101)]
    assert rates[0] == TINY.learning_rate / 5
    assert set(rates[4:76]) == {TINY.learning_rate}
    assert all(a > b for a, b in itertools.pairwise(rates[75:]))
    assert rates[100] == 0
    longer = [learning_rate_at(step, 200, TINY) for step in range(75)]
    assert longer == rates[:75]


@pytest.mark.thorough
@pytest.mark.parametrize("steps", [30, pytest.param(200, marks=pytest.mark.slow)])
def test_the_same_seed_gives_the_same_weights_with_or_without_interruption(papers_file, tmp_path, monkeypatch, steps):
    folders = [tmp_path / name for name in ("whole", "again", "resumed")]
    for folder in folders:
        make_corpus([papers_file], folder, TINY, HELD_OUT, None)
    whole, again = pretrained(folders[0], steps), pretrained(folders[1], steps)
    assert same(whole, again)

    def interrupt(folder, event, **values):
        if values["step"] == 17:
            raise KeyboardInterrupt
        append(folder, event, **values)

    append = recipe.append_metric
    monkeypatch.setattr(recipe, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(recipe, "append_metric", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pretrained(folders[2], steps)
    monkeypatch.setattr(recipe, "append_metric", append)
    found, _ = latest_checkpoint(folders[2] / "checkpoints")
    assert found
    assert found.step == 16
    assert same(whole, pretrained(folders[2], steps))
    assert [m["step"] for m in read_metrics(folders[2])] == list(range(1, steps + 1))


@pytest.mark.thorough
def test_training_lowers_the_loss(work):
    pretrained(work, 60)
    losses = [m["loss"] for m in read_metrics(work)]
    assert losses[-1] < 0.8 * losses[0]


def test_a_run_can_be_extended_until_its_learning_rate_decays(work, monkeypatch):
    monkeypatch.setattr(recipe, "SAVE_SECONDS", 0.0)
    append = recipe.append_metric

    def stop_after(last):
        def once(folder, event, **values):
            append(folder, event, **values)
            if values["step"] > last:
                raise KeyboardInterrupt

        monkeypatch.setattr(recipe, "append_metric", once)

    stop_after(5)
    with pytest.raises(KeyboardInterrupt):
        pretrained(work, 10)
    stop_after(18)
    with pytest.raises(KeyboardInterrupt):
        pretrained(work, 20)
    with pytest.raises(SystemExit, match="has begun to fall"):
        pretrained(work, 40)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_is_trained_by_exactly_one_optimizer(work, optimizer):
    settings = dataclasses.replace(TINY, optimizer=optimizer)
    model = recipe.make_model(work, settings, resolve_machine("cpu", "float32", 0))
    groups = make_optimizer(model, settings).param_groups
    trained = [id(p) for group in groups for p in group["params"]]
    assert sorted(trained) == sorted(id(p) for p in model.parameters())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    together = make_optimizer(model, settings)
    for group in together.param_groups:
        group["lr"] = 1e-2
    together.step()
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())


def test_stacked_matrices_are_updated_like_single_ones():
    draw = torch.Generator().manual_seed(0)
    shapes = [(8, 8), (24, 8), (8, 8), (8, 24)]
    sides = [[torch.nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2)]
    options = {"lr": 0.1, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    optimizers = [
        kind(matrices, **options) for kind, matrices in zip((torch.optim.Muon, StackedMuon), sides, strict=True)
    ]
    for _ in range(3):
        for single, stacked in zip(*sides, strict=True):
            single.grad = torch.randn(single.shape, generator=draw)
            stacked.grad = single.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for single, stacked in zip(*sides, strict=True):
        assert (single - 1).abs().max() > 0.05
        torch.testing.assert_close(stacked, single, rtol=0, atol=5e-3)


def test_masked_tokens_are_the_targets():
    rows = torch.arange(4, 4 + 2 * 101).reshape(2, 101)
    settings = dataclasses.replace(TINY, masked=0.3)
    inputs, chosen, targets = hidden_tokens(rows, settings, 3, torch.Generator().manual_seed(0))
    before = rows[:, :-1].flatten()
    assert torch.equal(before[chosen], targets)
    assert chosen.unique().numel() == 60
    untouched = torch.ones(200, dtype=torch.bool)
    untouched[chosen] = False
    assert torch.equal(inputs.flatten()[untouched], before[untouched])
    assert 0.6 < (inputs.flatten()[chosen] == 3).float().mean() < 0.95


@pytest.mark.thorough
def test_the_recipe_trains_a_masked_language_model(work, tmp_path):
    settings = dataclasses.replace(TINY, masked=0.3)
    machine = resolve_machine("cpu", "float32", 0)
    model = recipe.pretrain(work, settings, machine, 1.0, 60, compiled=False)
    losses = [m["loss"] for m in read_metrics(work)]
    assert losses[-1] < 0.8 * losses[0]
    figures = evaluate(model, work, settings)
    assert 0.1 < figures["hidden_found"] < 1
    recipe.save(model, work, tmp_path / "model")
    read = AutoModelForMaskedLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    ids = torch.arange(8)[None]
    # Saving also rounded the rotary frequencies of the trained model.
    assert torch.allclose(read(input_ids=ids).logits, model.float()(input_ids=ids).logits, atol=0.05)
