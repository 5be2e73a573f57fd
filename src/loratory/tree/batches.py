"""TokenizedExample -> Batch: a token tree in which each shared prefix stands once.

For masked language models, which see both ways, sequences stand one after another, equal ones once.

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

    Token q has token k among its ancestors (or is k) iff ``k <= q < subtree_end_T[k]``. Of sequences that are read both
    ways, token q sees token k iff ``subtree_end_T[q] == subtree_end_T[k]``: the end of their sequence.
    """

    token_ids_T: Int64[Tensor, "T"]
    position_ids_T: Int64[Tensor, "T"]
    """Depth of each token: its position in every sequence that it belongs to."""
    subtree_end_T: Int64[Tensor, "T"]
    """One past the last token of each token's subtree."""
    target_rows_N: Int64[Tensor, "N"]
    """The row whose hidden state predicts the target."""
    target_ids_N: Int64[Tensor, "N"]
    target_weights_N: Float32[Tensor, "N"]
    target_sequence_N: Int64[Tensor, "N"]
    """Which of the sequences the target belongs to, as an index into the list that the batch was made from."""

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def build_batch(
    sequences: Sequence[TokenizedExample], indices: Sequence[int] | None = None, share: bool = True
) -> Batch:
    """The tree of the sequences. ``indices`` are their numbers in ``target_sequence_N`` (default 0, 1, ...).

    Tokens that predict no target, being after the last one that does, are left out. With ``share`` false every sequence
    stands by itself, one after another, and whole: the models that need this may look at its length.
    """
    indices = range(len(sequences)) if indices is None else indices
    if sequences[0].masked_ids is not None:
        return _packed(sequences, indices)
    needed = [_read_ids(s, share) for s in sequences]
    order = _tree_order(needed) if share else range(len(sequences))
    tokens, depths, ends, rows, ids, weights, owners = ([] for _ in range(7))
    path = np.zeros(0, dtype=np.int64)  # rows of the sequence laid out last
    previous = np.zeros(0, dtype=np.int64)
    size = 0
    for i in order:
        own, ids_of = needed[i], sequences[i].token_ids
        shared = common_prefix(previous, own) if share else 0
        ends.append((path[shared:], size))  # the subtrees that end before this sequence branches off
        path = np.concatenate([path[:shared], np.arange(size, size + len(own) - shared)])
        tokens.append(own[shared:])
        depths.append(np.arange(shared, len(own)))
        targets = np.flatnonzero(sequences[i].loss_weights[1:]) + 1  # the first token has nothing that predicts it
        rows.append(path[targets - 1])
        ids.append(ids_of[targets])
        weights.append(sequences[i].loss_weights[targets])
        owners.append(np.full(len(targets), indices[i]))
        size += len(own) - shared
        previous = own
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
    """Sequences that are read both ways, one after another; those that read the same stand once.

    A target is predicted in its own row, where the mask token stands.
    """
    starts: dict[bytes, int] = {}
    tokens, rows, ids, weights, owners = ([] for _ in range(5))
    size = 0
    for i, s in zip(indices, sequences, strict=True):
        shown = _read_ids(s, True)
        start = starts.setdefault(shown.tobytes(), size)
        if start == size:
            tokens.append(shown)
            size += len(shown)
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
    """The sequences of some examples that are trained in an epoch (from 0)."""
    every = (sequence for i in indices for sequence in examples[i])
    return [s for s in every if epoch % s.rotation[1] == s.rotation[0]]


def micro_batches(sequences: Sequence[TokenizedExample], token_budget: int, share: bool) -> list[Batch]:
    """The sequences as trees of at most ``token_budget`` tokens each (a longer single sequence makes its own).

    Neighbours in the order of the tree go together, so that what can be shared is. Without sharing, sequences of like
    length go together and the budget counts the padding too.
    """
    needed = [_read_ids(s, share) for s in sequences]
    order = _tree_order(needed) if share else sorted(range(len(needed)), key=lambda i: len(needed[i]))
    groups: list[list[int]] = []
    size, previous = 0, np.zeros(0, dtype=np.int64)
    for i in order:
        own = needed[i]
        if share:
            both_ways = sequences[i].masked_ids is not None
            shared = len(own) * np.array_equal(previous, own) if both_ways else common_prefix(previous, own)
            grown = size + len(own) - shared
        else:
            grown = len(own) * (len(groups[-1]) + 1 if groups else 1)
        if not groups or (grown > token_budget and grown > size):
            groups.append([])
            grown = len(own)
        groups[-1].append(i)
        size, previous = grown, own
    return [build_batch([sequences[i] for i in group], group, share) for group in groups]


def padded(batch: Batch, size: int) -> Batch:
    """The batch with tokens added at its end, which see themselves alone and predict nothing, up to ``size`` tokens.

    Where kernels are compiled for a length, few lengths should occur.
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
    """How many leading tokens two sequences have in common."""
    length = min(len(a), len(b))
    differs = a[:length] != b[:length]
    return int(differs.argmax()) if differs.any() else length


def _read_ids(sequence: TokenizedExample, share: bool) -> Int64[np.ndarray, "_"]:
    """What the model reads of a sequence."""
    if sequence.masked_ids is not None:
        return sequence.masked_ids
    return needed_ids(sequence) if share else sequence.token_ids


def needed_ids(sequence: TokenizedExample) -> Int64[np.ndarray, "_"]:
    """The tokens up to the one that predicts the last target: what a causal model must see."""
    targets = np.flatnonzero(sequence.loss_weights[1:])
    return sequence.token_ids[: targets[-1] + 1] if len(targets) else sequence.token_ids


def _tree_order(sequences: Sequence[Int64[np.ndarray, "_"]]) -> list[int]:
    """Lexicographic order: every prefix's sequences stand together, a sequence before its own continuations."""
    # Big-endian bytes compare like the numbers themselves.
    return sorted(range(len(sequences)), key=lambda i: sequences[i].astype(">u4").tobytes())


def epoch_order(count: int, seed: int, epoch: int) -> Int64[Tensor, "count"]:
    """The order of the examples in an epoch: a function of seed and epoch alone, so that a resumed run continues it."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(count, generator=generator)


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Optimizer steps in an epoch; the last one may have fewer examples."""
    return -(-count // batch_size)


def step_examples(count: int, batch_size: int, seed: int, first_step: int, last_step: int) -> Iterator[list[int]]:
    """For each optimizer step in [first_step, last_step), the indices of its examples."""
    per_epoch = steps_per_epoch(count, batch_size)
    epoch, order = -1, torch.zeros(0, dtype=torch.int64)
    for step in range(first_step, last_step):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            order = epoch_order(count, seed, epoch)
        start = step % per_epoch * batch_size
        yield order[start : start + batch_size].tolist()
