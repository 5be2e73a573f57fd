"""Attention over a token tree in chunks of rows: the choice of chunks, and the arithmetic of one layer.

T: tokens in the layout.  S: query rows (all T, or some of them).  R: rows of a chunk.  L: live keys of a chunk.
H, K: query heads and key/value heads.  G: query heads per key/value head, H = K * G.
D, E: head dimension of the keys and of the values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

MOST_ROWS = 512
CUT_ROWS = 128  # long runs without a branch may be cut at multiples of this length
CHUNK_COST = 8192  # fixed cost of a chunk, in scores (row x live key); half and twice this value took equally long
SAVED_KEYS = 640  # chunks with more live keys recompute probabilities in the backward pass, so memory stays linear


@dataclass(frozen=True)
class RowChunk:
    """Rows [start, end) and the keys that at least one of them may attend to."""

    start: int
    end: int
    keys_L: Int64[Tensor, "L"]
    bias_RL: Float32[Tensor, "R L"]
    """0 if the row may attend to the key, else minus infinity; adding it is three times as fast as ``masked_fill``."""


def cut_rows(depth_T: Int64[np.ndarray, "T"], most_rows: int = MOST_ROWS) -> list[int]:
    """The cheapest cut of a tree in depth-first layout: the start of each chunk, and the length of the tree.

    Rows [a, b) have depth_T[a] live keys before a, plus their own, so they cost (b - a) * (depth_T[a] + b - a) scores,
    masked ones included, plus CHUNK_COST. Possible cuts are the starts of branches and every CUT_ROWS tokens of a run.
    Chunks have at most ``most_rows`` rows if the possible cuts allow it.
    """
    size = len(depth_T)
    branch = np.flatnonzero(np.diff(depth_T, prepend=-2) != 1)  # rows that do not continue the preceding row
    length = np.diff(branch, append=size)
    cuts = [np.arange(a, a + n, CUT_ROWS) for a, n in zip(branch, length, strict=True)]
    points = np.concatenate([*cuts, [size]]) if size else np.zeros(1, dtype=np.int64)
    best = np.zeros(len(points))
    predecessor = np.zeros(len(points), dtype=np.int64)
    for j in range(1, len(points)):
        first = min(int(np.searchsorted(points, points[j] - most_rows)), j - 1)
        rows = points[j] - points[first:j]
        cost = best[first:j] + CHUNK_COST + rows * (depth_T[points[first:j]] + rows)
        predecessor[j] = first + int(cost.argmin())
        best[j] = cost.min()
    chosen = [len(points) - 1]
    while chosen[-1] > 0:
        chosen.append(int(predecessor[chosen[-1]]))
    return points[chosen[::-1]].tolist()


def attend(
    query: Float[Tensor, "1 H S D"],
    key: Float[Tensor, "1 K T D"],
    value: Float[Tensor, "1 K T E"],
    chunks: Sequence[RowChunk],
    scaling: float,
    compiled: bool = False,
) -> Float[Tensor, "1 S H E"]:
    """softmax(scaling * query key^T) value over each chunk's allowed keys; ``compiled``: fuse the elementwise parts.

    Scores and softmax are computed in float32 or wider, products with probabilities in the number format of the values.
    Gradients of keys and values, which many rows share, are summed in float32 or wider.
    """
    return _Attention.apply(query, key, value, chunks, scaling, compiled)  # type: ignore[no-any-return]


class _Attention(torch.autograd.Function):
    """Attention with a hand-written backward pass: PyTorch's fused one is several times slower than bfloat16 matmul."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, chunks, scaling: float, compiled: bool):
        q, k, v = _by_key_head(query, key.shape[1]), key[0], value[0]
        out = q.new_empty(*q.shape[:3], v.shape[2])
        needs_gradient = any(ctx.needs_input_grad)
        saved = []
        for chunk in chunks:
            probabilities = _probabilities(q, k, chunk, scaling, compiled)
            product = torch.bmm(probabilities, v.index_select(1, chunk.keys_L))
            out[:, chunk.start : chunk.end] = product.view(len(out), -1, *out.shape[2:])
            if needs_gradient and len(chunk.keys_L) <= SAVED_KEYS:
                saved.append(probabilities)
        ctx.chunks, ctx.scaling, ctx.compiled = chunks, scaling, compiled
        if needs_gradient:
            ctx.save_for_backward(q, k, v, out, *saved)
        return out.permute(1, 0, 2, 3).reshape(1, out.shape[1], query.shape[1], out.shape[3])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor):
        q, k, v, out, *saved = ctx.saved_tensors
        wide = torch.promote_types(k.dtype, torch.float32)
        d_out = _by_key_head(grad_out.transpose(1, 2), len(k))
        sums = (d_out * out).sum(-1, keepdim=True, dtype=wide)
        d_q = torch.empty_like(q)
        d_k, d_v = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in (k, v))
        for chunk in ctx.chunks:
            if len(chunk.keys_L) <= SAVED_KEYS:
                probabilities = saved.pop(0)
            else:
                probabilities = _probabilities(q, k, chunk, ctx.scaling, ctx.compiled)
            span = slice(chunk.start, chunk.end)
            rows = d_out[:, span].flatten(1, 2)
            d_probabilities = torch.bmm(rows, v.index_select(1, chunk.keys_L).transpose(1, 2))
            d_scores = _fused(_score_gradient, ctx.compiled)(
                probabilities, d_probabilities, sums[:, span].flatten(1, 2), ctx.scaling
            )
            product = torch.bmm(d_scores, k.index_select(1, chunk.keys_L))
            d_q[:, span] = product.view(len(q), -1, *q.shape[2:])
            d_k.index_add_(1, chunk.keys_L, torch.bmm(d_scores.transpose(1, 2), q[:, span].flatten(1, 2)).to(wide))
            d_v.index_add_(1, chunk.keys_L, torch.bmm(probabilities.transpose(1, 2), rows).to(wide))
        d_query = d_q.transpose(1, 2).flatten(0, 1)[None]
        return d_query, d_k[None].to(k.dtype), d_v[None].to(v.dtype), None, None, None


