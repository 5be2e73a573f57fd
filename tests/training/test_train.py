"""An optimizer step depends only on its examples, not on the micro-batches or on what happens between steps."""

import dataclasses

import pytest
import torch
from conftest import RELATIVE, sequence, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from test_batches import trees
from test_loss import one_by_one
from test_score import tiny_tokenizer

from loratory.models.adapters import attach_adapter
from loratory.models.loading import LoadedModel, LoadedTokenizer
from loratory.settings import AdapterConfig, TrainConfig
from loratory.training.loop import StepResult, mean_loss, total_steps, train
from loratory.training.optimizer import learning_rate_at, make_optimizer
from loratory.tree.batches import step_examples
from loratory.tree.layout import Layout

# PEFT uses an attribute of Transformers that is deprecated in version 5 and removed in version 6.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TREE = Layout("tree", "test")
FAST = Layout("tree", "test", plain_head=True)
LAYOUTS = [FAST, *(Layout(kind, "test") for kind in ("tree", "padded", "one-by-one"))]
ONE_STEP = TrainConfig(epochs=1, batch_size=100, token_budget=1000, warmup=0.0, schedule="constant")
# Target tokens per example: 1, 4, 2, 7, 3. The mean of their means is far from the mean over tokens.
EXAMPLES = [
    [sequence([1, 2, 3, 10], 1)],
    [sequence([1, 2, 3, 11, 12, 13, 14], 4)],
    [sequence([1, 2, 5, 15, 16], 2)],
    [sequence([1, 2, 5, 17, 18, 19, 20, 21, 22, 23], 7)],
    [sequence([6, 2, 5, 24, 25, 26], 3)],
]


def with_lora(family: str, dropout: float = 0.0, dtype=torch.float32, seed: int = 0) -> torch.nn.Module:
    """A tiny model with fresh adapter branches."""
    text = LoadedTokenizer(tiny_tokenizer(), (0,), False, 128)
    model = tiny_model(family, dtype)
    model.name_or_path = "tiny"
    base = LoadedModel(model, text, "tiny", None, {})
    return attach_adapter(base, AdapterConfig(rank=2, alpha=4, dropout=dropout), seed)


def run(model, examples, config: TrainConfig, layout: Layout = TREE, rate: float = 1e-2) -> list[StepResult]:
    optimizer = make_optimizer(model, config)
    return list(train(model, examples, optimizer, config, rate, layout))


def assert_close(actual: torch.nn.Module, expected: torch.nn.Module, tolerance: float) -> None:
    others = dict(expected.named_parameters())
    for name, parameter in actual.named_parameters():
        torch.testing.assert_close(parameter, others[name], rtol=0, atol=tolerance, msg=name)


# ---- the step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.kind)
@pytest.mark.parametrize("token_budget", [1, 7, 1000])
def test_any_micro_batching_makes_the_same_step(token_budget, layout):
    expected, actual = tiny_model("gpt2"), tiny_model("gpt2")
    untouched = tiny_model("gpt2")
    [first] = run(expected, EXAMPLES, ONE_STEP)
    [second] = run(actual, EXAMPLES, dataclasses.replace(ONE_STEP, token_budget=token_budget), layout)
    assert second.loss == pytest.approx(first.loss, rel=1e-12)
    assert second.grad_norm == pytest.approx(first.grad_norm, rel=1e-10)
    assert_close(actual, expected, 1e-8)
    with pytest.raises(AssertionError):
        assert_close(untouched, expected, 1e-3)


@given(sequences=trees(), token_budget=st.integers(1, 40), layout=st.sampled_from(LAYOUTS))
@settings(derandomize=True, deadline=None, max_examples=15)
def test_loss_and_gradient_norm_are_those_of_the_mean_over_the_whole_step(sequences, token_budget, layout):
    model = tiny_model("llama")
    total, gradients = one_by_one(model, sequences)
    weight = sum(float(s.loss_weights[1:].sum()) for s in sequences)
    norm = torch.stack([g.norm() for g in gradients.values()]).norm().item()
    config = dataclasses.replace(ONE_STEP, token_budget=token_budget)
    [result] = run(model, [[s] for s in sequences], config, layout)
    assert result.loss == pytest.approx(total / weight, rel=RELATIVE)
    assert result.grad_norm == pytest.approx(norm / weight, rel=RELATIVE)


