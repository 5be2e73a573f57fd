"""Adapters: attaching, saving and loading LoRA adapters through PEFT, and fully fine-tuned models."""

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.lora.layer import Linear as PeftLinear
from peft.tuners.lora.layer import LoraLayer
from safetensors import safe_open
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from loratory.errors import UserError
from loratory.events import EventCallback, ignore_event
from loratory.machine import Machine
from loratory.models.card import read_card, write_card
from loratory.models.identity import WEIGHTS, differing_files
from loratory.models.loading import LoadedModel, load_model, non_finite
from loratory.models.lora_linear import lora_linear
from loratory.models.starting import ADAPTER_WEIGHTS
from loratory.models.targets import is_conv1d, module_targets, short_names
from loratory.models.untrusted import check_adapter_folder
from loratory.settings import AdapterConfig, ModelConfig
from loratory.storage import CARD, TUNED_MODEL_FILES, atomic_folder, hashes_of, write_text

READ_ME = "README.md"


class FusedLoraLinear(PeftLinear):
    """PEFT's LoRA layer, which computes the usual case, one plain branch on a frozen weight, with ``lora_linear``."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        names = self.active_adapters
        usual = len(names) == 1 and names[0] in self.lora_A and not self.lora_variant
        if args or kwargs or self.disable_adapters or self.merged or not usual:
            return super().forward(x, *args, **kwargs)
        base: Any = self.base_layer
        [name] = names
        a: Any = self.lora_A[name]
        b: Any = self.lora_B[name]
        if base.weight.requires_grad or b.bias is not None:
            return super().forward(x)
        dropout = self.lora_dropout[name]
        rate = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
        return lora_linear(x, base.weight, base.bias, a.weight, b.weight, self.scaling[name], rate)


def _make_layer(target: nn.Module, adapter_name: str, **kwargs: Any) -> nn.Module | None:
    """The fused layer for a plain linear layer; None leaves all others, including subclasses, to PEFT."""
    base = getattr(target, "base_layer", target)
    plain = type(base) is nn.Linear and not kwargs["config"].fan_in_fan_out
    return FusedLoraLinear(target, adapter_name, **kwargs) if plain else None


def attach_adapter(base: LoadedModel, config: AdapterConfig, seed: int, fused: bool = True) -> nn.Module:
    """Makes the model trainable: adds a new LoRA adapter to its target modules, or unfreezes every parameter.

    LoRA parameters are float32 regardless of the base model's dtype. With ``fused``, a plain linear layer and its LoRA
    branch are computed as one function; parameter names and files are PEFT's in both cases. Raises UserError if a
    target module or layer does not exist, or if PEFT does not support the settings for a module.
    """
    if config.kind == "full":
        return base.model.requires_grad_(True)
    names = module_targets(base.model, config)
    targets, layers = short_names(base.model, names, config)
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_rslora=config.rslora,
        use_dora=config.dora,
        layers_to_transform=layers,
        target_modules=targets,
        task_type=None if base.text.is_masked_lm else "CAUSAL_LM",
        fan_in_fan_out=any(is_conv1d(m) for m in base.model.modules()),
        revision=base.revision,
    )
    if fused:
        settings._register_custom_module({nn.Linear: _make_layer})  # type: ignore[dict-item]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            model = get_peft_model(base.model, settings)
        except (ValueError, TypeError, NotImplementedError) as error:
            found = str(error).splitlines()[0][:300]
            raise UserError("PEFT cannot add this adapter to this model", "[adapter]", found=found) from error
    adapted = [name for name, module in base.model.named_modules() if isinstance(module, LoraLayer)]
    assert adapted == names, f"PEFT chose other modules: {set(adapted) ^ set(names)}"
    made = model.peft_config["default"]
    made.base_model_name_or_path = base.name
    made.target_parameters = made.target_parameters or None  # type: ignore[attr-defined]  # PEFT leaves an empty set
    return model


def attach_start(base: LoadedModel, trained: bool, dropout: float = 0.0, fused: bool = True) -> nn.Module:
    """Adds the adapter from which training goes on, as it is in its folder, to its base model.

    It is either ``trained``, with ``dropout``, or frozen. Raises UserError as ``load_adapter`` does.
    """
    assert base.start is not None
    return _load_lora(base.model, base.start.folder, fused, dropout if trained else None)


def load_with_start(config: ModelConfig, machine: Machine, on_event: EventCallback = ignore_event) -> LoadedModel:
    """``load_model``; if ``config`` names an adapter, the model computes with it. Raises UserError."""
    base = load_model(config, machine, on_event)
    if base.start:
        attach_start(base, trained=False)
    return base


def lora_plus_groups(model: nn.Module, ratio: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups of LoRA+ (Hayou et al., 2024): the learning rate of matrix B is ``ratio`` times that of A.

    The learning rate of each group is multiplied by its ``scale``.
    """
    optimizer = create_loraplus_optimizer(
        model=model,  # type: ignore[arg-type]
        optimizer_cls=torch.optim.AdamW,
        lr=1.0,
        loraplus_lr_ratio=ratio,
        loraplus_weight_decay=weight_decay,
    )
    keys = {"lr": "scale", "params": "params", "weight_decay": "weight_decay"}
    return [{new: group[old] for old, new in keys.items()} for group in optimizer.param_groups if group["params"]]


