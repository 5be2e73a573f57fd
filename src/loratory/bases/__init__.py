"""Base models: the known ones, where this machine has them, and the cache of converted ones. Loads no PyTorch.

In: a short name, a name of Ollama, or a hash. Out: where that model is. Read ``known.py`` first.
"""

from loratory.bases.cache import (
    SOURCE,
    cache_folder,
    cached_model,
    cached_models,
    clear_cache,
    entry_folder,
    make_room,
    writing_to_cache,
)
from loratory.bases.encoders import encoder_at_hand, encoder_source
from loratory.bases.known import (
    SHORT_NAMES,
    KnownModel,
    fits,
    memory_needed,
    suggested_models,
    training_seconds,
)
from loratory.bases.ollama import PREFIX, find_in_ollama, unused_settings
from loratory.bases.places import Place, known_places, place_of

__all__ = [
    "PREFIX",
    "SHORT_NAMES",
    "SOURCE",
    "KnownModel",
    "Place",
    "cache_folder",
    "cached_model",
    "cached_models",
    "clear_cache",
    "encoder_at_hand",
    "encoder_source",
    "entry_folder",
    "find_in_ollama",
    "fits",
    "known_places",
    "make_room",
    "memory_needed",
    "place_of",
    "suggested_models",
    "training_seconds",
    "unused_settings",
    "writing_to_cache",
]
