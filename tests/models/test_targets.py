"""Which modules get LoRA: the language model's linear layers, without its head, experts, routers and other parts."""

import json

import pytest
import torch
import transformers
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from tiny import byte_tokenizer, write_model

from loratory.errors import UserError
from loratory.machine.device import Machine
from loratory.models import LoadedModel, LoadedTokenizer, attach_adapter, detach_adapter, load_model, module_targets
from loratory.settings import AdapterConfig, ModelConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning", "error::RuntimeWarning")
MACHINE = Machine(torch.device("cpu"), torch.float64, 1, "test")
SMALL = {
    "vocab_size": 272, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": None, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
DEEPSEEK = {
    **SMALL, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 8, "q_lora_rank": 8,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
}  # fmt: skip
MIXTURES = {
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**SMALL, **MIXTURE, head_dim=8),
    "qwen3_moe, dense first": lambda: transformers.Qwen3MoeConfig(**SMALL, **MIXTURE, head_dim=8, mlp_only_layers=[0]),
    "qwen2_moe": lambda: transformers.Qwen2MoeConfig(**SMALL, **MIXTURE, shared_expert_intermediate_size=16),
    "mixtral": lambda: transformers.MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2),
    "olmoe": lambda: transformers.OlmoeConfig(**SMALL, num_experts=4, num_experts_per_tok=2),
    "gpt_oss": lambda: transformers.GptOssConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2, head_dim=8),
    "granitemoe": lambda: transformers.GraniteMoeConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(**DEEPSEEK),
    "phimoe": lambda: transformers.PhimoeConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2),
}


def small_base(config: transformers.PretrainedConfig) -> LoadedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
    return LoadedModel(model, LoadedTokenizer(byte_tokenizer(), (2,), False, 128), "tiny", None, {})


def adapted(model: torch.nn.Module) -> set[str]:
    return {name.removeprefix("base_model.model.") for name, m in model.named_modules() if isinstance(m, LoraLayer)}


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("qwen3_moe", {"dropout": 0.1, "dora": True}),
        *(pytest.param(family, {}, marks=pytest.mark.thorough) for family in MIXTURES),
        pytest.param("qwen3_moe", {"dora": True}, marks=pytest.mark.thorough),
        pytest.param("mixtral", {"dropout": 0.1}, marks=pytest.mark.thorough),
    ],
    ids=str,
)
def test_experts_and_routers_get_no_lora(family, settings, tmp_path):
    base = small_base(MIXTURES[family]())
    frozen = {name for name, _ in base.model.named_modules()}
    model = attach_adapter(base, AdapterConfig(rank=2, alpha=4, **settings), 0)
    names = adapted(model)
    assert {name.rpartition(".")[2] for name in names} >= {"o_proj"}
    assert not any("expert" in n or "router" in n or ".gate." in f"{n}." for n in names), names
    assert names < frozen
    model.train()(input_ids=torch.arange(12)[None], labels=torch.arange(12)[None]).loss.backward()
    gradients = [p.grad for n, p in model.named_parameters() if "lora_B" in n]
    assert all(g is not None and g.abs().sum() > 0 for g in gradients)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["target_parameters"] is None and not written["rank_pattern"]
    model.eval()
    fresh = small_base(MIXTURES[family]()).model
    ids = torch.arange(3, 15)[None]
    logits = model(input_ids=ids).logits
    assert torch.equal(PeftModel.from_pretrained(fresh, str(tmp_path)).eval()(input_ids=ids).logits, logits)


def test_a_name_that_peft_takes_for_experts_is_refused():
    base = small_base(MIXTURES["qwen3_moe, dense first"]())
    with pytest.raises(UserError, match="PEFT takes this name for experts"):
        module_targets(base.model, AdapterConfig(targets=("gate_proj",)))
    with pytest.raises(UserError, match="no such module"):
        module_targets(base.model, AdapterConfig(targets=("gate",)))


# ---- models that also take images ------------------------------------------------------------------------------------


def gemma3_vision() -> transformers.PretrainedConfig:
    text = {**SMALL, "head_dim": 8, "sliding_window": 16}
    return transformers.Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4)


def test_only_the_language_model_gets_lora_and_peft_loads_it_into_the_same_class(tmp_path):
    folder = write_model(tmp_path / "base", gemma3_vision())
    base = load_model(ModelConfig(str(folder)), MACHINE)
    assert type(base.model).__name__ == "Gemma3ForConditionalGeneration"
    model = attach_adapter(base, AdapterConfig(rank=2, alpha=4), 0)
    names = adapted(model)
    assert len(names) == 14 and all(name.startswith("model.language_model.layers.") for name in names)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    ids = torch.arange(3, 23)[None]
    logits = model.eval()(input_ids=ids).logits
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    plain = transformers.Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float64)
    again = PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
    assert adapted(again) == names
    torch.testing.assert_close(again(input_ids=ids).logits, logits, rtol=1e-9, atol=1e-9)
    before = detach_adapter(model)
    assert not adapted(before) and not torch.allclose(before(input_ids=ids).logits, logits)


@pytest.mark.parametrize(
    ("settings", "count"), [({"targets": ("q_proj", "v_proj")}, 4), ({"layers": (1,)}, 7), ({"layers": (0, 1)}, 14)]
)
def test_named_targets_and_layers_are_those_of_the_language_model(settings, count):
    model = attach_adapter(small_base(gemma3_vision()), AdapterConfig(rank=2, alpha=4, **settings), 0)
    assert len(adapted(model)) == count
    assert all(name.startswith("model.language_model.") for name in adapted(model))


@pytest.mark.parametrize("layers", ["all", (1,)])
def test_a_plain_model_has_short_names(layers):
    base = small_base(transformers.LlamaConfig(**SMALL))
    model = attach_adapter(base, AdapterConfig(rank=2, alpha=4, layers=layers), 0)
    settings = model.peft_config["default"]
    assert sorted(settings.target_modules) == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    assert settings.exclude_modules is None
    assert len(adapted(model)) == (14 if layers == "all" else 7)