def detach_adapter(model: nn.Module) -> PreTrainedModel:
    """Removes the adapter, if the model has one, and returns the original base model."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    for name, module in [*base.named_modules()]:
        if isinstance(module, LoraLayer):
            parent, _, last = name.rpartition(".")
            setattr(base.get_submodule(parent), last, module.get_base_layer())
    if hasattr(base, "peft_config"):  # PEFT's note that it has changed the model
        del base.peft_config
    assert isinstance(base, PreTrainedModel)
    return base


def has_adapter(model: nn.Module) -> bool:
    """Whether the model has an adapter that ``adapter_disabled`` can disable."""
    return isinstance(model, PeftModel)


@contextmanager
def adapter_disabled(model: nn.Module) -> Iterator[None]:
    """Context manager that disables the adapter, so that the model computes the outputs of its base model."""
    assert isinstance(model, PeftModel)
    with model.disable_adapter():
        yield


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """The numbers of trainable and of all parameters, including the adapter's; shared parameters count once."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trainable in counts if trainable), sum(n for n, _ in counts)


def save_tuned_model(
    model: nn.Module, folder: Path, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int], card: dict[str, Any]
) -> None:
    """Writes the adapter in PEFT's format (or the whole model), the tokenizer, the stop ids and the card, atomically.

    The card contains what PEFT does not store: the base model's hashes, the prompt, the labels and the ending, and the
    hashes of the files beside it. A seal shows if the card itself is changed later.
    """
    with atomic_folder(folder, TUNED_MODEL_FILES) as temporary:
        if isinstance(model, PeftModel):
            model.save_pretrained(str(temporary), save_embedding_layers=False)
            _check_size(temporary, model)
            _sort_lists(temporary / "adapter_config.json")
        else:
            assert isinstance(model, PreTrainedModel)
            model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if stop_ids:  # a masked language model has no stop ids and generates no text
            pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop_ids[0]
            GenerationConfig(eos_token_id=list(stop_ids), pad_token_id=pad).save_pretrained(temporary)
        (temporary / READ_ME).unlink(missing_ok=True)  # PEFT's own
        names = [path.relative_to(temporary).as_posix() for path in temporary.rglob("*") if path.is_file()]
        write_card(temporary, {**card, "files": hashes_of(temporary, names)})
        write_text(temporary / READ_ME, _read_me(card, stop_ids, tokenizer, model))


