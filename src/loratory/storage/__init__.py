"""Atomic file writes and the run directory.

In: text, JSON and folders to write. Out: files and folders that are either complete or absent, an append-only log, and
the settings and records of a run. Read ``contents.py`` first: it lists every file of a run.
"""

from loratory.storage.contents import (
    CHECKPOINT_FILES,
    REQUESTED_SETTINGS,
    START_FILES,
    TUNED_MODEL_FILES,
    deciding_files,
    remove_leftovers,
)
from loratory.storage.files import (
    atomic_folder,
    changed_files,
    hashes_of,
    json_text,
    open_output,
    parsed_json,
    read_json_object,
    seal_is_intact,
    sealed,
    sha256_of,
    sha256_of_text,
    write_json,
    write_json_lines,
    write_text,
)
from loratory.storage.lock import only_writer, only_writer_of_file
from loratory.storage.problems import machine_problem
from loratory.storage.record import RunRecord, State, is_run, read_record, write_record
from loratory.storage.run_directory import (
    append_metric,
    check_place,
    check_run,
    clear_run,
    damaged_files,
    file_records,
    is_finished,
    read_config,
    read_metrics,
    repair_metrics,
    requested_text,
    resolved_text,
)

__all__ = [
    "CHECKPOINT_FILES",
    "REQUESTED_SETTINGS",
    "START_FILES",
    "TUNED_MODEL_FILES",
    "RunRecord",
    "State",
    "append_metric",
    "atomic_folder",
    "changed_files",
    "check_place",
    "check_run",
    "clear_run",
    "damaged_files",
    "deciding_files",
    "file_records",
    "hashes_of",
    "is_finished",
    "is_run",
    "json_text",
    "machine_problem",
    "only_writer",
    "only_writer_of_file",
    "open_output",
    "parsed_json",
    "read_config",
    "read_json_object",
    "read_metrics",
    "read_record",
    "remove_leftovers",
    "repair_metrics",
    "requested_text",
    "resolved_text",
    "seal_is_intact",
    "sealed",
    "sha256_of",
    "sha256_of_text",
    "write_json",
    "write_json_lines",
    "write_record",
    "write_text",
]
