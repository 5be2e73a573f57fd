"""Each speed setting gives the same results as the slow path, and is used only if it pays off."""

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import CONFIGS, RELATIVE, sequence, tiny_model
from test_loss import one_by_one
from test_train import EXAMPLES

from loratory.machine import device as machine
from loratory.machine.device import Machine
from loratory.settings import SpeedConfig, TrainConfig
from loratory.training import speed
from loratory.training.speed import layer_features, resolve_speed, training_bytes
from loratory.tree.batches import micro_batches
from loratory.tree.forward import decoder_layers, prepared_for_training
from loratory.tree.layout import Layout
from loratory.tree.loss import batch_loss
from loratory.tree.verification import choose_layout

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
SEQUENCES = [
    sequence([1, 2, 3, 4, 5, 6, 7, 8, *tail], 2) for tail in ([9, 10, 11], [9, 20, 21], [30, 31], [40, 41, 42])
]
CPU = Machine(torch.device("cpu"), torch.float32, 1, "test")


def gradients(model, layout: Layout, token_budget: int = 1000) -> tuple[float, dict[str, torch.Tensor]]:
    loss = 0.0
    with prepared_for_training(model, layout):
        for batch in micro_batches(SEQUENCES, token_budget, layout.share):
            part = batch_loss(model, batch, layout).total
            part.backward()
            loss += part.item()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return loss, grads


def assert_same(actual, expected, relative: float) -> None:
    assert actual[0] == pytest.approx(expected[0], rel=relative)
    largest = max(g.abs().max().item() for g in expected[1].values())
    for name, gradient in expected[1].items():
        assert (actual[1][name] - gradient).abs().max() <= relative * largest, name


# ---- on and off agree ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("switch", ["attention", "head", "skip_rows"])
@pytest.mark.parametrize("family", CONFIGS)
def test_each_switch_changes_nothing_but_rounding(family, switch):
    model = tiny_model(family)
    on = choose_layout(model, SEQUENCES, "tree")
    off = choose_layout(model, SEQUENCES, "tree", SpeedConfig(**{switch: "off"}))
    assert (on != off) or (switch == "skip_rows" and family == "gpt2")
    exact = one_by_one(model, SEQUENCES)
    for layout in (on, off):
        assert_same(gradients(model, layout), exact, 1e-10 if family == "gpt2" else RELATIVE)


@pytest.mark.parametrize("family", CONFIGS)
def test_gradient_checkpointing_gives_bitwise_the_same_gradients(family):
    model = tiny_model(family, torch.float32)
    layout = dataclasses.replace(choose_layout(model, SEQUENCES, "tree"), skips_rows=False)
    once = gradients(model, layout)
    calls = []
    handle = decoder_layers(model)[0].register_forward_hook(lambda *_: calls.append(1))
    inner = [
        m for m in decoder_layers(model)[0].modules() if isinstance(m, torch.nn.LayerNorm) or "Norm" in type(m).__name__
    ]
    seen = []
    handles = [handle, inner[0].register_forward_hook(lambda *_: seen.append(1))]
    twice = gradients(model, dataclasses.replace(layout, gradient_checkpointing=True))
    for handle in handles:
        handle.remove()
    assert len(seen) == 2
    assert_same(twice, once, 0.0)
    assert not any(layer.training for layer in decoder_layers(model))
    assert not model.get_input_embeddings()._forward_hooks
    assert not model.is_activation_checkpointing
    assert_same(gradients(model, layout), once, 0.0)


def test_gradient_checkpointing_works_with_row_skipping_in_the_last_layer():
    model = tiny_model("llama")
    layout = choose_layout(model, SEQUENCES, "tree")
    assert layout.skips_rows
    both = gradients(model, dataclasses.replace(layout, gradient_checkpointing=True))
    assert_same(both, one_by_one(model, SEQUENCES), RELATIVE)


def test_rows_without_targets_skip_the_mlp_of_the_last_layer():
    model = tiny_model("llama")
    rows = []
    for layer in decoder_layers(model):
        layer.mlp.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[1]))
    batch = micro_batches([sequence([1, 2, 3, 4, 5, i, 0], 1) for i in range(6, 9)], 1000, share=True)[0]
    layout = choose_layout(model, SEQUENCES, "tree")
    rows.clear()
    with prepared_for_training(model, layout):
        batch_loss(model, batch, layout)
    assert rows == [8, 3]


