"""The mask rule for the GPU kernel, evaluated on the CPU; length buckets; detection of plain packings."""

import pytest
import torch
from conftest import sequence
from hypothesis import given, settings
from hypothesis import strategies as st
from test_batches import path_of, trees
from test_cpu_attention import causal, chunks_of, draw

from loratory.tree.batches import build_batch
from loratory.tree.cpu_attention import attend
from loratory.tree.gpu_attention import SMALLEST_BUCKET, bucket, composed_rule, flex_plan, is_packing


def windowed(batch, head, q, k):
    return (k <= q) & (q - k < 3)


@pytest.mark.parametrize("model_rule", [causal, windowed])
@given(sequences=trees())
@settings(derandomize=True, deadline=None, max_examples=25)
def test_a_row_attends_to_the_ancestors_that_the_models_rule_allows(model_rule, sequences):
    batch = build_batch(sequences)
    rule = composed_rule(batch.subtree_end_T, batch.position_ids_T, 0, model_rule)
    rows = torch.arange(len(batch.token_ids_T))
    allowed = rule(rows[:1] * 0, rows[:1] * 0, rows[:, None], rows[None])
    for row in rows.tolist():
        path = path_of(batch, row)
        expected = path if model_rule is causal else path[-3:]
        assert allowed[row].nonzero()[:, 0].tolist() == expected


def test_rows_after_a_prefix_attend_to_all_of_it():
    end, depth = torch.tensor([5, 5, 5, 4, 5]), torch.tensor([0, 1, 2, 3, 3])  # a prefix of two tokens, then a tree
    rule = composed_rule(end, depth, 2, causal)
    rows, keys = torch.arange(3)[:, None], torch.arange(5)[None]
    assert rule(rows[:1] * 0, rows[:1] * 0, rows, keys).int().tolist() == [
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 0, 1],
    ]


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore::UserWarning")  # about running uncompiled, which is intended here
@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
def test_the_kernel_with_the_rule_agrees_with_attend(heads):
    batch = build_batch([sequence([1, 2, 3, 4, i, i + 1, 9], 2) for i in range(5)])
    q, k, v = (x.detach() for x in draw(len(batch.token_ids_T), *heads, torch.float32))
    v = torch.nn.functional.pad(v, (0, 2))
    plan = flex_plan(batch.subtree_end_T, batch.position_ids_T, 0, causal)
    expected = attend(q, k, v, chunks_of(batch), 0.4)
    torch.testing.assert_close(plan.attend(q, k, v, 0.4, None, None), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(TypeError, match="s_aux"):
        plan.attend(q, k, v, 0.4, None, torch.zeros(2))


@given(st.integers(1, 200_000))
@settings(derandomize=True, max_examples=200)
def test_a_bucket_holds_the_batch_and_wastes_at_most_a_quarter(size):
    padded = bucket(size)
    assert padded >= size
    assert padded <= max(SMALLEST_BUCKET, 1.25 * size + 1)


def test_a_token_budget_leads_to_few_buckets():
    assert len({bucket(size) for size in range(1, 4097)}) == 13
    assert all(bucket(size) % 128 == 0 for size in range(1, 4097))


def test_a_packing_has_no_branches():
    alone = build_batch([sequence([1, 2, 3], 1), sequence([4, 5, 6, 7], 1)])
    shared = build_batch([sequence([1, 2, 3], 1), sequence([1, 5, 6, 7], 1)])
    assert is_packing(alone.position_ids_T)
    assert not is_packing(shared.position_ids_T)
    duplicates = build_batch([sequence([1, 2, 3], 1)] * 3)
    assert is_packing(duplicates.position_ids_T)
