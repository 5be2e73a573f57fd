"""Batches of tokenized examples as token trees, in which each shared prefix is stored once.

For masked language models, whose attention is bidirectional, whole sequences are packed one after another, and
duplicates are stored once.

T: tokens in the tree's depth-first layout.  N: targets.  Targets are never merged, so a row may have several.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from loratory.text import TokenizedExample


@dataclass(frozen=True)
class Batch:
    """Sequences as one token tree, on one device.

    Token k is token q itself or an ancestor of it iff ``k <= q < subtree_end_T[k]``. For bidirectional models, token q
    attends to token k iff ``subtree_end_T[q] == subtree_end_T[k]``, which is the end of their sequence.
    """

    token_ids_T: Int64[Tensor, "T"]
    position_ids_T: Int64[Tensor, "T"]
    """Depth of each token: its position in every sequence that contains it."""
    subtree_end_T: Int64[Tensor, "T"]
    """Index one past the last token of each token's subtree."""
    target_rows_N: Int64[Tensor, "N"]
    """The row whose hidden state predicts the target."""
    target_ids_N: Int64[Tensor, "N"]
    target_weights_N: Float32[Tensor, "N"]
    target_sequence_N: Int64[Tensor, "N"]
    """The sequence that each target belongs to, as an index into the list from which the batch was built."""

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def build_batch(
    sequences: Sequence[TokenizedExample], indices: Sequence[int] | None = None, share: bool = True
) -> Batch:
    """Builds the tree of the sequences. ``indices`` are their numbers in ``target_sequence_N`` (default 0, 1, ...).

    Tokens after the last one that predicts a target are left out. With ``share=False``, the sequences are stored one
    after another, each complete: the models that need this may depend on the sequence length.
    """
    indices = range(len(sequences)) if indices is None else indices
    if sequences[0].masked_ids is not None:
        return _packed(sequences, indices)
    needed = [_read_ids(s, share) for s in sequences]
    order = _tree_order(needed) if share else range(len(sequences))
    tokens, depths, ends, rows, ids, weights, owners = ([] for _ in range(7))
    path = np.zeros(0, dtype=np.int64)  # rows of the sequence added last
    previous = np.zeros(0, dtype=np.int64)
    size = 0
    for i in order:
        current, all_ids = needed[i], sequences[i].token_ids
        shared = common_prefix(previous, current) if share else 0
        ends.append((path[shared:], size))  # these subtrees end where this sequence branches off
        path = np.concatenate([path[:shared], np.arange(size, size + len(current) - shared)])
        tokens.append(current[shared:])
        depths.append(np.arange(shared, len(current)))
        targets = np.flatnonzero(sequences[i].loss_weights[1:]) + 1  # nothing predicts the first token
        rows.append(path[targets - 1])
        ids.append(all_ids[targets])
        weights.append(sequences[i].loss_weights[targets])
        owners.append(np.full(len(targets), indices[i]))
        size += len(current) - shared
        previous = current
    ends.append((path, size))
    subtree_end = np.zeros(size, dtype=np.int64)
    for closed, end in ends:
        subtree_end[closed] = end
    integers = [np.concatenate(parts).astype(np.int64) for parts in (tokens, depths, rows, ids, owners)]
    token_ids, depth, target_rows, target_ids, target_sequence = (torch.from_numpy(a) for a in integers)
    target_weights = torch.from_numpy(np.concatenate(weights).astype(np.float32))
    end = torch.from_numpy(subtree_end)
    return Batch(token_ids, depth, end, target_rows, target_ids, target_weights, target_sequence)


def _packed(sequences: Sequence[TokenizedExample], indices: Sequence[int]) -> Batch:
    """Packs sequences for a bidirectional model one after another; identical inputs are stored once.

    A target is predicted in its own row, which holds the mask token.
    """
    starts: dict[bytes, int] = {}
    tokens, rows, ids, weights, owners = ([] for _ in range(5))
    size = 0
    for i, s in zip(indices, sequences, strict=True):
        input_ids = _read_ids(s, True)
        start = starts.setdefault(input_ids.tobytes(), size)
        if start == size:
            tokens.append(input_ids)
            size += len(input_ids)
        targets = np.flatnonzero(s.loss_weights)
        rows.append(start + targets)
        ids.append(s.token_ids[targets])
        weights.append(s.loss_weights[targets])
        owners.append(np.full(len(targets), i))
    lengths = [len(t) for t in tokens]
    depth = np.concatenate([np.arange(n) for n in lengths])
    end = np.repeat(np.cumsum(lengths), lengths)
    integers = [np.concatenate(tokens), depth, end, *map(np.concatenate, (rows, ids, owners))]
    token_ids, depth, end, target_rows, target_ids, owner = (torch.from_numpy(a.astype(np.int64)) for a in integers)
    target_weights = torch.from_numpy(np.concatenate(weights).astype(np.float32))
    return Batch(token_ids, depth, end, target_rows, target_ids, target_weights, owner)


