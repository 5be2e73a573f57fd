"""The forward pass of a token tree, or of padded batches where a model cannot take one."""

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

from loratory.tree.attention import _CALL, NAME, TreeCall
from loratory.tree.batches import Batch, padded
from loratory.tree.flex import bucket
from loratory.tree.layout import Layout


@contextmanager
def prepared_for_training(model: nn.Module, layout: Layout) -> Iterator[None]:
    """As ``prepared``, and while open, layers run compiled or keep little for the backward, as the layout says.

    Not the last layer, which may skip rows. Nor is the first one compiled, whose input needs no gradient, so that all
    run the same code, for any number of tokens.
    """
    layers = decoder_layers(model)
    saving = layout.checkpoints and can_checkpoint(model)
    compiled = layers[1:-1] if layout.compiled and layout.share and not saving else []
    device = next(model.parameters()).device.type
    autocast = torch.autocast(device, layout.autocast_dtype) if layout.autocast_dtype else nullcontext()
    # A layer that cannot be compiled runs as it is.
    forgiving = torch._dynamo.config.patch(suppress_errors=True) if compiled else nullcontext()
    try:
        for layer in compiled:
            layer.compile(dynamic=True)
        if saving:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})  # type: ignore[operator]
            for layer in layers:
                layer.training = layer is not layers[-1]  # the layer's own flag; its dropouts are modules of their own
        with prepared(model, layout), autocast, forgiving:
            yield
    finally:
        for layer in compiled:
            layer.compile(disable=True)
        if saving:
            disable = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
            disable()  # type: ignore[operator]
            model.disable_input_require_grads()  # type: ignore[operator]  # which enabling had switched on
            for layer in layers:
                layer.training = False


def can_checkpoint(model: nn.Module) -> bool:
    """Whether its layers know how to, and draw no dropout of their own, which the flag for it would switch on."""
    layers = decoder_layers(model)
    known = getattr(body_of(model), "supports_gradient_checkpointing", False)
    known = known and all(hasattr(layer, "gradient_checkpointing") for layer in layers)
    draws = any("drop" in name and isinstance(v, float) and v > 0 for la in layers for name, v in vars(la).items())
    return bool(layers) and known and not draws


@contextmanager
def prepared(model: nn.Module, layout: Layout) -> Iterator[None]:
    """Switches the model to the layout's attention, and back to what it was."""
    if not layout.share:
        yield
        return
    stock = model.config._attn_implementation  # type: ignore[union-attr]
    model.set_attn_implementation(NAME)  # type: ignore[operator]
    try:
        yield
    finally:
        model.set_attn_implementation(stock)  # type: ignore[operator]


def body_of(model: nn.Module) -> nn.Module:
    """The model below its head, with its adapter if it has one."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    return inner.base_model  # type: ignore[return-value]


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The model's layers, first to last."""
    body = body_of(model)
    count = body.config.get_text_config().num_hidden_layers  # type: ignore[union-attr, operator]
    lists = [m for m in body.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    return list(lists[0]) if lists else []


def target_states(
    model: nn.Module, batch: Batch, layout: Layout, prefix: DynamicCache | None = None
) -> tuple[Float[Tensor, "U X"], Int64[Tensor, "N"]]:
    """Last hidden states of the rows that some target needs, each once, and for every target its row among them.

    To be called inside ``prepared(model, layout)``, with a layout of trees.
    """
    rows_U, inverse_N = torch.unique(batch.target_rows_N, return_inverse=True)
    skipped = rows_U if layout.skips_rows and 2 * len(rows_U) < len(batch.token_ids_T) else None
    states = tree_forward(body_of(model), batch, layout, rows_U=skipped, prefix=prefix).last_hidden_state[0]
    return (states if skipped is not None else states[rows_U]), inverse_N


def target_logits(
    model: nn.Module, batch: Batch, layout: Layout, prefix: DynamicCache | None = None
) -> tuple[Float[Tensor, "U V"], Int64[Tensor, "N"]]:
    """Logits of the rows that some target needs, each once, and for every target its row among them.

    To be called inside ``prepared(model, layout)``.
    """
    rows_U, inverse_N = torch.unique(batch.target_rows_N, return_inverse=True)
    if layout.share:
        return row_logits(model, batch, layout, rows_U, prefix), inverse_N
    logits = []
    for arguments, row, column in _padded_inputs(batch, rows_U, layout.kind == "one-by-one"):
        if layout.kind == "one-by-one":
            _reset_rotary_frequencies(model)
        if layout.masked:
            chosen = row * arguments["input_ids"].shape[1] + column
            with _only_rows(body_of(model), chosen):
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
    called: list[int] | None = None,
) -> Float[Tensor, "U V"]:
    """Logits of some rows of a token tree; ``model`` must be prepared. ``called`` as in tree_forward."""
    if not layout.masked:
        return tree_forward(model, batch, layout, called, prefix=prefix, logits_to_keep=rows_U).logits[0]
    with _only_rows(body_of(model), rows_U):
        return tree_forward(model, batch, layout, called).logits[0]