@pytest.mark.parametrize("token_budget", [1, 1000])
def test_the_loss_is_no_mean_of_means(token_budget):
    model = tiny_model("gpt2")
    parts = [one_by_one(model, sequences)[0] for sequences in EXAMPLES]
    weights = [float(s.loss_weights.sum()) for [s] in EXAMPLES]
    mean_of_means = sum(p / w for p, w in zip(parts, weights, strict=True)) / len(parts)
    [result] = run(model, EXAMPLES, dataclasses.replace(ONE_STEP, token_budget=token_budget))
    assert result.loss == pytest.approx(sum(parts) / sum(weights), rel=1e-12)
    assert abs(result.loss - mean_of_means) > 0.01 * result.loss


def test_the_step_equals_adamw_at_the_scheduled_rate_with_the_clipped_gradient():
    config = TrainConfig(epochs=2, batch_size=2, warmup=0.3, max_grad_norm=0.5, weight_decay=0.1)
    actual, expected = tiny_model("gpt2"), tiny_model("gpt2")
    results = run(actual, EXAMPLES, config)
    by_size = [[p for p in expected.parameters() if (p.ndim >= 2) is big] for big in (True, False)]
    groups = [{"params": by_size[0], "weight_decay": 0.1}, {"params": by_size[1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0)
    for step, indices in enumerate(step_examples(5, 2, config.seed, 0, 6)):
        sequences = [s for i in indices for s in EXAMPLES[i]]
        _, gradients = one_by_one(expected, sequences)
        weight = sum(float(s.loss_weights.sum()) for s in sequences)
        norm = torch.stack([g.norm() for g in gradients.values()]).norm() / weight
        for name, parameter in expected.named_parameters():
            parameter.grad = gradients[name] / weight * (0.5 / norm).clamp(max=1)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, 6, 1e-2, "cosine", 0.3)
        optimizer.step()
        optimizer.zero_grad()
        assert results[step].grad_norm == pytest.approx(norm.item(), rel=1e-6)
        assert norm > 0.5, "an unclipped gradient would prove nothing"
    assert_close(actual, expected, 1e-6)


def test_without_a_maximum_norm_the_gradient_is_not_clipped():
    stock, free = tiny_model("gpt2"), tiny_model("gpt2")
    for model, largest in ((stock, 1e6), (free, 0.0)):
        config = dataclasses.replace(ONE_STEP, max_grad_norm=largest)
        optimizer = torch.optim.SGD([{"params": list(model.parameters()), "scale": 1.0}], lr=0.0)
        list(train(model, EXAMPLES, optimizer, config, 0.1, TREE))
    assert_close(free, stock, 0.0)


def test_the_sequences_of_an_example_stay_in_one_step():
    # Sums of these lengths identify the examples.
    lengths = [(2, 4), (8,), (16, 32), (64,), (3, 5)]
    examples = [[sequence([i % 60 for i in range(n)], 1) for n in group] for group in lengths]
    config = TrainConfig(epochs=2, batch_size=2, token_budget=9)
    results = run(tiny_model("gpt2"), examples, config)
    steps = list(step_examples(5, 2, config.seed, 0, 6))
    assert [r.tokens for r in results] == [sum(sum(lengths[i]) for i in indices) for indices in steps]


def test_results_count_steps_epochs_and_tokens():
    config = TrainConfig(epochs=2, batch_size=2, warmup=0.5)
    results = run(tiny_model("gpt2"), EXAMPLES, config, rate=0.01)
    assert total_steps(5, config) == 6
    assert [r.step for r in results] == [1, 2, 3, 4, 5, 6]
    assert {r.steps for r in results} == {6}
    assert [r.epoch for r in results] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])
    assert [r.learning_rate for r in results] == [learning_rate_at(i, 6, 0.01, "cosine", 0.5) for i in range(6)]
    [once] = run(tiny_model("gpt2"), EXAMPLES, ONE_STEP)
    assert (once.tokens, once.unique_tokens) == (4 + 7 + 5 + 10 + 6, 2 + 1 + 3 + 1 + 1 + 6 + 5)


