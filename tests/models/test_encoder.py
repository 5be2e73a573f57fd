"""Sentence encoders: how they pool, where they are found, and what is refused."""

import json
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import byte_tokenizer

from loratory.bases import encoder_at_hand, encoder_source
from loratory.errors import UserError
from loratory.events import ignore_progress
from loratory.machine import resolve_machine
from loratory.models import Encoder, load_encoder

TEXTS = ["a cat", "the dog of the neighbor sleeps under the old tree", "", "x"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A random BERT in the form of Sentence Transformers, which takes the mean of at most 24 tokens."""
    folder = tmp_path_factory.mktemp("encoder")
    config = transformers.BertConfig(
        vocab_size=272, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 24}))
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return shutil.copytree(made, tmp_path / "encoder")


def loaded(folder: Path) -> Encoder:
    return load_encoder(str(folder), resolve_machine("cpu", "float32", 1))


def states(encoder: Encoder, text: str) -> torch.Tensor:
    ids = encoder.tokenizer(text, truncation=True, max_length=24, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return encoder.model(input_ids=ids).last_hidden_state[0]


@pytest.mark.parametrize("way", ["mean", "cls", "not said"])
def test_batches_give_what_each_text_gives_alone(folder, way: str):
    pooling = folder / "1_Pooling/config.json"
    if way == "cls":
        pooling.write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
    if way == "not said":
        shutil.rmtree(pooling.parent)
    encoder, texts = loaded(folder), [*TEXTS[:2], TEXTS[3]]
    found = encoder.encode(texts, ignore_progress)
    for vector, text in zip(found, texts, strict=True):
        alone = states(encoder, text)
        expected = alone[0] if way == "cls" else alone.mean(0)
        torch.testing.assert_close(torch.from_numpy(vector), expected / expected.norm(), rtol=1e-4, atol=1e-5)


def test_vectors_have_length_one_and_long_texts_are_cut(folder):
    encoder = loaded(folder)
    assert encoder.max_length == 24
    long, longer = encoder.encode(["ab" * 40, "ab" * 60], ignore_progress)
    assert np.array_equal(long, longer) and np.linalg.norm(long) == pytest.approx(1)
    assert np.isfinite(encoder.encode(TEXTS, ignore_progress)).all(), "the empty text too"


def test_another_way_of_pooling_is_refused(folder):
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(UserError, match="pools in a way that is not supported"):
        loaded(folder)


def test_weights_that_are_not_finite_are_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.LayerNorm.bias"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="NaN or infinite"):
        loaded(folder)


# ---- where encoders are found ----------------------------------------------------------------------------------------


@pytest.fixture
def package(folder, tmp_path, monkeypatch) -> Path:
    """An installed package that contains the encoder as an archive, and an empty cache of the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    module = tmp_path / "site" / "all_minilm_l6_v2"
    module.mkdir(parents=True)
    (module / "__init__.py").write_text("raise RuntimeError('a package is looked into, not imported')\n")
    with zipfile.ZipFile(module / "model.zip", "w") as archive:
        for path in folder.rglob("*"):
            archive.write(path, path.relative_to(folder))
        archive.writestr("../outside.json", "{}")
    monkeypatch.syspath_prepend(str(module.parent))
    return module / "model.zip"


def test_an_encoder_in_an_installed_package_is_unpacked_once(package, folder, tmp_path):
    found = encoder_at_hand()
    assert found is not None and found.short == "minilm" and "all_minilm_l6_v2" not in sys.modules
    source = Path(encoder_source("minilm"))
    assert source.is_relative_to(tmp_path / "cache") and not list(tmp_path.rglob("outside.json"))
    assert np.array_equal(loaded(source).encode(TEXTS, ignore_progress), loaded(folder).encode(TEXTS, ignore_progress))
    before = (source / "model.safetensors").stat().st_mtime_ns
    assert Path(encoder_source("minilm")) == source
    assert (source / "model.safetensors").stat().st_mtime_ns == before


def test_a_damaged_archive_is_named_and_leaves_nothing(package, tmp_path):
    package.write_bytes(package.read_bytes()[:2000])
    with pytest.raises(UserError, match="archive of the encoder is damaged"):
        encoder_source("minilm")
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_other_names_are_hub_ids_and_folders(monkeypatch, tmp_path):
    monkeypatch.setattr("loratory.bases.encoders.is_in_hub_cache", lambda hub_id: False)
    monkeypatch.setattr("loratory.bases.encoders.file_in_package", lambda *_: None)
    assert encoder_at_hand() is None
    assert encoder_source("minilm") == "sentence-transformers/all-MiniLM-L6-v2"
    assert encoder_source("some/encoder") == "some/encoder" and encoder_source(str(tmp_path)) == str(tmp_path)