@contextmanager
def _only_rows(body: nn.Module, rows_U: Int64[Tensor, "U"]) -> Iterator[None]:
    """While open, the body hands some of its last states to the head, as one sequence: the heads of masked language
    models cannot be told which. Rows count through the whole batch."""

    def choose(module: nn.Module, args: tuple, output: Any) -> Any:
        output["last_hidden_state"] = output["last_hidden_state"].flatten(0, 1)[rows_U][None]
        return output

    handle = body.register_forward_hook(choose)
    try:
        yield
    finally:
        handle.remove()


def tree_forward(
    model: nn.Module,
    batch: Batch,
    layout: Layout,
    called: list[int] | None = None,
    rows_U: Tensor | None = None,
    prefix: DynamicCache | None = None,
    **arguments: Any,
) -> Any:
    """The model's output for a token tree; ``model`` must be prepared. ``called`` collects the layers taking part.

    ``rows_U``: the output is that of these rows alone (ascending), and the last layer computes no others.
    ``prefix``: keys and values of tokens that all sequences begin with and that the batch leaves out; not changed.
    """
    length = prefix.get_seq_length() if prefix is not None else 0
    if batch.token_ids_T.is_cuda:
        batch = padded(batch, bucket(len(batch.token_ids_T)))
    token = _CALL.set(TreeCall(batch, rows_U, length, layout, [] if called is None else called))
    if prefix is not None:
        arguments["past_key_values"] = _shallow(prefix)
    try:
        # The mask of ones says that nothing is padded; without any, the library would look for packed sequences.
        ones = torch.ones(1, length + len(batch.token_ids_T), dtype=torch.int64, device=batch.token_ids_T.device)
        positions = batch.position_ids_T[None] + layout.first_position
        arguments |= {"input_ids": batch.token_ids_T[None], "position_ids": positions}
        with nullcontext() if rows_U is None else _skipping(decoder_layers(model)[-1], rows_U):
            return model(attention_mask=ones, **layout.no_cache, **arguments)
    finally:
        _CALL.reset(token)


def _shallow(cache: DynamicCache) -> DynamicCache:
    """A cache with the same keys and values, which grows without changing the other."""
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin


class _Found(Exception):
    """Ends a layer early: its keys and values are known."""


@dataclass
class _KeysAndValues:
    """Stands in a layer for the cache of keys and values, which layers hand what they made to and get all back from."""

    found: tuple[Tensor, Tensor] | None = None

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self.found is None:
            self.found = (key, value)
            raise _Found
        return self.found


@contextmanager
def _skipping(layer: nn.Module, rows_U: Tensor) -> Iterator[None]:
    """While open, the layer computes keys and values of all rows, and everything else of some rows only."""

    def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        hidden, named = args[0], _by_name(module, args, kwargs)
        cache, known = named.get("past_key_values"), _KeysAndValues()
        handle.remove()  # what follows calls the layer itself
        with suppress(_Found):
            module(hidden, **{**named, "past_key_values": known})
        assert known.found is not None, "the layer hands its keys and values to no cache"
        if cache is not None:
            index = next(m.layer_idx for m in module.modules() if hasattr(m, "layer_idx"))
            known.found = cache.update(*known.found, index)
        chosen = {name: _choose(value, rows_U, hidden.shape[1]) for name, value in named.items()}
        mask = named["attention_mask"].some_rows
        return (hidden[:, rows_U],), {**chosen, "attention_mask": mask, "past_key_values": known}

    handle = layer.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _by_name(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a module's forward by name, but for the first one."""
    names = list(inspect.signature(module.forward).parameters)
    return {**dict(zip(names[1:], args[1:], strict=False)), **kwargs}


def _choose(value: Any, rows_U: Tensor, size: int) -> Any:
    """The rows of what has one row a token, wherever it stands in a tuple."""
    if isinstance(value, tuple):
        return tuple(_choose(part, rows_U, size) for part in value)
    if isinstance(value, Tensor) and value.ndim >= 2 and value.shape[:2] == (1, size):
        return value[:, rows_U]
    return value


def _reset_rotary_frequencies(model: nn.Module) -> None:
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


def _padded_inputs(batch: Batch, rows_U: Tensor, one_by_one: bool) -> Iterator[tuple[dict[str, Any], Tensor, Tensor]]:
    """An unshared batch as right-padded rectangles: model arguments, and row and column of each wanted logit."""
    starts = (batch.position_ids_T == 0).nonzero()[:, 0]
    lengths = torch.diff(starts, append=torch.tensor([len(batch.token_ids_T)], device=starts.device))
    owner_U = torch.searchsorted(starts, rows_U, right=True) - 1
    for group in torch.arange(len(starts), device=starts.device).split(1 if one_by_one else max(len(starts), 1)):
        steps = torch.arange(int(lengths[group].max()), device=starts.device)
        mask = steps[None] < lengths[group][:, None]
        ids = batch.token_ids_T[torch.where(mask, starts[group][:, None] + steps[None], 0)].masked_fill(~mask, 0)
        wanted = (owner_U >= group[0]) & (owner_U <= group[-1])
        arguments = {"input_ids": ids, "attention_mask": mask.to(torch.int64)}
        yield arguments, owner_U[wanted] - group[0], batch.position_ids_T[rows_U[wanted]]
