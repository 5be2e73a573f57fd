"""Chooses the layout: checks on the loaded model that token trees and the faster code paths are exact.

T: tokens in the layout.  D: width of the hidden states.  P: tokens of a path.
"""

import copy
import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from loratory.models import first_position
from loratory.settings import SpeedConfig
from loratory.text import TokenizedExample
from loratory.tree.attention import ATTENTION_NAME
from loratory.tree.batches import Batch, build_batch
from loratory.tree.forward import prepared, row_logits, target_states, tree_forward
from loratory.tree.layout import Layout

LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}


class Mismatch(Exception):
    """Tree attention is not exact for this model; the message says which check failed."""


def choose_layout(
    model: PreTrainedModel,
    sequences: Sequence[TokenizedExample],
    batching: str,
    speed: SpeedConfig = SpeedConfig(),  # noqa: B008 - frozen
) -> Layout:
    """Token trees if they are exact for this model on the deepest tree of these sequences, else right-padded batches.

    Checks: every layer calls tree attention with supported arguments; tokens outside a path do not change that path's
    logits by a single bit; a float32 copy of the first layers of each type agrees with the model's stock attention.
    Row skipping in the last layer, and the shortcut for a plain linear head, are used if they pass similar checks.
    Raises Mismatch if ``batching`` is "tree" and a check fails.
    """
    deepest = max(len(s.token_ids) for s in sequences)
    limit = max_unscaled_length(model)
    masked = sequences[0].masked_ids is not None
    if masked:
        sequences = _distinct_inputs(sequences)
    if deepest > limit:
        why = f"positions are rescaled beyond {limit} tokens, so sequences cannot be mixed"
        return Layout("one-by-one", why, masked)
    if batching == "padded":
        return Layout("padded", "as configured", masked)
    kind, first = ("packed", first_position(model)) if masked else ("tree", 0)
    tree = Layout(kind, "verified on this model", masked, first, custom_backward=speed.attention == "on")
    batch = _deepest_tree(sequences).to(model.device)
    try:
        with torch.no_grad(), prepared(model, tree):
            _check_calls(model, batch, tree)
            _check_separation(model, batch, tree)
        with torch.no_grad():
            _check_numbers(model, batch, tree)
            if batch.token_ids_T.is_cuda:  # a packing has its own kernel there
                _check_numbers(model, _deepest_tree(sequences[:1]).to(model.device), tree)
    except Exception as error:  # an unsupported architecture may fail in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if batching == "tree":
            raise Mismatch(reason) from error
        name = "packed texts" if masked else "token trees"
        return Layout("padded", f"{name} are not exact for {type(model).__name__} ({reason[:160]})", masked)
    with torch.no_grad():
        plain = speed.head == "on" and _head_is_plain(model, batch, tree)
        skips = speed.skip_rows == "on" and not masked and _rows_can_be_skipped(model, batch, tree)
    return dataclasses.replace(tree, plain_head=plain, skips_rows=skips)


def max_unscaled_length(model: nn.Module) -> int:
    """The length beyond which the model changes its rotary frequencies; 2**31 if it never does."""
    settings: Any = model.config.get_text_config()  # type: ignore[union-attr, operator]
    rope = getattr(settings, "rope_parameters", None) or {}
    variants = [rope, *(v for v in rope.values() if isinstance(v, dict))]
    for kind in variants:
        if kind.get("rope_type") in LENGTH_DEPENDENT_ROPE:
            return kind.get("original_max_position_embeddings") or settings.max_position_embeddings
    return 2**31


def _deepest_tree(sequences: Sequence[TokenizedExample]) -> Batch:
    """The longest sequence and its (at most three) nearest neighbors; the last 64 tokens of each path are targets."""
    longest = max(sequences, key=lambda s: len(s.token_ids))

    def shared(other: TokenizedExample) -> int:
        length = min(len(other.token_ids), len(longest.token_ids))
        return int((other.token_ids[:length] == longest.token_ids[:length]).cumprod().sum())

    others = sorted((s for s in sequences if s is not longest), key=shared, reverse=True)[:3]
    probes = []
    for s in [*others, longest]:
        weights = np.zeros(len(s.token_ids), dtype=np.float32)
        weights[-64:] = 1
        probes.append(dataclasses.replace(s, loss_weights=weights))
    return build_batch(probes)


def _distinct_inputs(sequences: Sequence[TokenizedExample]) -> list[TokenizedExample]:
    """One sequence per distinct input; if there is only one, also its reverse."""
    distinct = list({s.masked_ids.tobytes(): s for s in sequences if s.masked_ids is not None}.values())
    if len(distinct) > 1:
        return distinct
    backwards = {name: getattr(distinct[0], name)[::-1].copy() for name in ("token_ids", "masked_ids", "loss_weights")}
    return [*distinct, dataclasses.replace(distinct[0], **backwards)]


def _check_calls(model: PreTrainedModel, batch: Batch, layout: Layout) -> None:
    if model.config._attn_implementation != ATTENTION_NAME:
        raise Mismatch("its attention cannot be replaced")
    seen_layers: list[int] = []
    row_logits(model, batch, layout, batch.target_rows_N[:1], seen_layers=seen_layers)
    layers = model.config.get_text_config().num_hidden_layers
    if len(set(seen_layers)) != layers or len(seen_layers) != layers:
        raise Mismatch(f"{len(set(seen_layers))} of {layers} layers use attention that can be replaced")


