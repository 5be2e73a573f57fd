"""The only place that loads a model or a tokenizer: hub id or folder, safetensors only, no code from the model."""

import dataclasses
import importlib.resources
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from torch import nn
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

from loratory.config import BUILTIN, BUILTINS, ModelConfig
from loratory.errors import UserError
from loratory.machine import Machine
from loratory.storage import sha256_of

# What a model without a chat template is shown: the system text, the question, then "Answer:" on a line of its own.
PLAIN_TEMPLATE = (
    "{{ bos_token if bos_token is defined and bos_token else '' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}Answer:\n{{ message['content'] }}{{ eos_token }}\n\n"
    "{% else %}{{ message['content'] }}\n\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Answer:\n{% endif %}"
)
FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
# Open chat models by size, to be suggested: name and billions of parameters.
KNOWN_MODELS = (
    ("HuggingFaceTB/SmolLM2-135M-Instruct", 0.135),
    ("HuggingFaceTB/SmolLM2-360M-Instruct", 0.36),
    ("Qwen/Qwen2.5-0.5B-Instruct", 0.49),
    ("meta-llama/Llama-3.2-1B-Instruct", 1.24),
    ("Qwen/Qwen2.5-1.5B-Instruct", 1.54),
    ("meta-llama/Llama-3.2-3B-Instruct", 3.2),
    ("Qwen/Qwen2.5-7B-Instruct", 7.6),
    ("Qwen/Qwen2.5-14B-Instruct", 14.8),
)
MASKED_MODELS = ("distilbert/distilroberta-base", "FacebookAI/roberta-base", "answerdotai/ModernBERT-base")
# Weights in 32 bits and half as much again for what training keeps; the rest of the machine wants some too.
BYTES_PER_PARAMETER, SPARE_BYTES = 6, 2 * 1024**3


@dataclass(frozen=True)
class LoadedModel:
    """A base model with what identifies it."""

    model: PreTrainedModel
    text: "LoadedTokenizer"
    name: str
    """Hub id or absolute folder, as others can load it."""
    revision: str | None
    """Commit on the hub; None for a folder."""
    weights_sha256: str


@dataclass(frozen=True)
class LoadedTokenizer:
    """What rendering needs of a model, without its weights."""

    tokenizer: PreTrainedTokenizerBase
    stop_ids: tuple[int, ...]
    """Ids that end a generated answer by the model's own settings; rendering may add to them."""
    plain_template: bool
    """Whether the model had no chat template and got the plain one."""
    max_length: int
    """The longest sequence in tokens that the model was made for."""
    masked: bool = False
    """Whether it is a masked language model, which sees both ways and fills in what is hidden."""


def load_tokenizer(config: ModelConfig) -> LoadedTokenizer:
    """Loads the tokenizer alone. Raises UserError as load_model does."""
    folder, _ = find_files(config)
    return _load_tokenizer(folder, config.name)


def _load_tokenizer(folder: Path, name: str) -> LoadedTokenizer:
    try:
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        text = settings.get_text_config()
        masked = _is_masked(settings)
        stop_ids = _stop_ids(folder, text, tokenizer)
    except Exception as error:  # the library raises OSError, ValueError, KeyError, RuntimeError for broken files
        raise _explain(error, name) from error
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            "The model has no fast tokenizer", name, expected="a tokenizer.json", fix="choose another model"
        )
    if masked:
        if tokenizer.mask_token_id is None or tokenizer.pad_token_id is None:
            raise UserError("The tokenizer of this masked language model lacks a mask token or one for padding", name)
        return LoadedTokenizer(tokenizer, (), False, min(context_length(text), tokenizer.model_max_length), True)
    plain = not tokenizer.chat_template
    if plain:
        tokenizer.chat_template = PLAIN_TEMPLATE
    return LoadedTokenizer(tokenizer, stop_ids, plain, context_length(text), False)


def load_model(config: ModelConfig, machine: Machine) -> LoadedModel:
    """Loads model and tokenizer onto the world's device.

    Raises UserError where the model is missing, gated, offline, stored as pickle, needs its own code, or is neither a
    causal nor a masked language model.
    """
    folder, revision = find_files(config)
    _check_weights(folder, config.name)
    text = _load_tokenizer(folder, config.name)
    try:
        kind = AutoModelForMaskedLM if text.masked else AutoModelForCausalLM
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
    model, report = loaded
    _check_loaded(model, text.tokenizer, report, config.name)
    model.to(machine.device)
    model.eval()
    if text.masked:  # some count positions from a number above 0
        room = context_length(model.config.get_text_config()) - first_position(model)
        text = dataclasses.replace(text, max_length=min(text.max_length, room))
    local = config.name in BUILTINS or Path(config.name).is_dir()
    name = str(folder.resolve()) if local else config.name
    return LoadedModel(model, text, name, revision, sha256_of(sorted(folder.glob("*.safetensors"))))


def first_position(model: nn.Module) -> int:
    """Where a model counts positions from: behind the padding token's id, if it has embeddings for them of that kind
    (RoBERTa and its kin), else 0."""
    found = (m for name, m in model.named_modules() if name.endswith("position_embeddings"))
    padding = (m.padding_idx for m in found if isinstance(m, nn.Embedding) and m.padding_idx is not None)
    return next(padding, -1) + 1


