"""Reads models from the local store of Ollama: a manifest per model and tag, which lists blobs named by their hash.

The store is described at https://github.com/ollama/ollama/blob/main/docs/faq.mdx; nothing is ever written to it.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loratory.errors import UserError
from loratory.storage import read_json_object

PREFIX = "ollama:"
REGISTRY, LIBRARY, LATEST = "registry.ollama.ai", "library", "latest"
MEDIA = "application/vnd.ollama.image."
NAME_PART = re.compile(r"[A-Za-z0-9][\w.-]{0,127}")
DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
MAX_TEXT = 1 << 20  # bytes
# What marks turns in chat templates, as in <|im_start|>, <start_of_turn> and [INST].
MARKER = re.compile(r"<[|｜]?/?[A-Za-z_][\w▁ ]{0,40}[|｜]?>|\[/?[A-Z_]{2,30}\]")


@dataclass(frozen=True)
class OllamaModel:
    """A model in Ollama's store."""

    name: str
    """As in "ollama:smollm2:135m", with the tag."""
    blob: Path
    """Its GGUF file."""
    sha256: str
    """The hash that the file must have."""
    template: str = ""
    """Its chat template, in the language of Go; empty if it has none of its own."""
    system: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)


def find_in_ollama(name: str) -> OllamaModel:
    """The model that a name means: "ollama:smollm2:135m", "ollama:owner/name", or "ollama:hf.co/owner/name:Q4_K_M".

    Without a tag, the tag is "latest". Raises UserError if it is not in the store, or if a blob is missing.
    """
    relative, tag = _parts(name)
    stores = [store for store in ollama_stores() if (store / "manifests").is_dir()]
    if not stores:
        found = "no folder " + " or ".join(str(store / "manifests") for store in ollama_stores())
        fix = "install Ollama and pull the model, or set OLLAMA_MODELS to the folder of its models"
        raise UserError("Ollama has no models on this machine", name, found=found, fix=fix)
    for store in stores:
        if (manifest := store / "manifests" / relative / tag).is_file():
            return _read(store, manifest, f"{PREFIX}{_short(relative)}:{tag}")
    tags = sorted({tag for store in stores for tag in _names_in(store / "manifests" / relative)})
    if tags:
        raise UserError("Ollama does not have this tag of the model", name, ", ".join(tags)[:300], tag)
    there = sorted({f"{PREFIX}{one}" for store in stores for one in _models_in(store)})
    fix = f"run: ollama pull {name.removeprefix(PREFIX)}"
    raise UserError("Ollama does not have this model", name, ", ".join(there)[:300] or None, fix=fix)


def is_in_ollama(name: str) -> bool:
    """Whether Ollama has the model, with its tag and its files."""
    try:
        find_in_ollama(name)
    except UserError:
        return False
    return True


def ollama_stores() -> list[Path]:
    """Where Ollama may keep its models: $OLLAMA_MODELS alone, or the folders of the user and of the service."""
    if chosen := os.environ.get("OLLAMA_MODELS"):
        return [Path(chosen).expanduser()]
    return [Path.home() / ".ollama" / "models", Path("/usr/share/ollama/.ollama/models")]


def unused_settings(model: OllamaModel, template: str) -> str | None:
    """One sentence about what Ollama would show the model, and ``template``, the GGUF file's own one, does not; None if
    nothing is known to differ.

    Templates in different languages cannot be compared as text; what is compared is the markers of turns in them.
    """
    parts = []
    theirs, own = set(MARKER.findall(model.template)), set(MARKER.findall(template))
    if model.template and template and theirs != own:
        parts.append(f"its chat template (other markers: {', '.join(sorted(theirs ^ own))[:100]})")
    if model.template and not template:
        parts.append("its chat template (the file itself has none)")
    if model.system and model.system.strip() not in template:
        parts.append(f"its system text ({json.dumps(' '.join(model.system.split())[:80], ensure_ascii=False)})")
    stops = model.parameters.get("stop")
    unknown = [text for text in stops if str(text) not in template] if isinstance(stops, list) else []
    others = {**model.parameters, "stop": unknown}
    if shown := [
        f"{key} {json.dumps(value, ensure_ascii=False)}" for key, value in others.items() if value not in ([], None)
    ]:
        parts.append(f"its parameters ({', '.join(shown)[:150]})")
    if not parts:
        return None
    own_template = "the GGUF file's own chat template" if template else "a plain template"
    return (
        f"Of {model.name}, these settings of Ollama are not used: {'; '.join(parts)}. It is trained with {own_template}"
    )


