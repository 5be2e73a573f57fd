"""Tree attention is chosen only for models for which it is exact, and choosing leaves no side effects."""

import functools

import pytest
import torch
import transformers
from conftest import CONFIGS, SMALL, VOCABULARY, sequence, tiny_model
from test_loss import NO_IDS, assert_same, gemma2, gpt_oss
from transformers import AttentionMaskInterface

from loratory.tree.attention import ATTENTION_NAME, LayerMask, tree_attention
from loratory.tree.attention import tree_mask as right_mask
from loratory.tree.batches import build_batch
from loratory.tree.cpu_attention import RowChunk, attend
from loratory.tree.forward import prepared
from loratory.tree.layout import Layout
from loratory.tree.loss import target_log_probs
from loratory.tree.verification import Mismatch, choose_layout

TREE = Layout("tree", "test")
SEQUENCES = [
    sequence([1, 2, 3, 4, 5, 6, 7, *tail], 2)
    for tail in ([8, 9, 10, 11, 12, 13, 14], [8, 9, 20, 21], [8, 30, 31, 32, 33], [40], [41, 42])
]
SHORT = [sequence([1, 2, i], 1) for i in range(4)]


def random_model(config: transformers.PretrainedConfig, dtype=torch.float32) -> transformers.PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0, 0.15)
    return model.eval()


def bloom() -> transformers.PreTrainedModel:
    config = transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, **NO_IDS)
    return random_model(config, torch.float64)


def mamba() -> transformers.PreTrainedModel:
    config = transformers.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4, **NO_IDS
    )
    return random_model(config)


def lfm2() -> transformers.PreTrainedModel:
    layers = {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}
    return random_model(transformers.Lfm2Config(**SMALL, **layers, **NO_IDS))


def dynamic_llama(original: int) -> transformers.PreTrainedModel:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    config = transformers.LlamaConfig(
        **SMALL, **NO_IDS, num_hidden_layers=2, max_position_embeddings=original, rope_parameters=rope
    )
    return random_model(config, torch.float64)


# ---- choosing a layout -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", CONFIGS)
def test_trees_are_chosen_for_attention_only_models(family, dtype):
    model = tiny_model(family, dtype)
    skips = family != "gpt2"  # its layers reshape their output to the shape of all rows
    expected = Layout("tree", "verified on this model", skips_rows=skips, plain_head=True)
    assert choose_layout(model, SEQUENCES, "auto") == expected
    assert choose_layout(model, SEQUENCES, "tree").kind == "tree"
    assert choose_layout(model, SEQUENCES, "padded").kind == "padded"


@pytest.mark.parametrize("make", [gemma2, gpt_oss], ids=lambda make: make.__name__)
def test_trees_are_chosen_for_soft_caps_and_sinks(make):
    assert choose_layout(make(), SEQUENCES, "auto").reason == "verified on this model"


@pytest.mark.parametrize("make", [bloom, mamba, lfm2], ids=lambda make: make.__name__)
def test_models_that_trees_do_not_fit_get_padded_batches_and_a_sentence(make):
    model = make()
    layout = choose_layout(model, SEQUENCES, "auto")
    assert layout.kind == "padded"
    assert layout.reason.startswith(f"token trees are not exact for {type(model).__name__} (")
    with pytest.raises(Mismatch):
        choose_layout(model, SEQUENCES, "tree")


@pytest.mark.parametrize("kind", ["padded", "one-by-one"])
def test_the_fallback_is_exact_for_position_biases(kind):
    assert_same(bloom(), SEQUENCES, Layout(kind, "test"), 1e-10)


def test_the_padded_fallback_is_exact_for_a_recurrent_model():
    assert_same(mamba(), SEQUENCES, Layout("padded", "test"), 1e-4)


def test_length_dependent_rotary_frequencies_are_never_mixed():
    layout = choose_layout(dynamic_llama(original=8), SEQUENCES, "auto")
    assert layout.kind == "one-by-one"
    assert "beyond 8 tokens" in layout.reason
    assert choose_layout(dynamic_llama(original=64), SEQUENCES, "auto").kind == "tree"


def test_length_dependent_rotary_frequencies_match_each_sequence_alone():
    layout = choose_layout(dynamic_llama(original=8), SEQUENCES, "auto")
    batch = build_batch(SEQUENCES, share=False)
    with torch.no_grad():
        actual = target_log_probs(dynamic_llama(original=8), batch, layout)
        for i, s in enumerate(SEQUENCES):
            fresh = dynamic_llama(original=8)  # the rotary module of Transformers remembers the longest sequence so far
            log_probs = fresh(input_ids=torch.from_numpy(s.token_ids)[None]).logits[0].log_softmax(-1)
            targets = torch.from_numpy(s.loss_weights).nonzero()[:, 0]
            expected = log_probs[targets - 1, torch.from_numpy(s.token_ids)[targets]]
            torch.testing.assert_close(actual[batch.target_sequence_N == i], expected, rtol=1e-5, atol=1e-5)


# ---- the checks ------------------------------------------------------------------------------------------------------


