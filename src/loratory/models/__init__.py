"""Loading of models and tokenizers, and LoRA adapters.

In: a hub id or a folder. Out: a ``LoadedModel``, to which a LoRA adapter can be attached, saved or loaded. No other
package imports ``AutoModel`` or ``peft``. Read ``loading.py`` first, then ``adapters.py``.
"""

from loratory.models.adapters import (
    CARD,
    adapter_disabled,
    attach_adapter,
    changed_model_files,
    check_targets,
    detach_adapter,
    has_adapter,
    load_adapter,
    lora_plus_groups,
    parameter_counts,
    read_card,
    save_tuned_model,
    write_card,
)
from loratory.models.identity import WEIGHTS, differing_files
from loratory.models.loading import (
    MASKED_MODELS,
    LoadedModel,
    LoadedTokenizer,
    builtin_folder,
    context_length,
    first_position,
    is_masked,
    load_model,
    load_tokenizer,
    non_finite,
    suggested_models,
)

__all__ = [
    "CARD",
    "MASKED_MODELS",
    "WEIGHTS",
    "LoadedModel",
    "LoadedTokenizer",
    "adapter_disabled",
    "attach_adapter",
    "builtin_folder",
    "changed_model_files",
    "check_targets",
    "context_length",
    "detach_adapter",
    "differing_files",
    "first_position",
    "has_adapter",
    "is_masked",
    "load_adapter",
    "load_model",
    "load_tokenizer",
    "lora_plus_groups",
    "non_finite",
    "parameter_counts",
    "read_card",
    "save_tuned_model",
    "suggested_models",
    "write_card",
]