def _sort_lists(path: Path) -> None:
    """Sorts what PEFT keeps as sets, so that the file does not depend on the process that writes it."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings = {key: sorted(value) if _is_set(value) else value for key, value in settings.items()}
    path.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")


def _is_set(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _read_me(
    card: dict[str, Any], stop_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, model: nn.Module
) -> str:
    """The README of the folder: a model card with the base model, the labels and a usage example."""
    title = "LoRA adapter in PEFT's format" if card["adapter"] == "lora" else "Fine-tuned model"
    base, labels = card["base"], ", ".join(card["labels"])
    answers = f"- Answers with one of: {labels}\n" if labels else ""
    loading = ""
    if isinstance(model, PeftModel):  # other classes may have other names for the same modules
        name = type(model.get_base_model()).__name__
        kind = "AutoModelForMaskedLM" if name.endswith("MaskedLM") else "AutoModelForCausalLM"
        loading = f"- Class of the base model: `{name}`, as `{kind}` loads it\n"
    end, single_use = "", f'`loratory fill "... {tokenizer.mask_token} ..." --run FOLDER`.'
    if stop_ids:
        stops = ", ".join(f"`{tokenizer.convert_ids_to_tokens(i)}` ({i})" for i in stop_ids)
        end = f"- Stop tokens: {stops}\n"
        single_use = '`pipeline("text-generation", model="FOLDER")` from Transformers with the\nsame messages.'
    return f"""---
base_model: {json.dumps(base["name"])}
library_name: {"peft" if card["adapter"] == "lora" else "transformers"}
tags: [loratory]
---
# {title}, trained with Loratory

- Base model: `{base["name"]}`, revision {base["revision"]}, weights SHA-256 `{base["weights_sha256"]}`
{loading}{answers}{end}- Prompt, template arguments and date used in training: see `{CARD}`

Usage: `loratory predict FOLDER data.csv`, or {single_use}
"""


def _check_size(folder: Path, model: PeftModel) -> None:
    """Checks that the adapter file contains the low-rank matrices and nothing else."""
    expected = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if "lora_" in name)
    size = (folder / ADAPTER_WEIGHTS).stat().st_size
    assert expected <= size <= expected + 1_000_000, f"the adapter file has {size} bytes, expected about {expected}"


def load_adapter(base: LoadedModel, folder: Path, force: bool = False, fused: bool = True) -> nn.Module:
    """Loads a saved LoRA adapter onto the base model, for inference.

    Raises UserError if the adapter is missing, incomplete, not finite or stored as pickle, or (unless ``force``) if its
    files have been changed or if it was trained on a different base model.
    """
    card = read_card(folder, force)
    if not (folder / ADAPTER_WEIGHTS).exists():
        raise UserError("The adapter has no safetensors weights", str(folder), expected=ADAPTER_WEIGHTS)
    recorded = {WEIGHTS: str(card["base"].get("weights_sha256")), **(card["base"].get("files") or {})}
    if (different := differing_files(recorded, base.hashes)) and not force:
        fix = f"restore the files of {base.name}, or add --force"
        raise UserError("The adapter was trained on a different base model", str(folder), found=different, fix=fix)
    return _load_lora(base.model, folder, fused)


def _load_lora(base: PreTrainedModel, folder: Path, fused: bool, trained_dropout: float | None = None) -> nn.Module:
    """Loads a LoRA adapter: frozen, or to be trained with ``trained_dropout``. Raises UserError as ``load_adapter``."""
    check_adapter_folder(folder)
    trained = trained_dropout is not None
    try:
        config = PeftConfig.from_pretrained(str(folder))
        if trained:
            config.lora_dropout = trained_dropout  # type: ignore[attr-defined]
        if fused:
            config._register_custom_module({nn.Linear: _make_layer})  # type: ignore[attr-defined]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # an error, below
            # PEFT looks for the base model's config.json, which is not beside a GGUF file, nor on the hub when offline.
            warnings.filterwarnings("ignore", "Could not find a config file")
            model = PeftModel.from_pretrained(base, str(folder), config=config, is_trainable=trained)
            expected = set(get_peft_model_state_dict(model))
        with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
            present = set(file.keys())
    except Exception as error:  # corrupt files raise many kinds of exceptions
        raise UserError("The adapter cannot be loaded", str(folder), found=str(error).splitlines()[0][:300]) from error
    if missing := expected - present:  # PEFT would leave them at their start
        raise UserError("The adapter's weights are incomplete", str(folder), found=f"missing: {sorted(missing)[0]}")
    if others := present - expected:  # PEFT would ignore them
        found = sorted(others)[0]
        raise UserError("The adapter has weights that do not belong to its modules", str(folder), found=found)
    if bad := non_finite((n, p) for n, p in model.named_parameters() if "lora_" in n):
        raise UserError("The adapter contains NaN or infinite values", str(folder), found=f"in {bad}")
    return model.eval()
