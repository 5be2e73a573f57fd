"""Is a token tree right for this model, and what of the fast path? Checked on the model at hand before it is trusted.

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

from loratory.config import SpeedConfig
from loratory.models import first_position
from loratory.text import TokenizedExample
from loratory.tree.attention import NAME
from loratory.tree.batches import Batch, build_batch
from loratory.tree.forward import prepared, row_logits, target_states, tree_forward
from loratory.tree.layout import Layout

LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}


class Mismatch(Exception):
    """Tree attention is not exact for this model; the message says how it showed."""


def choose_layout(
    model: PreTrainedModel,
    sequences: Sequence[TokenizedExample],
    batching: str,
    speed: SpeedConfig = SpeedConfig(),  # noqa: B008 - frozen
) -> Layout:
    """Token trees if they are exact for this model on the deepest tree of these sequences, else right-padded batches.

    Checked: every layer calls tree attention with arguments that it knows; tokens outside a path do not change that
    path's logits by a bit; an fp32 copy of the first layers of each type agrees with the model's stock attention.
    Skipping rows in the last layer, and a head that is nothing but a linear layer, are used where they prove the same.
    """
    deepest = max(len(s.token_ids) for s in sequences)
    limit = length_dependent_beyond(model)
    masked = sequences[0].masked_ids is not None
    if masked:
        sequences = _distinct_inputs(sequences)
    if deepest > limit:
        why = f"positions are rescaled beyond {limit} tokens, so sequences cannot be mixed"
        return Layout("one-by-one", why, masked)
    if batching == "padded":
        return Layout("padded", "as the settings say", masked)
    kind, first = ("packed", first_position(model)) if masked else ("tree", 0)
    tree = Layout(kind, "verified on this model", masked, first, by_hand=speed.attention == "on")
    batch = _deepest_tree(sequences).to(model.device)
    try:
        with torch.no_grad(), prepared(model, tree):
            _check_calls(model, batch, tree)
            _check_separation(model, batch, tree)
        with torch.no_grad():
            _check_numbers(model, batch, tree)
            if batch.token_ids_T.is_cuda:  # where a packing has a kernel of its own
                _check_numbers(model, _deepest_tree(sequences[:1]).to(model.device), tree)
    except Exception as error:  # an architecture that is not made for this fails in ways of its own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if batching == "tree":
            raise Mismatch(reason) from error
        what = "packed texts" if masked else "token trees"
        return Layout("padded", f"{what} are not exact for {type(model).__name__} ({reason[:160]})", masked)
    with torch.no_grad():
        plain = speed.head == "on" and _head_is_plain(model, batch, tree)
        skips = speed.skip_rows == "on" and not masked and _rows_can_be_skipped(model, batch, tree)
    return dataclasses.replace(tree, plain_head=plain, skips_rows=skips)


def length_dependent_beyond(model: nn.Module) -> int:
    """Sequences longer than this get other rotary frequencies from the model."""
    settings: Any = model.config.get_text_config()  # type: ignore[union-attr, operator]
    rope = getattr(settings, "rope_parameters", None) or {}
    kinds = [rope, *(v for v in rope.values() if isinstance(v, dict))]
    for kind in kinds:
        if kind.get("rope_type") in LENGTH_DEPENDENT_ROPE:
            return kind.get("original_max_position_embeddings") or settings.max_position_embeddings
    return 2**31


def _deepest_tree(sequences: Sequence[TokenizedExample]) -> Batch:
    """The longest sequence with its nearest neighbours; the last 64 tokens of each path are targets."""
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
    """One sequence of each text that is read; where there is one only, also that one backwards."""
    found = list({s.masked_ids.tobytes(): s for s in sequences if s.masked_ids is not None}.values())
    if len(found) > 1:
        return found
    turned = {name: getattr(found[0], name)[::-1].copy() for name in ("token_ids", "masked_ids", "loss_weights")}
    return [*found, dataclasses.replace(found[0], **turned)]


def _check_calls(model: PreTrainedModel, batch: Batch, layout: Layout) -> None:
    if model.config._attn_implementation != NAME:
        raise Mismatch("its attention cannot be replaced")
    called: list[int] = []
    row_logits(model, batch, layout, batch.target_rows_N[:1], called=called)
    layers = model.config.get_text_config().num_hidden_layers
    if len(set(called)) != layers or len(called) != layers:
        raise Mismatch(f"{len(set(called))} of {layers} layers use attention that can be replaced")


def _check_separation(model: PreTrainedModel, batch: Batch, layout: Layout) -> None:
    """Other tokens outside the last path must leave its logits bitwise as they are."""
    size = len(batch.token_ids_T)
    on_path_T = batch.subtree_end_T == size
    vocabulary = model.get_input_embeddings().weight.shape[0]  # type: ignore[union-attr]
    changed = torch.where(on_path_T, batch.token_ids_T, (batch.token_ids_T + 1) % vocabulary)
    rows = batch.target_rows_N.unique()
    rows = rows[on_path_T[rows]]
    one = row_logits(model, batch, layout, rows)
    two = row_logits(model, dataclasses.replace(batch, token_ids_T=changed), layout, rows)
    if not torch.equal(one, two):
        raise Mismatch("tokens of one sequence reach another")


def _check_numbers(model: PreTrainedModel, batch: Batch, layout: Layout) -> None:
    """The first layers in float32: the tree against the stock attention, sequence by sequence."""
    twin = _first_layers(model)
    with prepared(twin, layout):
        tree_TD = tree_forward(twin, batch, layout).last_hidden_state[0]
    for last in _leaf_rows(batch):
        path = (
            (batch.subtree_end_T > last) & (torch.arange(len(batch.token_ids_T), device=model.device) <= last)
        ).nonzero()
        rows = path[:, 0]
        stock_PD = twin(input_ids=batch.token_ids_T[rows][None], **layout.no_cache).last_hidden_state[0]
        error = (tree_TD[rows] - stock_PD).abs().max() / stock_PD.abs().max()
        if not error <= 1e-3:
            raise Mismatch(f"differs from the stock attention by {error:.1e}")


def _head_is_plain(model: PreTrainedModel, batch: Batch, layout: Layout) -> bool:
    """Whether the logits are those of the head's linear layer alone: no cap, no scale, no adapter."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return False
    rows = batch.target_rows_N.unique()
    try:
        with prepared(model, layout):
            logits = row_logits(model, batch, layout, rows)
            states, _ = target_states(model, batch, layout)
        return torch.equal(logits, linear(states, head.weight, head.bias))
    except Exception:  # something between the last states and the head
        return False


