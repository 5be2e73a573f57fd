"""Checks on one device: training over token trees is exact, and a resumed training equals an uninterrupted one.

    python benchmarks/gpu_exactness.py CHECK [--device cuda] [--quick]

CHECK is "resume" or a family of models. Prints one JSON object for each case. The models are small
and have random weights. The reference is the model's stock attention in float64, one sequence at a time.
"""

import argparse
import copy
import dataclasses
import json
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PretrainedConfig, PreTrainedModel

from loratory.models import LoadedModel, LoadedTokenizer, attach_adapter
from loratory.settings import AdapterConfig, TrainConfig
from loratory.text import TokenizedExample
from loratory.training import (
    latest_checkpoint,
    load_checkpoint,
    make_optimizer,
    save_checkpoint,
    train,
    trainable_parameters,
)
from loratory.tree import Layout, batch_loss, choose_layout, micro_batches, prepared_for_training

VOCABULARY, MASK_ID, WINDOW = 512, 3, 32
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 32, "num_hidden_layers": 4}
NO_IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"] * 2}
FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**GROUPED, **NO_IDS),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED, **NO_IDS),
    "gemma3": lambda: transformers.Gemma3TextConfig(**GROUPED, **NO_IDS, **WINDOWS, sliding_window=WINDOW),
    "modernbert": lambda: transformers.ModernBertConfig(
        **SIZES,
        **NO_IDS,
        **WINDOWS,
        num_hidden_layers=4,
        local_attention=2 * WINDOW,
        cls_token_id=None,
        sep_token_id=None,
    ),
    "bert": lambda: transformers.BertConfig(**SIZES, num_hidden_layers=4, pad_token_id=0),
}
MASKED = ("modernbert", "bert")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}
"""The largest error that passes. In bfloat16, twice the error of stock attention passes as well."""
SEQUENCES, TOKEN_BUDGET, LEARNING_RATE = 12, 4096, 1e-2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=("resume", *FAMILIES))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="float32 only")
    args = parser.parse_args()
    cases = [resume(args.device)] if args.check == "resume" else exactness(args.check, args.device, args.quick)
    for case in cases:
        print(json.dumps(case), flush=True)


# ---- exactness -------------------------------------------------------------------------------------------------------


def exactness(family: str, device: str, quick: bool) -> Iterator[dict[str, Any]]:
    """Errors of loss and LoRA gradients: for each dtype, with and without shared tokens, and with compiled layers."""
    for dtype in ["float32"] if quick else DTYPES:
        for data, compiled in (("shared", False), ("unshared", False), ("shared", True)):
            case = {"family": family, "dtype": dtype, "data": data, "compiled": compiled}
            try:
                yield {**case, **errors(family, DTYPES[dtype], device, data == "shared", compiled, TOLERANCE[dtype])}
            except Exception as error:  # the other cases go on
                yield {**case, "passed": False, "error": f"{type(error).__name__}: {error}"[:1000]}


def errors(
    family: str, dtype: torch.dtype, device: str, shared: bool, compiled: bool, tolerance: float
) -> dict[str, Any]:
    """Largest errors relative to the reference, and whether they pass. Raises Mismatch if no tree is possible."""
    model, sequences = adapted(family, dtype, device), drawn(shared, family in MASKED)
    layout = dataclasses.replace(choose_layout(model.get_base_model(), sequences, "tree"), compiled=compiled)
    expected = one_by_one(copy.deepcopy(model).double(), sequences)
    stock = difference(one_by_one(model, sequences), expected)
    tree = difference(in_batches(model, sequences, layout), expected)
    return {
        "layout": layout.kind,
        "skips_rows": layout.skips_rows,
        "plain_head": layout.plain_head,
        "loss_error": tree[0],
        "gradient_error": tree[1],
        "stock_loss_error": stock[0],
        "stock_gradient_error": stock[1],
        "tolerance": tolerance,
        "passed": all(e <= max(tolerance, (dtype == torch.bfloat16) * 2 * s) for e, s in zip(tree, stock, strict=True)),
    }


def adapted(family: str, dtype: torch.dtype, device: str, dropout: float = 0.0) -> Any:
    """A random model, wide enough for its attention to matter, with LoRA branches that are not zero."""
    torch.manual_seed(0)
    kind = transformers.AutoModelForMaskedLM if family in MASKED else transformers.AutoModelForCausalLM
    base: PreTrainedModel = kind.from_config(FAMILIES[family]())
    widen(base)
    base.to(device, dtype).eval()  # type: ignore[call-overload]
    text = LoadedTokenizer(None, (), False, 2**31, is_masked_lm=family in MASKED)  # type: ignore[arg-type]
    model = attach_adapter(LoadedModel(base, text, "random", None, {}), AdapterConfig(rank=4, dropout=dropout), seed=0)
    branches = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in branches.values():
            parameter.copy_(torch.randn(parameter.shape).to(parameter) * 0.05)
    return model.eval()


