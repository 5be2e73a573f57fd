"""Atomic file writes and the run directory.

In: text, JSON and folders to write. Out: files and folders that are either complete or absent, an append-only log, and
the settings and records of a run. Read ``run_directory.py`` first: it lists every file of a run.
"""

from loratory.storage.files import atomic_folder, sha256_of, write_json, write_json_lines, write_text
from loratory.storage.run_directory import (
    REQUESTED_SETTINGS,
    append_metric,
    check_run,
    check_same_data,
    create_run,
    file_records,
    read_config,
    read_metrics,
    repair_metrics,
    write_config,
)

__all__ = [
    "REQUESTED_SETTINGS",
    "append_metric",
    "atomic_folder",
    "check_run",
    "check_same_data",
    "create_run",
    "file_records",
    "read_config",
    "read_metrics",
    "repair_metrics",
    "sha256_of",
    "write_config",
    "write_json",
    "write_json_lines",
    "write_text",
]