def _parts(name: str) -> tuple[str, str]:
    """The folder of the manifests, relative, and the tag. Raises UserError."""
    path, _, tag = name.removeprefix(PREFIX).partition(":")
    parts = path.split("/")
    defaults = {1: [REGISTRY, LIBRARY], 2: [REGISTRY]}
    whole = [*defaults.get(len(parts), []), *parts]
    if len(whole) != 3 or not all(NAME_PART.fullmatch(part) for part in [*whole, tag or LATEST]):
        raise UserError(
            "Not a valid name of an Ollama model", name, "ollama:NAME, ollama:NAME:TAG or ollama:OWNER/NAME"
        )
    return "/".join(whole), tag or LATEST


def _short(relative: str) -> str:
    return relative.removeprefix(f"{REGISTRY}/").removeprefix(f"{LIBRARY}/")


def _names_in(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()] if folder.is_dir() else []


def _models_in(store: Path) -> Iterator[str]:
    root = store / "manifests"
    for path in root.glob("*/*/*/*"):
        relative = path.relative_to(root)
        yield f"{_short(relative.parent.as_posix())}:{relative.name}"


def _read(store: Path, path: Path, name: str) -> OllamaModel:
    def damaged(found: str) -> UserError:
        return UserError("The manifest of the Ollama model is damaged", str(path), found=found, fix=_pull(name))

    try:
        layers = read_json_object(path).get("layers")
    except ValueError as error:
        raise damaged(str(error)) from error
    digests: dict[str, list[str]] = {}
    for layer in layers if isinstance(layers, list) else []:
        kind, digest = (layer.get(key) if isinstance(layer, dict) else None for key in ("mediaType", "digest"))
        match = DIGEST.fullmatch(digest) if isinstance(digest, str) else None
        if not isinstance(kind, str) or match is None:
            raise damaged("a layer without a type or a hash")
        digests.setdefault(kind.removeprefix(MEDIA), []).append(match[1])
    if "adapter" in digests:
        fix = "use the model on which it was trained"
        raise UserError("This Ollama model is an adapter on another model", name, found=str(path), fix=fix)
    if len(digests.get("model", [])) != 1:
        raise damaged(f"{len(digests.get('model', []))} models instead of one")
    [weights] = digests["model"]
    texts = {kind: _text(store, digests[kind][0], name) for kind in ("template", "system", "params") if kind in digests}
    try:
        parameters = json.loads(texts.get("params") or "{}")
    except ValueError as error:
        raise damaged(f"its parameters are not JSON: {error}") from error
    if not isinstance(parameters, dict):
        raise damaged("its parameters are not an object")
    blob = _blob(store, weights, name)
    return OllamaModel(name, blob, weights, texts.get("template", ""), texts.get("system", ""), parameters)


def _blob(store: Path, digest: str, name: str) -> Path:
    path = store / "blobs" / f"sha256-{digest}"
    if not path.is_file():
        raise UserError("A file of the Ollama model is missing", str(path), found=name, fix=_pull(name))
    return path


def _text(store: Path, digest: str, name: str) -> str:
    path = _blob(store, digest, name)
    if path.stat().st_size > MAX_TEXT:
        raise UserError("A file of the Ollama model is too large", str(path), f"at most {MAX_TEXT} bytes")
    return path.read_bytes().decode("utf-8", "replace")


def _pull(name: str) -> str:
    return f"run: ollama pull {name.removeprefix(PREFIX)}"
