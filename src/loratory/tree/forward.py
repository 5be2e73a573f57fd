"""The forward pass over a token tree, or over padded batches if the model does not support trees."""

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import DynamicCache

from loratory.tree.attention import _CALL, ATTENTION_NAME, TreeCall
from loratory.tree.batches import Batch, pad_batch
from loratory.tree.gpu_attention import bucket
from loratory.tree.layout import Layout


@contextmanager
def prepared_for_training(model: nn.Module, layout: Layout) -> Iterator[None]:
    """Like ``prepared``; in addition, layers run compiled or with gradient checkpointing, as the layout specifies.

    The last layer is excluded because it may skip rows. The first layer is not compiled either, because its input needs
    no gradient: this way all compiled layers run the same code, for any number of tokens.
    """
    layers = decoder_layers(model)
    checkpointing = layout.gradient_checkpointing and supports_gradient_checkpointing(model)
    compiled = layers[1:-1] if layout.compiled and layout.share and not checkpointing else []
    device = next(model.parameters()).device.type
    autocast = torch.autocast(device, layout.autocast_dtype) if layout.autocast_dtype else nullcontext()
    # A layer that cannot be compiled runs uncompiled.
    ignoring_errors = torch._dynamo.config.patch(suppress_errors=True) if compiled else nullcontext()
    try:
        for layer in compiled:
            layer.compile(dynamic=True)
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})  # type: ignore[operator]
            for layer in layers:
                layer.training = layer is not layers[-1]  # only this module's flag; its dropout modules have their own
        with prepared(model, layout), autocast, ignoring_errors:
            yield
    finally:
        for layer in compiled:
            layer.compile(disable=True)
        if checkpointing:
            disable = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
            disable()  # type: ignore[operator]
            model.disable_input_require_grads()  # type: ignore[operator]  # turned on by the call above
            for layer in layers:
                layer.training = False


def supports_gradient_checkpointing(model: nn.Module) -> bool:
    """Whether the layers support gradient checkpointing and apply no dropout themselves: its flag would enable that."""
    layers = decoder_layers(model)
    supported = getattr(body_of(model), "supports_gradient_checkpointing", False)
    supported = supported and all(hasattr(layer, "gradient_checkpointing") for layer in layers)
    drops = any("drop" in name and isinstance(v, float) and v > 0 for la in layers for name, v in vars(la).items())
    return bool(layers) and supported and not drops


@contextmanager
def prepared(model: nn.Module, layout: Layout) -> Iterator[None]:
    """Switches the model to the layout's attention and restores the previous one on exit."""
    if not layout.share:
        yield
        return
    stock = model.config._attn_implementation  # type: ignore[union-attr]
    model.set_attn_implementation(ATTENTION_NAME)  # type: ignore[operator]
    try:
        yield
    finally:
        model.set_attn_implementation(stock)  # type: ignore[operator]


