"""Attention over a token tree, chunk of rows by chunk of rows: which chunks, and the arithmetic of one layer.

T: tokens in the layout.  S: rows that ask (all T, or a few of them).  R: rows of a chunk.  L: live keys of a chunk.
H, K: query and key/value heads.  G: query heads of each key/value head, H = K * G.  D, E: width of keys, of values.
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
CUT_ROWS = 128  # long runs without a branch may be cut at these distances
CHUNK_COST = 8192  # a chunk's fixed cost, in scores (row x live key); half and twice of it took as long
SAVED_KEYS = 640  # chunks of more live keys compute their probabilities again in the backward, so memory stays linear


@dataclass(frozen=True)
class RowChunk:
    """Rows [start, end) with the keys that any of them may attend to."""

    start: int
    end: int
    keys_L: Int64[Tensor, "L"]
    bias_RL: Float32[Tensor, "R L"]
    """0 where a row may attend to a key, minus infinity elsewhere: adding it is three times as fast as filling."""


def cut_rows(depth_T: Int64[np.ndarray, "T"], most_rows: int = MOST_ROWS) -> list[int]:
    """Where the chunks of a tree in depth-first layout begin, and its length: the cheapest cut.

    Rows [a, b) have depth_T[a] live keys before a, and their own; so they cost (b - a) * (depth_T[a] + b - a) scores,
    masked ones included, and CHUNK_COST. Cuts are tried where a branch begins and every CUT_ROWS tokens of a run.
    """
    size = len(depth_T)
    branch = np.flatnonzero(np.diff(depth_T, prepend=-2) != 1)  # rows that do not continue the row before
    length = np.diff(branch, append=size)
    cuts = [np.arange(a, a + n, CUT_ROWS) for a, n in zip(branch, length, strict=True)]
    points = np.concatenate([*cuts, [size]]) if size else np.zeros(1, dtype=np.int64)
    best = np.zeros(len(points))
    came = np.zeros(len(points), dtype=np.int64)
    for j in range(1, len(points)):
        first = min(int(np.searchsorted(points, points[j] - most_rows)), j - 1)
        rows = points[j] - points[first:j]
        cost = best[first:j] + CHUNK_COST + rows * (depth_T[points[first:j]] + rows)
        came[j] = first + int(cost.argmin())
        best[j] = cost.min()
    chosen = [len(points) - 1]
    while chosen[-1] > 0:
        chosen.append(int(came[chosen[-1]]))
    return points[chosen[::-1]].tolist()


def attend(
    query: Float[Tensor, "1 H S D"],
    key: Float[Tensor, "1 K T D"],
    value: Float[Tensor, "1 K T E"],
    chunks: Sequence[RowChunk],
    scaling: float,
    compiled: bool = False,
) -> Float[Tensor, "1 S H E"]:
    """softmax(scaling * query key^T) value over each chunk's allowed keys; ``compiled``: with fused elementwise parts.

    Scores and softmax are in float32 at least, products with probabilities in the number format of the values.
    Gradients of keys and values, which many rows share, are summed in float32 at least.
    """
    return _Attention.apply(query, key, value, chunks, scaling, compiled)  # type: ignore[no-any-return]


class _Attention(torch.autograd.Function):
    """The derivative by hand, because the library's fused one is several times slower than products in bfloat16."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, chunks, scaling: float, compiled: bool):
        q, k, v = _by_key_head(query, key.shape[1]), key[0], value[0]
        out = q.new_empty(*q.shape[:3], v.shape[2])
        saves = any(ctx.needs_input_grad)
        kept = []
        for chunk in chunks:
            probabilities = _probabilities(q, k, chunk, scaling, compiled)
            product = torch.bmm(probabilities, v.index_select(1, chunk.keys_L))
            out[:, chunk.start : chunk.end] = product.view(len(out), -1, *out.shape[2:])
            if saves and len(chunk.keys_L) <= SAVED_KEYS:
                kept.append(probabilities)
        ctx.chunks, ctx.scaling, ctx.compiled = chunks, scaling, compiled
        if saves:
            ctx.save_for_backward(q, k, v, out, *kept)
        return out.permute(1, 0, 2, 3).reshape(1, out.shape[1], query.shape[1], out.shape[3])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor):
        q, k, v, out, *kept = ctx.saved_tensors
        wide = torch.promote_types(k.dtype, torch.float32)
        d_out = _by_key_head(grad_out.transpose(1, 2), len(k))
        sums = (d_out * out).sum(-1, keepdim=True, dtype=wide)
        d_q = torch.empty_like(q)
        d_k, d_v = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in (k, v))
        for chunk in ctx.chunks:
            if len(chunk.keys_L) <= SAVED_KEYS:
                probabilities = kept.pop(0)
            else:
                probabilities = _probabilities(q, k, chunk, ctx.scaling, ctx.compiled)
            own = slice(chunk.start, chunk.end)
            rows = d_out[:, own].flatten(1, 2)
            d_probabilities = torch.bmm(rows, v.index_select(1, chunk.keys_L).transpose(1, 2))
            d_scores = _fused(_score_gradient, ctx.compiled)(
                probabilities, d_probabilities, sums[:, own].flatten(1, 2), ctx.scaling
            )
            product = torch.bmm(d_scores, k.index_select(1, chunk.keys_L))
            d_q[:, own] = product.view(len(q), -1, *q.shape[2:])
            d_k.index_add_(1, chunk.keys_L, torch.bmm(d_scores.transpose(1, 2), q[:, own].flatten(1, 2)).to(wide))
            d_v.index_add_(1, chunk.keys_L, torch.bmm(probabilities.transpose(1, 2), rows).to(wide))
        d_query = d_q.transpose(1, 2).flatten(0, 1)[None]
        return d_query, d_k[None].to(k.dtype), d_v[None].to(v.dtype), None, None, None


