"""Atomic writes, a log that survives crashes, and run directories that are not overwritten by accident."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loratory.config import AdapterConfig, Config, DataConfig, PromptConfig, TrainConfig
from loratory.errors import UserError
from loratory.machine.environment import git_state, versions
from loratory.storage import run_directory as runs
from loratory.storage.files import atomic_folder, sha256_of, write_json, write_json_lines, write_text

CONFIG = Config(
    data=DataConfig(train=("a.csv", "ünï cödé.csv"), answer='quo"te', limit_test=3),
    prompt=PromptConfig(system="Zeile\n{labels}\t\\", template_kwargs={"enable_thinking": False, "n": 1.5}),
    adapter=AdapterConfig(targets=("q_proj",)),
    train=TrainConfig(learning_rate=(1e-4, 2e-4)),
)


def everything(folder: Path) -> dict[str, bytes | None]:
    """All paths in the folder, including hidden ones, with the contents of files."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


# ---- atomic writes ---------------------------------------------------------------------------------------------------


def test_a_text_replaces_the_old_file(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "old, and longer")
    write_text(path, "nëw")
    assert everything(tmp_path) == {"new": None, "new/a.txt": "nëw".encode()}


@pytest.mark.parametrize("where", ["write", "flush", "rename"])
def test_a_failed_write_leaves_the_old_file_and_no_temporary_files(tmp_path, monkeypatch, where: str):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fails(*_):
        raise OSError("disk full")

    if where == "flush":
        monkeypatch.setattr(os, "fsync", fails)
    if where == "rename":
        monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises((OSError, UnicodeEncodeError)):
        write_text(path, "new" * 10_000 + ("\ud800" if where == "write" else ""))
    monkeypatch.undo()
    assert everything(tmp_path) == {"a.txt": b"old"}


def test_json_lines_have_one_object_per_line(tmp_path):
    rows = [{"answer": "two\nlines"}, {"answer": "\u2028 ü"}, {}]
    write_json_lines(tmp_path / "a.jsonl", rows)
    lines = (tmp_path / "a.jsonl").read_bytes().split(b"\n")
    assert [json.loads(line) for line in lines[:-1]] == rows and lines[-1] == b""


def test_a_folder_appears_complete_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "runs" / "adapter"
    with atomic_folder(path) as temporary:
        (temporary / "old.txt").write_text("old")
        assert not path.exists()
    with atomic_folder(path) as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "new.txt").write_text("new")
        assert everything(path) == {"old.txt": b"old"}
    expected = {"runs": None, "runs/adapter": None, "runs/adapter/deep": None, "runs/adapter/deep/new.txt": b"new"}
    assert everything(tmp_path) == expected


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [True, False])
def test_a_failed_folder_leaves_the_old_one_or_none(tmp_path, error: type[BaseException], before: bool):
    path = tmp_path / "adapter"
    if before:
        path.mkdir()
        (path / "old.txt").write_text("old")
    contents = everything(tmp_path)
    with pytest.raises(error), atomic_folder(path) as temporary:
        (temporary / "half.txt").write_text("half")
        raise error
    assert everything(tmp_path) == contents


# ---- the log ---------------------------------------------------------------------------------------------------------


def test_events_are_appended_to_the_log_and_read_in_order(tmp_path):
    assert runs.read_metrics(tmp_path) == []
    runs.append_metric(tmp_path, "step", step=1, loss=0.5)
    runs.append_metric(tmp_path, "say", text="zwei\nZeilen ü")
    expected = [{"event": "step", "step": 1, "loss": 0.5}, {"event": "say", "text": "zwei\nZeilen ü"}]
    assert runs.read_metrics(tmp_path) == expected


@given(st.lists(st.integers(-99, 99) | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)), st.data())
@settings(derandomize=True, deadline=None, max_examples=60)
def test_a_log_cut_anywhere_keeps_its_complete_lines_and_can_be_continued(tmp_path_factory, values, data):
    folder = tmp_path_factory.mktemp("run")
    path = folder / "metrics.jsonl"
    path.touch()
    for value in values:
        runs.append_metric(folder, "step", value=value)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    kept = whole[:cut].count(b"\n")
    assert [m["value"] for m in runs.read_metrics(folder)][:kept] == values[:kept]
    runs.repair_metrics(folder)
    assert path.read_bytes() == whole[: whole[:cut].rfind(b"\n") + 1]
    runs.append_metric(folder, "step", value="next")
    assert [m["value"] for m in runs.read_metrics(folder)] == [*values[:kept], "next"]