def test_bfloat16_products_keep_weights_and_gradients_in_float32_and_are_close():
    model = tiny_model("llama", torch.float32)
    layout = choose_layout(model, SEQUENCES, "tree")
    exact = gradients(model, layout)
    low = gradients(model, dataclasses.replace(layout, autocast_dtype=torch.bfloat16))
    assert all(g.dtype == torch.float32 for g in low[1].values())
    assert low[0] == pytest.approx(exact[0], rel=0.03)
    assert low[0] != exact[0]
    distance = sum((low[1][n] - g).square().sum().item() for n, g in exact[1].items()) ** 0.5
    assert distance < 0.1 * sum(g.square().sum().item() for g in exact[1].values()) ** 0.5


SCRIPT = """
import dataclasses, json
import numpy as np, torch, transformers
from loratory.models import attach_adapter
from loratory.settings import AdapterConfig, TrainConfig
from loratory.models import LoadedModel, LoadedTokenizer
from loratory.training.optimizer import make_optimizer
from loratory.text.rendering import TokenizedExample
from loratory.training.loop import train
from loratory.tree.verification import choose_layout

def sequence(ids, trained):
    weights = np.array([0.0] * (len(ids) - trained) + [1.0] * trained, dtype=np.float32)
    return TokenizedExample(np.array(ids), weights, "", np.zeros((len(ids), 2), dtype=np.int64), "")

def model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_attention_heads=4,
        num_key_value_heads=2, num_hidden_layers=5, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    base = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in sorted(base.named_parameters()):
            if "norm" not in name:
                parameter.normal_(0, 0.15)
    text = LoadedTokenizer(None, (), False, 64)
    return attach_adapter(LoadedModel(base, text, "tiny", None, {}), AdapterConfig(rank=2), 0)

draw = np.random.default_rng(0)
prefix = draw.integers(0, 64, 12).tolist()
examples = [[sequence(prefix + draw.integers(0, 64, n).tolist(), 3)] for n in (9, 30, 17, 5, 21, 40, 11, 26, 7, 33)]
config = TrainConfig(epochs=2, batch_size=2)
results = []
for compiled in (False, True):
    one = model()
    layout = choose_layout(one.get_base_model(), [s for e in examples for s in e], "tree")
    layout = dataclasses.replace(layout, compiled=compiled)
    steps = train(one, examples, make_optimizer(one, config), config, 1e-3, layout)
    results.append([(r.loss, r.grad_norm) for r in steps])
print(json.dumps([results, torch._dynamo.utils.counters["stats"]["unique_graphs"]]))
"""


@pytest.mark.thorough
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_layers_agree_with_uncompiled_ones_and_are_compiled_once_for_all_lengths():
    """float32; five layers, three of them compiled; ten steps with ten lengths; in a process without type checks."""
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    (plain, compiled), graphs = json.loads(done.stdout.splitlines()[-1])
    assert plain != compiled
    for (loss, norm), (other, other_norm) in zip(plain, compiled, strict=True):
        assert other == pytest.approx(loss, rel=1e-4)
        assert other_norm == pytest.approx(norm, rel=1e-3)
    assert 3 <= graphs <= 16


# ---- resolving the settings ------------------------------------------------------------------------------------------


def resolved(settings: SpeedConfig, **train_settings):
    model, layout = tiny_model("llama", torch.float32), Layout("tree", "test")
    return resolve_speed(settings, TrainConfig(**{"epochs": 3, **train_settings}), False, model, EXAMPLES, layout, CPU)


def test_a_short_training_is_not_compiled_and_a_long_one_is(monkeypatch):
    monkeypatch.setattr(speed, "compile_problem", lambda device: None)
    assert resolved(SpeedConfig()) == (SpeedConfig(compile="off", checkpointing="off"), [])
    monkeypatch.setattr(speed, "matmul_flops", lambda device, dtype: 1e3)
    result, sentences = resolved(SpeedConfig())
    assert result.compile == "on"
    assert "compiled first" in sentences[0]


