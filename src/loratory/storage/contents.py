"""Which files of a run directory Loratory writes; it removes no others.

At the top of a run:

- run.json: the stage of the run, and the hashes by which its files are checked: see ``record.py``.
- config.toml: all settings, with device, dtype, threads, model revision, prompt, date and optimizations resolved.
- asked.json: the settings as requested, before they were resolved. A run resumes only if they are the same.
- environment.json: base model, hardware, layout of the batches, stop tokens, package versions and git commit.
- data.json: task, labels, number of examples, data files with hashes, results of the data checks, test prompts.
- report.json, report.html: the report as data and as a page.
- .lock, .owner.json: the lock of the process that writes to the run, and who that is.

In a run, and in each further seed ``seeds/<seed>/`` and fold ``folds/<k>/``:

- metrics.jsonl: the log, one event per line: estimate, stage, step, validation, trial, trained, retained, memory,
  warning, not_measured.
- checkpoints/: checkpoints of the training, in a subfolder rate-<rate>/ per learning rate if several are tried.
- adapter/ or model/: the tuned model, as a LoRA adapter in PEFT's format or, after full fine-tuning, as a whole.
- predictions/<system>.jsonl: a system's predictions for the test examples, one per line.
- predictions/validation/<system>.jsonl: the same for the validation examples.
- systems/<system>.json: a system's note, timing and decision rule. Written last: it marks the system as measured.
"""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from loratory.errors import UserError
from loratory.settings import BLEND, PROMPTING, REFERENCES, TUNED
from loratory.storage.files import TEMPORARY
from loratory.storage.lock import LOCK, OWNER
from loratory.storage.record import RECORD

REQUESTED_SETTINGS = "asked.json"
START_FILES = ("config.toml", REQUESTED_SETTINGS, "environment.json", "data.json")

CHECKPOINT_FILES = re.compile(r"(manifest\.json|(parameters|optimizer|random)\.safetensors)")
CARD = "loratory.json"  # of a tuned model: see models/card.py
# What Transformers and PEFT write beside the weights depends on the tokenizer.
TUNED_MODEL_FILES = re.compile(
    r"(loratory\.json|README\.md|adapter_config\.json|adapter_model\.safetensors|config\.json|generation_config\.json"
    r"|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|tokenizer\.json|tokenizer_config\.json"
    r"|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt|chat_template\.(jinja|json)"
    r"|additional_chat_templates/[^/]+\.jinja|[^/]+\.model)"
)
_SYSTEM = "|".join(map(re.escape, (*PROMPTING, *REFERENCES, *TUNED, BLEND)))
_TOP = "|".join(map(re.escape, (RECORD, *START_FILES, "report.json", "report.html", LOCK, OWNER)))
_FOLDERS = rf"checkpoints/(rate-[^/]+/)?step-\d+/{CHECKPOINT_FILES.pattern}|(adapter|model)/{TUNED_MODEL_FILES.pattern}"
_PART = rf"metrics\.jsonl|{_FOLDERS}|predictions/((train|validation)/)?({_SYSTEM})\.jsonl|systems/({_SYSTEM})\.json"
_OWN = re.compile(rf"{_TOP}|((seeds|folds)/\d+/)?({_PART})")
# Temporary files and folders of runs of format 1, where it wrote them. Their random endings have digits and letters,
# nearly always: other endings, such as dates and words, are a person's own.
_RANDOM = r"\.(?=[a-z_]*[0-9])(?=[0-9_]*[a-z])[a-z0-9_]{8}"
_OLD_TEMPORARY = re.compile(
    rf"((seeds|folds)/\d+/)?(\.({_TOP}|metrics\.jsonl){_RANDOM}|\.(adapter|model){_RANDOM}/{TUNED_MODEL_FILES.pattern}"
    rf"|checkpoints/(rate-[^/]+/)?\.step-\d{{6}}{_RANDOM}/{CHECKPOINT_FILES.pattern}"
    rf"|predictions/(validation/)?\.({_SYSTEM})\.jsonl{_RANDOM}|systems/\.({_SYSTEM})\.json{_RANDOM})"
)
# These are replaced as a whole, so nothing else can be kept in them.
_REPLACED = re.compile(r"((seeds|folds)/\d+/)?(adapter|model|checkpoints)(/.*)?")
_UNDECIDED = re.compile(rf"{re.escape(RECORD)}|{LOCK}|{OWNER}|.*metrics\.jsonl|.*checkpoints/.*|.*README\.md")


def own_files(run: Path) -> list[str]:
    """The files in a run directory that Loratory wrote, relative to it, in alphabetical order."""
    return sorted(name for name in _files(run) if is_own(name))


def foreign_files(run: Path) -> list[str]:
    """The other files in a run directory, and symbolic links, in alphabetical order."""
    return sorted(name for name in _files(run) if not is_own(name))


def deciding_files(run: Path) -> list[str]:
    """The files of a finished run that decide an answer or the report."""
    return [name for name in own_files(run) if not _UNDECIDED.fullmatch(name) and not _is_temporary(name)]


def is_own(name: str) -> bool:
    """Whether a path relative to a run directory is one that Loratory writes."""
    return bool(_OWN.fullmatch(name)) or _is_temporary(name)


def _is_temporary(name: str) -> bool:
    return bool(_OLD_TEMPORARY.fullmatch(name)) or _is_new_temporary(name)


def _is_new_temporary(name: str) -> bool:
    return any(TEMPORARY.fullmatch(part) for part in name.split("/"))


def _files(run: Path) -> Iterator[str]:
    """Every file below the folder, except those of runs inside it; a symbolic link is a file, wherever it points."""
    for parent, folders, files in os.walk(run):
        folders[:] = [name for name in folders if not (Path(parent) / name / RECORD).exists()]
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in (*files, *links):
            yield (Path(parent) / name).relative_to(run).as_posix()


def is_unused(folder: Path) -> bool:
    """Whether the folder contains nothing, or only what a run leaves that was stopped before its first file."""
    return all(name in (LOCK, OWNER) or _is_new_temporary(name) for name in _files(folder))


def check_removable(run: Path) -> None:
    """Raises UserError if removing the run would take files with it that Loratory did not write."""
    for name in foreign_files(run):
        if _REPLACED.fullmatch(name):
            fix = "move it to another folder, or choose another [run] out"
            raise UserError("A folder of the run contains a file that Loratory did not write", str(run / name), fix=fix)


def remove_contents(run: Path) -> None:
    """Removes the files of a run, except its record and its lock, and the folders that are then empty."""
    keep = {RECORD, LOCK, OWNER}
    for name in own_files(run):
        if name not in keep:
            (run / name).unlink(missing_ok=True)
    _remove_empty_folders(run)


def remove_leftovers(run: Path) -> None:
    """Removes the temporary files and folders that a killed process left in the run."""
    leftovers = [run / name for name in own_files(run) if _is_temporary(name)]
    for path in leftovers:
        path.unlink(missing_ok=True)
    emptied = {path.parent for path in leftovers if path.parent.name.startswith(".")}
    _remove_empty_folders(run, lambda folder: folder in emptied or bool(TEMPORARY.fullmatch(folder.name)))


def _remove_empty_folders(run: Path, is_wanted: Callable[[Path], bool] = lambda _: True) -> None:
    for parent, folders, _ in os.walk(run, topdown=False):
        for name in folders:
            folder = Path(parent) / name
            if is_wanted(folder) and not folder.is_symlink() and not any(folder.iterdir()):
                folder.rmdir()
