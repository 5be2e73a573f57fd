"""The settings of a pretraining run, and named recipes."""

from dataclasses import dataclass

from transformers import ModernBertConfig, Qwen3Config


@dataclass(frozen=True)
class Settings:
    """Model, documents and schedule. Two runs with equal settings and steps give equal weights."""

    vocabulary: int = 6144
    context: int = 2560
    width: int = 320
    layers: int = 4
    heads: int = 5
    key_heads: int = 5
    inner: int = 896
    plain: float = 0.45
    """Share of documents that are plain text; the others are conversations."""
    optimizer: str = "muon"
    """With "muon", Muon for the matrices of the layers and AdamW for the rest; with "adamw", AdamW for everything."""
    learning_rate: float = 6e-3
    weight_decay: float = 0.1
    warmup_steps: int = 100
    decay: float = 0.25
    """Share of the steps, at the end, over which the learning rate decays to zero; before, it is constant."""
    window: int = 512
    """Tokens per sequence; few documents cross a window boundary. Every ``long_every``-th step reads whole contexts."""
    long_every: int = 16
    step_tokens: int = 8192
    micro_batch_tokens: int = 4096
    max_grad_norm: float = 1.0
    masked: float = 0.0
    """Share of tokens that a masked language model has to predict; 0 for a causal model."""
    seed: int = 0


RECIPES = {
    "tiny": Settings(512, 256, 32, 2, 2, 1, 64, window=64, step_tokens=1024, micro_batch_tokens=512, warmup_steps=4),
    "cpu": Settings(),
    "cpu-masked": Settings(masked=0.3, plain=1.0),
    # The size of "cpu", so that the model is as fast; trained on far more tokens, which also suits larger steps.
    "gpu": Settings(
        vocabulary=8192,
        plain=0.75,
        warmup_steps=200,
        decay=0.5,
        step_tokens=131072,
        micro_batch_tokens=131072,
    ),
}


def causal_config(settings: Settings, pad_id: int, stop_id: int) -> Qwen3Config:
    """Qwen3: it normalizes queries and keys, which keeps attention stable at the high learning rates of short runs."""
    return Qwen3Config(
        vocab_size=settings.vocabulary,
        hidden_size=settings.width,
        intermediate_size=settings.inner,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.key_heads,
        head_dim=settings.width // settings.heads,
        max_position_embeddings=settings.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=stop_id,
        pad_token_id=pad_id,
    )


def masked_config(settings: Settings, pad_id: int) -> ModernBertConfig:
    """ModernBERT with full attention in every layer, because windows are short."""
    return ModernBertConfig(
        vocab_size=settings.vocabulary,
        hidden_size=settings.width,
        intermediate_size=settings.inner,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        layer_types=["full_attention"] * settings.layers,
        max_position_embeddings=settings.context,
        bos_token_id=None,
        eos_token_id=None,
        cls_token_id=None,
        sep_token_id=None,
        pad_token_id=pad_id,
    )


def learning_rate_at(step: int, steps: int, settings: Settings) -> float:
    """Learning rate of optimizer step ``step`` (from 0): linear warm-up, plateau, and linear decay to zero.

    The plateau does not depend on ``steps``, so a run can be extended until the decay begins.
    """
    rise = (step + 1) / (settings.warmup_steps + 1)
    fall = (steps - step) / max(1.0, settings.decay * steps)
    return settings.learning_rate * min(1.0, rise, fall)
