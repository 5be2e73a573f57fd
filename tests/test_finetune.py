"""Whole runs on a tiny model: what a person gets, and that interruption, repetition and reloading change nothing."""

import dataclasses
import json

import pytest
import torch
from conftest import SHARED
from safetensors.torch import load_file

import loratory.world
from loratory.attention import choose_layout
from loratory.config import AdapterConfig, Config, DataConfig, ModelConfig, PromptConfig, RunConfig, TrainConfig
from loratory.errors import Interrupted, UserError
from loratory.examples import conversation
from loratory.finetune import evaluate_run, finetune, train_only
from loratory.job import Event
from loratory.predict import load
from loratory.render import tokenize
from loratory.runs import read_metrics

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
TURNS = [{"role": "user", "content": "The cow"}, {"role": "assistant", "content": "Moo"}]
EIGHT = ("prompt", "prompt-choose", "few-shot", "few-shot-choose", "linear", "embed", "tuned", "tuned-choose")


@pytest.fixture
def config(tiny_folder, animals, tmp_path) -> Config:
    return Config(
        model=ModelConfig(str(tiny_folder), device="cpu", dtype="float32"),
        data=DataConfig((str(animals),), answer="sound"),
        prompt=PromptConfig(system="One of: {labels}.", few_shot=2),
        adapter=AdapterConfig(dropout=0.1),
        train=TrainConfig(epochs=2, batch_size=8, learning_rate=1e-2, checkpoint_every=2),
        run=RunConfig(str(tmp_path / "run"), threads=torch.get_num_threads()),
    )


def changed(config: Config, section: str, **values) -> Config:
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})


def predictions(run, name: str) -> list[dict]:
    return [json.loads(line) for line in (run / "predictions" / f"{name}.jsonl").read_text().splitlines()]


def steps(run) -> list[tuple[int, float]]:
    return [(m["step"], m["loss"]) for m in read_metrics(run) if m["event"] == "step"]


def test_a_run_measures_eight_systems_and_keeps_the_contract(config):
    events: list[Event] = []
    run = finetune(config, events.append)
    report = json.loads((run / "report.json").read_text())
    assert [s["name"] for s in report["systems"]] == list(EIGHT)
    assert report["test_examples"] == 10
    for name in EIGHT:
        rows = predictions(run, name)
        assert [r["index"] for r in rows] == list(range(10))
        for row in rows:
            assert row["correct"] == (row["answer"] == row["expected"])
            if name.endswith("choose"):
                assert set(row["log_probs"]) == {"Meow", "Moo", "Woof woof"}
                assert all(v < 0 for v in row["log_probs"].values())
                assert sum(row["probabilities"].values()) == pytest.approx(1)
                assert row["answer"] == max(row["probabilities"], key=row["probabilities"].__getitem__)
    for file in ("config.toml", "environment.json", "data.json", "report.html", "adapter/adapter_model.safetensors"):
        assert (run / file).exists()
    assert events[-1].kind == "report"
    assert events[-1].text == report["verdict"]["sentence"]
    if (SHARED / "contract").exists():
        import jsonschema

        jsonschema.validate(report, json.loads((SHARED / "contract/report.schema.json").read_text()))


def test_interrupted_at_any_step_and_resumed_equals_uninterrupted_bit_for_bit(config, tmp_path, monkeypatch):
    whole = train_only(changed(config, "run", out=str(tmp_path / "whole")))
    for stop_after in (1, 2, 5):
        torn = changed(config, "run", out=str(tmp_path / f"torn{stop_after}"))
        seen = []

        class Flag:
            def __enter__(self, seen=seen, stop_after=stop_after):
                return lambda: len(seen) >= stop_after

            def __exit__(self, *_):
                return None

        with monkeypatch.context() as patch:
            patch.setattr("loratory.tune.interrupt_requested", Flag)
            with pytest.raises(Interrupted, match=f"after step {stop_after}"):
                train_only(torn, lambda event, seen=seen: seen.append(event) if event.kind == "step" else None)
        torch.rand(7)  # whatever happens to the random state in between must not matter
        resumed = train_only(torn)
        assert steps(resumed) == steps(whole)
        names = ("adapter/adapter_model.safetensors",)
        assert all((resumed / n).read_bytes() == (whole / n).read_bytes() for n in names)


def test_interruption_is_requested_by_the_first_signal_and_forced_by_the_second():
    import os
    import signal

    with loratory.world.interrupt_requested() as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.sigtimedwait([], 1)


def test_a_finished_run_is_not_overwritten_unless_asked(config):
    few = changed(config, "run", systems=("linear", "tuned-choose"))
    run = finetune(few)
    before = (run / "report.json").read_bytes()
    with pytest.raises(UserError, match="finished already"):
        finetune(few)
    with pytest.raises(UserError, match="finished already"):
        finetune(changed(few, "train", epochs=1))
    assert (run / "report.json").read_bytes() == before
    finetune(changed(few, "train", epochs=1), overwrite=True)
    assert len(steps(run)) == 5


