"""An interrupted and resumed run equals an uninterrupted one; a damaged checkpoint is never used."""

import json

import pytest
import torch
from test_train import EXAMPLES, TREE, with_lora

from loratory.settings import TrainConfig
from loratory.training import checkpoints as checkpoint
from loratory.training.checkpoints import MANIFEST, Checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint
from loratory.training.loop import train
from loratory.training.optimizer import make_optimizer, trainable_parameters

# PEFT uses an attribute of Transformers that is deprecated in version 5 and removed in version 6.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CONFIG = TrainConfig(epochs=2, batch_size=2, weight_decay=0.01)
STEPS = 6


def start(seed: int = 0) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A fresh model with adapter dropout, an optimizer, and a seeded random state."""
    model = with_lora("llama", dropout=0.3, seed=seed)
    torch.manual_seed(seed)
    return model, make_optimizer(model, CONFIG)


def advance(model, optimizer, first_step: int, last_step: int) -> list[float]:
    losses = []
    if last_step > first_step:
        for result in train(model, EXAMPLES, optimizer, CONFIG, 1e-2, TREE, first_step):
            losses.append(result.loss)
            if result.step == last_step:
                break
    return losses


@pytest.fixture(scope="module")
def uninterrupted():
    model, optimizer = start()
    return advance(model, optimizer, 0, STEPS), model


@pytest.mark.parametrize("interrupted", range(STEPS + 1))
def test_resuming_after_any_step_equals_the_uninterrupted_run_bit_for_bit(interrupted, uninterrupted, tmp_path):
    losses, expected = uninterrupted
    model, optimizer = start()
    before = advance(model, optimizer, 0, interrupted)
    save_checkpoint(tmp_path, model, optimizer, interrupted)
    latest, skipped = latest_checkpoint(tmp_path)
    assert latest is not None
    assert (latest.step, skipped) == (interrupted, [])
    fresh, optimizer = start(seed=7)  # different branches and random state, all of which must be replaced
    load_checkpoint(latest, fresh, optimizer)
    assert before + advance(fresh, optimizer, interrupted, STEPS) == losses
    others = dict(expected.named_parameters())
    assert all(torch.equal(p, others[n]) for n, p in fresh.named_parameters())


def test_the_random_state_matters_because_of_dropout(uninterrupted):
    model, optimizer = start()
    torch.manual_seed(1)
    assert advance(model, optimizer, 0, STEPS) != uninterrupted[0]


def test_loading_only_the_model_does_not_touch_the_random_state(tmp_path):
    model, optimizer = start()
    advance(model, optimizer, 0, 2)
    saved = save_checkpoint(tmp_path, model, optimizer, 2)
    fresh, _ = start(seed=7)
    random_state = torch.get_rng_state()
    load_checkpoint(saved, fresh, None)
    assert torch.equal(torch.get_rng_state(), random_state)
    values = trainable_parameters(model)
    assert all(torch.equal(p, values[n]) for n, p in trainable_parameters(fresh).items())


# ---- damage ----------------------------------------------------------------------------------------------------------


def truncate(path):
    file = path / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def change_a_byte(path):
    file = path / "parameters.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(bytes(data))


def change_the_random_state(path):
    file = path / "random.safetensors"
    file.write_bytes(file.read_bytes()[::-1])


DAMAGE = {
    "truncated": truncate,
    "changed": change_a_byte,
    "random": change_the_random_state,
    "empty": lambda path: (path / "parameters.safetensors").write_bytes(b""),
    "missing file": lambda path: (path / "random.safetensors").unlink(),
    "missing manifest": lambda path: (path / MANIFEST).unlink(),
    "half a manifest": lambda path: (path / MANIFEST).write_text((path / MANIFEST).read_text()[:30]),
    "binary manifest": lambda path: (path / MANIFEST).write_bytes(b"\xff\xfe\x00"),
    "other manifest": lambda path: (path / MANIFEST).write_text("[]"),
    "manifest without hashes": lambda path: (path / MANIFEST).write_text('{"step": 2}'),
}


@pytest.fixture(scope="module")
def trained():
    model, optimizer = start()
    advance(model, optimizer, 0, 1)
    return model, optimizer


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_torn_checkpoint_is_skipped_with_a_sentence_and_the_one_before_is_used(damage, trained, tmp_path):
    save_checkpoint(tmp_path, *trained, 1)
    save_checkpoint(tmp_path, *trained, 2)
    assert latest_checkpoint(tmp_path) == (Checkpoint(tmp_path / "step-000002", 2), [])
    DAMAGE[damage](tmp_path / "step-000002")
    latest, [sentence] = latest_checkpoint(tmp_path)
    assert latest == Checkpoint(tmp_path / "step-000001", 1)
    assert sentence.startswith("Skipping checkpoint step-000002: ")


def test_without_an_intact_checkpoint_there_is_none(trained, tmp_path):
    assert latest_checkpoint(tmp_path / "absent") == (None, [])
    assert latest_checkpoint(tmp_path) == (None, [])
    truncate(save_checkpoint(tmp_path, *trained, 3).path)
    latest, skipped = latest_checkpoint(tmp_path)
    assert latest is None
    assert skipped == ["Skipping checkpoint step-000003: optimizer.safetensors changed since it was written"]


@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize("step", [1, 2])
def test_a_save_that_fails_midway_leaves_the_folder_unchanged(call, step, trained, tmp_path, monkeypatch):
    save_checkpoint(tmp_path, *trained, 1)
    before = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    calls = []

    def failing(tensors, path):
        calls.append(path)
        path.write_bytes(b"half")
        if len(calls) == call:
            raise OSError("no space left")

    monkeypatch.setattr(checkpoint, "save_file", failing)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(tmp_path, *trained, step)
    after = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert after == before
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


def test_the_temporary_folder_of_a_killed_save_is_not_a_checkpoint(trained, tmp_path, monkeypatch):
    whole = save_checkpoint(tmp_path, *trained, 1)
    (tmp_path / ".step-000002.abc").mkdir()
    (tmp_path / ".step-000002.abc" / "parameters.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path) == (whole, [])


def test_the_two_newest_checkpoints_are_kept(trained, tmp_path):
    for step in (1, 2, 3, 10):
        save_checkpoint(tmp_path, *trained, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000003", "step-000010"]


def test_a_new_checkpoint_survives_damaged_ones_of_later_steps(trained, tmp_path):
    for step in (4, 6):
        truncate(save_checkpoint(tmp_path, *trained, step).path)
    save_checkpoint(tmp_path, *trained, 2)
    latest, skipped = latest_checkpoint(tmp_path)
    assert latest == Checkpoint(tmp_path / "step-000002", 2)
    assert len(skipped) <= 2


def test_saving_a_step_again_replaces_it(trained, tmp_path):
    truncate(save_checkpoint(tmp_path, *trained, 1).path)
    whole = save_checkpoint(tmp_path, *trained, 1)
    assert latest_checkpoint(tmp_path) == (whole, [])


def test_a_checkpoint_contains_the_trained_parameters_and_a_manifest_of_all_files(trained, tmp_path):
    path = save_checkpoint(tmp_path, *trained, 1).path
    manifest = json.loads((path / MANIFEST).read_text())
    assert set(manifest["sha256"]) == {p.name for p in path.iterdir()} - {MANIFEST}
    values = checkpoint.load_file(path / "parameters.safetensors")
    assert values.keys() == trainable_parameters(trained[0]).keys()
    assert all("lora_" in name for name in values)