def sequences_of_epoch(
    examples: Sequence[Sequence[TokenizedExample]], indices: Sequence[int], epoch: int
) -> list[TokenizedExample]:
    """The sequences of the given examples that are trained in ``epoch`` (counted from 0)."""
    all_sequences = (sequence for i in indices for sequence in examples[i])
    return [s for s in all_sequences if epoch % s.rotation[1] == s.rotation[0]]


def micro_batches(sequences: Sequence[TokenizedExample], token_budget: int, share: bool) -> list[Batch]:
    """The sequences as trees of at most ``token_budget`` tokens each (a longer sequence gets its own tree).

    Neighbors in tree order are grouped, so that they share as much as possible. Without sharing, sequences of similar
    length are grouped, and the budget includes the padding.
    """
    needed = [_read_ids(s, share) for s in sequences]
    order = _tree_order(needed) if share else sorted(range(len(needed)), key=lambda i: len(needed[i]))
    groups: list[list[int]] = []
    size, previous = 0, np.zeros(0, dtype=np.int64)
    for i in order:
        current = needed[i]
        if share:
            whole = sequences[i].masked_ids is not None  # only whole sequences can be shared
            shared = len(current) * np.array_equal(previous, current) if whole else common_prefix(previous, current)
            new_size = size + len(current) - shared
        else:
            new_size = len(current) * (len(groups[-1]) + 1 if groups else 1)
        if not groups or (new_size > token_budget and new_size > size):
            groups.append([])
            new_size = len(current)
        groups[-1].append(i)
        size, previous = new_size, current
    return [build_batch([sequences[i] for i in group], group, share) for group in groups]


def pad_batch(batch: Batch, size: int) -> Batch:
    """Appends tokens to the batch, up to ``size`` tokens; they attend only to themselves and predict nothing.

    Used if kernels are compiled per length, so that only a few different lengths occur.
    """
    size_now, device = len(batch.token_ids_T), batch.token_ids_T.device
    zeros = torch.zeros(size - size_now, dtype=torch.int64, device=device)
    ends = torch.arange(size_now, size, device=device) + 1
    return dataclasses.replace(
        batch,
        token_ids_T=torch.cat([batch.token_ids_T, zeros]),
        position_ids_T=torch.cat([batch.position_ids_T, zeros]),
        subtree_end_T=torch.cat([batch.subtree_end_T, ends]),
    )


def common_prefix(a: Int64[np.ndarray, "A"], b: Int64[np.ndarray, "B"]) -> int:
    """The number of leading tokens that two sequences have in common."""
    length = min(len(a), len(b))
    differs = a[:length] != b[:length]
    return int(differs.argmax()) if differs.any() else length


def _read_ids(sequence: TokenizedExample, share: bool) -> Int64[np.ndarray, "_"]:
    """The tokens of a sequence that the model reads."""
    if sequence.masked_ids is not None:
        return sequence.masked_ids
    return needed_ids(sequence) if share else sequence.token_ids


def needed_ids(sequence: TokenizedExample) -> Int64[np.ndarray, "_"]:
    """The tokens up to the one that predicts the last target: all that a causal model needs to read."""
    targets = np.flatnonzero(sequence.loss_weights[1:])
    return sequence.token_ids[: targets[-1] + 1] if len(targets) else sequence.token_ids


def _tree_order(sequences: Sequence[Int64[np.ndarray, "_"]]) -> list[int]:
    """Lexicographic order: sequences with a common prefix are adjacent, and a sequence precedes its continuations."""
    # Big-endian bytes sort like the numbers that they encode.
    return sorted(range(len(sequences)), key=lambda i: sequences[i].astype(">u4").tobytes())


def epoch_order(count: int, seed: int, epoch: int) -> Int64[Tensor, "count"]:
    """The order of the examples in an epoch; depends only on seed and epoch, so that a resumed run continues it."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(count, generator=generator)


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Optimizer steps per epoch; the last step may have fewer examples."""
    return -(-count // batch_size)


def step_examples(count: int, batch_size: int, seed: int, first_step: int, last_step: int) -> Iterator[list[int]]:
    """Yields the indices of the examples of each optimizer step in [first_step, last_step)."""
    per_epoch = steps_per_epoch(count, batch_size)
    epoch, order = -1, torch.zeros(0, dtype=torch.int64)
    for step in range(first_step, last_step):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            order = epoch_order(count, seed, epoch)
        start = step % per_epoch * batch_size
        yield order[start : start + batch_size].tolist()
