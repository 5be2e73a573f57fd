"""Loading: safetensors only, no code from the model, and one plain message for everything that is wrong."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import SHARED, needs_shared
from safetensors.torch import load_file, save_file

from loratory.config import ModelConfig
from loratory.errors import UserError
from loratory.machine.device import Machine
from loratory.models.loading import PLAIN_TEMPLATE, LoadedModel, context_length, load_model, load_tokenizer, read_json

STORIES = SHARED / "data" / "models" / "stories260K"
WORLD = Machine(torch.device("cpu"), torch.float32, 1, "test")


def load(folder: Path | str) -> LoadedModel:
    return load_model(ModelConfig(str(folder)), WORLD)


def refused(folder: Path | str, what: str | None = None) -> UserError:
    """The one mistake that loading names."""
    with pytest.raises(UserError, match=what) as caught:
        load(folder)
    return caught.value


@pytest.fixture
def stories(tmp_path) -> Path:
    """A copy of the small model, to be damaged."""
    return Path(shutil.copytree(STORIES, tmp_path / "stories"))


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# ---- what loads ------------------------------------------------------------------------------------------------------


@needs_shared
def test_a_folder_loads_with_what_identifies_it(monkeypatch):
    monkeypatch.chdir(STORIES.parent)
    found = load("stories260K")
    assert (found.name, found.revision) == (str(STORIES.resolve()), None)
    assert found.weights_sha256 == hashlib.sha256((STORIES / "model.safetensors").read_bytes()).hexdigest()
    assert not found.model.training and found.model.dtype == torch.float32
    assert (found.text.max_length, found.text.plain_template) == (512, True)
    assert found.text.tokenizer.chat_template == PLAIN_TEMPLATE
    assert found.text.stop_ids == (1, 2)  # generation_config.json adds one to the tokenizer's
    assert found.text.stop_ids == load_tokenizer(ModelConfig("stories260K")).stop_ids


@needs_shared
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_has_the_number_format_that_was_asked_for(dtype: torch.dtype):
    found = load_model(ModelConfig(str(STORIES)), Machine(torch.device("cpu"), dtype, 1, "test"))
    assert {p.dtype for p in found.model.parameters()} == {dtype}


@needs_shared
def test_a_models_own_template_is_kept(stories):
    (stories / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    found = load(stories).text
    assert not found.plain_template and found.tokenizer.chat_template.startswith("{% for m")


@needs_shared
def test_weights_in_several_files_are_one_model_with_one_hash(tmp_path):
    whole = load(STORIES)
    folder = tmp_path / "sharded"
    whole.model.save_pretrained(folder, max_shard_size="200KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(STORIES / name, folder)
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    found = load(folder)
    assert found.weights_sha256 == hashlib.sha256(b"".join(s.read_bytes() for s in shards)).hexdigest()
    for ours, theirs in zip(found.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    shards[-1].unlink()
    refused(folder)


def test_the_context_of_a_model_that_states_none_is_no_limit():
    assert context_length(transformers.LlamaConfig(max_position_embeddings=77)) == 77
    assert context_length(transformers.MambaConfig()) >= 2**30


# ---- what is missing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["./none", "/no/such/folder", "a/b/c", "~/model", "", " "])
def test_a_missing_folder_is_named(tmp_path, monkeypatch, name: str):
    monkeypatch.chdir(tmp_path)
    error = refused(name, "Model folder not found")
    assert (error.where, error.found) == ("[model] name", name)


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no-such-model"])
def test_a_hub_model_without_a_network_says_what_to_do(name: str):
    error = refused(name, "not on this machine and the hub cannot be reached")
    assert name in str(error.where) and "folder" in str(error.fix)


@pytest.mark.parametrize("name", ["a name with spaces", "-a", "a--b", "a/b..c"])
def test_what_cannot_be_a_model_name_is_named(name: str):
    assert name in str(refused(name, "Not a valid model name"))


def test_a_folder_without_a_model_is_named(tmp_path):
    assert refused(tmp_path, "No model in this folder").where == str(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "base model" in str(refused(tmp_path, "No model in this folder").fix)


@needs_shared
def test_a_folder_without_weights_is_named(stories):
    (stories / "model.safetensors").unlink()
    assert refused(stories, "no weights").where == str(stories)


@needs_shared
@pytest.mark.parametrize("lacking", ["tokenizer.json", "config.json"])
def test_a_folder_that_lacks_a_file_is_refused(stories, lacking: str):
    (stories / lacking).unlink()
    refused(stories)


# ---- what could run code ---------------------------------------------------------------------------------------------


@needs_shared
@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.ckpt", "weights.pt"])
def test_weights_in_a_pickle_are_refused_unread(stories, name: str):
    (stories / "model.safetensors").unlink()
    marker = stories / "ran"

    class Runs:
        def __reduce__(self):
            return Path.touch, (marker,)

    torch.save(Runs(), stories / name)
    error = refused(stories, "pickle")
    assert error.found == name and not marker.exists()


@needs_shared
@pytest.mark.parametrize("kind", ["my_own_model", "llama"])
def test_code_of_a_model_never_runs(stories, kind: str):
    marker = stories / "ran"
    (stories / "own.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\n")
    change_json(
        stories / "config.json",
        model_type=kind,
        auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
    )
    change_json(stories / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Tokenizer", None]})
    try:
        load(stories)
        assert kind == "llama", "an architecture that Transformers does not know was loaded"
    except UserError as error:
        assert "code of its own" in error.what and str(stories) == error.where
    assert not marker.exists()


# ---- what is damaged -------------------------------------------------------------------------------------------------


@needs_shared
@pytest.mark.parametrize("keep", [0, 5, 300, 100_000])
def test_cut_off_weights_are_refused(stories, keep: int):
    path = stories / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert refused(stories, "cannot be loaded").where == str(stories)


@needs_shared
def test_weights_that_lack_a_tensor_are_refused_by_its_name(stories):
    path = stories / "model.safetensors"
    weights = load_file(path)
    name = next(n for n in weights if "layers.3" in n and "q_proj" in n)
    save_file({n: t for n, t in weights.items() if n != name}, path, {"format": "pt"})
    assert name in str(refused(stories, "weights are incomplete").found)


@needs_shared
def test_weights_of_another_shape_are_refused(stories):
    change_json(stories / "config.json", intermediate_size=100)
    refused(stories, "cannot be loaded")


@needs_shared
def test_weights_that_are_no_numbers_are_refused(stories):
    path = stories / "model.safetensors"
    weights = load_file(path)
    weights["model.embed_tokens.weight"][5, 3] = float("nan")
    save_file(weights, path, {"format": "pt"})
    refused(stories, "no numbers")


@needs_shared
def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(stories):
    tokenizer = transformers.AutoTokenizer.from_pretrained(stories)
    tokenizer.add_tokens(["<one>", "<more>"])
    tokenizer.save_pretrained(stories)
    error = refused(stories, "more tokens than the model")
    assert (error.expected, error.found) == ("at most 512", "514")


@needs_shared
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
def test_broken_json_is_a_mistake_and_no_crash(stories, name: str):
    (stories / name).write_text('{"model_type": "llama"')
    refused(stories)


@needs_shared
def test_a_model_of_another_kind_is_refused(tmp_path):
    small = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 512}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**small))
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(STORIES / name, tmp_path)
    refused(tmp_path, "Neither a causal nor a masked language model")


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff", None])
def test_a_json_file_of_others_is_an_object_or_a_mistake(tmp_path, content: bytes | None):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_json(path)
    assert caught.value.where == str(path)
    path.write_text('{"a": 1}')
    assert read_json(path) == {"a": 1}
