"""Model folders as people have them: what cannot be used is named, before the weights are read, with what to do."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny import byte_tokenizer

from loratory.data import Example, Message
from loratory.data.rows import read_rows
from loratory.errors import UserError
from loratory.machine.device import Machine
from loratory.models import load_model, load_tokenizer
from loratory.predict import ask, load_plain
from loratory.settings import ModelConfig, PromptConfig
from loratory.text import render_prompt, renderer_for, tokenize

MACHINE = Machine(torch.device("cpu"), torch.float32, 1, "test")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0\nsize 1044992\n"


@pytest.fixture
def folder(tiny_folder, tmp_path) -> Path:
    """A copy of the tiny model."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "Tiny-1B-Instruct"))


def edit(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def error_of(folder: Path, what: str) -> UserError:
    with pytest.raises(UserError, match=what) as caught:
        load_model(ModelConfig(str(folder)), MACHINE)
    return caught.value


# ---- Git LFS, incomplete and other formats ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "tokenizer.model", "x.bin"])
def test_a_pointer_of_git_lfs_is_called_that_in_place_of_any_file(folder, name):
    (folder / name).write_text(POINTER)
    error = error_of(folder, "Git LFS pointer")
    assert error.where == str(folder / name) and "git lfs pull" in str(error.fix)


@pytest.mark.parametrize("name", ["train.parquet", "train.csv", "train.jsonl"])
def test_a_data_file_that_is_a_pointer_is_called_that(tmp_path, name):
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(UserError, match="Git LFS pointer"):
        read_rows(str(tmp_path / name))


def test_a_text_that_only_mentions_git_lfs_is_no_pointer(folder):
    (folder / "notes.txt").write_text(f"Fetch it: {POINTER}")
    assert load_tokenizer(ModelConfig(str(folder))).stop_ids == (2,)


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_part_of_the_weights_is_named(folder, index):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) >= 3
    assert load_model(ModelConfig(str(folder)), MACHINE).model.dtype == torch.float32
    shards[1].unlink()
    if not index:
        (folder / "model.safetensors.index.json").unlink()
    error = error_of(folder, "Files of the model's weights are missing")
    assert shards[1].name in str(error.found) and shards[0].name not in str(error.found)


@pytest.mark.parametrize("name", ["tf_model.h5", "flax_model.msgpack", "model.onnx"])
def test_weights_in_another_format_are_named(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    assert error_of(folder, "in a format that cannot be trained").found == name


# ---- quantized -------------------------------------------------------------------------------------------------------

QUANTIZED = {
    "bnb-4bit": {"quantization_config": {"load_in_4bit": True, "quant_method": "bitsandbytes"}},
    "bnb-8bit": {"quantization_config": {"load_in_8bit": True}},
    "AWQ": {"quantization_config": {"quant_method": "awq", "bits": 4}},
    "GPTQ-Int4": {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}},
    "FP8-dynamic": {"quantization_config": {"quant_method": "compressed-tensors", "format": "float-quantized"}},
    "MXFP4": {"quantization_config": {"quant_method": "mxfp4"}},
    "unsloth-bnb-4bit": {"text_config": {"quantization_config": {"quant_method": "bitsandbytes"}}},
    "4bit": {"quantization": {"group_size": 64, "bits": 4}},
}


@pytest.mark.parametrize("ending", QUANTIZED)
def test_a_quantized_base_is_called_that_and_the_unquantized_one_is_named(folder, ending):
    folder = folder.rename(folder.with_name(f"Tiny-1B-Instruct-{ending}"))
    edit(folder / "config.json", **QUANTIZED[ending])
    (folder / "model.safetensors").write_bytes(bytes(8))  # never read
    error = error_of(folder, "quantized base model: use the unquantized one")
    assert str(error.fix).endswith("look for Tiny-1B-Instruct")
    assert "install" not in str(error)


def test_the_base_model_that_the_readme_names_is_the_one_to_look_for(folder):
    edit(folder / "config.json", **QUANTIZED["AWQ"])
    (folder / "README.md").write_text("---\nbase_model: [meta/Big-1B]\nlicense: mit\n---\n# AWQ\n")
    assert "look for meta/Big-1B" in str(error_of(folder, "quantized").fix)
    (folder / "README.md").write_text("---\nbase_model: [\n")
    assert "from which it was made" in str(error_of(folder, "quantized").fix)


