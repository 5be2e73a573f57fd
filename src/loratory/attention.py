"""Tree attention, handed to Transformers through its own registries, and the checks that it is right for a model.

T: tokens in the layout.  N: targets.  U: rows that some target needs.  V: vocabulary.
H, K: query and key/value heads.  D: head width.  R: rows of a chunk.  L: live keys of a chunk.
"""

import contextvars
import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from loratory.batches import Batch, build_batch
from loratory.render import TokenizedExample

NAME = "loratory_tree"
CHUNK_ROWS = 256
# Arguments that layers hand to the attention function and that change nothing here: windows come with the mask.
HARMLESS = {"sliding_window", "position_ids", "cache_position", "use_cache", "is_causal"}
LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}


@dataclass(frozen=True)
class Layout:
    """How this model's batches are computed, and why."""

    kind: Literal["tree", "padded", "one-by-one"]
    why: str

    @property
    def share(self) -> bool:
        return self.kind == "tree"


# ---- the mask --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowChunk:
    """Rows [start, end) of the layout with the keys that any of them may attend to."""

    start: int
    end: int
    keys_L: Int64[Tensor, "L"]
    allowed_RL: Bool[Tensor, "R L"]


@dataclass(frozen=True)
class LayerMask:
    """What arrives as ``attention_mask`` in the layers of one type."""

    chunks: tuple[RowChunk, ...]
    called: list[int]
    """Identities of the layers that called tree attention in this forward; read by the checks."""


@dataclass(frozen=True)
class TreeCall:
    """The batch of the forward that is under way; read by the mask function alone, before the first layer."""

    batch: Batch
    called: list[int]


_CALL: contextvars.ContextVar[TreeCall] = contextvars.ContextVar("loratory_tree_call")


def tree_mask(batch_size: int, mask_function: Callable[..., Tensor], **_: Any) -> LayerMask:
    """The mask of one layer type: the ancestor rule and the model's own rule, evaluated on depths.

    Registered with Transformers, which calls it once per layer type with that type's ``mask_function`` (causal,
    sliding window, chunks). Distances in it are distances in depth.
    """
    call = _CALL.get()
    assert batch_size == 1, "a token tree is one row"
    end_T, depth_T = call.batch.subtree_end_T, call.batch.position_ids_T
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.int64, device=depth_T.device)
    chunks = []
    for start in range(0, len(end_T), CHUNK_ROWS):
        stop = min(start + CHUNK_ROWS, len(end_T))
        keys_L = (end_T[:stop] > start).nonzero()[:, 0]
        rows_R1 = torch.arange(start, stop, device=depth_T.device)[:, None]
        ancestor_RL = (keys_L <= rows_R1) & (rows_R1 < end_T[keys_L])
        own_RL = mask_function(zero, zero, depth_T[start:stop][None, None, :, None], depth_T[keys_L][None, None, None])
        allowed_RL = ancestor_RL & own_RL[0, 0]
        live_L = allowed_RL.any(0)  # a window leaves many ancestors out
        chunks.append(RowChunk(start, stop, keys_L[live_L], allowed_RL[:, live_L]))
    return LayerMask(tuple(chunks), call.called)


def tree_attention(
    module: nn.Module,
    query: Float[Tensor, "1 H T D"],
    key: Float[Tensor, "1 K T D"],
    value: Float[Tensor, "1 K T Dv"],
    attention_mask: LayerMask,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **rest: Any,
) -> tuple[Float[Tensor, "1 T H Dv"], None]:
    """Attention over a token tree, one chunk of rows after another over its live keys.

    ``softcap``: logits become softcap * tanh(logits / softcap). ``s_aux``: one extra logit a head that takes part in
    the softmax and carries no value (attention sink). Raises TypeError for an argument whose meaning is not known.
    """
    unknown = sorted(k for k, v in rest.items() if k not in HARMLESS and v is not None and v is not False)
    if unknown or dropout:
        raise TypeError(f"tree attention does not know: {', '.join(unknown) or 'dropout'}")
    attention_mask.called.append(id(module))
    parts = []
    for chunk in attention_mask.chunks:
        q = query[:, :, chunk.start : chunk.end]
        k, v = key.index_select(2, chunk.keys_L), value.index_select(2, chunk.keys_L)
        if softcap is None and s_aux is None:
            part = scaled_dot_product_attention(
                q, k, v, chunk.allowed_RL[None, None], scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
            )
        else:
            part = _explicit_attention(q, k, v, chunk.allowed_RL, scaling, softcap, s_aux)
        parts.append(part)
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _explicit_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed_RL: Tensor,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~allowed_RL, float("-inf"))
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if sinks is not None:
        column = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(1, -1, scores.shape[2], 1)
        scores = torch.cat([scores, column], dim=-1)
    weights = scores.softmax(dim=-1)[..., : k.shape[2]]
    return weights.to(v.dtype) @ v


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, tree_mask)  # type: ignore[arg-type]


