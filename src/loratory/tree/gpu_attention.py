"""Tree attention on a GPU: FlexAttention with the composed mask, or packed FlashAttention if nothing is shared.

T: tokens in the layout.  S: query rows.  H, K: query heads and key/value heads.
D, E: head dimension of the keys and of the values.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.attention.varlen import varlen_attn
from transformers.masking_utils import causal_mask_function

SMALLEST_BUCKET = 512
MOST_KERNELS = 256  # compiled variants of one function: lengths, layer types, with and without gradients
STEPS_PER_DOUBLING = 4  # padding adds at most a quarter; a budget of 4,096 tokens leads to 13 different lengths


@dataclass(frozen=True)
class FlexPlan:
    """How the layers of one type attend over a tree."""

    rule: Callable[..., Tensor]
    rows: int
    keys: int
    device: torch.device
    starts: Int32[Tensor, "sequences_and_one"] | None
    """The start of each sequence and the end of the last, if the tree is a plain packing under a causal rule."""

    @cached_property
    def blocks(self) -> BlockMask:
        """The rule as a block mask; computed once for all layers of the type."""
        return create_block_mask(self.rule, None, None, self.rows, self.keys, self.device)

    def attend(
        self,
        query: Float[Tensor, "1 H S D"],
        key: Float[Tensor, "1 K T D"],
        value: Float[Tensor, "1 K T E"],
        scaling: float,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Float[Tensor, "1 S H E"]:
        """The attention output. Raises TypeError for attention sinks, which neither kernel supports."""
        if sinks is not None:
            raise TypeError("tree attention on a GPU does not support: s_aux")
        if self.starts is not None and softcap is None and _can_pack(query, value):
            return self._attend_packed(query, key, value, scaling)

        cap = softcap or 1.0
        capped = lambda score, *_: cap * torch.tanh(score / cap)  # noqa: E731 - the kernel counts its arguments
        with torch._dynamo.config.patch(recompile_limit=MOST_KERNELS):
            out = _kernel(query.is_cuda)(
                query,
                key,
                value,
                score_mod=None if softcap is None else capped,
                block_mask=self.blocks,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        return out.transpose(1, 2).contiguous()

    def _attend_packed(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """FlashAttention over sequences that are packed one after another."""
        assert self.starts is not None
        groups = query.shape[1] // key.shape[1]
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
        longest = int(torch.diff(self.starts).max())
        arguments = (self.starts, self.starts, longest, longest)
        return varlen_attn(q, k, v, *arguments, scale=scaling, window_size=(-1, 0))[None]  # type: ignore[index]


def _can_pack(query: Tensor, value: Tensor) -> bool:
    """Whether the requirements of FlashAttention are met."""
    half = value.dtype in (torch.bfloat16, torch.float16)
    width = query.shape[-1]
    fits = width == value.shape[-1] and width % 8 == 0 and width <= 256
    return half and fits and query.is_cuda and torch.cuda.get_device_capability(query.device)[0] >= 8


def flex_plan(
    end_T: Int64[Tensor, "T"],
    depth_T: Int64[Tensor, "T"],
    prefix: int,
    mask_function: Callable[..., Tensor],
    bidirectional: bool = False,
) -> FlexPlan:
    """The plan of one layer type. The first ``prefix`` of the T keys have no query rows: they were computed earlier."""
    rule = composed_rule(end_T, depth_T, prefix, mask_function, bidirectional)
    starts = None
    if not prefix and mask_function is causal_mask_function and is_packing(depth_T):
        bounds = [(depth_T == 0).nonzero()[:, 0], depth_T.new_tensor([len(depth_T)])]
        starts = torch.cat(bounds).to(torch.int32)
    return FlexPlan(rule, len(end_T) - prefix, len(end_T), end_T.device, starts)


def is_packing(depth_T: Int64[Tensor, "T"]) -> bool:
    """Whether nothing branches: every token starts a sequence or continues the token before it."""
    return bool(((depth_T[1:] == 0) | (torch.diff(depth_T) == 1)).all())


def composed_rule(
    end_T: Tensor, depth_T: Tensor, prefix: int, mask_function: Callable[..., Tensor], bidirectional: bool = False
) -> Callable[..., Tensor]:
    """A ``mask_mod`` for FlexAttention: the row descends from the key, and the model's own rule allows their depths.

    ``bidirectional``: row and key must belong to the same sequence, instead of the first condition.
    """
    if bidirectional:
        return lambda batch, head, row, k: (
            (end_T[row] == end_T[k]) & mask_function(batch, head, depth_T[row], depth_T[k])
        )
    return lambda batch, head, row, k: (
        (k <= row + prefix) & (row + prefix < end_T[k]) & mask_function(batch, head, depth_T[row + prefix], depth_T[k])
    )


def bucket(size: int) -> int:
    """The length to which a batch of ``size`` tokens is padded, so that kernels are compiled for few lengths."""
    if size <= SMALLEST_BUCKET:
        return SMALLEST_BUCKET
    step = 2 ** (size - 1).bit_length() // 2 // STEPS_PER_DOUBLING
    return -(-size // step) * step


@cache
def _kernel(compiled: bool) -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=False) if compiled else flex_attention
