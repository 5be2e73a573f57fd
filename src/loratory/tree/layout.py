"""How a model's batches are computed: as a token tree, packed, padded or one by one."""

from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class Layout:
    """How this model's batches are computed, and why."""

    kind: Literal["tree", "packed", "padded", "one-by-one"]
    """packed: as a tree, for models that see both ways: what is shared is whole sequences."""
    reason: str
    masked: bool = False
    """Whether targets are predicted in their own rows, by a masked language model."""
    first_position: int = 0
    """The position of a sequence's first token."""
    skips_rows: bool = False
    """Rows that no target needs skip the last layer after its keys and values."""
    plain_head: bool = False
    """Logits are the head's linear layer of the last hidden states and nothing more."""
    by_hand: bool = True
    """Attention with the derivative by hand; else PyTorch's own, chunk by chunk."""
    compiled: bool = False
    """What lies between the matrix products is fused by torch.compile; in layers, only while training."""
    checkpoints: bool = False
    """In training a layer keeps its input alone and computes the rest again in the backward."""
    autocast_dtype: torch.dtype | None = None
    """The number format of matrix products in training, where it is not that of the weights."""

    @property
    def share(self) -> bool:
        """Whether a batch is one row of tokens, in which what is the same stands once."""
        return self.kind in ("tree", "packed")

    @property
    def no_cache(self) -> dict[str, bool]:
        """The argument by which a model keeps no keys and values; masked language models have none to keep."""
        return {} if self.masked else {"use_cache": False}
