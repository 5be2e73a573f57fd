"""Where a known model is: in the hub's cache, in an installed package, in Ollama's store, or only on the hub."""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import constants

from loratory.bases.known import KNOWN_MODELS, KnownModel
from loratory.bases.ollama import PREFIX, is_in_ollama

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Place:
    """Where a known model is found."""

    kind: Literal["hub cache", "package", "ollama", "hub"]
    name: str
    """The ``model.name`` that loads it from there: a hub id, a GGUF file, or a name of Ollama."""

    @property
    def is_here(self) -> bool:
        """Whether it is on this machine."""
        return self.kind != "hub"


def place_of(model: KnownModel) -> Place:
    """The first place that has the model, in this order: the hub's cache, which has the original weights, then an
    installed package and Ollama's store, which have quantized ones; if none has it, the hub.

    Imports neither PyTorch nor the package, and downloads nothing.
    """
    if is_in_hub_cache(model.hub_id):
        return Place("hub cache", model.hub_id)
    if model.package and (path := file_in_package(*model.package)):
        return Place("package", str(path))
    if model.ollama and is_in_ollama(PREFIX + model.ollama):
        return Place("ollama", PREFIX + model.ollama)
    return Place("hub", model.hub_id)


def known_places() -> list[tuple[KnownModel, Place]]:
    """All known models, smallest first, and where each is. Imports no PyTorch and downloads nothing."""
    return [(model, place_of(model)) for model in KNOWN_MODELS]


def is_in_hub_cache(hub_id: str) -> bool:
    """Whether all weights of the model are in the hub's cache; a download may have been interrupted."""
    root = Path(constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}"
    try:
        folder = root / "snapshots" / (root / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return False
    try:
        names = set(json.loads((folder / INDEX).read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        names = {"model.safetensors"}
    return all((folder / name).is_file() for name in ("config.json", *map(str, names)))


def file_in_package(module: str, file: str) -> Path | None:
    """A file in an installed package, which is not imported; None if either is missing."""
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # a broken installation
        return None
    folders = found.submodule_search_locations if found else None
    return next((path for folder in folders or () if (path := Path(folder) / file).is_file()), None)