def _by_key_head(rows: Float[Tensor, "1 H S D"], key_heads: int) -> Float[Tensor, "K S G D"]:
    """Copied so that the query heads of a key head stand under each other row by row: a chunk of rows is a matrix."""
    return rows[0].unflatten(0, (key_heads, -1)).transpose(1, 2).contiguous()


@cache
def _fused(function: Callable[..., Tensor], compiled: bool) -> Callable[..., Tensor]:
    return torch.compile(function, dynamic=True) if compiled else function


def _probabilities(
    q: Float[Tensor, "K S G D"], k: Float[Tensor, "K T D"], chunk: RowChunk, scaling: float, compiled: bool
) -> Float[Tensor, "K RG L"]:
    """The softmax of a chunk's scores, in the number format of the query.

    Scores must not be rounded to bfloat16, where one of 100 is off by 0.25. A product in bfloat16 and one more for what
    its rounding lost give 16 bits in less than half the time of a product in float32.
    """
    rows = q[:, chunk.start : chunk.end].flatten(1, 2)
    keys = k.index_select(1, chunk.keys_L).transpose(1, 2)
    if q.dtype == torch.bfloat16:
        rounded = torch.bmm(rows, keys)
        rest = torch.baddbmm(rounded, rows, keys, beta=-1)
        return _fused(_softmax_of_two, compiled)(rounded, rest, chunk.bias_RL, scaling)
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = torch.bmm(rows.to(wide), keys.to(wide))
    return _fused(_softmax, compiled)(scores, chunk.bias_RL, scaling).to(q.dtype)


def _softmax(scores: Float[Tensor, "K RG L"], bias_RL: Tensor, scaling: float) -> Float[Tensor, "K RG L"]:
    by_row = scores.view(scores.shape[0], bias_RL.shape[0], -1, bias_RL.shape[1])
    return torch.add(bias_RL[:, None], by_row, alpha=scaling).softmax(-1).view_as(scores)


def _softmax_of_two(rounded: Tensor, rest: Tensor, bias_RL: Tensor, scaling: float) -> Float[Tensor, "K RG L"]:
    return _softmax(rounded.float().add_(rest), bias_RL, scaling).to(rounded.dtype)


def _score_gradient(probabilities: Tensor, d_probabilities: Tensor, sums: Tensor, scaling: float) -> Tensor:
    return (probabilities * (d_probabilities - sums) * scaling).to(probabilities.dtype)
