"""Atomic writes of files and folders, seals that show later changes, and SHA-256 hashes of files."""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from loratory.errors import UserError

TEMPORARY = re.compile(r"\.loratory-[0-9a-f]{12}\.tmp")
SEAL = "seal"
MAX_JSON = 256 << 20  # bytes
# The first bytes of every pointer: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
LFS_POINTER, MAX_LFS_POINTER = b"version https://git-lfs.github.com/spec/", 1024


# ---- files -----------------------------------------------------------------------------------------------------------


@contextmanager
def open_output(path: Path, temporary: Path | None = None) -> Iterator[IO[str]]:
    """Yields a text file that becomes ``path`` when the block succeeds; if it raises, ``path`` stays as it was.

    The text goes to a temporary file in the same folder, which is flushed to disk and renamed. Its name is random, or
    ``temporary``, which is replaced if a killed process has left it. A symbolic link stays, and its target is replaced.
    Devices, pipes and other things that are not regular files are written to directly.
    """
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8", newline="") as file:
            yield file
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary or temporary_path(path.parent)
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("x", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            temporary.chmod(stat.S_IMODE(path.stat().st_mode))
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_to_disk(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically, as ``open_output`` does."""
    with open_output(path) as file:
        file.write(text)


def json_text(value: Any) -> str:
    """``value`` as indented JSON. Raises ValueError for NaN and infinite numbers, which are not JSON."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def parsed_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError if it is malformed, too deep, or has a number that is not finite."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not a JSON number")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_regular(path: Path) -> bytes:
    """The content of a file. Raises UserError if it is not a regular file: a pipe may be read forever."""
    if path.exists() and not path.is_file():
        raise UserError("This is not a regular file", str(path), fix="move it to another folder")
    return path.read_bytes()


def check_no_pointer(path: Path) -> None:
    """Raises UserError if the file is a pointer that Git LFS left in the place of the file. Reads no more than that."""
    if not path.is_file() or path.stat().st_size > MAX_LFS_POINTER or not path.read_bytes().startswith(LFS_POINTER):
        return
    fix = f"install Git LFS and run this in the folder {path.parent}: git lfs pull"
    raise UserError("The file is a Git LFS pointer: its content was not downloaded", str(path), fix=fix)


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError if it cannot be read, is not an object or is above 256 MiB."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a regular file")
        if path.stat().st_size > MAX_JSON:
            raise ValueError(f"it is larger than {MAX_JSON >> 20} MiB")
        value = parsed_json(path.read_bytes())
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    if not isinstance(value, dict):
        raise ValueError(f"it is not an object but {type(value).__name__}")
    return value


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as an indented JSON file, atomically. Raises ValueError like ``json_text``."""
    write_text(path, json_text(value))


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Writes a JSON Lines file, one row per line, atomically. Raises ValueError for NaN and infinite numbers."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def temporary_path(folder: Path) -> Path:
    """A new path in the folder whose name marks it as temporary, so that it is recognized if it is left behind."""
    return folder / f".loratory-{secrets.token_hex(6)}.tmp"


def is_temporary(path: Path) -> bool:
    """Whether the name marks a file or folder as temporary: if nobody is writing it, a killed process has left it."""
    return bool(TEMPORARY.fullmatch(path.name))


# ---- folders ---------------------------------------------------------------------------------------------------------


@contextmanager
def atomic_folder(path: Path, own_files: re.Pattern[str]) -> Iterator[Path]:
    """Yields a temporary folder that is renamed to ``path`` when the block succeeds, replacing an existing folder.

    If the block raises, the temporary folder is removed and ``path`` stays as it was. Of an existing folder, only files
    whose names match ``own_files`` are replaced. Raises UserError if it contains others.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path.parent)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            flush_to_disk(file)
        flush_to_disk(temporary)
        if (path.is_symlink() or path.exists()) and not remove_own_folder(path, own_files):
            fix = "move its other files to another folder, and repeat the command"
            raise UserError("A folder of the run contains a file that Loratory did not write", str(path), fix=fix)
        temporary.rename(path)
        flush_to_disk(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_own_folder(folder: Path, own_files: re.Pattern[str]) -> bool:
    """Removes a folder that contains only files with names that match ``own_files``.

    Returns False, and removes nothing, if it contains others or is a symbolic link.
    """
    if folder.is_symlink():
        return False
    contents = sorted(folder.rglob("*"), reverse=True)  # files before their folder
    if not all(p.is_dir() or own_files.fullmatch(p.relative_to(folder).as_posix()) for p in contents):
        return False
    for entry in (*contents, folder):
        entry.rmdir() if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    return True


def flush_to_disk(path: Path) -> None:
    """Flushes a file or, where the system can, the entries of a folder, so that they survive a power failure."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---- hashes ----------------------------------------------------------------------------------------------------------


def sha256_of(files: Iterable[Path]) -> str:
    """The SHA-256 hash of the concatenated bytes of the files, as a hexadecimal string."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def sha256_of_text(text: str) -> str:
    """The hash that ``sha256_of`` gives for a file with this text."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def hashes_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The SHA-256 hash of each of the named files that exists in the folder, in alphabetical order."""
    return {name: sha256_of([folder / name]) for name in sorted(names) if (folder / name).is_file()}


def changed_files(folder: Path, hashes: dict[str, str]) -> list[str]:
    """The files that are missing or whose contents no longer have the given hashes."""
    changed = []
    for name, digest in hashes.items():
        with contextlib.suppress(OSError):
            # Opening a pipe would wait for somebody to write to it.
            if (folder / name).is_file() and sha256_of([folder / name]) == digest:
                continue
        changed.append(name)
    return changed


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """The value with a hash of itself under the key "seal", by which later changes are found."""
    content = {key: item for key, item in value.items() if key != SEAL}
    return {**content, SEAL: _seal_of(content)}


def seal_is_intact(value: dict[str, Any]) -> bool:
    """Whether a value is as ``sealed`` returned it. Values without a seal, from earlier versions, count as intact."""
    content = {key: item for key, item in value.items() if key != SEAL}
    return SEAL not in value or value[SEAL] == _seal_of(content)


def _seal_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