def test_the_original_name_in_the_configuration_is_used(folder):
    edit(folder / "config.json", _name_or_path="unsloth/Llama-3.2-1B-Instruct-bnb-4bit", **QUANTIZED["bnb-4bit"])
    assert "look for unsloth/Llama-3.2-1B-Instruct" in str(error_of(folder, "quantized").fix)


def test_a_model_that_was_published_quantized_has_copies_that_are_not(folder):
    folder = folder.rename(folder.with_name("gpt-oss-20b"))
    edit(folder / "config.json", **QUANTIZED["MXFP4"])
    assert "look for gpt-oss-20b-BF16" in str(error_of(folder, "quantized").fix)


@pytest.mark.parametrize("value", [None, {}])
def test_an_empty_quantization_means_none(folder, value):
    edit(folder / "config.json", quantization_config=value)
    load_tokenizer(ModelConfig(str(folder)))


# ---- settings that nobody checks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["long", [5], {}])
def test_a_tokenizer_that_fails_on_every_text_is_an_error_of_loading(folder, value):
    edit(folder / "tokenizer_config.json", model_max_length=value)
    error_of(folder, "cannot be loaded")


@pytest.mark.parametrize(
    ("key", "value"), [("output_hidden_states", {"a": 1}), ("output_hidden_states", ["x"]), ("hidden_act", 3)]
)
def test_a_model_that_fails_on_every_token_is_an_error_of_loading(folder, key, value):
    edit(folder / "config.json", **{key: value})
    error_of(folder, "cannot be loaded")


@pytest.mark.parametrize("value", [["x"], 1, {"a": 1}])
def test_the_models_own_generation_settings_are_not_used(folder, value):
    _, renderer = load_plain(str(folder))
    answer = "".join(ask(load_plain(str(folder))[0].model, renderer, "Is it so?", None, 6))
    settings = {"output_hidden_states": value, "repetition_penalty": 9.0, "suppress_tokens": list(range(3, 200))}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    assert "".join(ask(load_plain(str(folder))[0].model, renderer, "Is it so?", None, 6)) == answer


# ---- tokens without an embedding -------------------------------------------------------------------------------------


@pytest.fixture
def with_extra(folder) -> Path:
    """The tiny model, whose tokenizer has more tokens than the model has embeddings, as that of Gemma 3 1B."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"<unused{i}>" for i in range(272 - len(tokenizer))])
    tokenizer.add_tokens(["<image_soft_token>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    return folder


def test_tokens_beyond_the_embedding_do_no_harm_until_a_text_uses_one(with_extra):
    before = load_file(with_extra / "model.safetensors")
    base = load_model(ModelConfig(str(with_extra)), MACHINE)
    assert (len(base.text.tokenizer), base.text.embeddings) == (273, 272)
    assert base.model.get_input_embeddings().weight.shape[0] == 272
    assert torch.equal(base.model.get_input_embeddings().weight, before["model.embed_tokens.weight"])
    renderer = renderer_for(base.text, PromptConfig())
    fine = Example((Message("user", "a picture"),), ("cat",), (), "a.csv:2")
    assert max(tokenize(fine, renderer)[0].token_ids) < 272
    in_prompt = Example((Message("user", "a <image_soft_token>"),), ("cat",), (), "a.csv:3")
    in_answer = Example((Message("user", "a picture"),), ("<image_soft_token>",), (), "a.csv:4")
    for example in (in_prompt, in_answer):
        with pytest.raises(UserError, match="no embedding") as caught:
            tokenize(example, renderer)
        assert caught.value.where == example.source
        assert "'<image_soft_token>', which is token 272" in str(caught.value.found)
    with pytest.raises(UserError, match="no embedding"):
        render_prompt([Message("user", "<image_soft_token>")], renderer)


def test_a_template_that_ends_answers_with_such_a_token_is_refused(with_extra):
    template = (with_extra / "chat_template.jinja").read_text().replace("<|im_end|>", "<image_soft_token>")
    (with_extra / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match="no embedding") as caught:
        renderer_for(load_tokenizer(ModelConfig(str(with_extra))), PromptConfig())
    assert caught.value.where == "the end of an answer"
