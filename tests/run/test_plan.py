"""The plan is shown before anything is written, describes the run, and leaves the job unchanged."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from loratory.bases.known import KNOWN_MODELS, suggested_models
from loratory.config import Config
from loratory.errors import Interrupted
from loratory.events import ignore_event
from loratory.finetune import finetune, train_only
from loratory.models.finding import builtin_folder
from loratory.run.checks import demonstration_text, is_demonstration
from loratory.run.job import load_job
from loratory.run.plan import few_test_examples, make_plan
from loratory.settings import AdapterConfig, DataConfig, ModelConfig, PromptConfig, RunConfig, TrainConfig
from loratory.storage.run_directory import read_metrics

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture
def config(tiny_folder, animals, tmp_path) -> Config:
    return Config(
        model=ModelConfig(str(tiny_folder), device="cpu", encoder="none", dtype="float32"),
        data=DataConfig((str(animals),), answer="sound"),
        prompt=PromptConfig(system="One of: {labels}.", few_shot=2),
        train=TrainConfig(epochs=2, batch_size=8, learning_rate=1e-2),
        run=RunConfig(str(tmp_path / "run"), threads=torch.get_num_threads()),
    )


def test_the_plan_names_the_systems_that_cannot_be_measured(config):
    systems = RunConfig(config.run.out, config.run.threads, ("prompt-choose", "encoder", "tuned-choose"))
    job = load_job(dataclasses.replace(config, run=systems), Path(config.run.out), ignore_event)
    text = "\n".join(make_plan(job, False).sentences)
    assert "Not measured: encoder, because no sentence encoder is set or found" in text
    assert "few-shot" not in text.lower()


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_planning_leaves_model_and_random_state_unchanged(config, kind):
    job = load_job(dataclasses.replace(config, adapter=AdapterConfig(kind=kind)), Path(config.run.out), ignore_event)
    weights = {name: tensor.clone() for name, tensor in job.base.model.state_dict().items()}
    state = torch.get_rng_state()
    plan = make_plan(job, True)
    assert torch.equal(torch.get_rng_state(), state)
    assert job.base.model.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in job.base.model.state_dict().items())
    assert list(plan.seconds) == ["baselines", "train", "evaluate"]
    assert all(value > 0 for value in plan.seconds.values())
    assert not Path(config.run.out).exists()
    assert list(make_plan(job, False).seconds) == ["train"]


def test_more_work_gives_a_longer_estimate(config):
    few = load_job(config, Path(config.run.out), ignore_event)
    train = dataclasses.replace(few.config.train, epochs=50, seeds=4)
    many = dataclasses.replace(few, config=dataclasses.replace(few.config, train=train))
    # Timings vary, but not by as much as a hundred times the work.
    assert make_plan(many, False).seconds["train"] > 5 * make_plan(few, False).seconds["train"]


def test_the_plan_states_sizes_seeds_steps_and_labels(config):
    train = dataclasses.replace(config.train, seeds=3)
    events = []
    with pytest.raises(Interrupted, match="Nothing was started"):
        finetune(dataclasses.replace(config, train=train), events.append, confirm=lambda: False)
    text = "\n".join(event.text for event in events)
    for words in (
        "30 training",
        "8 validation",
        "10 test",
        "3 labels",
        "seeds 0 to 2",
        "2 epochs, 8 steps of 8",
        "Only 10 test",
    ):
        assert words in text, text
    assert not Path(config.run.out).exists()


@pytest.mark.parametrize(
    ("task", "count", "folds", "words"),
    [
        ("classification", 5, 0, "no difference between two systems can be significant; use more, or test every row"),
        ("classification", 20, 0, "a difference below 37 points cannot be shown reliably; use more, or"),
        ("classification", 20, 5, "37 points cannot be shown reliably; use more"),
        ("classification", 80, 0, None),
        ("text", 29, 0, "with fewer than 30 graded examples"),
        ("text", 30, 0, None),
    ],
)
def test_the_plan_warns_if_the_test_set_can_show_no_difference(config, task, count, folds, words):
    job = load_job(config, Path(config.run.out), ignore_event)
    data = dataclasses.replace(config.data, folds=folds)
    job = dataclasses.replace(
        job,
        config=dataclasses.replace(config, task=task, data=data),
        split=dataclasses.replace(job.split, test=tuple([job.split.test[0]] * count)),
    )
    warning = few_test_examples(job)
    assert [words in sentence for sentence in warning] == ([True] if words else [])
    assert all(sentence.startswith(f"Only {count} test examples: ") for sentence in warning)


def test_the_estimate_is_logged(config):
    run = train_only(config)
    [estimate] = [m for m in read_metrics(run) if m["event"] == "estimate"]
    assert estimate["stages"].keys() == {"train"}


def test_the_demonstration_model_warns_on_other_data_than_its_own(config):
    own = DataConfig((str(builtin_folder().parent / "papers-train.jsonl"),), answer="category")
    assert is_demonstration(dataclasses.replace(config, model=ModelConfig()))
    assert not is_demonstration(dataclasses.replace(config, model=ModelConfig(), data=own))
    assert not is_demonstration(config)
    assert "demonstration model" in demonstration_text(masked=False)


def test_suggested_models_fit_into_memory():
    assert suggested_models(0) == [KNOWN_MODELS[0].short]
    for gibibytes in (2, 4, 8, 16, 24, 64, 200):
        found = suggested_models(gibibytes * 1024**3)
        chosen = {model.short: model for model in KNOWN_MODELS}
        sizes = [chosen[name].billions for name in found]
        assert all(chosen[name].is_open for name in found)
        assert 1 <= len(found) <= 3
        assert sizes == sorted(sizes)
        assert len(found) == 1 or max(sizes) * 4e9 < gibibytes * 1024**3
    assert suggested_models(24 * 1024**3)[-1] != suggested_models(200 * 1024**3)[-1]


@pytest.mark.thorough
def test_the_report_contains_the_seconds_of_training(config):
    run = finetune(dataclasses.replace(config, run=dataclasses.replace(config.run, systems=("linear", "tuned-choose"))))
    assert json.loads((run / "report.json").read_text())["seconds"]["train"] > 0