def test_a_mistake_with_overwrite_loses_nothing(config):
    few = changed(config, "run", systems=("linear",))
    run = finetune(few)
    files = sorted(p.relative_to(run) for p in run.rglob("*"))
    with pytest.raises(UserError):
        finetune(changed(few, "data", answer="sond"), overwrite=True)
    assert sorted(p.relative_to(run) for p in run.rglob("*")) == files


def test_a_run_whose_data_changed_is_not_resumed(config, animals):
    train_only(config)
    animals.write_text(animals.read_text().replace("number 7", "number seven"))
    with pytest.raises(UserError, match="data changed"):
        train_only(config)


def test_the_best_learning_rate_on_validation_is_kept(config, tmp_path):
    rates = changed(config, "train", learning_rate=(1e-4, 3e-2))
    run = train_only(changed(rates, "run", out=str(tmp_path / "list")))
    trials = {m["learning_rate"]: m for m in read_metrics(run) if m["event"] == "trial"}
    best = min(trials, key=lambda rate: trials[rate]["validation_loss"])
    assert [rate for rate, m in trials.items() if m["chosen"]] == [best]
    alone = train_only(changed(changed(config, "train", learning_rate=best), "run", out=str(tmp_path / "alone")))
    kept, direct = (load_file(r / "adapter/adapter_model.safetensors") for r in (run, alone))
    assert all(torch.equal(kept[name], direct[name]) for name in direct)


def test_full_fine_tuning_learns_saves_and_reloads_the_same(config, animals):
    full = changed(config, "adapter", kind="full", dropout=0.0)
    full = changed(full, "train", epochs=25, learning_rate=5e-3)
    run = finetune(changed(full, "run", systems=("prompt-choose", "tuned", "tuned-choose")))
    report = json.loads((run / "report.json").read_text())
    values = {s["name"]: s["value"] for s in report["systems"]}
    assert max(values["tuned"], values["tuned-choose"]) >= 0.9 > values["prompt-choose"]
    assert report["trainable_parameters"] == report["total_parameters"]
    tuned = load(run)
    assert tuned.answer({"text": "The cow number 99 sleeps"}) == "Moo"


def test_evaluating_a_run_again_gives_the_same_answers(config):
    few = changed(config, "run", systems=("prompt", "prompt-choose", "tuned", "tuned-choose"))
    run = finetune(few)
    before = {name: predictions(run, name) for name in few.run.systems}
    evaluate_run(run)
    assert {name: predictions(run, name) for name in few.run.systems} == before


def test_what_is_loaded_answers_as_what_was_measured(config):
    run = finetune(changed(config, "run", systems=("prompt-choose", "tuned-choose")))
    tuned = load(run)
    data = json.loads((run / "data.json").read_text())
    records = [{"text": prompt.removeprefix("text: ")} for prompt in data["test_prompts"]]
    measured = predictions(run, "tuned-choose")
    assert tuned.answers(records) == [row["answer"] for row in measured]
    for record, row in zip(records[:3], measured[:3], strict=True):
        assert tuned.probabilities(record) == pytest.approx(row["probabilities"], abs=1e-5)
    assert tuned.answers([]) == []
    sequences = tokenize(conversation(TURNS, "here"), tuned.renderer)
    assert choose_layout(tuned.base.model, sequences, "auto").kind == "tree"


def test_an_adapter_is_refused_on_other_weights_unless_forced(config, tmp_path, tiny_folder):
    import shutil

    from safetensors.torch import save_file

    base = tmp_path / "base"
    shutil.copytree(tiny_folder, base)
    run = train_only(changed(config, "model", name=str(base)))
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 2
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="other weights"):
        load(run)
    assert load(run, force=True).answer({"text": "x"}) in ("Meow", "Moo", "Woof woof")


def test_the_adapter_does_something_and_detaching_leaves_the_base_as_it_was(config, tiny_folder):
    run = train_only(config)
    saved = load_file(run / "adapter/adapter_model.safetensors")
    assert all(tensor.abs().max() > 0 for tensor in saved.values())
    assert all("lora_" in name for name in saved)


def test_over_long_examples_are_counted_and_answers_stay_whole(config, animals):
    animals.write_text(animals.read_text() + "The cat " + "really " * 200 + "sleeps,Meow\n")
    with pytest.raises(UserError, match="longer than the model's context") as error:
        finetune(config)
    assert "animals.csv:50" in str(error.value)
    run = finetune(changed(changed(config, "data", overlong="cut_prompt"), "run", systems=("linear", "tuned-choose")))
    report = json.loads((run / "report.json").read_text())
    assert [c["count"] for c in report["data_checks"] if c["name"] == "overlong_cut"] == [1]
