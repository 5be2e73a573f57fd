"""Training that goes on from an adapter: what is measured before has it, and the result is one adapter for the base."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import ANIMALS
from transformers import AutoModelForCausalLM

from loratory.config import Config, config_from_dict, config_to_dict
from loratory.errors import UserError
from loratory.events import Event, ignore_event
from loratory.finetune import evaluate_run, finetune
from loratory.machine.device import Machine
from loratory.models import load_with_start
from loratory.predict import load
from loratory.run.job import load_job
from loratory.run.training import restore_base, with_fresh_adapter
from loratory.settings import AdapterConfig, DataConfig, ModelConfig, PromptConfig, RunConfig, TrainConfig
from loratory.storage import read_metrics, read_record, write_record

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
IDS = torch.arange(3, 23)[None]


@dataclasses.dataclass(frozen=True)
class Case:
    """A first run, and the settings of one that goes on from it."""

    base: Path
    first: Path
    again: Config


@pytest.fixture(scope="module")
def made(tiny_folder, tmp_path_factory) -> Case:
    folder = tmp_path_factory.mktemp("adapter-as-base")
    base = Path(shutil.copytree(tiny_folder, folder / "base"))
    names = list(ANIMALS)
    rows = [f"The {names[i % 3]} number {i} sleeps,{ANIMALS[names[i % 3]]}" for i in range(48)]
    (folder / "animals.csv").write_text("text,sound\n" + "\n".join(rows) + "\n")
    config = Config(
        model=ModelConfig(str(base), device="cpu", dtype="float64"),
        data=DataConfig((str(folder / "animals.csv"),), answer="sound"),
        prompt=PromptConfig(system="One of: {labels}."),
        adapter=AdapterConfig(rank=3, alpha=5, targets=("q_proj", "down_proj")),
        train=TrainConfig(epochs=1, batch_size=8, learning_rate=1e-2),
        run=RunConfig(
            str(folder / "first"), threads=torch.get_num_threads(), systems=("prompt-choose", "tuned-choose")
        ),
    )
    finetune(config)
    again = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, name=str(folder / "first" / "adapter")),
        adapter=AdapterConfig(),
        run=dataclasses.replace(config.run, out=str(folder / "again")),
    )
    return Case(base, folder / "first", again)


@pytest.fixture
def case(made, tmp_path) -> Iterator[Case]:
    """The case with a run directory of its own; the first run is as it was after the test."""
    kept = Path(shutil.copytree(made.first, tmp_path / "kept"))
    yield dataclasses.replace(
        made, again=dataclasses.replace(made.again, run=dataclasses.replace(made.again.run, out=str(tmp_path / "run")))
    )
    shutil.rmtree(made.first)
    shutil.copytree(kept, made.first)


def named(case: Case, name: Path) -> Config:
    return dataclasses.replace(case.again, model=dataclasses.replace(case.again.model, name=str(name)))


def on_base(case: Case, adapter: Path) -> torch.Tensor:
    """The logits of an adapter by PEFT alone."""
    plain = AutoModelForCausalLM.from_pretrained(case.base, dtype=torch.float64)
    with torch.no_grad():
        return PeftModel.from_pretrained(plain, str(adapter)).eval()(input_ids=IDS).logits


def job_of(config: Config):
    return load_job(config, Path(config.run.out), ignore_event)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


# ---- the weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["adapter", "."])
def test_before_training_the_model_is_the_one_with_the_adapter_each_time_anew(case, part):
    job = job_of(named(case, case.first / part))
    given = on_base(case, case.first / "adapter")
    torch.testing.assert_close(logits(job.base.model), given, rtol=1e-10, atol=1e-10)
    assert (job.config.adapter.rank, job.config.adapter.alpha) == (3, 5)
    assert job.config.adapter.targets == ("down_proj", "q_proj")
    for _ in range(2):  # as for several learning rates, seeds or folds
        model = with_fresh_adapter(job)
        torch.testing.assert_close(logits(model), given, rtol=1e-10, atol=1e-10)
        trained = [p for p in model.parameters() if p.requires_grad]
        assert len(trained) == 8
        with torch.no_grad():
            for parameter in trained:
                parameter.add_(0.1)
        assert not torch.allclose(logits(model), given)
        restore_base(job, model)
        torch.testing.assert_close(logits(job.base.model), given, rtol=1e-10, atol=1e-10)
        assert not any(p.requires_grad for p in job.base.model.parameters())
    assert job.layout.kind == "tree"


@pytest.mark.thorough
def test_the_result_is_one_adapter_that_peft_loads_and_predictions_use(case):
    messages: list[Event] = []
    run = finetune(case.again, messages.append)
    assert any("goes on from the adapter" in m.text for m in messages)
    assert any("taken from the adapter: rank, alpha, targets" in m.text for m in messages)
    first, again = (json.loads((f / "adapter" / "adapter_config.json").read_text()) for f in (case.first, run))
    assert {k for k in first if first[k] != again[k]} == set()
    weights = [load_file(f / "adapter" / "adapter_model.safetensors") for f in (case.first, run)]
    assert weights[0].keys() == weights[1].keys()
    assert all(not torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    steps = [[m["loss"] for m in read_metrics(f) if m["event"] == "step"] for f in (case.first, run)]
    assert steps[1][0] < steps[0][0], "the first step begins where the given adapter ended"
    tuned = load(run, device="cpu", dtype="float64")
    torch.testing.assert_close(logits(tuned.model), on_base(case, run / "adapter"), rtol=1e-10, atol=1e-10)
    before = load(case.first, device="cpu", dtype="float64")
    text = {"text": "The cow number 7 sleeps"}
    assert "".join(tuned.ask("The cow", None, 4)) == "".join(load(run, "cpu", "float64").ask("The cow", None, 4))
    assert tuned.probabilities(text) != before.probabilities(text)
    # what was measured before training is the first run's result after it
    report = {s["name"]: s for s in json.loads((run / "report.json").read_text())["systems"]}
    then = {s["name"]: s for s in json.loads((case.first / "report.json").read_text())["systems"]}
    assert report["prompt-choose"]["validation_value"] == then["tuned-choose"]["validation_value"]


@pytest.mark.thorough
def test_a_run_is_repeated_bit_for_bit_and_evaluated_again(case, tmp_path):
    runs = []
    for name in ("one", "two"):
        config = dataclasses.replace(case.again, run=dataclasses.replace(case.again.run, out=str(tmp_path / name)))
        runs.append(finetune(config))
    evaluate_run(runs[1])
    for name in ("adapter/adapter_model.safetensors", "predictions/tuned-choose.jsonl"):
        assert (runs[0] / name).read_bytes() == (runs[1] / name).read_bytes()


@pytest.mark.thorough
def test_an_adapter_that_changes_during_a_run_is_refused(case):
    run = finetune(case.again)
    record = read_record(run)
    assert record is not None and "adapter/adapter_model.safetensors" in record.base
    write_record(run, dataclasses.replace(record, state="started", files={}))
    shutil.rmtree(case.first / "adapter")
    other = dataclasses.replace(case.again, run=dataclasses.replace(case.again.run, out=str(case.first)))
    other = dataclasses.replace(
        other,
        model=dataclasses.replace(other.model, name=str(case.base)),
        adapter=AdapterConfig(rank=3, alpha=5, targets=("q_proj", "down_proj")),
        train=dataclasses.replace(other.train, seed=1),
    )
    finetune(other, overwrite=True)
    with pytest.raises(UserError, match="has changed since this run started") as caught:
        evaluate_run(run)
    assert "adapter/adapter_model.safetensors" in str(caught.value.found)


# ---- adapters by PEFT ------------------------------------------------------------------------------------------------


def by_peft(case: Case, folder: Path, base: str | None = None, **settings) -> Path:
    plain = AutoModelForCausalLM.from_pretrained(case.base, dtype=torch.float64)
    values = {"r": 2, "lora_alpha": 4, "target_modules": ["v_proj"], "init_lora_weights": False, **settings}
    model = get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", **values))
    model.peft_config["default"].base_model_name_or_path = base or str(case.base)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


@pytest.mark.parametrize("settings", [{"use_rslora": True}, {"use_dora": True, "lora_dropout": 0.1}], ids=str)
def test_a_start_may_be_by_peft(case, tmp_path, settings):
    adapter = by_peft(case, tmp_path / "peft", **settings)
    job = job_of(named(case, adapter))
    torch.testing.assert_close(logits(job.base.model), on_base(case, adapter), rtol=1e-10, atol=1e-10)
    decided = job.config.adapter
    assert (decided.rank, decided.rslora, decided.dora) == (2, "use_rslora" in settings, "use_dora" in settings)
    assert decided.dropout == settings.get("lora_dropout", 0.0)
    # the resolved settings are those of a run that is resumed
    resolved = config_from_dict(config_to_dict(job.config), "config.toml")
    assert job_of(resolved).config.adapter == decided


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("modules_to_save", {"modules_to_save": ["lm_head"]}),
        ("rank_pattern", {"rank_pattern": {"q_proj": 4}, "target_modules": ["q_proj", "v_proj"]}),
        ("bias", {"bias": "lora_only"}),
        ("trainable_token_indices", {"trainable_token_indices": [1]}),
    ],
)
def test_features_that_cannot_be_trained_are_named(case, tmp_path, key, settings):
    adapter = by_peft(case, tmp_path / "peft", **settings)
    with pytest.raises(UserError, match="cannot go on from this kind of adapter") as caught:
        job_of(named(case, adapter))
    assert caught.value.where == f"{adapter / 'adapter_config.json'}, {key}"


@pytest.mark.parametrize("base", ["/nowhere/at-all", "nobody/no-such-model"])
def test_a_missing_base_model_is_named(case, tmp_path, base):
    adapter = by_peft(case, tmp_path / "peft", base)
    with pytest.raises(UserError, match="The adapter's base model cannot be found") as caught:
        job_of(named(case, adapter))
    assert base in str(caught.value.expected) and str(adapter) in str(caught.value.where)


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"kind": "full"}, "Full fine-tuning cannot go on from an adapter"),
        ({"rank": 4}, "adapter.rank contradicts"),
        ({"alpha": 7}, "adapter.alpha contradicts"),
        ({"dora": True}, "adapter.dora contradicts"),
        ({"targets": ("q_proj",)}, "adapter.targets contradicts"),
        ({"layers": (0,)}, "adapter.layers contradicts"),
    ],
)
def test_settings_that_contradict_the_adapter_are_refused(case, settings, what):
    with pytest.raises(UserError, match=what):
        job_of(dataclasses.replace(case.again, adapter=AdapterConfig(**settings)))


def test_settings_that_agree_or_concern_training_alone_are_accepted(case):
    settings = AdapterConfig(rank=3, alpha=5, targets=("q_proj", "down_proj"), dropout=0.2, lora_plus=4.0)
    job = job_of(dataclasses.replace(case.again, adapter=settings))
    assert (job.config.adapter.dropout, job.config.adapter.lora_plus) == (0.2, 4)
    layers = [m for n, m in with_fresh_adapter(job).named_modules() if n.endswith("lora_dropout.default")]
    assert layers and all(layer.p == 0.2 for layer in layers)


def test_another_base_model_is_refused(case, tmp_path):
    weights = load_file(case.base / "model.safetensors")
    changed = {**weights, "model.norm.weight": weights["model.norm.weight"] + 1}
    save_file(changed, case.base / "model.safetensors", {"format": "pt"})
    try:
        with pytest.raises(UserError, match="trained on a different base model"):
            load_with_start(case.again.model, Machine(torch.device("cpu"), torch.float64, 1, "test"))
    finally:
        save_file(weights, case.base / "model.safetensors", {"format": "pt"})