def _check_separation(model: PreTrainedModel, batch: Batch, layout: Layout) -> None:
    """Changing the tokens outside the last path must leave its logits bitwise unchanged."""
    size = len(batch.token_ids_T)
    on_path_T = batch.subtree_end_T == size
    vocabulary = model.get_input_embeddings().weight.shape[0]  # type: ignore[union-attr]
    changed = torch.where(on_path_T, batch.token_ids_T, (batch.token_ids_T + 1) % vocabulary)
    rows = batch.target_rows_N.unique()
    rows = rows[on_path_T[rows]]
    original = row_logits(model, batch, layout, rows)
    modified = row_logits(model, dataclasses.replace(batch, token_ids_T=changed), layout, rows)
    if not torch.equal(original, modified):
        raise Mismatch("tokens of one sequence reach another")


def _check_numbers(model: PreTrainedModel, batch: Batch, layout: Layout) -> None:
    """Compares tree attention with stock attention, sequence by sequence, on the first layers in float32."""
    small_model = _first_layers(model)
    with prepared(small_model, layout):
        tree_TD = tree_forward(small_model, batch, layout).last_hidden_state[0]
    for last in _leaf_rows(batch):
        path = (
            (batch.subtree_end_T > last) & (torch.arange(len(batch.token_ids_T), device=model.device) <= last)
        ).nonzero()
        rows = path[:, 0]
        stock_PD = small_model(input_ids=batch.token_ids_T[rows][None], **layout.no_cache).last_hidden_state[0]
        error = (tree_TD[rows] - stock_PD).abs().max() / stock_PD.abs().max()
        if not error <= 1e-3:
            raise Mismatch(f"differs from the stock attention by {error:.1e}")


def _head_is_plain(model: PreTrainedModel, batch: Batch, layout: Layout) -> bool:
    """Whether the logits come from the head's linear layer alone: no soft cap, no scaling, no adapter."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return False
    rows = batch.target_rows_N.unique()
    try:
        with prepared(model, layout):
            logits = row_logits(model, batch, layout, rows)
            states, _ = target_states(model, batch, layout)
        return torch.equal(logits, linear(states, head.weight, head.bias))
    except Exception:  # something lies between the last hidden states and the head
        return False


def _rows_can_be_skipped(model: PreTrainedModel, batch: Batch, layout: Layout) -> bool:
    """Whether the last layer gives the same output on a sample of the target rows as on all rows."""
    rows_U = batch.target_rows_N.unique()[:: max(2, len(batch.target_rows_N) // 8)].contiguous()
    small_model = _first_layers(model)
    try:
        with prepared(small_model, layout):
            all_rows = tree_forward(small_model, batch, layout).last_hidden_state[0, rows_U]
            target_rows = tree_forward(small_model, batch, layout, rows_U=rows_U).last_hidden_state[0]
    except Exception:  # an architecture whose layers handle keys and values differently
        return False
    return target_rows.shape == all_rows.shape and bool(
        (target_rows - all_rows).abs().max() <= 1e-5 * all_rows.abs().max()
    )


def _leaf_rows(batch: Batch) -> list[int]:
    """The rows of the tokens that no other token continues."""
    rows = torch.arange(len(batch.token_ids_T), device=batch.subtree_end_T.device)
    return (batch.subtree_end_T == rows + 1).nonzero()[:, 0].tolist()


def _first_layers(model: PreTrainedModel) -> PreTrainedModel:
    """A float32 copy (float64 stays) of the model's body with its first layers: all layer types, and at least two."""
    body = model.base_model
    assert isinstance(body, PreTrainedModel)
    config = copy.deepcopy(body.config)
    settings = config.get_text_config()
    count = settings.num_hidden_layers
    kinds = getattr(settings, "layer_types", None) or ["full_attention"] * count
    keep = min(count, max(2, 1 + max(kinds.index(kind) for kind in set(kinds))))
    for name, value in list(vars(settings).items()):
        if isinstance(value, list) and len(value) == count:
            setattr(settings, name, value[:keep])
    settings.num_hidden_layers = keep
    dtype = torch.promote_types(body.dtype, torch.float32)
    config._attn_implementation = model.config._attn_implementation
    with torch.random.fork_rng():  # initial weights are drawn, then replaced; the global random state must not change
        small_model = type(body)(config)
    small_model.to(dtype=dtype, device=body.device)  # type: ignore[call-arg]
    small_model.eval()
    initial = small_model.state_dict()
    # Under an adapter, the base model's weights are nested one level deeper.
    base = {name.replace(".base_layer.", "."): tensor for name, tensor in body.state_dict().items()}
    copied = {name: tensor.to(dtype) for name, tensor in base.items() if name in initial}
    # The bodies of some masked language models have a pooler, which does not affect the last hidden states.
    small_model.load_state_dict({**{name: t for name, t in initial.items() if name.startswith("pooler.")}, **copied})
    return small_model
