"""Finds the files of a model or an adapter: a built-in model, a folder, a run directory, or a download from the hub."""

import importlib.resources
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from loratory.errors import UserError
from loratory.settings import BUILTIN, BUILTINS, ModelConfig
from loratory.storage import CARD

FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


def builtin_folder(name: str = BUILTIN) -> Path:
    """The folder of one of the demonstration models that ship with the package."""
    return Path(str(importlib.resources.files("loratory") / "builtin" / ("model" if name == BUILTIN else "masked")))


def find_files(config: ModelConfig) -> tuple[Path, str | None]:
    """The folder with the model's files, downloaded from the hub if necessary, and the commit (None for a folder).

    In a run directory, that is the folder with its adapter or its fully fine-tuned model.

    Raises UserError if the model does not exist, is gated, or cannot be downloaded.
    """
    if config.name in BUILTINS:
        return builtin_folder(config.name), None
    folder = Path(config.name)
    if config.name.strip() and folder.is_dir():
        return _inside_run(folder), None
    if config.name.startswith((".", "/", "~")) or config.name.count("/") > 1 or not config.name.strip():
        raise UserError("Model folder not found", "[model] name", "a folder or a hub id", config.name)
    where = f"[model] name = {config.name!r}"
    try:
        fetched = Path(snapshot_download(config.name, revision=config.revision, allow_patterns=FILES))
    except GatedRepoError as error:
        fix = "accept the terms on the model's hub page and run: hf auth login; or choose a model without terms,"
        fix += " such as Qwen/Qwen2.5-0.5B-Instruct"
        raise UserError("The model is gated", where, fix=fix) from error
    except RepositoryNotFoundError as error:
        fix = "check the spelling; for a private model, run: hf auth login"
        raise UserError("The model does not exist on the hub", where, fix=fix) from error
    except (LocalEntryNotFoundError, OSError, HfHubHTTPError) as error:
        raise UserError(
            "The model is not on this machine and the hub cannot be reached",
            where,
            expected="a network connection, a previously downloaded model, or a folder",
            found=str(error).splitlines()[0][:200] if str(error) else type(error).__name__,
            fix="connect to the network, unset HF_HUB_OFFLINE, or use a folder that contains the model",
        ) from error
    except ValueError as error:
        raise UserError("Not a valid model name", where, "a folder or a hub id", str(error).splitlines()[0]) from error
    return fetched, fetched.name


def _inside_run(folder: Path) -> Path:
    """The folder itself, or the folder of the tuned model if it is a run directory."""
    if (folder / "config.json").exists() or (folder / "adapter_config.json").exists():
        return folder
    return next((folder / name for name in ("adapter", "model") if (folder / name / CARD).exists()), folder)
