"""The layout of a model's batches: token tree, packed, padded, or one-by-one."""

from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class Layout:
    """How a model's batches are computed, and why."""

    kind: Literal["tree", "packed", "padded", "one-by-one"]
    """packed: the counterpart of a tree for bidirectional models; only whole sequences are shared."""
    reason: str
    masked: bool = False
    """Whether the model is a masked language model, which predicts each target in its own row."""
    first_position: int = 0
    """The position id of a sequence's first token."""
    skips_rows: bool = False
    """Rows that no target needs skip the last layer, except for its keys and values."""
    plain_head: bool = False
    """The logits are exactly the head's linear layer applied to the last hidden states."""
    custom_backward: bool = True
    """Attention with a hand-written backward pass; otherwise PyTorch's attention, chunk by chunk."""
    compiled: bool = False
    """torch.compile fuses the operations between the matrix products; layers are compiled only for training."""
    gradient_checkpointing: bool = False
    """Gradient checkpointing: in training, layers keep only their input and recompute the rest in the backward pass."""
    autocast_dtype: torch.dtype | None = None
    """The number format of matrix products in training, if it differs from that of the weights."""

    @property
    def share(self) -> bool:
        """Whether a batch is a single row of tokens in which shared tokens are stored once."""
        return self.kind in ("tree", "packed")

    @property
    def no_cache(self) -> dict[str, bool]:
        """The argument that turns off a model's key/value cache; empty for masked language models, which have none."""
        return {} if self.masked else {"use_cache": False}
