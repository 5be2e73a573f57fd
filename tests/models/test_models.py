"""Loading of models: safetensors only, no custom code, and a clear error message for every problem."""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from conftest import SHARED, needs_shared
from safetensors.torch import load_file, save_file
from tiny import byte_tokenizer

from loratory.errors import UserError
from loratory.machine.device import Machine
from loratory.models.finding import builtin_folder
from loratory.models.loading import (
    PLAIN_TEMPLATE,
    LoadedModel,
    context_length,
    load_model,
    load_tokenizer,
)
from loratory.models.untrusted import check_adapter_folder, check_model_folder, read_json
from loratory.settings import BUILTIN, BUILTIN_MASKED, ModelConfig, PromptConfig
from loratory.text.template import make_renderer

STORIES = SHARED / "data" / "models" / "stories260K"
MACHINE = Machine(torch.device("cpu"), torch.float32, 1, "test")


def load(folder: Path | str) -> LoadedModel:
    return load_model(ModelConfig(str(folder)), MACHINE)


def loading_error(folder: Path | str, what: str | None = None) -> UserError:
    """The error that loading raises."""
    with pytest.raises(UserError, match=what) as caught:
        load(folder)
    return caught.value


@pytest.fixture
def stories(tmp_path) -> Path:
    """A copy of the small model, for tests that modify it."""
    return Path(shutil.copytree(STORIES, tmp_path / "stories"))


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# ---- loading ---------------------------------------------------------------------------------------------------------


@needs_shared
def test_a_model_from_a_folder_has_its_path_and_hash(monkeypatch):
    monkeypatch.chdir(STORIES.parent)
    loaded = load("stories260K")
    assert (loaded.name, loaded.revision) == (str(STORIES.resolve()), None)
    assert loaded.hashes["weights"] == hashlib.sha256((STORIES / "model.safetensors").read_bytes()).hexdigest()
    assert not loaded.model.training and loaded.model.dtype == torch.float32
    assert (loaded.text.max_length, loaded.text.plain_template) == (512, True)
    assert loaded.text.tokenizer.chat_template == PLAIN_TEMPLATE
    assert loaded.text.stop_ids == (1, 2)  # one of them is only in generation_config.json
    assert loaded.text.stop_ids == load_tokenizer(ModelConfig("stories260K")).stop_ids


@needs_shared
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_has_the_dtype_of_the_machine(dtype: torch.dtype):
    loaded = load_model(ModelConfig(str(STORIES)), Machine(torch.device("cpu"), dtype, 1, "test"))
    assert {p.dtype for p in loaded.model.parameters()} == {dtype}


