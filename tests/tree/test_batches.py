"""Token trees against brute force: every sequence is present, every distinct prefix once, every target in place."""

import itertools
from collections import Counter

import numpy as np
import torch
from conftest import sequence
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from loratory.text.rendering import TokenizedExample
from loratory.tree.batches import (
    Batch,
    build_batch,
    common_prefix,
    epoch_order,
    micro_batches,
    needed_ids,
    pad_batch,
    step_examples,
)

CASES = {
    "one": [[3, 1, 4]],
    "duplicates": [[1, 2, 3], [1, 2, 3], [1, 2, 3]],
    "a prefix of another": [[5, 6, 7, 8], [5, 6], [5, 6, 7]],
    "three levels": [[1, 1, 2, 3], [1, 1, 2, 4], [1, 1, 5, 6, 7], [1, 1, 5, 6, 8], [1, 9]],
    "nothing shared": [[1, 2, 3], [2, 2, 3], [3, 2, 3]],
}


@st.composite
def token_lists(draw: st.DrawFn, most: int = 6, vocabulary: int = 64) -> list[list[int]]:
    """Sequences of two or more tokens built from a few segments, so that they branch, repeat and extend each other."""
    token = st.integers(0, vocabulary - 1)
    segments = draw(st.lists(st.lists(token, min_size=1, max_size=5), min_size=1, max_size=4))
    paths = st.lists(st.sampled_from(segments), min_size=1, max_size=4)
    chosen = draw(st.lists(paths, min_size=1, max_size=most))
    joined = [list(itertools.chain(*path)) for path in chosen]
    return [ids if len(ids) > 1 else [*ids, 0] for ids in joined]


@st.composite
def trees(draw: st.DrawFn, most: int = 6) -> list[TokenizedExample]:
    """Sequences with weights on any token, including the first and shared ones; each has at least one target."""
    weight = st.sampled_from([0.0, 0.0, 0.5, 1.0, 2.0])
    sequences = []
    for ids in draw(token_lists(most)):
        weights = draw(st.lists(weight, min_size=len(ids) - 1, max_size=len(ids) - 1))
        sequences.append(sequence(ids, [draw(weight), *(weights if any(weights) else [*weights[1:], 1.0])]))
    return sequences


def with_cases(function):
    """Adds the named cases as explicit examples."""
    for ids in CASES.values():
        function = example(sequences=[sequence(one) for one in ids])(function)
    return function


def distinct_prefixes(sequences: list[TokenizedExample]) -> set[tuple[int, ...]]:
    ids = [needed_ids(s).tolist() for s in sequences]
    return {tuple(one[:n]) for one in ids for n in range(1, len(one) + 1)}


def path_of(batch: Batch, row: int) -> list[int]:
    """The row's ancestors and the row itself, according to the rule that attention uses."""
    end = batch.subtree_end_T.tolist()
    return [k for k in range(row + 1) if row < end[k]]


@with_cases
@given(sequences=trees())
@settings(derandomize=True, deadline=None, max_examples=60)
def test_every_distinct_prefix_stands_once_and_every_path_is_a_prefix(sequences):
    batch = build_batch(sequences)
    paths = []
    for row in range(len(batch.token_ids_T)):
        path = path_of(batch, row)
        assert batch.position_ids_T[path].tolist() == list(range(len(path)))
        paths.append(tuple(batch.token_ids_T[path].tolist()))
    assert len(set(paths)) == len(paths)
    assert set(paths) == distinct_prefixes(sequences)


@with_cases
@given(sequences=trees())
@settings(derandomize=True, deadline=None, max_examples=60)
def test_targets_are_never_merged_and_are_predicted_by_the_previous_token_of_their_path(sequences):
    batch = build_batch(sequences)
    actual = Counter()
    columns = (batch.target_rows_N, batch.target_ids_N, batch.target_weights_N, batch.target_sequence_N)
    for row, token_id, weight, owner in zip(*(c.tolist() for c in columns), strict=True):
        before = tuple(batch.token_ids_T[path_of(batch, row)].tolist())
        actual[owner, before, token_id, weight] += 1
    expected = Counter()
    for owner, s in enumerate(sequences):
        ids, weights = s.token_ids.tolist(), s.loss_weights.tolist()
        for i in range(1, len(ids)):
            if weights[i]:
                expected[owner, tuple(ids[:i]), ids[i], weights[i]] += 1
    assert actual == expected


@with_cases
@given(sequences=trees())
@settings(derandomize=True, deadline=None, max_examples=40)
def test_without_sharing_sequences_are_stored_separately_in_the_given_order(sequences):
    batch = build_batch(sequences, share=False)
    assert batch.token_ids_T.tolist() == [i for s in sequences for i in s.token_ids.tolist()]
    assert batch.position_ids_T.tolist() == [i for s in sequences for i in range(len(s.token_ids))]
    ends = np.cumsum([len(s.token_ids) for s in sequences])
    assert batch.subtree_end_T.tolist() == [e for e, s in zip(ends, sequences, strict=True) for _ in s.token_ids]


