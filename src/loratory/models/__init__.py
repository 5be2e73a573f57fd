"""Loading of models and tokenizers, and LoRA adapters.

In: a hub id, a folder, a GGUF file, a model of Ollama, or a short name. Out: a ``LoadedModel``, to which a LoRA
adapter can be attached, saved or loaded. No other package imports ``AutoModel`` or ``peft``.
Read ``loading.py`` first, then ``adapters.py``.
"""

from loratory.models.adapters import (
    adapter_disabled,
    attach_adapter,
    attach_start,
    detach_adapter,
    has_adapter,
    load_adapter,
    load_with_start,
    lora_plus_groups,
    parameter_counts,
    save_tuned_model,
)
from loratory.models.card import changed_model_files, read_card, write_card
from loratory.models.encoder import Encoder, load_encoder
from loratory.models.finding import builtin_folder, bytes_to_download
from loratory.models.identity import WEIGHTS, differing_files
from loratory.models.loading import (
    MASKED_MODELS,
    LoadedModel,
    LoadedTokenizer,
    context_length,
    first_position,
    is_masked,
    load_model,
    load_tokenizer,
    non_finite,
)
from loratory.models.starting import StartingAdapter, merged_settings
from loratory.models.targets import module_targets

__all__ = [
    "MASKED_MODELS",
    "WEIGHTS",
    "Encoder",
    "LoadedModel",
    "LoadedTokenizer",
    "StartingAdapter",
    "adapter_disabled",
    "attach_adapter",
    "attach_start",
    "builtin_folder",
    "bytes_to_download",
    "changed_model_files",
    "context_length",
    "detach_adapter",
    "differing_files",
    "first_position",
    "has_adapter",
    "is_masked",
    "load_adapter",
    "load_encoder",
    "load_model",
    "load_tokenizer",
    "load_with_start",
    "lora_plus_groups",
    "merged_settings",
    "module_targets",
    "non_finite",
    "parameter_counts",
    "read_card",
    "save_tuned_model",
    "write_card",
]