def test_a_model_whose_tokens_leak_into_each_other_is_caught():
    model = tiny_model("llama", torch.float32)

    def leak(module, inputs, output):
        return output + 1e-3 * output.mean(dim=1, keepdim=True)

    handle = model.model.layers[0].register_forward_hook(leak)
    with pytest.raises(Mismatch, match="tokens of one sequence reach another"):
        choose_layout(model, SEQUENCES, "tree")
    assert choose_layout(model, SEQUENCES, "auto").kind == "padded"
    handle.remove()
    assert choose_layout(model, SEQUENCES, "tree").kind == "tree"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_wrong_attention_numbers_are_caught(family, monkeypatch):
    def wrong(query, key, value, chunks, scaling, compiled):
        return attend(query, key, value, chunks, 1.3 * scaling, compiled)

    monkeypatch.setattr("loratory.tree.attention.attend", wrong)
    with pytest.raises(Mismatch, match="differs from the stock attention"):
        choose_layout(tiny_model(family, torch.bfloat16), SEQUENCES, "tree")


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_a_missing_sliding_window_is_caught(family):
    def without_window(mask_function, **arguments):
        return right_mask(mask_function=lambda b, h, q, k: k <= q, **arguments)

    AttentionMaskInterface.register(ATTENTION_NAME, without_window)
    try:
        with pytest.raises(Mismatch, match="differs from the stock attention"):
            choose_layout(tiny_model(family, torch.float32), SEQUENCES, "tree")
    finally:
        AttentionMaskInterface.register(ATTENTION_NAME, right_mask)
    assert choose_layout(tiny_model(family, torch.float32), SEQUENCES, "tree").kind == "tree"


def test_a_layer_that_does_not_take_part_is_caught():
    model = tiny_model("llama", torch.float32)
    layer = model.model.layers[1]
    layer.self_attn.forward = lambda hidden_states, **_: (hidden_states, None)
    with pytest.raises(Mismatch, match="1 of 2 layers"):
        choose_layout(model, SEQUENCES, "tree")


@pytest.mark.parametrize("arguments", [{"mystery": 1}, {"position_bias": torch.zeros(1)}, {"dropout": 0.1}], ids=str)
def test_an_unsupported_argument_is_rejected(arguments):
    q = torch.zeros(1, 2, 3, 4)
    bias = torch.full((3, 3), float("-inf")).triu(1)
    mask = LayerMask((RowChunk(0, 3, torch.arange(3), bias),), TREE)
    with pytest.raises(TypeError, match=next(iter(arguments))):
        tree_attention(torch.nn.Identity(), q, q, q, mask, **arguments)
    output, _ = tree_attention(torch.nn.Identity(), q, q, q, mask, mystery=None, sliding_window=5, use_cache=False)
    assert output.shape == (1, 3, 2, 4)


# ---- side effects ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batching", ["auto", "tree", "padded"])
@pytest.mark.parametrize(
    "make", [functools.partial(tiny_model, "gemma3"), gemma2, bloom, mamba], ids=["gemma3", "gemma2", "bloom", "mamba"]
)
def test_choosing_a_layout_preserves_attention_random_state_and_weights(make, batching):
    model = make()
    stock, weights = model.config._attn_implementation, {n: t.clone() for n, t in model.state_dict().items()}
    inside = [m.config._attn_implementation for m in model.modules() if isinstance(m, transformers.PreTrainedModel)]
    random = torch.get_rng_state()
    try:
        choose_layout(model, SEQUENCES, batching)
    except Mismatch:
        assert batching == "tree"
    assert model.config._attn_implementation == stock != ATTENTION_NAME
    after = [m.config._attn_implementation for m in model.modules() if isinstance(m, transformers.PreTrainedModel)]
    assert after == inside
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(t, weights[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_choosing_a_layout_preserves_everything_if_a_check_fails_midway(monkeypatch):
    model = tiny_model("llama")
    random = torch.get_rng_state()

    def broken(*_, **__):
        raise RuntimeError("broken\nwith a second line")

    monkeypatch.setattr("loratory.tree.attention.attend", broken)
    layout = choose_layout(model, SEQUENCES, "auto")
    assert layout.reason == "token trees are not exact for LlamaForCausalLM (broken)"
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_prepared_restores_the_attention_even_after_an_error(family):
    model = tiny_model(family)
    ids = torch.arange(9)[None]
    before = model(input_ids=ids).logits
    random = torch.get_rng_state()
    with prepared(model, TREE):
        assert model.config._attn_implementation == ATTENTION_NAME
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(KeyError), prepared(model, TREE):
        raise KeyError
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.parametrize("kind", ["padded", "one-by-one"])
def test_other_layouts_keep_the_stock_attention(kind):
    model = tiny_model("llama")
    with prepared(model, Layout(kind, "test")):
        assert model.config._attn_implementation == "sdpa"


def test_a_single_sequence_without_neighbors_can_be_checked():
    assert choose_layout(tiny_model("llama"), SEQUENCES[:1], "auto").kind == "tree"
    assert choose_layout(tiny_model("llama"), SHORT, "auto").kind == "tree"
