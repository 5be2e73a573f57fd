"""Loss and gradients of a batch equal those of its sequences computed one by one with the model's stock attention."""

import dataclasses
import functools
import math

import pytest
import torch
import transformers
from conftest import CONFIGS, RELATIVE, SMALL, sequence, tiny_model
from hypothesis import given, settings
from test_batches import CASES, trees, with_cases

from loratory.tree.attention import _explicit_attention
from loratory.tree.batches import build_batch, micro_batches
from loratory.tree.forward import prepared
from loratory.tree.layout import Layout
from loratory.tree.loss import batch_loss, batch_weight, target_log_probs

KINDS = ("tree", "padded", "one-by-one")
TREE = Layout("tree", "test")
model_of = functools.cache(tiny_model)


def tolerance(family: str) -> float:
    """Relative to the largest gradient. GPT-2 stays in float64; norms and routers of the others round to float32."""
    return 1e-10 if family == "gpt2" else RELATIVE


def widened(config: transformers.PretrainedConfig) -> transformers.PreTrainedModel:
    """A random float64 model with weights large enough for its attention to matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).to(torch.float64)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" not in name:
                    parameter.normal_(0, 0.15)
    return model.eval()


LAYERS = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5}
NO_IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


@functools.cache
def gemma2() -> transformers.PreTrainedModel:
    config = transformers.Gemma2Config(
        **SMALL, **LAYERS, **NO_IDS, head_dim=8, attn_logit_softcapping=2.0, final_logit_softcapping=3.0
    )
    return widened(config)


@functools.cache
def gpt_oss() -> transformers.PreTrainedModel:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    model = widened(transformers.GptOssConfig(**SMALL, **LAYERS, **NO_IDS, **experts, head_dim=8))
    model.set_experts_implementation("eager")  # the grouped matrix product does not support float64
    return model


def gradients(model) -> dict[str, torch.Tensor]:
    """The gradients of all parameters; clears them."""
    grads = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return grads


def one_by_one(model, sequences) -> tuple[float, dict[str, torch.Tensor]]:
    """The summed weighted cross-entropy and its gradients: one plain forward pass per sequence, with all logits."""
    loss = 0.0
    for s in sequences:
        ids, weights = torch.from_numpy(s.token_ids), torch.from_numpy(s.loss_weights)
        logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
        part = (torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none") * weights[1:]).sum()
        part.backward()
        loss += part.item()
    return loss, gradients(model)


def in_batches(model, sequences, layout: Layout, token_budget: int) -> tuple[float, dict[str, torch.Tensor]]:
    loss = 0.0
    with prepared(model, layout):
        for batch in micro_batches(sequences, token_budget, layout.share):
            part = batch_loss(model, batch, layout).total
            part.backward()
            loss += part.item()
    return loss, gradients(model)


def assert_same(model, sequences, layout: Layout, relative: float, token_budget: int = 1000) -> None:
    expected, expected_gradients = one_by_one(model, sequences)
    actual, actual_gradients = in_batches(model, sequences, layout, token_budget)
    assert actual == pytest.approx(expected, rel=relative)
    largest = max(g.abs().max().item() for g in expected_gradients.values())
    assert largest > 1e-3, "zero gradients would prove nothing"
    for name, gradient in expected_gradients.items():
        assert (actual_gradients[name] - gradient).abs().max() <= relative * largest, name


@pytest.mark.thorough
@pytest.mark.parametrize("family", CONFIGS)
@with_cases
@given(sequences=trees())
@settings(derandomize=True, deadline=None, max_examples=18)
def test_tree_has_the_loss_and_gradients_of_the_sequences_one_by_one(family, sequences):
    assert_same(model_of(family), sequences, TREE, tolerance(family))


@pytest.mark.parametrize("kind", ["padded", "one-by-one"])
@pytest.mark.parametrize("family", CONFIGS)
@given(sequences=trees())
@settings(derandomize=True, deadline=None, max_examples=4)
def test_batches_without_sharing_have_the_loss_and_gradients_of_the_sequences_one_by_one(family, kind, sequences):
    assert_same(model_of(family), sequences, Layout(kind, "test"), tolerance(family))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("token_budget", [1, 20])
def test_micro_batches_add_up_to_the_same_loss_and_gradients(kind, token_budget):
    sequences = [sequence(ids, 3) for name in ("three levels", "duplicates") for ids in CASES[name]]
    assert_same(model_of("gpt2"), sequences, Layout(kind, "test"), 1e-10, token_budget)


@pytest.mark.parametrize("make", [gemma2, gpt_oss], ids=lambda make: make.__name__)
@with_cases
@given(sequences=trees(most=4))
@settings(derandomize=True, deadline=None, max_examples=8)
def test_soft_caps_and_sinks_are_exact(make, sequences):
    assert_same(make(), sequences, TREE, RELATIVE)


@pytest.mark.parametrize("make", [gemma2, gpt_oss], ids=lambda make: make.__name__)
def test_soft_caps_and_sinks_of_these_models_have_an_effect(make, monkeypatch):
    def without(q, k, v, bias_RL, scaling, softcap, sinks):
        return _explicit_attention(q, k, v, bias_RL, scaling, None, None)

    monkeypatch.setattr("loratory.tree.attention._explicit_attention", without)
    sequences = [sequence(ids, 3) for ids in CASES["three levels"]]
    with pytest.raises(AssertionError):
        assert_same(make(), sequences, TREE, RELATIVE)


def test_trees_longer_than_a_chunk_of_rows_are_exact(monkeypatch):
    for name, value in {"CUT_ROWS": 2, "CHUNK_COST": 4, "SAVED_KEYS": 5}.items():
        monkeypatch.setattr(f"loratory.tree.cpu_attention.{name}", value)
    sequences = [sequence(ids, 3) for name in ("three levels", "duplicates") for ids in CASES[name]]
    for family in ("gpt2", "gemma3"):
        assert_same(model_of(family), sequences, TREE, tolerance(family))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_gradients_survive_activation_checkpointing():
    model = tiny_model("llama")
    sequences = [sequence(ids, 3) for ids in CASES["three levels"]]
    expected = one_by_one(model, sequences)[1]
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()  # checkpointing is off in eval mode; this family has no dropout
    actual = in_batches(model, sequences, TREE, 1000)[1]
    largest = max(g.abs().max().item() for g in expected.values())
    assert all((actual[n] - g).abs().max() <= RELATIVE * largest for n, g in expected.items())


def test_the_language_model_head_sees_only_rows_with_targets():
    model = model_of("llama")
    seen = []
    handle = model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[1]))
    batch = build_batch([sequence([1, 2, 3, 4, 5, i], 1) for i in range(6)])
    with prepared(model, TREE), torch.no_grad():
        log_probs_N = target_log_probs(model, batch, TREE)
    handle.remove()
    assert seen == [1]
    assert len(log_probs_N) == 6


def test_weights_are_summed_and_nothing_is_divided():
    model = model_of("gpt2")
    weights = [0.0, 0.0, 0.5, 2.0]
    batch = build_batch([sequence([1, 2, 3, 4], weights), sequence([1, 2, 3, 5], weights)])
    with prepared(model, TREE), torch.no_grad():
        once = batch_loss(model, batch, TREE)
        twice = batch_loss(model, dataclasses.replace(batch, target_weights_N=batch.target_weights_N * 2), TREE)
    assert once.weight == batch_weight(batch) == 5.0
    assert twice.total.item() == pytest.approx(2 * once.total.item(), rel=1e-12)


def test_log_probs_of_a_bfloat16_model_are_computed_in_float32():
    model = tiny_model("llama", torch.bfloat16)
    batch = build_batch([sequence([1, 2, 3, i], 1) for i in range(64)])
    with prepared(model, TREE), torch.no_grad():
        log_probs_N = target_log_probs(model, batch, TREE)
    assert log_probs_N.dtype == torch.float32
    assert math.fsum(log_probs_N.exp().tolist()) == pytest.approx(1, abs=1e-5)
