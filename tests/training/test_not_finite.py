"""A step whose loss or gradient is not finite is not applied, names its rows, and leaves the state before it."""

import dataclasses

import pytest
import torch
from conftest import tiny_model
from safetensors.torch import load_file, save_file
from test_train import EXAMPLES, LAYOUTS, ONE_STEP, TREE, run, with_lora

from loratory.errors import UserError
from loratory.models.loading import non_finite
from loratory.settings import TrainConfig
from loratory.training.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from loratory.training.loop import NotFinite, mean_loss, train
from loratory.training.optimizer import make_optimizer
from loratory.tree.layout import Layout

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
NAMED = [[dataclasses.replace(s, source=f"a.csv:{i}") for s in group] for i, group in enumerate(EXAMPLES, 2)]
IN_ONE_ROW = 24  # a token that only the last example contains


def model_that_overflows() -> torch.nn.Module:
    """Its weights are finite, but no text with one particular token has a finite loss."""
    model = tiny_model("gpt2", torch.float32)
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())  # not tied to the embeddings
    with torch.no_grad():
        model.get_input_embeddings().weight[IN_ONE_ROW, ::2] = 3e38
    return model


def state(model, optimizer) -> list[torch.Tensor]:
    moments = [v for p in model.parameters() for v in optimizer.state[p].values()]
    return [t.detach().clone() for t in (*model.parameters(), *moments, torch.get_rng_state())]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.kind}-{layout.plain_head}")
def test_the_row_whose_loss_is_not_finite_is_named(layout: Layout):
    with pytest.raises(NotFinite) as caught:
        run(model_that_overflows(), NAMED, ONE_STEP, layout)
    assert (caught.value.quantity, caught.value.step) == ("loss", 1)
    assert (caught.value.rows, caught.value.each_is_finite) == (("a.csv:6",), False)


@pytest.mark.parametrize("maximum", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_names_all_rows_of_the_step(maximum: float):
    model = tiny_model("gpt2")
    model.get_input_embeddings().weight.register_hook(lambda gradient: gradient * float("inf"))
    config = TrainConfig(epochs=1, batch_size=2, max_grad_norm=maximum)
    with pytest.raises(NotFinite) as caught:
        run(model, NAMED, config)
    assert (caught.value.quantity, caught.value.each_is_finite) == ("gradient", True)
    assert len(caught.value.rows) == 2 and set(caught.value.rows) < {s.source for [s] in NAMED}


def test_the_failed_step_changes_neither_weights_nor_moments_nor_random_state():
    model = with_lora("llama", dropout=0.5)
    config = TrainConfig(epochs=2, batch_size=2)
    optimizer = make_optimizer(model, config)
    results = train(model, NAMED, optimizer, config, 1e-2, TREE)
    next(results)
    next(results)
    before = state(model, optimizer)
    parameter = next(p for p in model.parameters() if p.requires_grad)
    parameter.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(NotFinite) as caught:
        next(results)
    assert caught.value.step == 3
    assert all(torch.equal(a, b) for a, b in zip(state(model, optimizer), before, strict=True))


def test_non_finite_finds_one_number_among_many():
    tensors = {"a": torch.zeros(0), "b": torch.arange(3), "c": torch.ones(70, 70), "d": torch.ones(5).bfloat16()}
    assert non_finite(tensors.items()) is None
    for name, value in (("c", float("nan")), ("c", float("-inf")), ("d", float("inf"))):
        changed = {**tensors, name: tensors[name].clone()}
        changed[name].view(-1)[3] = value
        assert non_finite(changed.items()) == name


def after_one_epoch():
    """A model and its optimizer."""
    model = with_lora("llama")
    config = TrainConfig(epochs=1, batch_size=5)
    optimizer = make_optimizer(model, config)
    list(train(model, EXAMPLES, optimizer, config, 1e-2, TREE))
    return model, optimizer


@pytest.mark.parametrize("where", ["weights", "moments"])
def test_what_is_not_finite_is_not_saved(where: str, tmp_path):
    model, optimizer = after_one_epoch()
    parameter = next(p for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        (parameter if where == "weights" else optimizer.state[parameter]["exp_avg_sq"])[0, 0] = float("inf")
    with pytest.raises(NotFinite) as caught:
        save_checkpoint(tmp_path, model, optimizer, 1)
    assert caught.value.quantity == "weights" and "lora_A" in caught.value.found
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file", ["parameters", "optimizer"])
def test_a_checkpoint_that_is_not_finite_is_not_loaded(file: str, tmp_path):
    model, optimizer = after_one_epoch()
    path = save_checkpoint(tmp_path, model, optimizer, 1).path
    values = load_file(path / f"{file}.safetensors")
    name = max(values, key=lambda n: values[n].numel())
    values[name][0, 0] = float("nan")
    save_file(values, path / f"{file}.safetensors")
    before = mean_loss(model, EXAMPLES, TREE, 1000)
    with pytest.raises(UserError, match="NaN or infinite"):
        load_checkpoint(Checkpoint(path, 1), model, optimizer)
    assert mean_loss(model, EXAMPLES, TREE, 1000) == before
