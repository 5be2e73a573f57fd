"""Loading of models and tokenizers from the hub or a folder: safetensors only, and never the model's own code."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from loratory.errors import UserError
from loratory.events import EventCallback, ignore_event
from loratory.machine import Machine
from loratory.models.converting import GgufSource
from loratory.models.finding import FoundModel, find_files
from loratory.models.identity import WEIGHTS, model_hashes
from loratory.models.starting import StartingAdapter, base_files, starting_adapter
from loratory.models.untrusted import check_model_folder, read_json
from loratory.models.usable import check_not_quantized, check_weights
from loratory.settings import ModelConfig

# For models without a chat template: the system text, the question, then "Answer:" on a line of its own.
PLAIN_TEMPLATE = (
    "{{ bos_token if bos_token is defined and bos_token else '' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}Answer:\n{{ message['content'] }}{{ eos_token }}\n\n"
    "{% else %}{{ message['content'] }}\n\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Answer:\n{% endif %}"
)
MASKED_MODELS = ("distilbert/distilroberta-base", "FacebookAI/roberta-base", "answerdotai/ModernBERT-base")


@dataclass(frozen=True)
class LoadedModel:
    """A base model with its tokenizer and its identity."""

    model: PreTrainedModel
    text: "LoadedTokenizer"
    name: str
    """Hub id, absolute path of the folder or GGUF file, or name in Ollama: usable from any working directory."""
    revision: str | None
    """Commit hash on the hub; None for a folder or file."""
    hashes: Mapping[str, str]
    """The hashes of the files that decide its answers; those of the weights under "weights". Of a model from a GGUF
    file, from which the others follow, the hashes of the weights and of that file."""
    start: StartingAdapter | None = None
    """The adapter from which training goes on, if the settings name one instead of a model."""
    gguf: GgufSource | None = None
    """The GGUF file from which it was converted."""
    notes: tuple[str, ...] = ()
    """Sentences on how it was found and loaded."""

    @property
    def decisive_hashes(self) -> dict[str, str]:
        """``hashes`` and those of the adapter from which training goes on."""
        return {**self.hashes, **(self.start.hashes if self.start else {})}


@dataclass(frozen=True)
class LoadedTokenizer:
    """The parts of a model that rendering needs, without its weights."""

    tokenizer: PreTrainedTokenizerBase
    stop_ids: tuple[int, ...]
    """The stop ids in the model's own settings; rendering may add to them."""
    plain_template: bool
    """Whether the model has no chat template of its own and uses the plain one."""
    max_length: int
    """The longest sequence, in tokens, that the model supports."""
    is_masked_lm: bool = False
    """Whether the model is a masked language model, which attends in both directions and fills in masked tokens."""
    embeddings: int = 2**31
    """How many token ids, from 0, the model has an embedding for; a tokenizer may have more tokens."""


def load_tokenizer(config: ModelConfig) -> LoadedTokenizer:
    """Loads only the tokenizer; that of the base model, if ``config`` names an adapter. Raises UserError."""
    found = find_files(config)
    start = starting_adapter(config, found)
    return _load_tokenizer((base_files(start) if start else found).folder, config.name)


def _load_tokenizer(folder: Path, name: str) -> LoadedTokenizer:
    check_not_quantized(folder, name)
    check_model_folder(folder)
    try:
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        text = settings.get_text_config()
        masked = _is_masked(settings)
        stop_ids = _stop_ids(folder, text, tokenizer)
        embeddings = int(getattr(text, "vocab_size", None) or 2**31)
    except Exception as error:  # Transformers raises OSError, ValueError, KeyError or RuntimeError for corrupt files
        raise _explain(error, name) from error
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            "The model has no fast tokenizer", name, expected="a tokenizer.json", fix="choose another model"
        )
    _check_tokenizer_works(tokenizer, name)
    if masked:
        if tokenizer.mask_token_id is None or tokenizer.pad_token_id is None:
            raise UserError("The tokenizer of this masked language model lacks a mask token or a padding token", name)
        limit = int(min(context_length(text), tokenizer.model_max_length))
        return LoadedTokenizer(tokenizer, (), False, limit, True, embeddings)
    plain = not tokenizer.chat_template
    if plain:
        tokenizer.chat_template = PLAIN_TEMPLATE
    return LoadedTokenizer(tokenizer, stop_ids, plain, context_length(text), False, embeddings)


