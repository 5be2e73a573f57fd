"""Finds the files of a model or an adapter, wherever a person has them.

A name is that of a built-in model, a folder, a run directory, a GGUF file, a model of Ollama, a known model by its
short name, or a model on the hub.
"""

import glob
import importlib.resources
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    DryRunError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from loratory.bases import PREFIX, SHORT_NAMES, find_in_ollama, place_of, unused_settings
from loratory.errors import UserError
from loratory.events import EventCallback, ignore_event
from loratory.models.converting import GgufSource, converted
from loratory.settings import BUILTIN, BUILTINS, ModelConfig
from loratory.storage import CARD

FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
GGUF = ".gguf"
OTHER_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class FoundModel:
    """Where the files of a model or an adapter are."""

    folder: Path
    revision: str | None
    """Commit hash on the hub; None for a folder or file."""
    name: str
    """The hub id, the absolute path, or the name in Ollama with its tag: what finds it again from any working
    directory, and at the same place."""
    gguf: GgufSource | None = None
    """The GGUF file from which the files in the folder were converted."""
    notes: tuple[str, ...] = ()
    """Sentences on how it was found, for the person who starts a run."""


def builtin_folder(name: str = BUILTIN) -> Path:
    """The folder of one of the demonstration models that ship with the package."""
    return Path(str(importlib.resources.files("loratory") / "builtin" / ("model" if name == BUILTIN else "masked")))


def find_files(config: ModelConfig, on_event: EventCallback = ignore_event) -> FoundModel:
    """The folder with the model's files, downloaded from the hub or converted from GGUF if necessary.

    In a run directory, that is the folder with its adapter or its fully fine-tuned model. ``on_event`` is told before a
    conversion begins.

    Raises UserError if the model does not exist, is gated, or cannot be downloaded or converted.
    """
    name = config.name
    if name in BUILTINS:
        return _in_folder(builtin_folder(name))
    path = Path(name)
    if name.strip() and path.is_dir():
        inside = _inside_run(path)
        return _from_gguf(only, on_event) if (only := _only_gguf(inside)) else _in_folder(inside)
    if path.suffix.lower() == GGUF and path.exists():
        return _from_gguf(path, on_event)
    if name.startswith(PREFIX):
        return _from_ollama(name, on_event)
    if name in SHORT_NAMES and config.revision is None:  # a revision is one on the hub
        return _known(name, on_event)
    hub_id, file = _hub_id(name)
    found = _on_hub(hub_id, config.revision, file)
    if file is None:
        return found
    if not (found.folder / file).is_file():
        raise UserError("The model on the hub does not have this file", f"[model] name = {name!r}", found=file)
    folder, source = converted(found.folder / file, on_event)
    return FoundModel(folder, found.revision, name, source, (_note(source),))


def bytes_to_download(config: ModelConfig) -> int | None:
    """How many bytes ``find_files`` would download; 0 if the model is on this machine.

    None if that is not known, because the hub cannot be reached or does not give the model.
    """
    name = config.name
    known = SHORT_NAMES.get(name) if config.revision is None else None  # a revision is one on the hub
    if name in BUILTINS or Path(name).exists() or name.startswith(PREFIX) or (known and place_of(known).is_here):
        return 0
    try:
        hub_id, file = _hub_id(name)
        files = snapshot_download(hub_id, revision=config.revision, allow_patterns=_patterns(file), dry_run=True)
    except (UserError, DryRunError, LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError):
        return None
    return sum(file.file_size or 0 for file in files if file.will_download)


