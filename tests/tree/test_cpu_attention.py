"""Attention in chunks: outputs and gradients match PyTorch's attention, and the chunks are the cheapest cut."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_batches import path_of, trees
from torch.nn.functional import scaled_dot_product_attention

from loratory.tree import cpu_attention
from loratory.tree.attention import _chunks
from loratory.tree.batches import build_batch
from loratory.tree.cpu_attention import attend, cut_rows


def causal(batch, head, q, k):
    return k <= q


def chunks_of(batch):
    cuts = cut_rows(batch.position_ids_T.numpy())
    spans = [torch.arange(a, b) for a, b in itertools.pairwise(cuts)]
    return _chunks(spans, batch.subtree_end_T, batch.position_ids_T, causal)


def draw(size: int, heads: int, kv_heads: int, dtype: torch.dtype, scale: float = 1.0) -> list[torch.Tensor]:
    torch.manual_seed(size)
    shapes = [(1, heads, size, 8), (1, kv_heads, size, 8), (1, kv_heads, size, 6)]
    return [(scale * torch.randn(shape, dtype=torch.float64)).to(dtype).requires_grad_() for shape in shapes]


def reference(batch, q, k, v, scaling: float) -> torch.Tensor:
    size = len(batch.token_ids_T)
    allowed = torch.zeros(size, size, dtype=torch.bool)
    for row in range(size):
        allowed[row, path_of(batch, row)] = True
    return scaled_dot_product_attention(q, k, v, allowed, scale=scaling, enable_gqa=True).transpose(1, 2)


@pytest.mark.parametrize("saved_keys", [0, 3, 640])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
@given(sequences=trees())
@settings(derandomize=True, deadline=None, max_examples=8)
def test_output_and_derivatives_are_those_of_a_dense_mask(heads, saved_keys, sequences):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"CUT_ROWS": 2, "CHUNK_COST": 4, "SAVED_KEYS": saved_keys}.items():
            patch.setattr(cpu_attention, name, value)
        batch = build_batch(sequences)
        inputs = draw(len(batch.token_ids_T), *heads, torch.float64)
        actual, expected = attend(*inputs, chunks_of(batch), 0.3), reference(batch, *inputs, 0.3)
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
        weights = torch.randn_like(expected)
        for one, other in zip(
            *(torch.autograd.grad((x * weights).sum(), inputs) for x in (actual, expected)), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_large_scores_in_bfloat16_are_not_rounded_to_bfloat16():
    """Scores around 200 occur in some pretrained models; rounded to 8 bits, they would be off by up to 0.5."""
    from conftest import sequence

    batch = build_batch([sequence(list(range(1, 40)), 1)])
    q, k, v = draw(len(batch.token_ids_T), 2, 2, torch.bfloat16, scale=8.0)
    exact = reference(batch, q.double(), k.double(), v.double(), 1.0)
    error = (attend(q, k, v, chunks_of(batch), 1.0).double() - exact).abs().max() / exact.abs().max()
    scores = (q.double() @ k.double().transpose(2, 3)).abs().max()
    assert scores > 200
    assert error < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_shared_keys_are_summed_in_float32(dtype):
    """With 300 rows that share one key, a bfloat16 sum would stop growing at 256 times its first term."""
    from conftest import sequence

    batch = build_batch([sequence([1, i, 0], 1) for i in range(2, 302)])
    q, k, v = (torch.ones(1, 1, len(batch.token_ids_T), 1, dtype=dtype).requires_grad_() for _ in range(3))
    attend(q, k, v, chunks_of(batch), 1.0).sum().backward()
    assert v.grad is not None
    assert v.grad[0, 0, 0, 0].item() == pytest.approx(1 + 300 / 2, rel=4e-3)


def cost(depth: np.ndarray, cuts: list[int]) -> int:
    return sum(cpu_attention.CHUNK_COST + (b - a) * (int(depth[a]) + b - a) for a, b in itertools.pairwise(cuts))


@given(sequences=trees(most=8), chunk_cost=st.integers(0, 60), most=st.integers(2, 30))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_the_cut_is_the_cheapest_one_within_the_limit(sequences, chunk_cost, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_attention, "CHUNK_COST", chunk_cost)
        patch.setattr(cpu_attention, "CUT_ROWS", 2)
        depth = build_batch(sequences).position_ids_T.numpy()
        cuts = cut_rows(depth, most)
        assert cuts[0] == 0
        assert cuts[-1] == len(depth)
        assert cuts == sorted(set(cuts))
        best = [0.0] + [math.inf] * len(depth)
        starts = [a for a in range(len(depth)) if a == 0 or depth[a] != depth[a - 1] + 1]
        runs = [next(s for s in reversed(starts) if s <= a) for a in range(len(depth))]
        points = [a for a in range(len(depth)) if (a - runs[a]) % 2 == 0] + [len(depth)]
        for j, b in enumerate(points[1:], 1):
            tried = [(i, a) for i, a in enumerate(points[:j]) if b - a <= most or i == j - 1]
            best[b] = min(best[a] + cost(depth, [a, b]) for _, a in tried)
        assert cost(depth, cuts) == best[len(depth)]