@contextmanager
def prepared(model: nn.Module, layout: Layout) -> Iterator[None]:
    """Switches the model to the layout's attention, and back to what it was."""
    if layout.kind != "tree":
        yield
        return
    stock = model.config._attn_implementation  # type: ignore[union-attr]
    model.set_attn_implementation(NAME)  # type: ignore[operator]
    try:
        yield
    finally:
        model.set_attn_implementation(stock)  # type: ignore[operator]


# ---- forward ---------------------------------------------------------------------------------------------------------


def target_logits(model: nn.Module, batch: Batch, layout: Layout) -> tuple[Float[Tensor, "U V"], Int64[Tensor, "N"]]:
    """Logits of the rows that some target needs, each once, and for every target its row among them.

    To be called inside ``prepared(model, layout)``.
    """
    rows_U, inverse_N = torch.unique(batch.target_rows_N, return_inverse=True)
    if layout.kind == "tree":
        return tree_forward(model, batch, logits_to_keep=rows_U).logits[0], inverse_N
    logits = []
    for arguments, row, column in _rectangles(batch, rows_U, layout.kind == "one-by-one"):
        if layout.kind == "one-by-one":
            _forget_lengths(model)
        logits.append(model(**arguments).logits[row, column])
    return torch.cat(logits), inverse_N


def _forget_lengths(model: nn.Module) -> None:
    """Puts length-dependent rotary frequencies back to their start.

    The library keeps those of the longest sequence seen so far and resets them only on a shorter one than the model was
    made for: one position is such a sequence.
    """
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name.endswith("original_inv_freq"):
                kind = name.removesuffix("original_inv_freq").removesuffix("_")
                position = torch.zeros(1, 1, dtype=torch.int64, device=buffer.device)
                module(buffer.new_zeros(1, 1, 1), position, **({"layer_type": kind} if kind else {}))


def tree_forward(model: nn.Module, batch: Batch, called: list[int] | None = None, **arguments: Any) -> Any:
    """The model's output for a token tree; ``model`` must be prepared. ``called`` collects the layers taking part."""
    token = _CALL.set(TreeCall(batch, [] if called is None else called))
    try:
        # The mask of ones says that nothing is padded; without any, the library would look for packed sequences.
        ones = torch.ones(1, len(batch.token_ids_T), dtype=torch.int64, device=batch.token_ids_T.device)
        ids, depth = batch.token_ids_T[None], batch.position_ids_T[None]
        return model(input_ids=ids, position_ids=depth, attention_mask=ones, use_cache=False, **arguments)
    finally:
        _CALL.reset(token)


def _rectangles(batch: Batch, rows_U: Tensor, one_by_one: bool) -> Iterator[tuple[dict[str, Any], Tensor, Tensor]]:
    """An unshared batch as right-padded rectangles: model arguments, and row and column of each wanted logit."""
    starts = (batch.position_ids_T == 0).nonzero()[:, 0]
    lengths = torch.diff(starts, append=torch.tensor([len(batch.token_ids_T)], device=starts.device))
    owner_U = torch.searchsorted(starts, rows_U, right=True) - 1
    for group in torch.arange(len(starts), device=starts.device).split(1 if one_by_one else max(len(starts), 1)):
        steps = torch.arange(int(lengths[group].max()), device=starts.device)
        mask = steps[None] < lengths[group][:, None]
        ids = batch.token_ids_T[torch.where(mask, starts[group][:, None] + steps[None], 0)].masked_fill(~mask, 0)
        wanted = (owner_U >= group[0]) & (owner_U <= group[-1])
        columns, column = torch.unique(batch.position_ids_T[rows_U[wanted]], return_inverse=True)
        arguments = {
            "input_ids": ids,
            "attention_mask": mask.to(torch.int64),
            "use_cache": False,
            "logits_to_keep": columns,
        }
        yield arguments, owner_U[wanted] - group[0], column