def load_model(config: ModelConfig, machine: Machine, on_event: EventCallback = ignore_event) -> LoadedModel:
    """Loads the model, onto the machine's device, and its tokenizer; the base model, if ``config`` names an adapter.
    ``on_event`` is told what takes long.

    Raises UserError if the model is missing, gated, not available offline, stored as pickle or requires custom code, or
    if it is neither a causal nor a masked language model.
    """
    found = find_files(config, on_event)
    start = starting_adapter(config, found)
    found = base_files(start, on_event) if start else found
    folder = found.folder
    config = start.base if start else config
    check_weights(folder, config.name)
    text = _load_tokenizer(folder, config.name)
    try:
        kind = AutoModelForMaskedLM if text.is_masked_lm else AutoModelForCausalLM
        loaded: Any = kind.from_pretrained(
            folder,
            dtype=machine.dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise _explain(error, config.name) from error
    model, loading_info = loaded
    _check_loaded(model, loading_info, config.name)
    model.to(machine.device)
    model.eval()
    if not text.is_masked_lm:  # everything that decides an answer is set where it is generated
        model.generation_config = GenerationConfig()
    _check_model_works(model, config.name)
    text = dataclasses.replace(text, embeddings=model.get_input_embeddings().weight.shape[0])  # type: ignore[union-attr]
    if text.is_masked_lm:  # some models do not number positions from 0
        positions = context_length(model.config.get_text_config()) - first_position(model)
        text = dataclasses.replace(text, max_length=min(text.max_length, positions))
    hashes = _hashes(found)
    if start:
        start.check_base(hashes)
    notes = (*found.notes, *_class_notes(folder, model))
    return LoadedModel(model, text, found.name, found.revision, hashes, start, found.gguf, notes)


def _hashes(found: FoundModel) -> dict[str, str]:
    """What identifies a model. Raises UserError if converted weights are not what was put into the cache."""
    hashes = model_hashes(found.folder)
    if found.gguf is None:
        return hashes
    if hashes[WEIGHTS] != found.gguf.weights_sha256:
        fix = "remove the converted models, which are then made again: loratory models --clear-cache"
        raise UserError("The converted weights in the cache have changed", str(found.folder), fix=fix)
    return {WEIGHTS: hashes[WEIGHTS], "gguf": found.gguf.sha256}


def _class_notes(folder: Path, model: PreTrainedModel) -> tuple[str, ...]:
    """A sentence if config.json names a class with more parts, such as those for images, and other names of modules.

    PEFT would load an adapter into that class without effect, and only warn.
    """
    named, loaded = read_json(folder / "config.json").get("architectures"), type(model).__name__
    whole = named[0] if isinstance(named, list) and named else None
    if not isinstance(whole, str) or not whole.endswith("ForConditionalGeneration") or whole == loaded:
        return ()
    return (
        f"Only the language model is loaded, as {loaded}. Elsewhere, load the base model of the adapter with "
        f"AutoModelForCausalLM: in {whole[:80]}, an adapter would have no effect",
    )


def first_position(model: nn.Module) -> int:
    """The first position id of a model: one above the padding id if its position embeddings have one, as in RoBERTa and
    related models; else 0."""
    embeddings = (m for name, m in model.named_modules() if name.endswith("position_embeddings"))
    padding = (m.padding_idx for m in embeddings if isinstance(m, nn.Embedding) and m.padding_idx is not None)
    return next(padding, -1) + 1


def context_length(settings: PretrainedConfig) -> int:
    """``max_position_embeddings``, in tokens; a very large number for models that do not state it."""
    return int(getattr(settings, "max_position_embeddings", None) or 2**31)


def is_masked(config: ModelConfig) -> bool:
    """Whether a model is a masked language model; loads no weights. Raises UserError as ``load_model`` does."""
    return load_tokenizer(config).is_masked_lm


def _is_masked(settings: PretrainedConfig) -> bool:
    return any(name.endswith(("ForMaskedLM", "ForPreTraining")) for name in settings.architectures or ())


def _explain(error: Exception, name: str) -> UserError:
    """The UserError for an exception that Transformers raised while loading."""
    text = str(error)
    first = text.splitlines()[0][:300] if text else type(error).__name__
    if "trust_remote_code" in text or "custom code" in text:
        fix = "choose a model whose architecture is part of Transformers"
        return UserError("The model requires custom code, which Loratory does not run", name, found=first, fix=fix)
    if "Unrecognized configuration class" in text:
        return UserError("Neither a causal nor a masked language model", name, found=first)
    return UserError("The model cannot be loaded", name, found=f"{type(error).__name__}: {first}")


def _check_tokenizer_works(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Tokenizes a text as later steps do: settings that nobody checks may make that fail."""
    try:
        ids = tokenizer("a", add_special_tokens=False, return_offsets_mapping=True, verbose=False)["input_ids"]
        tokenizer.decode(ids, skip_special_tokens=True)
        tokenizer.get_added_vocab()  # type: ignore[operator]
    except Exception as error:
        raise _explain(error, name) from error


def _check_loaded(model: PreTrainedModel, loading_info: dict, name: str) -> None:
    if loading_info["missing_keys"]:
        missing = ", ".join(sorted(loading_info["missing_keys"])[:3])
        raise UserError("The weights are incomplete", name, found=f"missing: {missing}")
    if bad := non_finite(model.named_parameters()):
        narrow = model.dtype == torch.float16  # its largest number is 65504
        fix = 'set [model] dtype = "float32", which holds larger numbers' if narrow else "use another copy of the model"
        raise UserError("The weights contain NaN or infinite values", name, found=f"in {bad}", fix=fix)


@torch.no_grad()
def _check_model_works(model: PreTrainedModel, name: str) -> None:
    """Computes one token: settings in config.json that nobody checks may make that fail."""
    try:
        token = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
        model(input_ids=token, attention_mask=torch.ones_like(token))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise _explain(error, name) from error


@torch.no_grad()
def non_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor that contains NaN or infinite values; None if there is none.

    Takes half a second per billion numbers on a CPU: minimum and maximum are found in one pass, and NaN is both.
    """
    for name, tensor in tensors:
        if tensor.is_floating_point() and tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
            return name
    return None


def _stop_ids(folder: Path, settings: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The union of the stop ids in generation_config.json, config.json and the tokenizer, sorted."""
    stops = [settings.eos_token_id, tokenizer.eos_token_id]
    if (folder / "generation_config.json").exists():
        stops.append(GenerationConfig.from_pretrained(folder).eos_token_id)
    union: set[int] = set()
    for ids in stops:
        union.update([ids] if isinstance(ids, int) else ids or [])
    return tuple(sorted(union))
