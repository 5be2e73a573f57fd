"""Whole runs on a tiny model: their results, and that interruption, repetition and reloading change nothing."""

import dataclasses
import itertools
import json

import pytest
import torch
from conftest import SHARED
from safetensors.torch import load_file
from tiny import ANIMALS

from loratory.config import Config
from loratory.data.examples import Example, Message
from loratory.data.splits import fold_splits, load_split
from loratory.errors import Interrupted, UserError
from loratory.events import Event
from loratory.finetune import evaluate_run, finetune, train_only
from loratory.machine.device import resolve_machine
from loratory.models.loading import load_model
from loratory.predict.tuned import load
from loratory.run.seeds_and_folds import seed_and_fold_folders
from loratory.settings import AdapterConfig, DataConfig, ModelConfig, PromptConfig, RunConfig, TrainConfig
from loratory.signals import interrupt_requested
from loratory.storage.run_directory import read_metrics
from loratory.text.rendering import tokenize
from loratory.text.template import make_renderer
from loratory.tree.layout import Layout
from loratory.tree.scoring import label_log_probs
from loratory.tree.verification import choose_layout

pytestmark = [pytest.mark.thorough, pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")]
NINE = ("prompt", "prompt-choose", "few-shot", "few-shot-choose", "linear", "embed", "tuned", "tuned-choose",
        "blend")  # fmt: skip


@pytest.fixture
def config(tiny_folder, animals, tmp_path) -> Config:
    return Config(
        model=ModelConfig(str(tiny_folder), device="cpu", dtype="float32"),
        data=DataConfig((str(animals),), answer="sound", validation_share=0.1),
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


def test_a_run_evaluates_nine_systems_and_its_report_matches_the_schema(config):
    events: list[Event] = []
    run = finetune(config, events.append)
    report = json.loads((run / "report.json").read_text())
    assert [s["name"] for s in report["systems"]] == list(NINE)
    assert report["test_examples"] == 10
    for name in NINE:
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


def test_a_run_interrupted_at_any_step_and_resumed_equals_an_uninterrupted_one(config, tmp_path, monkeypatch):
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
            patch.setattr("loratory.run.training.stop_requested", Flag)
            with pytest.raises(Interrupted, match=f"after step {stop_after}"):
                train_only(torn, lambda event, seen=seen: seen.append(event) if event.kind == "step" else None)
        torch.rand(7)  # the random state in between must not matter
        resumed = train_only(torn)
        assert steps(resumed) == steps(whole)
        names = ("adapter/adapter_model.safetensors",)
        assert all((resumed / n).read_bytes() == (whole / n).read_bytes() for n in names)


def test_interruption_is_requested_by_the_first_signal_and_forced_by_the_second():
    import os
    import signal

    with interrupt_requested() as interrupted:
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
    with pytest.raises(UserError, match="already finished"):
        finetune(few)
    with pytest.raises(UserError, match="already finished"):
        finetune(changed(few, "train", epochs=1))
    assert (run / "report.json").read_bytes() == before
    finetune(changed(few, "train", epochs=1), overwrite=True)
    assert len(steps(run)) == 5


def test_a_mistake_with_overwrite_deletes_nothing(config):
    few = changed(config, "run", systems=("linear",))
    run = finetune(few)
    files = sorted(p.relative_to(run) for p in run.rglob("*"))
    with pytest.raises(UserError):
        finetune(changed(few, "data", answer="sond"), overwrite=True)
    assert sorted(p.relative_to(run) for p in run.rglob("*")) == files


def test_a_run_whose_data_changed_is_not_resumed(config, animals):
    train_only(config)
    animals.write_text(animals.read_text().replace("number 7", "number seven"))
    with pytest.raises(UserError, match="data has changed"):
        train_only(config)


def test_the_learning_rate_that_is_best_on_validation_is_kept(config, tmp_path):
    rates = changed(config, "train", learning_rate=(1e-4, 3e-2))
    run = train_only(changed(rates, "run", out=str(tmp_path / "list")))
    trials = {m["learning_rate"]: m for m in read_metrics(run) if m["event"] == "trial"}
    best = min(trials, key=lambda rate: trials[rate]["validation_loss"])
    assert [rate for rate, m in trials.items() if m["chosen"]] == [best]
    alone = train_only(changed(changed(config, "train", learning_rate=best), "run", out=str(tmp_path / "alone")))
    kept, direct = (load_file(r / "adapter/adapter_model.safetensors") for r in (run, alone))
    assert all(torch.equal(kept[name], direct[name]) for name in direct)


def test_a_run_with_full_fine_tuning(config, animals):
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


def test_a_loaded_model_gives_the_answers_that_were_measured(config):
    run = finetune(changed(config, "run", systems=("prompt-choose", "tuned-choose")))
    tuned = load(run)
    data = json.loads((run / "data.json").read_text())
    records = [{"text": prompt.removeprefix("text: ")} for prompt in data["test_prompts"]]
    measured = predictions(run, "tuned-choose")
    assert tuned.answers(records) == [row["answer"] for row in measured]
    for record, row in zip(records[:3], measured[:3], strict=True):
        assert tuned.probabilities(record) == pytest.approx(row["probabilities"], abs=1e-5)
    assert tuned.answers([]) == []
    example = Example((Message("user", "The cow"),), ("Moo",), (), "here")
    sequences = tokenize(example, tuned.renderer)
    assert choose_layout(tuned.base.model, sequences, "auto").kind == "tree"


def test_an_adapter_is_rejected_on_other_weights_unless_forced(config, tmp_path, tiny_folder):
    import shutil

    from safetensors.torch import save_file

    base = tmp_path / "base"
    shutil.copytree(tiny_folder, base)
    run = train_only(changed(config, "model", name=str(base)))
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 2
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="different base model"):
        load(run)
    assert load(run, force=True).answer({"text": "x"}) in ("Meow", "Moo", "Woof woof")


def test_training_changes_every_adapter_matrix(config, tiny_folder):
    run = train_only(config)
    saved = load_file(run / "adapter/adapter_model.safetensors")
    assert all(tensor.abs().max() > 0 for tensor in saved.values())
    assert all("lora_" in name for name in saved)


def test_over_long_examples_are_rejected_or_cut_and_counted(config, animals):
    animals.write_text(animals.read_text() + "The cat " + "really " * 200 + "sleeps,Meow\n")
    with pytest.raises(UserError, match="longer than the model's context") as error:
        finetune(config)
    assert "animals.csv:50" in str(error.value)
    run = finetune(changed(changed(config, "data", overlong="cut_prompt"), "run", systems=("linear", "tuned-choose")))
    report = json.loads((run / "report.json").read_text())
    assert [c["count"] for c in report["data_checks"] if c["name"] == "overlong_cut"] == [1]


def adapter(run) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter/adapter_model.safetensors")


def validation(run) -> dict[int, float]:
    return {m["step"]: m["loss"] for m in read_metrics(run) if m["event"] == "validation"}


@pytest.mark.parametrize(("kind", "rate", "epochs"), [("lora", 1.0, 8), ("full", 0.3, 5)])
def test_the_weights_of_the_best_epoch_are_kept(config, tmp_path, kind, rate, epochs):
    # The learning rate is so high that the validation loss rises again.
    wild = changed(
        config, "train", epochs=epochs, learning_rate=rate, schedule="constant", early_stopping=9, checkpoint_every=0
    )
    # One thread: rounding depends on the number of threads, and at this rate it decides which epoch is best.
    wild = changed(changed(wild, "adapter", kind=kind, dropout=0.0), "model", dtype="float32")
    wild = changed(wild, "run", threads=1)
    run = train_only(wild)
    losses = validation(run)
    best = min(losses, key=losses.__getitem__)
    assert best < max(losses), "the test needs a run whose last epoch is not the best"
    [trial] = [m for m in read_metrics(run) if m["event"] == "trial"]
    assert (trial["best_step"], trial["validation_loss"], trial["stopped"]) == (best, losses[best], False)
    weights = run / ("adapter/adapter_model.safetensors" if kind == "lora" else "model/model.safetensors")
    kept = load_file(weights)
    checkpoint = load_file(run / f"checkpoints/step-{best:06d}/parameters.safetensors")
    for name, tensor in kept.items():
        assert torch.equal(tensor, checkpoint[name.replace(".weight", ".default.weight") if kind == "lora" else name])
    last = train_only(changed(changed(wild, "train", keep="last"), "run", out=str(tmp_path / "last")))
    assert validation(last) == losses
    final = load_file(last / weights.relative_to(run))
    assert any(not torch.equal(final[name], tensor) for name, tensor in kept.items())


def test_training_stops_early_and_repeating_the_command_changes_nothing(config, monkeypatch):
    wild = changed(config, "train", epochs=12, learning_rate=0.3, schedule="constant", early_stopping=1)
    wild = changed(wild, "adapter", dropout=0.0)
    run = train_only(wild)
    losses = list(validation(run).values())
    assert len(losses) < 12
    assert losses[-1] >= min(losses[:-1])
    assert losses[:-1] == sorted(losses[:-1], reverse=True)
    before, done = adapter(run), steps(run)
    train_only(wild)
    assert steps(run) == done, "a training that stopped early was resumed"
    assert all(torch.equal(before[name], tensor) for name, tensor in adapter(run).items())


def test_a_run_with_several_seeds_equals_separate_runs(config, tmp_path):
    few = changed(config, "run", systems=("prompt-choose", "tuned", "tuned-choose"))
    run = finetune(changed(few, "train", seeds=3))
    found = [adapter(folder) for folder in (run, run / "seeds/1", run / "seeds/2")]
    assert all(any(not torch.equal(a[n], b[n]) for n in a) for a, b in itertools.combinations(found, 2))
    alone = finetune(changed(few, "run", out=str(tmp_path / "alone")))
    assert all(torch.equal(found[0][name], tensor) for name, tensor in adapter(alone).items())
    assert predictions(run, "tuned-choose") == predictions(alone, "tuned-choose")
    [seeds] = [s for s in json.loads((run / "report.json").read_text())["seeds"] if s["name"] == "tuned-choose"]
    rights = [
        [row["correct"] for row in predictions(folder, "tuned-choose")] for folder in (run, *seed_and_fold_folders(run))
    ]
    assert seeds["values"] == [sum(right) / len(right) for right in rights]
    assert seeds["mean"] == pytest.approx(sum(seeds["values"]) / 3)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_cross_validation_answers_every_example_from_a_model_not_trained_on_it(config, kind):
    few = changed(config, "run", systems=("prompt-choose", "linear", "tuned-choose"))
    few = changed(changed(few, "train", epochs=1), "adapter", kind=kind, dropout=0.0)
    run = finetune(changed(few, "data", folds=3))
    report = json.loads((run / "report.json").read_text())
    assert report["test_examples"] == 48
    for name in few.run.systems:
        rows = predictions(run, name)
        assert [row["index"] for row in rows] == list(range(48))
        assert [row["expected"] for row in rows] == [ANIMALS[list(ANIMALS)[i % 3]] for i in range(48)]
    # The base model gives the same answers in every fold, so training in other folds leaves no trace.
    data = json.loads((run / "data.json").read_text())
    base = load_model(few.model, resolve_machine("cpu", "float32", 0))
    renderer = make_renderer(base.text.tokenizer, base.text.stop_ids, config.prompt)
    examples = [
        Example(
            (Message("system", "One of: Meow, Moo, Woof woof."), Message("user", text)), (), tuple(data["labels"]), ""
        )
        for text in data["test_prompts"]
    ]
    layout = Layout("tree", "")
    scores = label_log_probs(base.model, renderer, examples, layout, 4096, lambda done, total: None)
    for row, expected in zip(predictions(run, "prompt-choose"), scores.log_probs_EL, strict=True):
        assert list(row["log_probs"].values()) == pytest.approx(expected.tolist(), rel=1e-4)
    assert load(run).answer({"text": "The cow number 99 sleeps"}) in ANIMALS.values()


def test_an_unfinished_cross_validation_cannot_be_evaluated(config):
    run = train_only(changed(config, "data", folds=3))
    (run / "adapter/loratory.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        evaluate_run(run)


def test_folds_partition_the_examples_without_leakage(config):
    split = load_split(dataclasses.replace(config.data, folds=4), config.prompt, 0)
    assert len(split.test) == 48
    folds = fold_splits(split, dataclasses.replace(config.data, folds=4), 0)
    assert sorted(e.source for fold in folds for e in fold.test) == sorted(e.source for e in split.test)
    for fold in folds:
        parts = [{e.source for e in part} for part in (fold.train, fold.validation, fold.test)]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 48
        assert {e.answer for e in fold.test} == {e.answer for e in fold.train} == set(ANIMALS.values())
        assert len(fold.test) == 12


@pytest.mark.parametrize(
    ("option", "seen"),
    [
        ({"rslora": True}, lambda saved, names: saved["use_rslora"]),
        ({"dora": True}, lambda saved, names: saved["use_dora"] and any("magnitude" in name for name in names)),
        ({"layers": (1,)}, lambda saved, names: all(".layers.1." in name for name in names)),
        ({"targets": ("q_proj",)}, lambda saved, names: all("q_proj" in name for name in names)),
        ({"rank": 3, "alpha": 5}, lambda saved, names: (saved["r"], saved["lora_alpha"]) == (3, 5)),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_lora_options_are_trained_saved_and_loaded(config, option, seen):
    run = train_only(changed(config, "adapter", **option))
    assert seen(json.loads((run / "adapter/adapter_config.json").read_text()), adapter(run))
    assert load(run).answer({"text": "The cow number 99 sleeps"}) in ANIMALS.values()


def test_lora_plus_raises_the_learning_rate_of_the_second_matrix(config, tmp_path):
    one = changed(
        changed(config, "train", epochs=1, batch_size=64, learning_rate=1e-3, warmup=0.0), "adapter", dropout=0.0
    )
    plain = adapter(train_only(one))
    plus = adapter(train_only(changed(changed(one, "adapter", lora_plus=16.0), "run", out=str(tmp_path / "plus"))))
    for name, tensor in plain.items():
        # B starts at zero and the first step of Adam moves every entry by the learning rate; A's gradient is then zero.
        factor = 16 if "lora_B" in name else 1
        assert torch.allclose(plus[name], factor * tensor, rtol=1e-3), name