# ---- is it right for this model? -------------------------------------------------------------------------------------


class Mismatch(Exception):
    """Tree attention is not exact for this model; the message says how it showed."""


def choose_layout(model: PreTrainedModel, sequences: Sequence[TokenizedExample], batching: str) -> Layout:
    """Token trees if they are exact for this model on the deepest tree of these sequences, else right-padded batches.

    Checked: every layer calls tree attention with arguments that it knows; tokens outside a path do not change that
    path's logits by a bit; an fp32 copy of the first layers of each type agrees with the model's stock attention.
    """
    deepest = max(len(s.token_ids) for s in sequences)
    limit = length_dependent_beyond(model)
    if deepest > limit:
        return Layout("one-by-one", f"positions are rescaled beyond {limit} tokens, so sequences cannot be mixed")
    if batching == "padded":
        return Layout("padded", "as the settings say")
    tree = Layout("tree", "verified on this model")
    batch = _deepest_tree(sequences).to(model.device)
    try:
        with torch.no_grad(), prepared(model, tree):
            _check_calls(model, batch)
            _check_separation(model, batch)
        with torch.no_grad():
            _check_numbers(model, batch, tree)
    except Exception as error:  # an architecture that is not made for this fails in ways of its own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if batching == "tree":
            raise Mismatch(reason) from error
        return Layout("padded", f"token trees are not exact for {type(model).__name__} ({reason[:160]})")
    return tree


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


def _check_calls(model: PreTrainedModel, batch: Batch) -> None:
    if model.config._attn_implementation != NAME:
        raise Mismatch("its attention cannot be replaced")
    called: list[int] = []
    tree_forward(model, batch, called, logits_to_keep=1)
    layers = model.config.get_text_config().num_hidden_layers
    if len(set(called)) != layers or len(called) != layers:
        raise Mismatch(f"{len(set(called))} of {layers} layers use attention that can be replaced")


def _check_separation(model: PreTrainedModel, batch: Batch) -> None:
    """Other tokens outside the last path must leave its logits bitwise as they are."""
    size = len(batch.token_ids_T)
    on_path_T = batch.subtree_end_T == size
    vocabulary = model.get_input_embeddings().weight.shape[0]  # type: ignore[union-attr]
    changed = torch.where(on_path_T, batch.token_ids_T, (batch.token_ids_T + 1) % vocabulary)
    rows = batch.target_rows_N.unique()
    rows = rows[on_path_T[rows]]
    one = tree_forward(model, batch, logits_to_keep=rows).logits
    two = tree_forward(model, dataclasses.replace(batch, token_ids_T=changed), logits_to_keep=rows).logits
    if not torch.equal(one, two):
        raise Mismatch("tokens of one sequence reach another")


def _check_numbers(model: PreTrainedModel, batch: Batch, layout: Layout) -> None:
    """The first layers in float32: the tree against the stock attention, sequence by sequence."""
    twin = _first_layers(model)
    with prepared(twin, layout):
        tree_TD = tree_forward(twin, batch).last_hidden_state[0]
    for last in _leaf_rows(batch):
        path = (
            (batch.subtree_end_T > last) & (torch.arange(len(batch.token_ids_T), device=model.device) <= last)
        ).nonzero()
        rows = path[:, 0]
        stock_PD = twin(input_ids=batch.token_ids_T[rows][None], use_cache=False).last_hidden_state[0]
        error = (tree_TD[rows] - stock_PD).abs().max() / stock_PD.abs().max()
        if not error <= 1e-3:
            raise Mismatch(f"differs from the stock attention by {error:.1e}")


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
    twin.load_state_dict(found)
    return twin
