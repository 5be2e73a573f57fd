"""An unforeseen error ends with code 1 and a report that says where, but contains nothing of the user's data."""

import os
import re
import stat
from pathlib import Path

import pytest

from loratory.cli import main as command_line
from loratory.cli.verb import Verb
from loratory.errors import UserError

SECRET = "Patient 4711 has a broken leg"


@pytest.fixture
def fails(monkeypatch, tmp_path, capsys):
    """Runs a verb that raises; returns the exit code and what it printed."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv("LORATORY_TRACEBACK", raising=False)

    def of(error: BaseException, cause: BaseException | None = None) -> tuple[int, str]:
        def execute(arguments: list[str]) -> None:
            secret = SECRET  # in the frame, as data would be
            assert secret
            raise error from cause

        monkeypatch.setitem(command_line.VERBS, "run", Verb("run", "", object, (), None, execute))
        code = command_line.main(["run"])
        out, err = capsys.readouterr()
        assert out == ""
        return code, err

    return of


@pytest.mark.parametrize("error", [ValueError(SECRET), KeyError(SECRET), RuntimeError(SECRET), AssertionError(SECRET)])
def test_a_crash_names_the_place_and_none_of_the_data(error, fails, tmp_path):
    code, report = fails(error, cause=IndexError(SECRET))
    assert code == 1
    assert SECRET not in report and "Patient" not in report
    assert type(error).__name__ in report and "caused by IndexError" in report
    assert re.search(r"^  loratory/cli/main\.py:\d+: main$", report, re.MULTILINE)
    assert re.search(r"test_crash\.py:\d+: execute$", report, re.MULTILINE)
    assert "raise error" not in report, "a line of source"
    assert str(Path(__file__).parent) not in report
    assert "torch 2" in report and "Python 3" in report and "open an issue" in report
    assert "://" not in report


def test_the_whole_traceback_is_in_a_file_that_only_the_user_can_read(fails, tmp_path):
    _, report = fails(ValueError(SECRET))
    [path] = tmp_path.glob("loratory-*.txt")
    assert str(path) in report and "look through it before sharing it" in report
    assert SECRET in path.read_text() and "Traceback" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_without_a_folder_for_temporary_files_the_report_is_printed_all_the_same(fails, monkeypatch):
    def mkstemp(**_):
        raise OSError("no space left")

    monkeypatch.setattr("tempfile.mkstemp", mkstemp)
    code, report = fails(ValueError(SECRET))
    assert code == 1 and "open an issue" in report and "whole traceback is in" not in report


def test_a_variable_asks_for_the_whole_traceback(fails, monkeypatch, tmp_path):
    monkeypatch.setenv("LORATORY_TRACEBACK", "1")
    code, printed = fails(ValueError(SECRET))
    assert code == 1
    assert printed.startswith("Traceback") and SECRET in printed
    assert not list(tmp_path.glob("loratory-*.txt"))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 3.00 TiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        MemoryError(),
    ],
)
def test_out_of_memory_comes_with_a_remedy(error, fails, tmp_path):
    code, printed = fails(error)
    assert code == 1
    assert printed.startswith("error: Out of memory") and "--train.token-budget" in printed
    assert not list(tmp_path.glob("loratory-*.txt"))


def test_other_endings_are_no_crashes(fails, tmp_path):
    assert fails(UserError("wrong"))[0] == 2
    assert fails(KeyboardInterrupt())[0] == 130
    code, printed = fails(PermissionError(13, "denied", "a file"))
    assert code == 2 and printed.startswith("error: Permission denied")
    code, printed = fails(OSError(28, "no space", "a file"))
    assert code == 1 and printed.startswith("error: The disk is full")
    assert not list(tmp_path.glob("loratory-*.txt"))


def test_causes_that_refer_to_each_other_end(fails):
    first, second = ValueError("a"), KeyError("b")
    first.__cause__, second.__cause__ = second, first
    code, report = fails(first, cause=second)
    assert code == 1 and report.count("caused by") <= 2
    assert os.linesep in report
