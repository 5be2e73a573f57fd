"""The fused LoRA layer computes the same outputs and gradients, and writes the same files, as PEFT."""

import pytest
import torch
import transformers
from conftest import tiny_model
from test_score import tiny_tokenizer
from torch import nn

from loratory.models.adapters import FusedLoraLinear, attach_adapter
from loratory.models.loading import LoadedModel, LoadedTokenizer
from loratory.models.lora_linear import lora_linear
from loratory.settings import AdapterConfig

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def random_tensors(bias: bool = True) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    shapes = [(2, 5, 6), (7, 6), (7,), (3, 6), (7, 3)]
    x, weight, b, low, up = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    return x.requires_grad_(), weight, b if bias else None, low.requires_grad_(), up.requires_grad_()  # type: ignore[return-value]


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradients_match_the_formula(bias, dropout):
    x, weight, b, low, up = random_tensors(bias)
    torch.manual_seed(1)
    output = lora_linear(x, weight, b, low, up, 0.7, dropout)
    torch.manual_seed(1)
    keep = torch.rand_like(x, dtype=torch.float32) >= dropout if dropout else torch.ones_like(x)
    expected = nn.functional.linear(x, weight, b) + 0.7 * (x * keep / (1 - dropout)) @ low.t() @ up.t()
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(output)
    grads = [torch.autograd.grad((y * weights).sum(), (x, low, up)) for y in (output, expected)]
    for actual, reference in zip(*grads, strict=True):
        torch.testing.assert_close(actual, reference, rtol=1e-12, atol=1e-12)


def test_the_parameters_get_gradients_if_the_input_requires_none():
    x, weight, b, low, up = random_tensors()
    out = lora_linear(x.detach(), weight, b, low, up, 1.0)
    out.sum().backward()
    assert low.grad is not None
    assert up.grad is not None


def test_in_low_precision_gradients_are_float32_and_accumulate_in_float32():
    x, weight, _, low, up = (None if t is None else t.detach() for t in random_tensors())
    assert x is not None
    low, up = low.float().requires_grad_(), up.float().requires_grad_()  # type: ignore[union-attr]
    half = x.bfloat16(), weight.bfloat16()  # type: ignore[union-attr]
    for _ in range(3):
        out = lora_linear(*half, None, low, up, 0.5)
        assert out.dtype == torch.bfloat16
        out.float().square().sum().backward()
    assert low.grad.dtype == up.grad.dtype == torch.float32  # type: ignore[union-attr]
    once = torch.autograd.grad(lora_linear(*half, None, low, up, 0.5).float().square().sum(), low)[0]
    torch.testing.assert_close(low.grad, 3 * once, rtol=1e-6, atol=1e-6)


def base_of(family: str, dtype: torch.dtype = torch.float64) -> LoadedModel:
    text = LoadedTokenizer(tiny_tokenizer(), (0,), False, 128)
    model = tiny_model(family, dtype)
    model.name_or_path = "tiny"
    return LoadedModel(model, text, "tiny", None, {})


def randomized(model: nn.Module) -> nn.Module:
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return model


IDS = torch.arange(20)[None]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_a_model_with_fused_layers_has_pefts_logits_and_gradients(family, dropout):
    config = AdapterConfig(rank=3, alpha=5, dropout=dropout)
    fused, plain = (randomized(attach_adapter(base_of(family), config, 0, on)) for on in (True, False))
    assert sum(isinstance(m, FusedLoraLinear) for m in fused.modules()) >= 14
    assert not any(isinstance(m, FusedLoraLinear) for m in plain.modules())
    results = []
    for model in (fused, plain):  # in evaluation mode, dropout is disabled
        logits = model.eval()(IDS).logits
        logits.square().sum().backward()
        results.append((logits, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}))
    (fused_logits, fused_gradients), (logits, gradients) = results
    torch.testing.assert_close(fused_logits, logits, rtol=1e-9, atol=1e-9)
    assert fused_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(fused_gradients[name], gradient, rtol=1e-5, atol=1e-8)


def test_files_are_byte_for_byte_pefts_own(tmp_path):
    for name, fused in (("fused", True), ("plain", False)):
        model = randomized(attach_adapter(base_of("llama"), AdapterConfig(rank=3, alpha=5), 0, fused))
        model.save_pretrained(tmp_path / name, save_embedding_layers=False)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "fused" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()


def test_layers_other_than_plain_linear_layers_are_left_to_peft():
    class CustomLinear(nn.Linear):
        """A subclass, which may compute something else."""

    base = base_of("llama")
    attention = base.model.model.layers[0].self_attn
    attention.q_proj.__class__ = CustomLinear
    model = attach_adapter(base, AdapterConfig(rank=2), 0)
    kinds = {
        n.rpartition("self_attn.")[2]: type(m)
        for n, m in model.named_modules()
        if n.endswith(("0.self_attn.q_proj", "0.self_attn.k_proj"))
    }
    assert kinds["q_proj"] is not FusedLoraLinear
    assert kinds["k_proj"] is FusedLoraLinear


@pytest.mark.parametrize("config", [{"dora": True}, {"rslora": True}])
def test_lora_variants_match_peft(config):
    models = [
        randomized(attach_adapter(base_of("llama"), AdapterConfig(rank=3, **config), 0, on)) for on in (True, False)
    ]
    fused_logits, logits = (m.eval()(IDS).logits for m in models)
    torch.testing.assert_close(fused_logits, logits, rtol=1e-9, atol=1e-9)


def test_merging_and_disabling_use_peft():
    model = randomized(attach_adapter(base_of("llama"), AdapterConfig(rank=3), 0)).eval()
    with torch.no_grad():
        tuned = model(IDS).logits
        with model.disable_adapter():
            base = model(IDS).logits
        merged = model.merge_and_unload()(IDS).logits
    assert isinstance(model.get_base_model(), transformers.PreTrainedModel)
    torch.testing.assert_close(merged, tuned, rtol=1e-5, atol=1e-6)
    assert (tuned - base).abs().max() > 1e-3