@torch.no_grad()
def widen(model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "norm" not in name:
            parameter.normal_(0, 0.08)


def drawn(shared: bool, masked: bool) -> list[TokenizedExample]:
    """Sequences of 50 to 300 tokens whose last ones are trained; with ``shared``, they branch twice."""
    draw = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(4, VOCABULARY) for _ in range(count)]

    first, second = tokens(60), [tokens(40) for _ in range(3)]
    sequences = []
    for n in range(SEQUENCES):
        prompt = first + second[n % 3] if shared else []
        sequences.append(example([*prompt, *tokens(draw.randint(50, 200))], draw.randint(3, 9), masked))
    return sequences


def example(ids: list[int], trained: int, masked: bool) -> TokenizedExample:
    weights = np.zeros(len(ids), dtype=np.float32)
    weights[-trained:] = 1
    token_ids = np.array(ids, dtype=np.int64)
    masked_ids = np.where(weights > 0, MASK_ID, token_ids) if masked else None
    return TokenizedExample(token_ids, weights, "", np.zeros((len(ids), 2), dtype=np.int64), "random", masked_ids)


Result = tuple[float, dict[str, Tensor]]
"""A loss in nats and the gradients of the LoRA branches."""


def one_by_one(model: Any, sequences: Sequence[TokenizedExample]) -> Result:
    """Summed loss and gradients by the model's stock attention, one plain forward pass per sequence."""
    loss = 0.0
    for s in sequences:
        ids = torch.from_numpy(s.token_ids if s.masked_ids is None else s.masked_ids).to(model.device)
        rows = np.flatnonzero(s.loss_weights)
        logits = model(input_ids=ids[None]).logits[0, rows if s.masked_ids is not None else rows - 1]
        targets = torch.from_numpy(s.token_ids[rows]).to(model.device)
        part = cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="sum")
        part.backward()
        loss += part.item()
    return loss, gradients(model)


def in_batches(model: Any, sequences: Sequence[TokenizedExample], layout: Layout) -> Result:
    """The same by the layout, as in training."""
    loss = 0.0
    with prepared_for_training(model, layout):
        for batch in micro_batches(sequences, TOKEN_BUDGET, layout.share):
            part = batch_loss(model, batch.to(model.device), layout).total
            part.backward()
            loss += part.item()
    return loss, gradients(model)


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    """The gradients in float64; clears them."""
    found = {n: p.grad.double() for n, p in trainable_parameters(model).items() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def difference(actual: Result, expected: Result) -> tuple[float, float]:
    """Relative difference of the losses, and largest difference of the gradients relative to the largest one."""
    assert actual[1].keys() == expected[1].keys()
    largest = max(g.abs().max() for g in expected[1].values())
    furthest = max((g - expected[1][name]).abs().max() for name, g in actual[1].items())
    return abs(actual[0] - expected[0]) / abs(expected[0]), float(furthest / largest)


# ---- resuming --------------------------------------------------------------------------------------------------------

SETTINGS = TrainConfig(epochs=2, batch_size=4, weight_decay=0.01)
STEPS, INTERRUPTED = 6, 3


def resume(device: str) -> dict[str, Any]:
    """Whether a training that was interrupted and resumed has the weights of an uninterrupted one.

    ``repeated`` is the difference between two uninterrupted trainings: not every kernel of a GPU is deterministic.
    """
    whole, again = (trained(device, None) for _ in range(2))
    with tempfile.TemporaryDirectory() as folder:
        resumed = trained(device, Path(folder))
    difference = furthest(resumed, whole)
    return {
        "resumed": difference,
        "repeated": furthest(again, whole),
        "bit_equal": difference == 0,
        "passed": difference <= TOLERANCE["float32"],
    }


def furthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in b)


def trained(device: str, checkpoints: Path | None) -> dict[str, Tensor]:
    """The weights after STEPS steps, interrupted and resumed in a new model if ``checkpoints`` is given."""
    parts = [(0, STEPS)] if checkpoints is None else [(0, INTERRUPTED), (INTERRUPTED, STEPS)]
    model = None
    for first, last in parts:
        model = adapted("llama", torch.float32, device, dropout=0.3)
        optimizer = make_optimizer(model, SETTINGS)
        if first:
            assert checkpoints is not None
            checkpoint, _ = latest_checkpoint(checkpoints)
            assert checkpoint is not None
            load_checkpoint(checkpoint, model, optimizer)
        advance(model, optimizer, first, last)
        if checkpoints is not None:
            save_checkpoint(checkpoints, model, optimizer, last)
    assert model is not None
    return {name: p.detach().clone() for name, p in trainable_parameters(model).items()}


def advance(model: Any, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    examples = [[sequence] for sequence in drawn(True, False)]
    layout = Layout("tree", "known")
    for result in train(model, examples, optimizer, SETTINGS, LEARNING_RATE, layout, first):
        if result.step == last:
            break


if __name__ == "__main__":
    main()