def body_of(model: nn.Module) -> nn.Module:
    """The model without its head, including its adapter if it has one."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    return inner.base_model  # type: ignore[return-value]


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The model's layers, first to last; an empty list if they are not found."""
    body = body_of(model)
    count = body.config.get_text_config().num_hidden_layers  # type: ignore[union-attr, operator]
    lists = [m for m in body.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    return list(lists[0]) if lists else []


def target_states(
    model: nn.Module, batch: Batch, layout: Layout, prefix: DynamicCache | None = None
) -> tuple[Float[Tensor, "U X"], Int64[Tensor, "N"]]:
    """Last hidden states of the rows that targets need, each row once, and the index of each target's row among them.

    Call it inside ``prepared(model, layout)``, with a tree layout.
    """
    rows_U, inverse_N = torch.unique(batch.target_rows_N, return_inverse=True)
    skipped = rows_U if layout.skips_rows and 2 * len(rows_U) < len(batch.token_ids_T) else None
    states = tree_forward(body_of(model), batch, layout, rows_U=skipped, prefix=prefix).last_hidden_state[0]
    return (states if skipped is not None else states[rows_U]), inverse_N


def target_logits(
    model: nn.Module, batch: Batch, layout: Layout, prefix: DynamicCache | None = None
) -> tuple[Float[Tensor, "U V"], Int64[Tensor, "N"]]:
    """Logits of the rows that targets need, each row once, and the index of each target's row among them.

    Call it inside ``prepared(model, layout)``.
    """
    rows_U, inverse_N = torch.unique(batch.target_rows_N, return_inverse=True)
    if layout.share:
        return row_logits(model, batch, layout, rows_U, prefix), inverse_N
    logits = []
    for arguments, row, column in _padded_inputs(batch, rows_U, layout.kind == "one-by-one"):
        if layout.kind == "one-by-one":
            _reset_rotary_frequencies(model)
        if layout.masked:
            selected = row * arguments["input_ids"].shape[1] + column
            with _only_rows(body_of(model), selected):
                logits.append(model(**arguments).logits[0])
            continue
        columns, place = torch.unique(column, return_inverse=True)
        logits.append(model(**arguments, use_cache=False, logits_to_keep=columns).logits[row, place])
    return torch.cat(logits), inverse_N


def row_logits(
    model: nn.Module,
    batch: Batch,
    layout: Layout,
    rows_U: Int64[Tensor, "U"],
    prefix: DynamicCache | None = None,
    seen_layers: list[int] | None = None,
) -> Float[Tensor, "U V"]:
    """Logits of the given rows of a token tree; ``model`` must be prepared. ``seen_layers``: see ``tree_forward``."""
    if not layout.masked:
        return tree_forward(model, batch, layout, seen_layers, prefix=prefix, logits_to_keep=rows_U).logits[0]
    with _only_rows(body_of(model), rows_U):
        return tree_forward(model, batch, layout, seen_layers).logits[0]


@contextmanager
def _only_rows(body: nn.Module, rows_U: Int64[Tensor, "U"]) -> Iterator[None]:
    """While open, the body passes only these rows of its last hidden states to the head, as one sequence.

    The heads of masked language models cannot select rows themselves. Rows are numbered across the whole batch.
    """

    def select(module: nn.Module, args: tuple, output: Any) -> Any:
        output["last_hidden_state"] = output["last_hidden_state"].flatten(0, 1)[rows_U][None]
        return output

    handle = body.register_forward_hook(select)
    try:
        yield
    finally:
        handle.remove()


def tree_forward(
    model: nn.Module,
    batch: Batch,
    layout: Layout,
    seen_layers: list[int] | None = None,
    rows_U: Tensor | None = None,
    prefix: DynamicCache | None = None,
    **arguments: Any,
) -> Any:
    """The model's output for a token tree; ``model`` must be prepared.

    ``seen_layers`` collects the ``id()`` of each attention module that calls tree attention. ``rows_U`` (ascending):
    the output has only these rows, and the last layer computes no others. ``prefix``: keys and values of the tokens
    that all sequences begin with and that the batch leaves out; it is not modified.
    """
    length = prefix.get_seq_length() if prefix is not None else 0
    if batch.token_ids_T.is_cuda:
        batch = pad_batch(batch, bucket(len(batch.token_ids_T)))
    token = _CALL.set(TreeCall(batch, rows_U, length, layout, [] if seen_layers is None else seen_layers))
    if prefix is not None:
        arguments["past_key_values"] = _shallow_copy(prefix)
    try:
        # A mask of ones means no padding; without a mask, Transformers would look for packed sequences.
        ones = torch.ones(1, length + len(batch.token_ids_T), dtype=torch.int64, device=batch.token_ids_T.device)
        positions = batch.position_ids_T[None] + layout.first_position
        arguments |= {"input_ids": batch.token_ids_T[None], "position_ids": positions}
        with nullcontext() if rows_U is None else _skipping_rows(decoder_layers(model)[-1], rows_U):
            return model(attention_mask=ones, **layout.no_cache, **arguments)
    finally:
        _CALL.reset(token)


def _shallow_copy(cache: DynamicCache) -> DynamicCache:
    """A cache with the same keys and values that can grow without changing the original."""
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin


class _KeysAndValuesKnown(Exception):
    """Stops a layer early, once its keys and values are known."""


@dataclass
class _KeysAndValues:
    """Stands in for the key/value cache, to which a layer passes new keys and values and which returns all of them."""

    stored: tuple[Tensor, Tensor] | None = None

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self.stored is None:
            self.stored = (key, value)
            raise _KeysAndValuesKnown
        return self.stored


@contextmanager
def _skipping_rows(layer: nn.Module, rows_U: Tensor) -> Iterator[None]:
    """While open, the layer computes keys and values for all rows, but everything else only for the given rows."""

    def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        hidden, named = args[0], _named_arguments(module, args, kwargs)
        cache, keys_and_values = named.get("past_key_values"), _KeysAndValues()
        handle.remove()  # the code below calls the layer itself
        with suppress(_KeysAndValuesKnown):
            module(hidden, **{**named, "past_key_values": keys_and_values})
        assert keys_and_values.stored is not None, "the layer passes its keys and values to no cache"
        if cache is not None:
            index = next(m.layer_idx for m in module.modules() if hasattr(m, "layer_idx"))
            keys_and_values.stored = cache.update(*keys_and_values.stored, index)
        selected = {name: _select_rows(value, rows_U, hidden.shape[1]) for name, value in named.items()}
        mask = named["attention_mask"].target_rows
        return (hidden[:, rows_U],), {**selected, "attention_mask": mask, "past_key_values": keys_and_values}

    handle = layer.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _named_arguments(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a module's forward by name, except the first one."""
    names = list(inspect.signature(module.forward).parameters)
    return {**dict(zip(names[1:], args[1:], strict=False)), **kwargs}


def _select_rows(value: Any, rows_U: Tensor, size: int) -> Any:
    """The given rows of every tensor that has one row per token, also inside tuples; other values stay as they are."""
    if isinstance(value, tuple):
        return tuple(_select_rows(part, rows_U, size) for part in value)
    if isinstance(value, Tensor) and value.ndim >= 2 and value.shape[:2] == (1, size):
        return value[:, rows_U]
    return value


def _reset_rotary_frequencies(model: nn.Module) -> None:
    """Resets length-dependent rotary frequencies to their initial values.

    Transformers keeps the frequencies of the longest sequence seen so far. It resets them only for a sequence shorter
    than the model's original length, such as a single position.
    """
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name.endswith("original_inv_freq"):
                kind = name.removesuffix("original_inv_freq").removesuffix("_")
                position = torch.zeros(1, 1, dtype=torch.int64, device=buffer.device)
                module(buffer.new_zeros(1, 1, 1), position, **({"layer_type": kind} if kind else {}))


def _padded_inputs(batch: Batch, rows_U: Tensor, one_by_one: bool) -> Iterator[tuple[dict[str, Any], Tensor, Tensor]]:
    """An unshared batch as right-padded rectangles: model arguments, and row and column of each required logit."""
    starts = (batch.position_ids_T == 0).nonzero()[:, 0]
    lengths = torch.diff(starts, append=torch.tensor([len(batch.token_ids_T)], device=starts.device))
    owner_U = torch.searchsorted(starts, rows_U, right=True) - 1
    for group in torch.arange(len(starts), device=starts.device).split(1 if one_by_one else max(len(starts), 1)):
        steps = torch.arange(int(lengths[group].max()), device=starts.device)
        mask = steps[None] < lengths[group][:, None]
        ids = batch.token_ids_T[torch.where(mask, starts[group][:, None] + steps[None], 0)].masked_fill(~mask, 0)
        in_group = (owner_U >= group[0]) & (owner_U <= group[-1])
        arguments = {"input_ids": ids, "attention_mask": mask.to(torch.int64)}
        yield arguments, owner_U[in_group] - group[0], batch.position_ids_T[rows_U[in_group]]