def _by_key_head(rows: Float[Tensor, "1 H S D"], key_heads: int) -> Float[Tensor, "K S G D"]:
    """Copies the rows so that each row's query heads of one key head are adjacent: a chunk of rows is one matrix."""
    return rows[0].unflatten(0, (key_heads, -1)).transpose(1, 2).contiguous()


@cache
def _fused(function: Callable[..., Tensor], compiled: bool) -> Callable[..., Tensor]:
    return torch.compile(function, dynamic=True) if compiled else function


def _probabilities(
    q: Float[Tensor, "K S G D"], k: Float[Tensor, "K T D"], chunk: RowChunk, scaling: float, compiled: bool
) -> Float[Tensor, "K RG L"]:
    """The softmax of a chunk's scores, in the number format of the query.

    Scores must not be rounded to bfloat16, in which a score of 100 is off by up to 0.25. A bfloat16 product plus a
    second one for its rounding error give 16 bits in less than half the time of a float32 product.
    """
    rows = q[:, chunk.start : chunk.end].flatten(1, 2)
    keys = k.index_select(1, chunk.keys_L).transpose(1, 2)
    if q.dtype == torch.bfloat16:
        rounded = torch.bmm(rows, keys)
        residual = torch.baddbmm(rounded, rows, keys, beta=-1)
        return _fused(_softmax_of_two, compiled)(rounded, residual, chunk.bias_RL, scaling)
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = torch.bmm(rows.to(wide), keys.to(wide))
    return _fused(_softmax, compiled)(scores, chunk.bias_RL, scaling).to(q.dtype)


def _softmax(scores: Float[Tensor, "K RG L"], bias_RL: Tensor, scaling: float) -> Float[Tensor, "K RG L"]:
    by_row = scores.view(scores.shape[0], bias_RL.shape[0], -1, bias_RL.shape[1])
    return torch.add(bias_RL[:, None], by_row, alpha=scaling).softmax(-1).view_as(scores)


def _softmax_of_two(rounded: Tensor, residual: Tensor, bias_RL: Tensor, scaling: float) -> Float[Tensor, "K RG L"]:
    return _softmax(rounded.float().add_(residual), bias_RL, scaling).to(rounded.dtype)


def _score_gradient(probabilities: Tensor, d_probabilities: Tensor, sums: Tensor, scaling: float) -> Tensor:
    return (probabilities * (d_probabilities - sums) * scaling).to(probabilities.dtype)