def context_length(settings: PretrainedConfig) -> int:
    """``max_position_embeddings`` in tokens, or a very large number for models that state none."""
    return int(getattr(settings, "max_position_embeddings", None) or 2**31)


def suggestions(memory_bytes: int, most: int = 3) -> list[str]:
    """The largest well-known open models that LoRA trains within the memory, smallest first."""
    fitting = [name for name, size in KNOWN_MODELS if size * 1e9 * BYTES_PER_PARAMETER + SPARE_BYTES <= memory_bytes]
    return fitting[-most:] or [KNOWN_MODELS[0][0]]


def builtin_folder(name: str = BUILTIN) -> Path:
    """The folder of one of the package's own demonstration models."""
    return Path(str(importlib.resources.files("loratory") / "builtin" / ("model" if name == BUILTIN else "masked")))


def is_masked(config: ModelConfig) -> bool:
    """Whether a model is a masked language model; its weights are not loaded. Raises UserError as load_model does."""
    return load_tokenizer(config).masked


def _is_masked(settings: PretrainedConfig) -> bool:
    return any(name.endswith(("ForMaskedLM", "ForPreTraining")) for name in settings.architectures or ())


def find_files(config: ModelConfig) -> tuple[Path, str | None]:
    """The folder with the model's files, fetched from the hub if need be, and the commit."""
    if config.name in BUILTINS:
        return builtin_folder(config.name), None
    folder = Path(config.name)
    if config.name.strip() and folder.is_dir():
        return folder, None
    if config.name.startswith((".", "/", "~")) or config.name.count("/") > 1 or not config.name.strip():
        raise UserError("Model folder not found", "[model] name", "a folder or a hub id", config.name)
    where = f"[model] name = {config.name!r}"
    try:
        fetched = Path(snapshot_download(config.name, revision=config.revision, allow_patterns=FILES))
    except GatedRepoError as error:
        fix = "accept its terms on its page at the hub, then run: hf auth login"
        raise UserError("The model is gated", where, fix=fix) from error
    except RepositoryNotFoundError as error:
        fix = "check the spelling; a private model needs: hf auth login"
        raise UserError("The hub knows no such model", where, fix=fix) from error
    except (LocalEntryNotFoundError, OSError, HfHubHTTPError) as error:
        raise UserError(
            "The model is not on this machine and the hub cannot be reached",
            where,
            expected="a network, or a model that was fetched before, or a folder",
            found=str(error).splitlines()[0][:200] if str(error) else type(error).__name__,
            fix="connect, unset HF_HUB_OFFLINE, or give a folder that holds the model",
        ) from error
    except ValueError as error:
        raise UserError("Not a valid model name", where, "a folder or a hub id", str(error).splitlines()[0]) from error
    return fetched, fetched.name


def _check_weights(folder: Path, name: str) -> None:
    if not (folder / "config.json").exists():
        hint = "this is an adapter: give its base model" if (folder / "adapter_config.json").exists() else None
        raise UserError("No model in this folder", name, expected="config.json and *.safetensors", fix=hint)
    if list(folder.glob("*.safetensors")):
        return
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern))
    if pickles:
        raise UserError(
            "The model's weights are stored as pickle, which can run code when read",
            name,
            expected="*.safetensors",
            found=", ".join(pickles[:3]),
            fix="convert them to safetensors in a place where running that code does no harm",
        )
    raise UserError("The model has no weights", name, expected="*.safetensors")


def _explain(error: Exception, name: str) -> UserError:
    text = str(error)
    first = text.splitlines()[0][:300] if text else type(error).__name__
    if "trust_remote_code" in text or "custom code" in text:
        fix = "choose a model whose architecture Transformers itself knows"
        return UserError("The model needs code of its own, which is not run here", name, found=first, fix=fix)
    if "Unrecognized configuration class" in text:
        return UserError("Neither a causal nor a masked language model", name, found=first)
    return UserError("The model cannot be loaded", name, found=f"{type(error).__name__}: {first}")


def _check_loaded(model: PreTrainedModel, tokenizer: Any, report: dict, name: str) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            "The model has no fast tokenizer", name, expected="a tokenizer.json", fix="choose another model"
        )
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise UserError("The weights are incomplete", name, found=f"missing: {missing}")
    rows = model.get_input_embeddings().weight.shape[0]  # type: ignore[union-attr]
    if len(tokenizer) > rows:
        raise UserError("The tokenizer has more tokens than the model", name, f"at most {rows}", str(len(tokenizer)))
    if not torch.isfinite(model.get_input_embeddings().weight).all():  # type: ignore[union-attr]
        raise UserError("The weights hold values that are no numbers", name)


def _stop_ids(folder: Path, settings: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Union of the stop ids in generation_config.json, config.json and the tokenizer, sorted."""
    stops = [settings.eos_token_id, tokenizer.eos_token_id]
    if (folder / "generation_config.json").exists():
        stops.append(GenerationConfig.from_pretrained(folder).eos_token_id)
    found: set[int] = set()
    for ids in stops:
        found.update([ids] if isinstance(ids, int) else ids or [])
    return tuple(sorted(found))


def read_json(path: Path) -> dict:
    """A JSON object from a file that someone else may have made. Raises UserError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError("The file cannot be read", str(path), found=str(error)) from error
    if not isinstance(value, dict):
        raise UserError("The file must hold a JSON object", str(path))
    return value
