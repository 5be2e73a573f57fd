"""What decides a model's answers, as hashes, so that a change is found before it shows in an answer."""

import re
from collections.abc import Mapping
from pathlib import Path

from loratory.storage import hashes_of, sha256_of

WEIGHTS = "weights"
# Weights are hashed together; the other files beside them, such as pictures and READMEs, change no answer.
DECIDING_FILES = re.compile(
    r"config\.json|generation_config\.json|model\.safetensors\.index\.json|tokenizer\.json|tokenizer_config\.json"
    r"|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt|chat_template\.(jinja|json)|[^/]+\.model"
    r"|additional_chat_templates/[^/]+\.jinja"
)


def model_hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 hash of a model's weights, under "weights", and of each of its other files that decide an answer."""
    return {WEIGHTS: sha256_of(sorted(folder.glob("*.safetensors"))), **hashes_of(folder, deciding_names(folder))}


def deciding_names(folder: Path) -> list[str]:
    """The files of a model, except its weights, that decide its answers, relative to its folder."""
    names = [path.relative_to(folder).as_posix() for path in (*folder.glob("*"), *folder.glob("*/*.jinja"))]
    return sorted(name for name in names if DECIDING_FILES.fullmatch(name))


def differing_files(recorded: Mapping[str, str], found: Mapping[str, str]) -> str:
    """The files of a base model that differ from the recorded ones, as text; empty if there are none.

    Records of earlier versions have the weights only; files without a recorded hash are then not compared.
    """
    names = recorded.keys() if set(recorded) == {WEIGHTS} else recorded.keys() | found.keys()
    pairs = [(name, recorded.get(name, "missing"), found.get(name, "missing")) for name in sorted(names)]
    return ", ".join(f"{name} {new[:12]} instead of {old[:12]}" for name, old, new in pairs if old != new)
