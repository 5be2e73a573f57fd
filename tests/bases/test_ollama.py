"""Models in Ollama's store: found by name and tag and checked by hash; which of its settings are not used is said."""

from pathlib import Path

import pytest
import torch
from tiny_gguf import TEMPLATE, put_into_ollama, write_gguf

from loratory.bases import find_in_ollama, unused_settings
from loratory.errors import UserError
from loratory.machine import Machine
from loratory.models.loading import load_model
from loratory.settings import ModelConfig

GO_TEMPLATE = "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"


@pytest.fixture
def store(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path


def error_of(name: str) -> UserError:
    with pytest.raises(UserError) as caught:
        find_in_ollama(name)
    return caught.value


@pytest.mark.thorough
def test_a_model_of_ollama_is_loaded_from_its_blob(store, file, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    blob = put_into_ollama(
        store, file, tag="4m", template=GO_TEMPLATE, system="Be brief.", params='{"temperature": 0.2}'
    )
    base = load_model(ModelConfig("ollama:tiny:4m"), Machine(torch.device("cpu"), torch.float32, 1, "test"))
    assert base.name == "ollama:tiny:4m"
    assert base.gguf and base.gguf.file == str(blob) and base.gguf.sha256 == blob.name.removeprefix("sha256-")
    [found, unused] = base.notes
    assert "Q4_1" in found
    assert '"Be brief."' in unused and "temperature 0.2" in unused and "chat template (" not in unused


@pytest.mark.parametrize(
    ("name", "full"),
    [("tiny", "ollama:tiny:latest"), ("owner/tiny", "ollama:owner/tiny:latest")],
)
def test_a_name_may_leave_out_the_tag_and_the_library(name, full, store, file):
    put_into_ollama(store, file, name)
    assert find_in_ollama(f"ollama:{name}").name == full
    assert find_in_ollama(full).name == full


def test_a_missing_tag_or_model_names_those_there_are(store, file):
    for tag in ("1b", "3b"):
        put_into_ollama(store, file, tag=tag)
    error = error_of("ollama:tiny:7b")
    assert (error.what, error.expected) == ("Ollama does not have this tag of the model", "1b, 3b")
    error = error_of("ollama:other")
    assert (error.what, error.expected) == ("Ollama does not have this model", "ollama:tiny:1b, ollama:tiny:3b")
    assert error.fix == "run: ollama pull other"


def test_no_store_is_told(store):
    error = error_of("ollama:tiny")
    assert error.what == "Ollama has no models on this machine" and str(store) in str(error.found)


@pytest.mark.parametrize("name", ["ollama:", "ollama:../tiny", "ollama:a/b/c/d", "ollama:tiny:../x", "ollama:a//b"])
def test_a_name_never_leaves_the_store(name, store, file):
    put_into_ollama(store, file)
    assert error_of(name).what == "Not a valid name of an Ollama model"


def test_a_missing_or_damaged_blob_is_told(store, file, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    blob = put_into_ollama(store, file)
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(UserError, match="The hash of the Ollama model's file is not its name"):
        load_model(ModelConfig("ollama:tiny"), Machine(torch.device("cpu"), torch.float32, 1, "test"))
    blob.unlink()
    error = error_of("ollama:tiny")
    assert (error.what, error.where) == ("A file of the Ollama model is missing", str(blob))


@pytest.mark.parametrize(
    "manifest",
    ["", "[]", "{}", '{"layers": [1]}', '{"layers": [{"mediaType": 1, "digest": "sha256:00"}]}'],
)
def test_a_damaged_manifest_is_told(manifest, store, file):
    put_into_ollama(store, file)
    (store / "manifests/registry.ollama.ai/library/tiny/latest").write_text(manifest)
    assert error_of("ollama:tiny").what == "The manifest of the Ollama model is damaged"


def test_an_adapter_of_ollama_is_refused(store, file):
    put_into_ollama(store, file, adapter="weights")
    assert error_of("ollama:tiny").what == "This Ollama model is an adapter on another model"


def test_only_what_differs_is_said(store, file):
    def sentence(template: str = TEMPLATE, **texts: str) -> str | None:
        put_into_ollama(store, file, **texts)
        return unused_settings(find_in_ollama("ollama:tiny"), template)

    assert sentence() is None
    assert sentence(template=GO_TEMPLATE) is None
    assert sentence(params='{"stop": ["<|im_end|>"]}') is None
    assert "stop" in str(sentence(params='{"stop": ["<|eot|>"]}'))
    put_into_ollama(store, file, template=GO_TEMPLATE)
    none = str(unused_settings(find_in_ollama("ollama:tiny"), ""))
    assert "the file itself has none" in none and none.endswith("It is trained with a plain template")
    put_into_ollama(store, file, template="<start_of_turn>{{ .Prompt }}")
    markers = str(unused_settings(find_in_ollama("ollama:tiny"), TEMPLATE))
    assert "<start_of_turn>" in markers and "<|im_start|>" in markers and "\n" not in markers