def test_training_lowers_the_training_loss():
    model = with_lora("llama")
    before = mean_loss(model, EXAMPLES, TREE, 1000)
    run(model, EXAMPLES, TrainConfig(epochs=15, batch_size=5))
    assert mean_loss(model, EXAMPLES, TREE, 1000) < 0.75 * before


@pytest.mark.thorough
def test_a_float16_base_model_gives_the_gradient_of_float32():
    # So many targets that each contributes less to the mean loss than float16 can represent.
    many = [[sequence([(i * j) % 60 for j in range(1, 100)], 98)] for i in range(1, 31)]
    gradients = {}
    for dtype in (torch.float32, torch.float16):
        model = with_lora("llama", dtype=dtype)
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(0.05)  # as small as in real models
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(torch.linspace(-0.1, 0.1, parameter.numel()).view_as(parameter))
        config = dataclasses.replace(ONE_STEP, token_budget=3000, max_grad_norm=0.0)
        run(model, many, config, FAST, rate=0.0)
        trained = [p for p in model.parameters() if p.requires_grad]
        assert all(p.dtype == torch.float32 for p in trained)
        gradients[dtype] = torch.cat([p.grad.flatten() for p in trained if p.grad is not None])
    difference = gradients[torch.float16] - gradients[torch.float32]
    assert difference.norm() < 0.01 * gradients[torch.float32].norm()


# ---- dropout ---------------------------------------------------------------------------------------------------------


def test_the_dropouts_of_the_base_model_are_off_in_training():
    model = tiny_model("gpt2")
    assert model.config.resid_pdrop == model.config.attn_pdrop == model.config.embd_pdrop == 0.1
    expected = mean_loss(model, EXAMPLES, TREE, 1000)
    model.train()
    [result] = run(model, EXAMPLES, ONE_STEP)
    assert result.loss == pytest.approx(expected, rel=1e-12)


def test_adapter_dropout_is_on_in_training_and_off_in_validation():
    model = with_lora("llama", dropout=0.5)
    run(model, EXAMPLES, ONE_STEP)  # before this step, the branches add zero whatever is dropped
    validation = [mean_loss(model, EXAMPLES, TREE, 1000) for _ in range(2)]
    assert validation[0] == validation[1]
    still = dataclasses.replace(ONE_STEP, epochs=2)
    first, second = run(model, EXAMPLES, still, rate=0.0)
    assert first.loss != pytest.approx(second.loss, rel=1e-6), "each step draws a new dropout mask"
    assert first.loss != pytest.approx(validation[0], rel=1e-6)


def test_a_validation_in_between_changes_nothing():
    config = TrainConfig(epochs=2, batch_size=2)
    traces = []
    for validates in (False, True):
        model = with_lora("llama", dropout=0.5)
        torch.manual_seed(3)
        losses = []
        for result in train(model, EXAMPLES, make_optimizer(model, config), config, 1e-2, TREE):
            losses.append(result.loss)
            if validates:
                mean_loss(model, EXAMPLES, TREE, 1000)
        traces.append((losses, model))
    assert traces[0][0] == traces[1][0]
    assert_close(traces[0][1], traces[1][1], 0.0)


# ---- validation ------------------------------------------------------------------------------------------------------


@given(groups=st.lists(trees(most=3), min_size=1, max_size=3), token_budget=st.integers(1, 60))
@settings(derandomize=True, deadline=None, max_examples=10)
def test_mean_loss_is_the_mean_over_all_trained_tokens(groups, token_budget):
    model = tiny_model("gpt2")
    total = sum(one_by_one(model, group)[0] for group in groups)
    weight = sum(float(s.loss_weights[1:].sum()) for group in groups for s in group)
    for layout in LAYOUTS:
        assert mean_loss(model, groups, layout, token_budget) == pytest.approx(total / weight, rel=1e-10)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
def test_only_the_adapter_trains():
    model = with_lora("gpt2")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    run(model, EXAMPLES, TrainConfig(epochs=2, batch_size=5))
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n in before if "lora_" in n}


def test_the_stock_attention_is_restored_between_steps():
    model = with_lora("llama")
    config = TrainConfig(epochs=1, batch_size=2)
    for _ in train(model, EXAMPLES, make_optimizer(model, config), config, 1e-2, TREE):
        assert model.config._attn_implementation == "sdpa"
