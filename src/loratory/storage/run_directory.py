"""The run directory: settings as resolved, what the data and the machine were, and an append-only log."""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import tomli_w

from loratory.config import Config, config_from_dict, config_to_dict
from loratory.errors import UserError

ASKED = "asked.json"
PACKAGES = ("loratory", "torch", "transformers", "peft", "tokenizers", "datasets", "safetensors", "scikit-learn")


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or nothing: a temporary file beside it, flushed to disk, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes ``path`` (replacing it) when the block ends well, and vanishes else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    temporary.chmod(0o755)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            _flush(file)
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
        _flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(files: Iterable[Path]) -> str:
    """One hash over the bytes of the files, in the order given."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def append_metric(run: Path, event: str, **values: Any) -> None:
    """Adds one line to metrics.jsonl. The log is only ever appended to."""
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"event": event, **values}) + "\n")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; one torn by a crash is passed over."""
    path = run / "metrics.jsonl"
    found = []
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        found += [event] if isinstance(event, dict) and "event" in event else []
    return found


def mend_metrics(run: Path) -> None:
    """Removes a last line that a crash tore, so that the next one is not glued to it."""
    path = run / "metrics.jsonl"
    if path.exists():
        whole, newline, torn = path.read_bytes().rpartition(b"\n")
        if torn:
            write_text(path, (whole + newline).decode("utf-8"))


def check_run(run: Path, config: Config, overwrite: bool) -> bool:
    """Whether the folder holds an unfinished run of the same settings, to be continued.

    Raises UserError when it holds something else: a finished run, other settings, or no run at all.
    """
    if run.exists() and not run.is_dir():
        raise UserError("The run directory is a file", str(run), fix="choose another [run] out")
    if not run.exists() or not any(run.iterdir()):
        return False
    if not (run / "config.toml").exists():
        raise UserError("The run directory holds other files", str(run), fix="choose another [run] out")
    if overwrite:
        return False
    fix = "choose another [run] out, or add --overwrite to replace it"
    if (run / "report.json").exists():
        raise UserError("This run is finished already", str(run), fix=f"open {run / 'report.html'}; or {fix}")
    asked = json.loads((run / ASKED).read_text()) if (run / ASKED).exists() else None
    if asked != config_to_dict(config):
        raise UserError("The run directory holds a run with other settings", str(run), fix=fix)
    return True


def create_run(run: Path, overwrite: bool) -> None:
    """Makes the folder, empty; check_run has said that it may."""
    if overwrite and run.exists():
        shutil.rmtree(run)
    run.mkdir(parents=True, exist_ok=True)


def file_records(names: Iterable[str]) -> list[dict[str, Any]]:
    """Path and hash of each data file; a hub name stands as it is."""
    return [
        {"path": name, "sha256": None if name.startswith("hub:") else sha256_of([Path(name)])} for name in names
    ]  # fmt: skip


def check_same_data(run: Path, record: dict[str, Any]) -> None:
    """Raises UserError where the data changed since the run began."""
    if json.loads((run / "data.json").read_text()) != record:
        raise UserError(
            "The data changed since this run began", str(run / "data.json"), fix="start anew with --overwrite"
        )  # fmt: skip


def write_config(run: Path, config: Config) -> None:
    write_text(run / "config.toml", tomli_w.dumps(config_to_dict(config)))


def read_config(run: Path) -> Config:
    """The settings of a run, as resolved. Raises UserError if the folder is no run."""
    path = run / "config.toml"
    if not path.exists():
        raise UserError("Not a run directory", str(run), expected="a folder with a config.toml")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError("The settings of the run are damaged", str(path), found=str(error)) from error
    return config_from_dict(values, str(path))


def versions() -> dict[str, str]:
    """The installed versions of what decides the numbers."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_state(folder: Path) -> str | None:
    """Commit of the checkout that holds ``folder``, with "+changes" if files differ from it; None outside of git."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None