def test_lines_that_are_not_events_are_skipped(tmp_path):
    lines = [
        b'{"event": "a"}',
        b"",
        b"3",
        b'["event"]',
        b"{}",
        b'{"event": "\xff"}',
        b'{"event": "b"',
        b'{"event": "c"}',
    ]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    assert [m["event"] for m in runs.read_metrics(tmp_path)] == ["a", "c"]


# ---- starting a run --------------------------------------------------------------------------------------------------


def start_run(run: Path, config: Config) -> None:
    runs.create_run(run, False)
    write_json(run / runs.REQUESTED_SETTINGS, runs.config_to_dict(config))
    runs.write_config(run, config)


def test_a_run_can_start_in_a_missing_or_empty_folder(tmp_path):
    for overwrite in (False, True):
        assert runs.check_run(tmp_path / "none", CONFIG, overwrite) is False
        assert runs.check_run(tmp_path, CONFIG, overwrite) is False
    assert everything(tmp_path) == {}


def test_an_unfinished_run_with_the_same_settings_is_resumed(tmp_path):
    start_run(tmp_path / "run", CONFIG)
    assert runs.check_run(tmp_path / "run", CONFIG, False) is True
    assert runs.check_run(tmp_path / "run", CONFIG, True) is False


def test_a_run_with_other_settings_is_protected(tmp_path):
    start_run(tmp_path / "run", CONFIG)
    with pytest.raises(UserError, match="other settings") as caught:
        runs.check_run(tmp_path / "run", Config(), False)
    assert "--overwrite" in str(caught.value.fix)
    assert runs.check_run(tmp_path / "run", Config(), True) is False


def test_a_finished_run_is_protected(tmp_path):
    start_run(tmp_path, CONFIG)
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(UserError, match="already finished") as caught:
        runs.check_run(tmp_path, CONFIG, False)
    assert caught.value.where == str(tmp_path) and "--overwrite" in str(caught.value.fix)
    assert runs.check_run(tmp_path, CONFIG, True) is False


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_files_is_never_used(tmp_path, overwrite: bool):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="other files"):
        runs.check_run(tmp_path, CONFIG, overwrite)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_not_a_run_directory(tmp_path, overwrite: bool):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match="is a file"):
        runs.check_run(tmp_path / "run", CONFIG, overwrite)


def test_overwriting_removes_the_files_of_the_old_run(tmp_path):
    start_run(tmp_path / "run", CONFIG)
    runs.create_run(tmp_path / "run", False)
    assert (tmp_path / "run" / "config.toml").exists()
    runs.create_run(tmp_path / "run", True)
    assert everything(tmp_path) == {"run": None}


# ---- settings and data -----------------------------------------------------------------------------------------------


def test_settings_survive_the_run_directory(tmp_path):
    runs.write_config(tmp_path, CONFIG)
    assert runs.read_config(tmp_path) == CONFIG


def test_a_folder_without_settings_is_not_a_run(tmp_path):
    with pytest.raises(UserError, match="Not a run directory"):
        runs.read_config(tmp_path)


def test_damaged_settings_of_a_run_are_reported(tmp_path):
    (tmp_path / "config.toml").write_text("[train\nepochs = 3")
    with pytest.raises(UserError) as caught:
        runs.read_config(tmp_path)
    assert str(tmp_path / "config.toml") in str(caught.value)


def test_changed_data_is_detected(tmp_path):
    data = tmp_path / "a.csv"
    data.write_text("text,label\na,b\n")
    record = {"files": runs.file_records([str(data), "hub:owner/name"])}
    write_json(tmp_path / "data.json", record)
    runs.check_same_data(tmp_path, {"files": runs.file_records([str(data), "hub:owner/name"])})
    data.write_text("text,label\na,c\n")
    with pytest.raises(UserError, match="data has changed"):
        runs.check_same_data(tmp_path, {"files": runs.file_records([str(data), "hub:owner/name"])})
    assert record["files"][1] == {"path": "hub:owner/name", "sha256": None}


def test_the_hash_covers_the_bytes_in_order(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"abc")
    b.write_bytes(b"")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # SHA-256 of "abc"
    assert sha256_of([a]) == sha256_of([b, a]) == known
    assert sha256_of([a, a]) != known


def test_versions_list_the_main_packages_and_git_is_optional(tmp_path):
    assert {"loratory", "torch", "transformers"} <= set(versions())
    assert git_state(tmp_path) is None