@given(trees(most=10), st.integers(1, 60), st.booleans())
@settings(derandomize=True, deadline=None, max_examples=80)
def test_micro_batches_contain_every_sequence_once_within_the_budget(sequences, budget, share):
    batches = micro_batches(sequences, budget, share)
    members = [sorted(set(b.target_sequence_N.tolist())) for b in batches]
    assert sorted(i for group in members for i in group) == list(range(len(sequences)))
    for batch, group in zip(batches, members, strict=True):
        grouped = [sequences[i] for i in group]
        size = len(distinct_prefixes(grouped)) if share else sum(len(s.token_ids) for s in grouped)
        assert len(batch.token_ids_T) == size
        computed = size if share else len(grouped) * max(len(s.token_ids) for s in grouped)
        # A sequence longer than the budget has a batch of its own, which its duplicates join at no cost.
        inputs = {tuple(needed_ids(s)) for s in grouped} if share else group
        assert computed <= budget or len(inputs) == 1
    assert sum(len(b.target_ids_N) for b in batches) == sum(np.count_nonzero(s.loss_weights[1:]) for s in sequences)


@given(trees(most=10))
@settings(derandomize=True, deadline=None, max_examples=30)
def test_a_sufficient_budget_gives_one_micro_batch(sequences):
    assert len(micro_batches(sequences, len(distinct_prefixes(sequences)), share=True)) == 1
    assume(len(sequences) > 1)
    padded_size = len(sequences) * max(len(s.token_ids) for s in sequences)
    assert len(micro_batches(sequences, padded_size, share=False)) == 1
    assert len(micro_batches(sequences, padded_size - 1, share=False)) > 1


def test_ids_above_255_are_ordered_as_numbers():
    ids = [[256, 1], [1, 256], [70_000, 3], [255, 2], [256, 0], [128_000, 9], [1, 257]]
    assert build_batch([sequence([*one, 0]) for one in ids]).token_ids_T.tolist() == [
        1, 256, 257, 255, 2, 256, 0, 1, 70_000, 3, 128_000, 9
    ]  # fmt: skip


def test_neighbors_in_the_tree_share_a_micro_batch():
    left, right = [1] * 10, [2] * 10
    mixed = [sequence([*trunk, i, 0]) for i in range(5) for trunk in (left, right)]
    assert [len(b.token_ids_T) for b in micro_batches(mixed, 15, share=True)] == [15, 15]


def test_tokens_after_the_last_predicting_token_are_left_out():
    batch = build_batch([sequence([1, 2, 3, 4, 5], [0, 0, 1, 0, 0]), sequence([1, 2, 7, 8], [0, 0, 0, 1])])
    assert batch.token_ids_T.tolist() == [1, 2, 7]
    assert (batch.target_rows_N.tolist(), batch.target_ids_N.tolist()) == ([1, 2], [3, 8])


@given(trees(), st.integers(0, 9))
@settings(derandomize=True, deadline=None, max_examples=20)
def test_padding_tokens_attend_only_to_themselves(sequences, extra):
    batch = build_batch(sequences)
    size = len(batch.token_ids_T)
    longer = pad_batch(batch, size + extra)
    assert [path_of(longer, row) for row in range(size)] == [path_of(batch, row) for row in range(size)]
    assert [path_of(longer, row) for row in range(size, size + extra)] == [[r] for r in range(size, size + extra)]
    assert torch.equal(longer.target_rows_N, batch.target_rows_N)


def test_given_indices_identify_the_sequences_of_targets():
    batch = build_batch([sequence([1, 2, 3], 1), sequence([1, 2, 4], 1)], [7, 5])
    assert dict(zip(batch.target_ids_N.tolist(), batch.target_sequence_N.tolist(), strict=True)) == {3: 7, 4: 5}


@given(st.lists(st.integers(0, 2), max_size=6), st.lists(st.integers(0, 2), max_size=6))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_common_prefix_by_hand(a, b):
    expected = 0
    while expected < min(len(a), len(b)) and a[expected] == b[expected]:
        expected += 1
    assert common_prefix(np.array(a, dtype=np.int64), np.array(b, dtype=np.int64)) == expected


# ---- order -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.integers(0, 100))
@settings(derandomize=True, deadline=None, max_examples=40)
def test_an_epoch_is_a_permutation_and_a_function_of_seed_and_epoch(count, seed, epoch):
    order = epoch_order(count, seed, epoch).tolist()
    assert sorted(order) == list(range(count))
    assert epoch_order(count, seed, epoch).tolist() == order


def test_every_epoch_and_seed_has_a_different_order():
    pairs = [(seed, epoch) for seed in (0, 1, 2, 2**32 - 1) for epoch in range(4)]
    assert len({tuple(epoch_order(50, seed, epoch).tolist()) for seed, epoch in pairs}) == len(pairs)


@given(st.integers(1, 20), st.integers(1, 7), st.integers(0, 9), st.integers(1, 3), st.data())
@settings(derandomize=True, deadline=None, max_examples=40)
def test_resuming_at_any_step_continues_the_same_order(count, batch_size, seed, epochs, data):
    per_epoch = -(-count // batch_size)
    steps = list(step_examples(count, batch_size, seed, 0, epochs * per_epoch))
    assert len(steps) == epochs * per_epoch
    for epoch in range(epochs):
        of_epoch = steps[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert [i for step in of_epoch for i in step] == epoch_order(count, seed, epoch).tolist()
        assert all(len(step) == batch_size for step in of_epoch[:-1])
    first = data.draw(st.integers(0, len(steps)))
    assert list(step_examples(count, batch_size, seed, first, len(steps))) == steps[first:]
