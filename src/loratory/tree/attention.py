"""Tree attention and its masks, registered with Transformers as an attention implementation.

T: tokens in the layout.  P: tokens of a prefix computed earlier.  N: targets.  U: rows that at least one target needs.
S: query rows.  R: rows of a chunk.  L: live keys of a chunk.  H, K: query heads and key/value heads.
D, E: head dimension of the keys and of the values.  X: width of the hidden states.
"""

import contextvars
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from loratory.tree.batches import Batch
from loratory.tree.cpu_attention import RowChunk, attend, cut_rows
from loratory.tree.gpu_attention import FlexPlan, flex_plan
from loratory.tree.layout import Layout

ATTENTION_NAME = "loratory_tree"
# Arguments that layers pass to the attention function and that have no effect here: the mask already covers windows.
HARMLESS = {"sliding_window", "position_ids", "cache_position", "use_cache", "is_causal"}


@dataclass(frozen=True)
class LayerMask:
    """The ``attention_mask`` that the layers of one type receive."""

    chunks: tuple[RowChunk, ...]
    layout: Layout
    seen_layers: list[int] = field(default_factory=list)
    """``id()`` of each attention module that called tree attention in this forward pass; read by the checks."""
    flex: FlexPlan | None = None
    """Replaces the chunks on a GPU."""
    target_rows: "LayerMask | None" = None
    """The same mask restricted to the rows that targets need, for the last layer."""


@dataclass(frozen=True)
class TreeCall:
    """The batch of the current forward pass; only the mask function reads it, before the first layer."""

    batch: Batch
    rows_U: Tensor | None
    prefix: int
    layout: Layout
    seen_layers: list[int]


_CALL: contextvars.ContextVar[TreeCall] = contextvars.ContextVar("loratory_tree_call")


def tree_mask(batch_size: int, mask_function: Callable[..., Tensor], **_: Any) -> LayerMask:
    """The mask of one layer type: the ancestor rule combined with the model's own rule, evaluated on depths.

    Registered with Transformers, which calls it once per layer type with that type's ``mask_function`` (causal,
    sliding window, chunked). Distances in that rule are differences in depth.
    """
    call = _CALL.get()
    assert batch_size == 1, "a token tree is one row"
    # The keys are the prefix, from which every row descends, followed by the tree.
    end_T, depth_T, p = call.batch.subtree_end_T, call.batch.position_ids_T, call.prefix
    before = torch.arange(p, device=end_T.device)
    end = torch.cat([torch.full_like(before, len(end_T) + p), end_T + p])
    depth = torch.cat([before, depth_T])
    cuts = cut_rows(depth_T.cpu().numpy())
    target_rows = None
    if call.rows_U is not None:
        within = torch.searchsorted(torch.tensor(cuts[1:], device=end.device), call.rows_U, right=True)
        groups = [call.rows_U[within == i] + p for i in within.unique().tolist()]
        target_rows = LayerMask(_chunks(groups, end, depth, mask_function), call.layout, call.seen_layers)
    if end_T.is_cuda:
        plan = flex_plan(end, depth, p, mask_function, call.layout.masked)
        return LayerMask((), call.layout, call.seen_layers, flex=plan, target_rows=target_rows)
    spans = [torch.arange(a, b, device=end_T.device) + p for a, b in itertools.pairwise(cuts)]
    chunks = _chunks(spans, end, depth, mask_function, call.layout.masked)
    return LayerMask(chunks, call.layout, call.seen_layers, target_rows=target_rows)


def _chunks(
    groups: list[Tensor], end: Tensor, depth: Tensor, mask_function: Callable[..., Tensor], bidirectional: bool = False
) -> tuple[RowChunk, ...]:
    """One chunk per group of rows (ascending); chunk rows are numbered consecutively, in the order of the groups."""
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.int64, device=end.device)
    chunks, start = [], 0
    for rows_R in groups:
        if bidirectional:
            keys_L = (end[: int(end[rows_R[-1]])] > rows_R[0]).nonzero()[:, 0]
            related_RL = end[rows_R][:, None] == end[keys_L]
        else:
            keys_L = (end[: int(rows_R[-1]) + 1] > rows_R[0]).nonzero()[:, 0]
            related_RL = (keys_L <= rows_R[:, None]) & (rows_R[:, None] < end[keys_L])
        model_rule_RL = mask_function(zero, zero, depth[rows_R][None, None, :, None], depth[keys_L][None, None, None])
        allowed_RL = related_RL & model_rule_RL[0, 0]
        live_L = allowed_RL.any(0)  # a sliding window excludes many ancestors
        bias_RL = torch.zeros(allowed_RL.shape, device=end.device).masked_fill(~allowed_RL, float("-inf"))
        chunks.append(RowChunk(start, start + len(rows_R), keys_L[live_L], bias_RL[:, live_L]))
        start += len(rows_R)
    return tuple(chunks)


@torch.compiler.disable  # otherwise compiled layers would be recompiled for every tree
def tree_attention(
    module: nn.Module,
    query: Float[Tensor, "1 H S D"],
    key: Float[Tensor, "1 K T D"],
    value: Float[Tensor, "1 K T E"],
    attention_mask: LayerMask,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **rest: Any,
) -> tuple[Float[Tensor, "1 S H E"], None]:
    """Attention over a token tree: each chunk of rows attends to its live keys.

    ``softcap``: logits become softcap * tanh(logits / softcap). ``s_aux``: one extra logit per head that takes part in
    the softmax but carries no value (attention sink). Raises TypeError for any other argument, unless it is known to
    have no effect.
    """
    unknown = sorted(k for k, v in rest.items() if k not in HARMLESS and v is not None and v is not False)
    if unknown or dropout:
        raise TypeError(f"tree attention does not support: {', '.join(unknown) or 'dropout'}")
    mask = attention_mask
    mask.seen_layers.append(id(module))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast, rotary embeddings widen them
    if mask.flex is not None:
        return mask.flex.attend(query, key, value, scale, softcap, s_aux), None
    if softcap is None and s_aux is None and mask.layout.custom_backward:
        return attend(query, key, value, mask.chunks, scale, mask.layout.compiled), None
    parts = []
    for chunk in mask.chunks:
        q = query[:, :, chunk.start : chunk.end]
        k, v = key.index_select(2, chunk.keys_L), value.index_select(2, chunk.keys_L)
        if softcap is None and s_aux is None:
            bias = chunk.bias_RL[None, None].to(q.dtype)
            part = scaled_dot_product_attention(q, k, v, bias, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
        else:
            part = _explicit_attention(q, k, v, chunk.bias_RL, scale, softcap, s_aux)
        parts.append(part)
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _explicit_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_RL: Tensor,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = q @ k.transpose(2, 3) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) + bias_RL
    if sinks is not None:
        column = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(1, -1, scores.shape[2], 1)
        scores = torch.cat([scores, column], dim=-1)
    weights = scores.softmax(dim=-1)[..., : k.shape[2]]
    return weights.to(v.dtype) @ v


AttentionInterface.register(ATTENTION_NAME, tree_attention)


AttentionMaskInterface.register(ATTENTION_NAME, tree_mask)  # type: ignore[arg-type]