def _rows_can_be_skipped(model: PreTrainedModel, batch: Batch, layout: Layout) -> bool:
    """Whether the last layer on a few rows gives what it gives on all: the first targets of each path."""
    few = batch.target_rows_N.unique()[:: max(2, len(batch.target_rows_N) // 8)].contiguous()
    twin = _first_layers(model)
    try:
        with prepared(twin, layout):
            whole = tree_forward(twin, batch, layout).last_hidden_state[0, few]
            some = tree_forward(twin, batch, layout, rows_U=few).last_hidden_state[0]
    except Exception:  # an architecture whose layers pass keys and values on in another way
        return False
    return some.shape == whole.shape and bool((some - whole).abs().max() <= 1e-5 * whole.abs().max())


def _leaf_rows(batch: Batch) -> list[int]:
    """Rows of the tokens that no other token continues."""
    own = torch.arange(len(batch.token_ids_T), device=batch.subtree_end_T.device)
    return (batch.subtree_end_T == own + 1).nonzero()[:, 0].tolist()


def _first_layers(model: PreTrainedModel) -> PreTrainedModel:
    """A float32 copy (float64 stays) of the model's body with as few layers as cover every layer type, at least two."""
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
    with torch.random.fork_rng():  # the first weights are drawn and replaced; nobody else's draws may move
        twin = type(body)(config)
    twin.to(dtype=dtype, device=body.device)  # type: ignore[call-arg]
    twin.eval()
    wanted = twin.state_dict()
    # Under an adapter, the base model's own weights are one level down.
    own = {name.replace(".base_layer.", "."): tensor for name, tensor in body.state_dict().items()}
    found = {name: tensor.to(dtype) for name, tensor in own.items() if name in wanted}
    # Bodies of some masked language models are made with a pooler, which the last states do not depend on.
    twin.load_state_dict({**{name: t for name, t in wanted.items() if name.startswith("pooler.")}, **found})
    return twin
