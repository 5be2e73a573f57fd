"""What a pretraining run is: sizes, mix and schedule, by name."""

from dataclasses import dataclass

from transformers import ModernBertConfig, Qwen3Config


@dataclass(frozen=True)
class Settings:
    """Of the model, the documents and the schedule. Two runs with equal settings and steps give equal weights."""

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
    """muon: for the layers' matrices, AdamW for the rest. adamw: for all."""
    learning_rate: float = 6e-3
    weight_decay: float = 0.1
    warmup_steps: int = 100
    decay: float = 0.25
    """Share of the steps, at the end, in which the learning rate falls to zero; before, it stays."""
    window: int = 512
    """Tokens that are read together, and across whose multiples few documents lie; every ``long_every``-th step reads
    whole contexts."""
    long_every: int = 16
    step_tokens: int = 8192
    micro_batch_tokens: int = 4096
    max_grad_norm: float = 1.0
    masked: float = 0.0
    """Share of a window's tokens that a masked language model has to find; 0: a causal one, which predicts the next."""
    seed: int = 0


RECIPES = {
    "tiny": Settings(512, 256, 32, 2, 2, 1, 64, window=64, step_tokens=1024, micro_batch_tokens=512, warmup_steps=4),
    "cpu": Settings(),
    "cpu-masked": Settings(masked=0.3, plain=1.0),
    "gpu": Settings(
        vocabulary=8192,
        width=384,
        layers=6,
        heads=6,
        inner=1024,
        learning_rate=3e-3,
        warmup_steps=500,
        step_tokens=131072,
        micro_batch_tokens=32768,
    ),
}


def causal_config(settings: Settings, pad_id: int, stop_id: int) -> Qwen3Config:
    """Queries and keys are normalized, which keeps attention calm at the high learning rates of short runs."""
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
    """Every layer sees the whole window: it is short."""
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
    """Of optimizer step ``step`` (from 0): a rise, a plateau, and a fall to zero over the last share of the steps.

    The plateau does not depend on ``steps``, so a run that has not begun to fall can be made longer.
    """
    rise = (step + 1) / (settings.warmup_steps + 1)
    fall = (steps - step) / max(1.0, settings.decay * steps)
    return settings.learning_rate * min(1.0, rise, fall)
