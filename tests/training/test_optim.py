"""Learning rate schedules, the automatic learning rate, and which parameters have weight decay."""

import itertools

import pytest
import torch
from conftest import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from loratory.settings import AdapterConfig, TrainConfig
from loratory.training.optimizer import automatic_learning_rate, learning_rate_at, make_optimizer, trainable_parameters

SCHEDULES = ("cosine", "linear", "constant")
FULL, LORA = AdapterConfig(kind="full"), AdapterConfig(kind="lora")


def rates(steps: int, schedule: str, warmup: float, peak: float = 1.0) -> list[float]:
    return [learning_rate_at(step, steps, peak, schedule, warmup) for step in range(steps)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(st.integers(1, 200), st.floats(0, 0.99))
@settings(derandomize=True, deadline=None, max_examples=40)
def test_the_rate_rises_to_its_maximum_and_never_again(schedule, steps, warmup):
    curve = rates(steps, schedule, warmup)
    top = curve.index(max(curve))
    assert 0 < min(curve) <= max(curve) <= 1
    assert curve[: top + 1] == sorted(curve[: top + 1])
    assert curve[top:] == sorted(curve[top:], reverse=True)
    assert sum(rate < 1 for rate in curve[:top]) == top <= -(-steps * warmup // 1)


def test_warm_up_is_a_straight_line_from_above_zero():
    assert rates(100, "constant", 0.04)[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])


def test_cosine_is_halfway_in_the_middle_and_ends_near_zero():
    curve = rates(110, "cosine", 10 / 110)
    assert curve[10] == 1
    assert curve[60] == pytest.approx(0.5)
    assert curve[35] == pytest.approx((1 + 2**-0.5) / 2)
    assert 0 < curve[-1] < 1e-3


def test_linear_falls_by_the_same_amount_each_step():
    curve = rates(100, "linear", 0.0)
    assert [a - b for a, b in itertools.pairwise(curve)] == pytest.approx([0.01] * 99)
    assert curve[-1] == pytest.approx(0.01)


def test_constant_stays_at_the_peak():
    assert rates(50, "constant", 0.0, peak=3e-4) == [3e-4] * 50


def test_the_rate_is_proportional_to_the_peak():
    assert rates(30, "cosine", 0.2, peak=2e-4) == pytest.approx([2e-4 * r for r in rates(30, "cosine", 0.2)])


def test_the_automatic_rate_is_ten_times_higher_for_lora_and_falls_with_width():
    assert automatic_learning_rate(FULL, 2000) == pytest.approx(5e-5)
    assert automatic_learning_rate(LORA, 2000) == pytest.approx(5e-4)
    assert automatic_learning_rate(LORA, 4000) == pytest.approx(5e-4 * 0.5**0.78)
    assert automatic_learning_rate(LORA, 16) == 5e-3


def test_the_optimizer_receives_only_trainable_parameters():
    model = tiny_model("gpt2").requires_grad_(False)
    model.transformer.h[0].requires_grad_(True)
    optimizer = make_optimizer(model, TrainConfig())
    given = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert given == {id(p) for p in model.transformer.h[0].parameters()}
    assert all(name.startswith("transformer.h.0.") for name in trainable_parameters(model))


def test_weight_decay_applies_to_matrices_but_not_to_vectors():
    model = tiny_model("gpt2")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = make_optimizer(model, TrainConfig(weight_decay=0.5))
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if parameter.ndim >= 2 else 1
        torch.testing.assert_close(parameter.detach(), factor * before[name], rtol=1e-12, atol=0)
    assert {p.ndim for p in model.parameters()} == {1, 2}
