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
        out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
        saves = any(ctx.needs_input_grad)
        kept = []
        for chunk in chunks:
            probabilities = _probabilities(query, key, chunk, scaling, compiled)
            _put_heads(out, chunk, torch.bmm(probabilities, value[0].index_select(1, chunk.keys_L)))
            if saves and len(chunk.keys_L) <= SAVED_KEYS:
                kept.append(probabilities)
        ctx.chunks, ctx.scaling, ctx.compiled = chunks, scaling, compiled
        if saves:
            ctx.save_for_backward(query, key, value, out, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor):
        query, key, value, out, *kept = ctx.saved_tensors
        wide = torch.promote_types(key.dtype, torch.float32)
        d_query = torch.empty_like(query)
        d_key, d_value = (torch.zeros(x.shape[1:], dtype=wide, device=x.device) for x in (key, value))
        for chunk in ctx.chunks:
            if len(chunk.keys_L) <= SAVED_KEYS:
                probabilities = kept.pop(0)
            else:
                probabilities = _probabilities(query, key, chunk, ctx.scaling, ctx.compiled)
            q, k, v = _heads(query, chunk, key), key[0].index_select(1, chunk.keys_L), value[0][:, chunk.keys_L]
            d_out = _heads(grad_out.transpose(1, 2), chunk, key)
            sums = (d_out * _heads(out.transpose(1, 2), chunk, key)).sum(-1, keepdim=True, dtype=wide)
            d_probabilities = torch.bmm(d_out, v.transpose(1, 2))
            d_scores = _fused(_score_gradient, ctx.compiled)(probabilities, d_probabilities, sums, ctx.scaling)
            d_query[0, :, chunk.start : chunk.end] = torch.bmm(d_scores, k).view(query.shape[1], -1, query.shape[3])
            d_key.index_add_(1, chunk.keys_L, torch.bmm(d_scores.transpose(1, 2), q).to(wide))
            d_value.index_add_(1, chunk.keys_L, torch.bmm(probabilities.transpose(1, 2), d_out).to(wide))
        return d_query, d_key[None].to(key.dtype), d_value[None].to(value.dtype), None, None, None


def _heads(rows: Float[Tensor, "1 H S D"], chunk: RowChunk, key: Tensor) -> Float[Tensor, "K GR D"]:
    """The chunk's rows, those of all query heads of a key/value head under each other."""
    return rows[0, :, chunk.start : chunk.end].reshape(key.shape[1], -1, rows.shape[3])


def _put_heads(out: Float[Tensor, "1 S H E"], chunk: RowChunk, rows: Float[Tensor, "K GR E"]) -> None:
    """The inverse of ``_heads``, into the chunk's rows of ``out``."""
    heads, width = out.shape[2:]
    out[0, chunk.start : chunk.end] = rows.view(heads, -1, width).transpose(0, 1)


@cache
def _fused(function: Callable[..., Tensor], compiled: bool) -> Callable[..., Tensor]:
    return torch.compile(function, dynamic=True) if compiled else function


def _probabilities(
    query: Tensor, key: Tensor, chunk: RowChunk, scaling: float, compiled: bool
) -> Float[Tensor, "K GR L"]:
    """The softmax of a chunk's scores, in the number format of the query.

    Scores must not be rounded to bfloat16, where one of 100 is off by 0.25. A product in bfloat16 and one more for what
    its rounding lost give 16 bits in less than half the time of a product in float32.
    """
    q, k = _heads(query, chunk, key), key[0].index_select(1, chunk.keys_L).transpose(1, 2)
    if query.dtype == torch.bfloat16:
        rounded = torch.bmm(q, k)
        rest = torch.baddbmm(rounded, q, k, beta=-1)
        return _fused(_softmax_of_two, compiled)(rounded, rest, chunk.bias_RL, scaling)
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = torch.bmm(q.to(wide), k.to(wide))
    return _fused(_softmax, compiled)(scores, chunk.bias_RL, scaling).to(query.dtype)


def _softmax(scores: Float[Tensor, "K GR L"], bias_RL: Tensor, scaling: float) -> Float[Tensor, "K GR L"]:
    by_head = torch.add(bias_RL, scores.view(scores.shape[0], -1, *bias_RL.shape), alpha=scaling)
    return by_head.softmax(-1).view_as(scores)


def _softmax_of_two(rounded: Tensor, rest: Tensor, bias_RL: Tensor, scaling: float) -> Float[Tensor, "K GR L"]:
    return _softmax(rounded.float().add_(rest), bias_RL, scaling).to(rounded.dtype)


def _score_gradient(probabilities: Tensor, d_probabilities: Tensor, sums: Tensor, scaling: float) -> Tensor:
    return (probabilities * (d_probabilities - sums) * scaling).to(probabilities.dtype)