@needs_shared
def test_a_models_own_template_is_used(stories):
    (stories / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    text = load(stories).text
    assert not text.plain_template and text.tokenizer.chat_template.startswith("{% for m")


@needs_shared
def test_sharded_weights_load_and_have_one_hash(tmp_path):
    whole = load(STORIES)
    folder = tmp_path / "sharded"
    whole.model.save_pretrained(folder, max_shard_size="200KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(STORIES / name, folder)
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    loaded = load(folder)
    assert loaded.hashes["weights"] == hashlib.sha256(b"".join(s.read_bytes() for s in shards)).hexdigest()
    for sharded, original in zip(loaded.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(sharded, original)
    shards[-1].unlink()
    loading_error(folder)


def test_the_context_is_unlimited_if_the_model_states_none():
    assert context_length(transformers.LlamaConfig(max_position_embeddings=77)) == 77
    assert context_length(transformers.MambaConfig()) >= 2**30


# ---- missing models and files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["./none", "/no/such/folder", "a/b/c", "~/model", "", " "])
def test_a_missing_folder_is_an_error_with_its_name(tmp_path, monkeypatch, name: str):
    monkeypatch.chdir(tmp_path)
    error = loading_error(name, "Model folder not found")
    assert (error.where, error.found) == ("[model] name", name)


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no-such-model"])
def test_the_error_for_a_hub_model_without_a_network_suggests_a_fix(name: str):
    error = loading_error(name, "not on this machine and the hub cannot be reached")
    assert name in str(error.where) and "folder" in str(error.fix)


@pytest.mark.parametrize("name", ["a name with spaces", "-a", "a--b", "a/b..c"])
def test_an_invalid_model_name_is_an_error(name: str):
    assert name in str(loading_error(name, "Not a valid model name"))


def test_a_folder_without_a_model_is_an_error_with_its_path(tmp_path):
    assert loading_error(tmp_path, "No model in this folder").where == str(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    loading_error(tmp_path, "Training cannot go on from this kind of adapter")


@needs_shared
def test_a_folder_without_weights_is_an_error_with_its_path(stories):
    (stories / "model.safetensors").unlink()
    assert loading_error(stories, "no weights").where == str(stories)


@needs_shared
@pytest.mark.parametrize("missing", ["tokenizer.json", "config.json"])
def test_a_folder_with_a_missing_file_is_rejected(stories, missing: str):
    (stories / missing).unlink()
    loading_error(stories)


# ---- code execution --------------------------------------------------------------------------------------------------


@needs_shared
@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.ckpt", "weights.pt"])
def test_pickled_weights_are_rejected_without_unpickling(stories, name: str):
    (stories / "model.safetensors").unlink()
    marker = stories / "ran"

    class Runs:
        def __reduce__(self):
            return Path.touch, (marker,)

    torch.save(Runs(), stories / name)
    error = loading_error(stories, "pickle")
    assert error.found == name and not marker.exists()


@needs_shared
@pytest.mark.parametrize("kind", ["my_own_model", "llama"])
def test_custom_code_of_a_model_never_runs(stories, kind: str):
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
        assert kind == "llama", "a model with an unknown architecture was loaded"
    except UserError as error:
        assert "custom code" in error.what and str(stories) == error.where
    assert not marker.exists()


# ---- corrupt files ---------------------------------------------------------------------------------------------------


@needs_shared
@pytest.mark.parametrize("keep", [0, 5, 300, 100_000])
def test_truncated_weights_are_rejected(stories, keep: int):
    path = stories / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert loading_error(stories, "header of the weights is damaged").where == str(path)


@needs_shared
def test_the_error_for_incomplete_weights_names_the_missing_tensor(stories):
    path = stories / "model.safetensors"
    weights = load_file(path)
    name = next(n for n in weights if "layers.3" in n and "q_proj" in n)
    save_file({n: t for n, t in weights.items() if n != name}, path, {"format": "pt"})
    assert name in str(loading_error(stories, "weights are incomplete").found)


@needs_shared
def test_weights_of_the_wrong_shape_are_rejected(stories):
    change_json(stories / "config.json", intermediate_size=100)
    loading_error(stories, "cannot be loaded")


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"]
)
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_rejected_wherever_they_are(tiny_folder, tmp_path, name: str, value: float):
    folder = shutil.copytree(tiny_folder, tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    weights[name].view(-1)[7] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert loading_error(folder, "NaN or infinite").found == f"in {name}"


def test_weights_too_large_for_float16_are_rejected_with_advice(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = 1e5
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert load(folder).model.dtype == torch.float32
    with pytest.raises(UserError, match="NaN or infinite") as caught:
        load_model(ModelConfig(str(folder)), Machine(torch.device("cpu"), torch.float16, 1, "test"))
    assert "float32" in str(caught.value.fix)


@needs_shared
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
def test_broken_json_raises_a_user_error(stories, name: str):
    (stories / name).write_text('{"model_type": "llama"')
    loading_error(stories)


@pytest.mark.thorough
@needs_shared
def test_an_encoder_decoder_model_is_rejected(tmp_path):
    small = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 512}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**small))
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(STORIES / name, tmp_path)
    loading_error(tmp_path, "Neither a causal nor a masked language model")


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff", None])
def test_an_untrusted_json_file_must_be_an_object(tmp_path, content: bytes | None):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_json(path)
    assert caught.value.where == str(path)
    path.write_text('{"a": 1}')
    assert read_json(path) == {"a": 1}


# ---- hostile files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def hostile(tiny_folder, tmp_path) -> Path:
    """A copy of the tiny model, for tests that damage it."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "hostile"))


def folder_error(folder: Path, what: str) -> UserError:
    """The error of the check, which comes at once."""
    started = time.monotonic()
    with pytest.raises(UserError, match=what) as caught:
        check_model_folder(folder)
    assert time.monotonic() - started < 2
    with pytest.raises(UserError, match=what):
        load(folder)
    return caught.value


@pytest.mark.parametrize("path", [builtin_folder(BUILTIN), builtin_folder(BUILTIN_MASKED), STORIES])
def test_the_folders_of_real_models_pass_the_check(path):
    if path.exists():
        check_model_folder(path)


@pytest.mark.parametrize("value", [10**6, 10**30, -1, 0, 2.5, "2", True, {}])
@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads"])
def test_a_size_that_cannot_be_right_is_rejected_before_anything_is_allocated(hostile, key, value):
    change_json(hostile / "config.json", **{key: value})
    assert folder_error(hostile, "cannot be right").where == f"{hostile / 'config.json'}, {key}"


@pytest.mark.parametrize("key", ["max_position_embeddings", "intermediate_size"])
@pytest.mark.parametrize("value", [10**30, -1, "9"])
def test_other_sizes_have_a_range_too(hostile, key, value):
    change_json(hostile / "config.json", **{key: value})
    folder_error(hostile, "cannot be right")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "generation_config.json"])
def test_a_pipe_in_place_of_a_file_is_rejected_instead_of_waited_for(hostile, name):
    (hostile / name).unlink(missing_ok=True)
    os.mkfifo(hostile / name)
    assert folder_error(hostile, "is not a file").where == str(hostile / name)


def test_a_settings_file_that_is_too_large_or_too_deep_is_rejected(hostile):
    config = (hostile / "config.json").read_text()
    change_json(hostile / "config.json", deep=json.loads("[" * 40 + "]" * 40))
    folder_error(hostile, "nested too deeply")
    (hostile / "config.json").write_text('{"a": ' + "[" * 10**5)
    folder_error(hostile, "cannot be read")
    (hostile / "config.json").write_text(config)
    with (hostile / "tokenizer.json").open("ab") as file:
        file.truncate(300 << 20)
    folder_error(hostile, "too large")


@pytest.mark.parametrize(
    "name", ["../../x.safetensors", "/etc/passwd", "a/b.safetensors", "x.bin", "..\\x.safetensors"]
)
def test_an_index_that_leads_out_of_the_folder_is_rejected(hostile, name):
    (hostile / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    folder_error(hostile, "cannot be right")


def entry(shape: list, start: Any, end: Any, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HEADERS = {
    "is longer than the file": (10**15, "{}", 0),
    "is no JSON": (None, "{", 0),
    "is deeply nested": (None, "[" * 10**5, 0),
    "has a shape larger than its offsets": (None, json.dumps({"a": entry([10**6, 10**6], 0, 8)}), 8),
    "has offsets beyond the file": (None, json.dumps({"a": entry([100], 0, 400)}), 8),
    "has overlapping offsets": (None, json.dumps({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}), 8),
    "has negative sizes": (None, json.dumps({"a": entry([-1, -2], 0, 8)}), 8),
    "has texts as sizes": (None, json.dumps({"a": entry(["2"], 0, 8)}), 8),
    "has an unknown type": (None, json.dumps({"a": entry([2], 0, 8, "X9")}), 8),
    "has the same name twice": (None, '{"a": %s, "a": %s}' % ((json.dumps(entry([2], 0, 8)),) * 2), 8),
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_header_of_weights_that_lies_is_rejected(hostile, what):
    length, header, data = HEADERS[what]
    content = (length or len(header)).to_bytes(8, "little") + header.encode() + bytes(data)
    (hostile / "model.safetensors").write_bytes(content)
    folder_error(hostile, "header of the weights is damaged")


def test_the_same_weights_in_two_files_are_rejected(hostile):
    shutil.copy(hostile / "model.safetensors", hostile / "model2.safetensors")
    folder_error(hostile, "Two files contain the same weights")


@pytest.fixture
def adapter(tmp_path) -> Path:
    settings = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "peft_type": "LORA"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    weights = {"x.lora_A.weight": torch.zeros(2, 8), "x.lora_B.weight": torch.zeros(8, 2)}
    save_file(weights, tmp_path / "adapter_model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", 10**9), ("r", 0), ("r", -1), ("r", 3), ("r", 2.0), ("r", True), ("lora_alpha", "4"), ("lora_alpha", None),
        ("target_modules", "(a+)+$"), ("target_modules", [1]), ("rank_pattern", {"(a+)+": 1}), ("layers_pattern", "a*"),
    ],
)  # fmt: skip
def test_a_setting_of_an_adapter_that_cannot_be_right_is_rejected(adapter, key, value):
    check_adapter_folder(adapter)
    change_json(adapter / "adapter_config.json", **{key: value})
    with pytest.raises(UserError, match="cannot be right") as caught:
        check_adapter_folder(adapter)
    assert caught.value.where == f"{adapter / 'adapter_config.json'}, {key}"


def test_a_pipe_in_an_adapter_is_rejected(adapter):
    (adapter / "adapter_config.json").unlink()
    os.mkfifo(adapter / "adapter_config.json")
    with pytest.raises(UserError, match="is not a file"):
        check_adapter_folder(adapter)


def test_a_regular_expression_that_takes_too_long_is_an_error_of_the_tokenizer():
    tokenizer = byte_tokenizer()
    bomb = tokenizers.pre_tokenizers.Split(tokenizers.Regex("(a+)+$"), "isolated")
    tokenizer.backend_tokenizer.pre_tokenizer = bomb
    renderer = make_renderer(tokenizer, (), PromptConfig())
    with pytest.raises(UserError, match="tokenizer fails on a text"):
        renderer.encode("a" * 60 + "b")