def _hub_id(name: str) -> tuple[str, str | None]:
    """The hub id in a name, and the GGUF file if it names one. Raises UserError if it cannot be a model on the hub."""
    if name in SHORT_NAMES:
        return SHORT_NAMES[name].hub_id, None
    is_file, slashes = Path(name).suffix.lower() == GGUF, name.count("/")
    if is_file and slashes < 2:
        raise UserError("Model file not found", "[model] name", "a GGUF file, or owner/name/file.gguf on the hub", name)
    if name.startswith((".", "/", "~")) or not name.strip() or (slashes > 1 and not is_file):
        kinds = "a folder, a GGUF file, a hub id, a short name or ollama:NAME"
        raise UserError("Model folder not found", "[model] name", kinds, name)
    if not is_file:
        return name, None
    owner, model, file = name.split("/", 2)
    return f"{owner}/{model}", file


def _patterns(file: str | None) -> list[str]:
    """The files of a model on the hub that are downloaded."""
    return FILES if file is None else [glob.escape(file)]


def _in_folder(folder: Path) -> FoundModel:
    return FoundModel(folder, None, str(folder.resolve()))


def _from_gguf(path: Path, on_event: EventCallback) -> FoundModel:
    folder, source = converted(path, on_event)
    return FoundModel(folder, None, source.file, source, (_note(source),))


def _from_ollama(name: str, on_event: EventCallback) -> FoundModel:
    model = find_in_ollama(name)
    folder, source = converted(model.blob, on_event, model.sha256)
    template = folder / "chat_template.jinja"
    different = unused_settings(model, template.read_text(encoding="utf-8") if template.exists() else "")
    return FoundModel(folder, None, model.name, source, (_note(source), *([different] if different else [])))


def _known(name: str, on_event: EventCallback) -> FoundModel:
    """A known model, from the first place that has it; from the hub if none has."""
    place = place_of(SHORT_NAMES[name])
    found = find_files(ModelConfig(place.name), on_event)
    return FoundModel(found.folder, found.revision, found.name, found.gguf, (f"{name} is {found.name}", *found.notes))


def _note(source: GgufSource) -> str:
    return f"Base model: {source.file}, a GGUF file quantized as {source.quantization}"


def _only_gguf(folder: Path) -> Path | None:
    """The GGUF file of a folder that has no other weights. Raises UserError if there are several."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == GGUF)
    if not files or any(True for pattern in OTHER_WEIGHTS for _ in folder.glob(pattern)):
        return None
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:5]) + (f" and {len(files) - 5} more" if len(files) > 5 else "")
        raise UserError("The folder has several GGUF files", str(folder), found=names, fix="name one of these files")
    return files[0]


def _on_hub(name: str, revision: str | None, file: str | None) -> FoundModel:
    where = f"[model] name = {name if file is None else f'{name}/{file}'!r}"
    try:
        fetched = Path(snapshot_download(name, revision=revision, allow_patterns=_patterns(file)))
    except GatedRepoError as error:
        fix = "accept the terms on the model's hub page and run: hf auth login; or choose a model without terms,"
        fix += " such as Qwen/Qwen2.5-0.5B-Instruct"
        raise UserError("The model is gated", where, fix=fix) from error
    except RepositoryNotFoundError as error:
        fix = "check the spelling; for a private model, run: hf auth login"
        raise UserError("The model does not exist on the hub", where, fix=fix) from error
    except (LocalEntryNotFoundError, OSError, HfHubHTTPError) as error:
        reachable = "unset HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "connect to the network"
        raise UserError(
            "The model is not on this machine and the hub cannot be reached",
            where,
            expected="a network connection, a previously downloaded model, or a folder",
            found=str(error).splitlines()[0].split(". ")[0][:200] if str(error) else type(error).__name__,
            fix=f"{reachable}, or use a folder that contains the model",
        ) from error
    except ValueError as error:
        raise UserError("Not a valid model name", where, "a folder or a hub id", str(error).splitlines()[0]) from error
    return FoundModel(fetched, fetched.name, name)


def _inside_run(folder: Path) -> Path:
    """The folder itself, or the folder of the tuned model if it is a run directory."""
    if (folder / "config.json").exists() or (folder / "adapter_config.json").exists():
        return folder
    return next((folder / name for name in ("adapter", "model") if (folder / name / CARD).exists()), folder)
