"""The cache of models converted from GGUF files: one folder for each file, named by its hash; bounded in size."""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock

from loratory.errors import UserError
from loratory.storage import changed_files, is_temporary, read_json_object, seal_is_intact

MOST_BYTES = 20 * 1024**3
SOURCE = "source.json"
ENTRY = re.compile(r"[0-9a-f]{64}-[\w.+-]+")


@dataclass(frozen=True)
class CachedModel:
    """A converted model."""

    folder: Path
    source: dict[str, Any]
    """What source.json says: the GGUF file's name, hash and quantization, and the hashes of the converted files."""
    bytes: int
    last_used: float
    """Seconds since 1970."""


def user_cache() -> Path:
    """Loratory's folder in $XDG_CACHE_HOME, or where the system keeps caches of the user."""
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        base = Path(chosen)
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path.home() / ".cache"
    return base / "loratory"


def cache_folder() -> Path:
    """The folder of the converted models."""
    return user_cache() / "gguf"


def entry_folder(sha256: str) -> Path:
    """The folder for the GGUF file with this hash, as this version of Transformers converts it."""
    return cache_folder() / f"{sha256}-{version('transformers')}"


def cached_model(folder: Path) -> CachedModel | None:
    """The converted model in the folder, marked as used now; None if there is none, or if anything but its weights has
    changed. The weights are compared when they are loaded, because they are hashed then in any case.
    """
    model = _read(folder)
    if model is None or changed_files(folder, {k: v for k, v in model.source["files"].items() if not _is_weights(k)}):
        return None
    if not all((folder / name).is_file() for name in model.source["files"]):
        return None
    os.utime(folder / SOURCE)
    return model


def cached_models() -> list[CachedModel]:
    """All converted models, the least recently used first."""
    root = cache_folder()
    entries = [path for path in root.iterdir() if ENTRY.fullmatch(path.name)] if root.is_dir() else []
    return sorted(filter(None, map(_read, entries)), key=lambda model: model.last_used)


@contextmanager
def writing_to_cache() -> Iterator[None]:
    """Within the context, no other process writes to the cache; waits for one that does."""
    root = cache_folder()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fix = "set XDG_CACHE_HOME to a folder that can be written to"
        raise UserError("The cache cannot be written to", str(root), found=error.strerror, fix=fix) from error
    with FileLock(root / ".lock"):
        yield


def make_room(newest: Path) -> None:
    """Removes what killed processes have left, and the least recently used models until the cache is at most 20 GiB.

    Never removes ``newest``. The caller holds ``writing_to_cache``.
    """
    for path in cache_folder().iterdir():
        if is_temporary(path):
            shutil.rmtree(path, ignore_errors=True)
    models = cached_models()
    total = sum(model.bytes for model in models)
    for model in models:
        if total > MOST_BYTES and model.folder != newest:
            shutil.rmtree(model.folder, ignore_errors=True)
            total -= model.bytes


def clear_cache() -> int:
    """Removes every converted model; returns how many bytes that frees."""
    if not cache_folder().is_dir():
        return 0
    with writing_to_cache():
        freed = sum(model.bytes for model in cached_models())
        for path in cache_folder().iterdir():
            if is_temporary(path) or ENTRY.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)
    return freed


def _read(folder: Path) -> CachedModel | None:
    try:
        source = read_json_object(folder / SOURCE)
        used = (folder / SOURCE).stat().st_mtime
        size = sum(path.stat().st_size for path in folder.iterdir())
    except (ValueError, OSError):
        return None
    if not seal_is_intact(source) or not isinstance(source.get("files"), dict):
        return None
    return CachedModel(folder, source, size, used)


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors")