def test_without_a_compiler_a_long_training_runs_uncompiled_with_a_message(monkeypatch):
    monkeypatch.setattr(speed, "compile_problem", lambda device: "No working C++ compiler found")
    monkeypatch.setattr(speed, "matmul_flops", lambda device, dtype: 1e3)
    result, [sentence] = resolved(SpeedConfig())
    assert result.compile == "off"
    assert "No working C++ compiler" in sentence
    result, [sentence] = resolved(SpeedConfig(compile="on"))  # as recorded on another machine
    assert result.compile == "off"
    assert "No working C++ compiler" in sentence


def test_padded_batches_and_mixtures_of_experts_are_not_compiled(monkeypatch):
    monkeypatch.setattr(speed, "compile_problem", lambda device: None)
    monkeypatch.setattr(speed, "matmul_flops", lambda device, dtype: 1e3)
    model, padded = tiny_model("llama", torch.float32), Layout("padded", "test")
    assert resolve_speed(SpeedConfig(), TrainConfig(epochs=3), False, model, EXAMPLES, padded, CPU)[0].compile == "off"
    model.model.layers[0].mlp.experts = torch.nn.Linear(1, 1)
    tree = Layout("tree", "test")
    assert resolve_speed(SpeedConfig(), TrainConfig(epochs=3), False, model, EXAMPLES, tree, CPU)[0].compile == "off"


def test_unsupported_gradient_checkpointing_is_reported(monkeypatch):
    model = tiny_model("llama", torch.float32)
    model.model.layers[0].dropout = 0.1  # applied by the layer itself; the checkpointing flag would enable it
    for settings in (SpeedConfig(checkpointing="on"), SpeedConfig()):
        monkeypatch.setattr(speed, "memory_bytes", lambda device: 1000)
        result, [sentence] = resolve_speed(
            settings, TrainConfig(epochs=3), False, model, EXAMPLES, Layout("tree", "test"), CPU
        )
        assert result.checkpointing == "off"
        assert "does not support gradient checkpointing" in sentence


def test_resumed_full_fine_tuning_keeps_its_number_format_of_products(monkeypatch):
    monkeypatch.setattr(machine, "_probe_dtype", lambda device: (torch.bfloat16, "bfloat16, because it is fast"))
    first = machine.resolve_machine("cpu", "auto", 0, "auto")
    assert (first.dtype, first.autocast_dtype, first.matmul_dtype) == (torch.float32, torch.bfloat16, torch.bfloat16)
    model = tiny_model("llama", torch.float32)
    settings, _ = resolve_speed(
        SpeedConfig(), TrainConfig(epochs=3), True, model, EXAMPLES, Layout("tree", "test"), first
    )
    assert settings.products == "bfloat16"
    monkeypatch.setattr(machine, "_probe_dtype", lambda device: (torch.float32, "another machine"))
    resumed = machine.resolve_machine("cpu", first.dtype_name, 0, settings.products)
    assert (resumed.dtype, resumed.autocast_dtype) == (first.dtype, first.autocast_dtype)
    assert machine.resolve_machine("cpu", "float32", 0, "auto").autocast_dtype is None, "float32 is set explicitly"
    assert machine.resolve_machine("cpu", "float32", 0).autocast_dtype is None


def test_the_compile_probe_reports_the_problem(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch, "compile", lambda function: 1 / 0)
    assert "division" in str(speed.compile_problem.__wrapped__("cpu"))


def test_low_memory_turns_on_gradient_checkpointing(monkeypatch):
    monkeypatch.setattr(speed, "memory_bytes", lambda device: 1000)
    result, sentences = resolved(SpeedConfig())
    assert result.checkpointing == "on"
    assert "computed twice" in sentences[0]
    assert resolved(SpeedConfig(checkpointing="off"))[0].checkpointing == "off"
    monkeypatch.setattr(speed, "memory_bytes", lambda device: 0)  # unknown
    assert resolved(SpeedConfig())[0].checkpointing == "off"


def test_estimates_match_a_manual_calculation():
    model = tiny_model("llama", torch.float32)
    layer = 32 * 32 * 2 + 32 * 16 * 2 + 32 * 48 * 3
    widths = 2 * (4 * 32 + 2 * (32 + 16) + 3 * (32 + 48))
    assert layer_features(model) == (2 * layer, widths)
    weights = sum(p.numel() for p in model.parameters()) * 4
    assert training_bytes(model, 10, False, CPU) == pytest.approx(weights + 1.4 * 10 * widths * 4)
    assert training_bytes(model, 10, True, CPU) == pytest.approx(4 * weights + 1.4 * 10 * widths * 4)
