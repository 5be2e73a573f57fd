"""Trainings that go wrong say so: numbers that are not finite, a loss that rises, weights that do not move."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_finetune import changed, config, steps  # noqa: F401

from loratory.errors import UserError
from loratory.finetune import finetune, train_only
from loratory.models.loading import non_finite
from loratory.predict.tuned import load
from loratory.run.unsound import fingerprint, has_diverged, log_once
from loratory.storage.run_directory import read_metrics

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def warnings_of(run: Path) -> dict[str, str]:
    return {m["name"]: m["message"] for m in read_metrics(run) if m["event"] == "warning"}


def all_numbers_are_finite(run: Path) -> bool:
    for path in run.rglob("*.json*"):
        for line in [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines():
            json.loads(line, parse_constant=lambda name, path=path: pytest.fail(f"{name} in {path}"))
    return all(non_finite(load_file(path).items()) is None for path in run.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("losses", "diverged"),
    [
        ([2.0, 1.0, 0.5], False),
        ([2.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0], True),
        ([2.0, 9.0, 9.0, 1.0, 1.0, 1.0, 1.0, 1.0], False),  # it recovered
        ([2.0, 2.6, 2.7, 2.8], False),
        ([0.01, 0.1, 0.1], False),  # ten times the start, yet small: examples differ by that much
        ([2.0], False),
        ([], False),
    ],
)
def test_diverged_means_that_the_last_losses_are_far_above_the_first(losses: list[float], diverged: bool):
    assert has_diverged(losses) is diverged


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_fingerprint_changes_with_every_bit(dtype):
    tensors = {"a": torch.nn.Parameter(torch.rand(50, 3, dtype=dtype))}
    before = fingerprint(tensors)
    assert fingerprint({"a": torch.nn.Parameter(tensors["a"].detach().clone())}) == before
    with torch.no_grad():
        tensors["a"][7, 1] = torch.nextafter(tensors["a"][7, 1], torch.tensor(2, dtype=dtype))
    assert fingerprint(tensors) != before


def test_an_event_is_logged_once(tmp_path):
    log_once(tmp_path, "warning", name="a", message="b")
    log_once(tmp_path, "warning", name="a", message="c")
    log_once(tmp_path, "warning", name="a", message="b")
    assert [m["message"] for m in read_metrics(tmp_path)] == ["b", "c"]


@pytest.mark.thorough
def test_a_training_that_overflows_stops_with_the_last_sound_step_saved(config):  # noqa: F811
    wild = changed(config, "train", learning_rate=9.0, warmup=0.0, schedule="constant", checkpoint_every=0)
    wild = changed(wild, "model", dtype="float16")
    with pytest.raises(UserError, match=r"The \w+ became NaN or infinite") as first:
        train_only(wild)
    assert "lower --train.learning-rate" in str(first.value) and "peak learning rate 9" in str(first.value)
    assert "Step 1 is saved" in str(first.value)
    run = Path(wild.run.out)
    assert all_numbers_are_finite(run)
    assert all(math.isfinite(loss) for _, loss in steps(run))
    done = steps(run)
    with pytest.raises(UserError) as second:
        train_only(wild)
    assert str(second.value) == str(first.value)
    assert done[-1] == steps(run)[-1]
    assert not (run / "adapter").exists()


@pytest.mark.thorough
@pytest.mark.parametrize(("kind", "weights"), [("lora", "adapter/adapter_model"), ("full", "model/model")])
def test_a_run_resumes_at_the_saved_step_and_equals_one_that_never_failed(config, kind, weights, tmp_path, monkeypatch):  # noqa: F811
    config = changed(config, "adapter", kind=kind, dropout=0.1 if kind == "lora" else 0.0)
    whole = train_only(changed(config, "run", out=str(tmp_path / "whole")))
    norm = torch.nn.utils.clip_grad_norm_
    calls = []

    def fails_once(*arguments):
        calls.append(1)
        return norm(*arguments) * (float("nan") if len(calls) == 2 + 3 else 1)  # two steps are the plan's

    with monkeypatch.context() as patch:
        patch.setattr("torch.nn.utils.clip_grad_norm_", fails_once)
        with pytest.raises(UserError, match="The gradient became NaN or infinite") as caught:
            train_only(config)
    assert "Step 2 is saved" in str(caught.value)
    assert len([part for part in str(caught.value).replace(",", " ").split() if "animals.csv:" in part]) == 8
    run = train_only(config)
    assert steps(run) == steps(whole)
    assert (run / f"{weights}.safetensors").read_bytes() == (whole / f"{weights}.safetensors").read_bytes()


@pytest.mark.thorough
def test_a_learning_rate_that_overflows_is_left_out_of_the_search(config):  # noqa: F811
    rates = changed(config, "train", learning_rate=(1e-2, 9.0), warmup=0.0, epochs=1)
    rates = changed(rates, "model", dtype="float16")
    events = []
    run = train_only(rates, events.append)
    [trial] = [m for m in read_metrics(run) if m["event"] == "trial"]
    assert (trial["learning_rate"], trial["chosen"]) == (1e-2, True)
    assert "Learning rate 9 is left out" in warnings_of(run)["diverged"]
    assert any("9 is left out" in event.text for event in events if event.kind == "message")
    assert all_numbers_are_finite(run)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("dtype", "rate", "names"),
    [("float32", 1e-2, set()), ("float32", 1.0, {"diverged"}), ("bfloat16", 1e-12, {"unchanged"})],
    ids=["sound", "high", "low"],
)
def test_a_training_that_diverged_or_changed_nothing_is_said_to(config, dtype, rate, names):  # noqa: F811
    events = []
    settings = changed(config, "train", learning_rate=rate, schedule="constant", warmup=0.0)
    settings = changed(changed(settings, "adapter", kind="full", dropout=0.0), "model", dtype=dtype)
    run = train_only(settings, events.append)
    assert set(warnings_of(run)) == names
    assert {event.text for event in events if event.kind == "message"} >= set(warnings_of(run).values())


@pytest.mark.thorough
def test_a_model_whose_loss_is_not_finite_is_refused_before_anything_is_written(config, tiny_folder, tmp_path):  # noqa: F811
    import shutil

    base = shutil.copytree(tiny_folder, tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"] *= 3e38
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="before any training") as caught:
        finetune(changed(config, "model", name=str(base)))
    assert "animals.csv:" in str(caught.value)
    assert not Path(config.run.out).exists()


@pytest.mark.thorough
def test_an_adapter_that_is_not_finite_is_not_loaded(config):  # noqa: F811
    run = train_only(changed(config, "train", epochs=1))
    path = run / "adapter/adapter_model.safetensors"
    weights = load_file(path)
    next(iter(weights.values()))[0, 0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="The adapter contains NaN or infinite values"):
        load(run, force=True)  # without it, the hash is in the way


@pytest.mark.thorough
def test_lora_on_a_float16_model_learns_as_on_float32(config, tmp_path):  # noqa: F811
    losses = {}
    for dtype in ("float32", "float16"):
        settings = changed(config, "model", dtype=dtype)
        run = train_only(changed(settings, "run", out=str(tmp_path / dtype)))
        losses[dtype] = [loss for _, loss in steps(run)]
        assert all(t.dtype == torch.float32 for t in load_file(run / "adapter/adapter_model.safetensors").values())
    assert losses["float16"] == pytest.approx(losses["float32"], rel=0.01)
    assert losses["float16"][-1] < losses["float16"][0]


def test_full_fine_tuning_in_float16_is_refused_before_the_model_is_loaded(config):  # noqa: F811
    full = changed(changed(config, "adapter", kind="full"), "model", dtype="float16", name="/nowhere")
    with pytest.raises(UserError, match="cannot keep its weights in float16"):
        train_only(full)
