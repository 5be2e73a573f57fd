"""Atomic writes, a log that survives crashes, and run directories that are not overwritten by accident."""

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loratory.config import Config
from loratory.errors import UserError
from loratory.machine.environment import git_state, versions
from loratory.settings import AdapterConfig, DataConfig, PromptConfig, TrainConfig
from loratory.storage import contents, record
from loratory.storage import run_directory as runs
from loratory.storage.files import (
    atomic_folder,
    hashes_of,
    open_output,
    seal_is_intact,
    sealed,
    sha256_of,
    temporary_path,
    write_json,
    write_json_lines,
    write_text,
)
from loratory.storage.lock import only_writer, only_writer_of_file
from loratory.storage.record import RunRecord, read_record, write_record

ANY = re.compile(".*", re.DOTALL)
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
    with atomic_folder(path, ANY) as temporary:
        (temporary / "old.txt").write_text("old")
        assert not path.exists()
    with atomic_folder(path, ANY) as temporary:
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
    with pytest.raises(error), atomic_folder(path, ANY) as temporary:
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
    assert runs.repair_metrics(folder) == 0  # an incomplete last line is nothing unusual
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


# ---- outputs ---------------------------------------------------------------------------------------------------------


def test_a_device_or_a_pipe_is_written_to_and_stays_what_it_is(tmp_path):
    write_text(Path("/dev/null"), "nothing")
    assert Path("/dev/null").is_char_device()
    pipe, received = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "through the pipe")
    reader.join(5)
    assert received == ["through the pipe"] and pipe.is_fifo()


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "target.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("target.txt")
    write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "target.txt").read_text() == "new"


def test_an_output_keeps_its_permissions(tmp_path):
    path = tmp_path / "secret.txt"
    path.touch(mode=0o600)
    write_text(path, "new")
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_output_that_is_not_completed_changes_nothing(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), open_output(path) as file:
        file.write("half")
        raise RuntimeError
    assert everything(tmp_path) == {"a.txt": b"old"}


def test_json_files_have_no_numbers_that_are_not_json(tmp_path):
    for write, value in ((write_json, {"a": float("nan")}), (write_json_lines, [{"a": float("inf")}])):
        with pytest.raises(ValueError):
            write(tmp_path / "a", value)
    with pytest.raises(ValueError):
        runs.append_metric(tmp_path, "step", loss=float("nan"))
    assert everything(tmp_path) == {}


@given(st.dictionaries(st.text(max_size=4), st.floats(allow_nan=False) | st.text(max_size=4) | st.none(), min_size=1))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_a_seal_survives_json_and_shows_every_change(values):
    value = json.loads(json.dumps(sealed(values)))
    assert seal_is_intact(value) and seal_is_intact(values)
    key = next(iter(values))
    assert not seal_is_intact({**value, key: "changed " + str(value[key])})


# ---- where a run may be written --------------------------------------------------------------------------------------


def start_run(run: Path, config: Config = CONFIG, state: record.State = "started") -> None:
    """A run as it stands after its beginning."""
    run.mkdir(parents=True, exist_ok=True)
    runs.clear_run(run)
    write_text(run / "asked.json", runs.requested_text(config))
    write_text(run / "config.toml", runs.resolved_text(config))
    write_json(run / "environment.json", {})
    write_json(run / "data.json", {})
    runs.append_metric(run, "estimate", stages={})
    write_record(run, RunRecord(state, {}, {}, hashes_of(run, contents.START_FILES)))


def start_format_1(run: Path) -> None:
    start_run(run)
    (run / record.RECORD).unlink()


def test_a_run_can_start_in_a_missing_or_empty_folder(tmp_path):
    for overwrite in (False, True):
        assert runs.check_run(tmp_path / "none", CONFIG, overwrite) is False
        assert runs.check_run(tmp_path, CONFIG, overwrite) is False
    assert everything(tmp_path) == {}


@pytest.mark.parametrize("name", ["", ".", "..", "~", "/", "runs/..", "link"])
def test_a_run_is_never_written_to_the_working_folder_the_home_or_above(tmp_path, monkeypatch, name: str):
    (tmp_path / "home" / "work").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "home" / "work")
    Path("link").symlink_to(".")
    with pytest.raises(UserError, match="folder of its own"):
        runs.check_place(Path(name).expanduser(), [])
    runs.check_place(Path("runs/mine"), [])


def test_a_run_is_never_written_to_a_folder_with_an_input(tmp_path):
    (tmp_path / "run" / "data").mkdir(parents=True)
    (tmp_path / "link").symlink_to("run")
    for place in ("run", "link"):
        with pytest.raises(UserError, match="contains an input") as caught:
            runs.check_place(tmp_path / place, ["hub:owner/name", str(tmp_path / "run" / "data" / "a.csv")])
        assert "a.csv" in str(caught.value)
    runs.check_place(tmp_path / "run", ["hub:owner/name", str(tmp_path / "a.csv")])


def test_an_unfinished_run_with_the_same_settings_is_resumed(tmp_path):
    for start in (start_run, start_format_1):
        start(tmp_path / start.__name__)
        assert runs.check_run(tmp_path / start.__name__, CONFIG, False) is True
        assert runs.check_run(tmp_path / start.__name__, CONFIG, True) is False


def test_settings_that_a_later_version_added_do_not_make_a_run_another_one(tmp_path):
    start_format_1(tmp_path)
    asked = json.loads((tmp_path / "asked.json").read_text())
    del asked["speed"], asked["train"]["early_stopping"]
    write_json(tmp_path / "asked.json", asked)
    assert runs.check_run(tmp_path, CONFIG, False) is True


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff", b"[]", None])
def test_damaged_settings_as_requested_are_recognized_by_their_hash(tmp_path, damage: bytes | None):
    start_run(tmp_path)
    path = tmp_path / "asked.json"
    path.unlink() if damage is None else path.write_bytes(damage)
    assert runs.damaged_files(tmp_path) == ["asked.json"]
    assert runs.check_run(tmp_path, CONFIG, False) is True
    with pytest.raises(UserError, match="other settings"):
        runs.check_run(tmp_path, Config(), False)


def test_a_run_with_other_settings_is_protected(tmp_path):
    start_run(tmp_path / "run", CONFIG)
    with pytest.raises(UserError, match="other settings") as caught:
        runs.check_run(tmp_path / "run", Config(), False)
    assert "--overwrite" in str(caught.value.fix)
    assert runs.check_run(tmp_path / "run", Config(), True) is False


def test_a_finished_run_is_protected(tmp_path):
    start_run(tmp_path, state="finished")
    with pytest.raises(UserError, match="already finished") as caught:
        runs.check_run(tmp_path, CONFIG, False)
    assert caught.value.where == str(tmp_path) and "--overwrite" in str(caught.value.fix)
    assert runs.check_run(tmp_path, CONFIG, True) is False


@pytest.mark.parametrize("missing", [None, "report.json", "adapter/adapter_model.safetensors"])
def test_a_run_of_format_1_is_finished_if_it_has_a_report_and_an_adapter(tmp_path, missing: str | None):
    start_format_1(tmp_path)
    for name in ("report.json", "adapter/adapter_model.safetensors"):
        if name != missing:
            write_text(tmp_path / name, "{}")
    assert runs.is_finished(tmp_path) is (missing is None)


def test_a_finished_run_of_which_a_file_is_lost_is_resumed(tmp_path):
    start_run(tmp_path, state="finished")
    (tmp_path / "environment.json").unlink()
    assert runs.check_run(tmp_path, CONFIG, False) is True


@pytest.mark.parametrize("name", ["thesis.tex", "config.toml", "config.toml and data.json", "run.json"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_files_is_never_used(tmp_path, overwrite: bool, name: str):
    for file in name.split(" and "):
        (tmp_path / file).write_text("years of work")
    with pytest.raises(UserError, match="other files") as caught:
        runs.check_run(tmp_path, CONFIG, overwrite)
    if name == "thesis.tex":
        assert name in str(caught.value)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_not_a_run_directory(tmp_path, overwrite: bool):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match="is a file"):
        runs.check_place(tmp_path / "run", [])


def test_a_run_of_a_later_version_is_left_alone(tmp_path):
    start_run(tmp_path)
    values = json.loads((tmp_path / record.RECORD).read_text())
    write_json(tmp_path / record.RECORD, sealed({**values, "format": record.FORMAT + 1, "loratory": "99.0"}))
    with pytest.raises(UserError, match="later version") as caught:
        runs.check_run(tmp_path, CONFIG, True)
    assert "99.0" in str(caught.value)


# ---- overwriting -----------------------------------------------------------------------------------------------------

ALL_FILES = (
    *contents.START_FILES, "metrics.jsonl", "report.json", "report.html", "adapter/loratory.json",
    "adapter/adapter_model.safetensors", "adapter/README.md", "model/config.json",
    "model/model-00001-of-00002.safetensors",
    "checkpoints/step-000010/manifest.json", "checkpoints/rate-0.001/step-000010/parameters.safetensors",
    "predictions/tuned-choose.jsonl", "predictions/validation/linear.jsonl", "systems/prompt.json",
    "seeds/1/adapter/adapter_config.json", "seeds/1/metrics.jsonl", "folds/2/systems/embed.json",
    ".loratory-0123456789ab.tmp", "checkpoints/.loratory-0123456789ab.tmp/half", ".report.json.ab12_xyz",
    "checkpoints/.step-000010.ab12_xyz/parameters.safetensors", ".adapter.ab12_xyz/adapter_config.json",
)  # fmt: skip
FOREIGN = (
    "notes.md",
    "data.csv",
    "predictions/mine.jsonl",
    "seeds/1/notes.md",
    "report.json.bak",
    "figures/a.png",
    ".git",
)


def test_overwriting_removes_the_files_of_the_old_run_and_no_others(tmp_path):
    start_run(tmp_path)
    for name in (*ALL_FILES, *FOREIGN):
        write_text(tmp_path / name, "content")
    outside = tmp_path.parent / "outside.txt"
    outside.write_text("outside")
    (tmp_path / "link").symlink_to(outside)
    assert runs.check_run(tmp_path, Config(), True) is False
    assert runs.clear_run(tmp_path) == sorted([*FOREIGN, "link"])
    assert contents.own_files(tmp_path) == [record.RECORD]
    assert all((tmp_path / name).read_text() == "content" for name in FOREIGN) and outside.read_text() == "outside"
    assert not (tmp_path / "adapter").exists() and not (tmp_path / "folds").exists()


@pytest.mark.parametrize("name", ["adapter/notes.md", "checkpoints/notes.md", "seeds/1/model/mine.pt"])
def test_a_run_with_another_file_where_folders_are_replaced_is_not_overwritten(tmp_path, name: str):
    start_run(tmp_path)
    write_text(tmp_path / name, "mine")
    with pytest.raises(UserError, match="did not write") as caught:
        runs.check_run(tmp_path, CONFIG, True)
    assert name in str(caught.value)


def test_a_folder_with_another_file_is_not_replaced(tmp_path):
    path = tmp_path / "adapter"
    for name in ("a.json", "notes.md"):
        write_text(path / name, "old")
    before = everything(tmp_path)
    with pytest.raises(UserError, match="did not write"), atomic_folder(path, re.compile(r".*\.json")) as temporary:
        (temporary / "a.json").write_text("new")
    assert everything(tmp_path) == before


def test_a_link_in_the_place_of_a_folder_is_not_followed(tmp_path):
    write_text(tmp_path / "elsewhere" / "a.json", "mine")
    (tmp_path / "adapter").symlink_to("elsewhere")
    with pytest.raises(UserError, match="did not write"), atomic_folder(tmp_path / "adapter", ANY) as temporary:
        (temporary / "a.json").write_text("new")
    assert (tmp_path / "elsewhere" / "a.json").read_text() == "mine"


@pytest.mark.parametrize(
    "name",
    [".model.20261127/weights.bin", ".adapter.original/adapter_config.json", "mine/.config.toml.a1b2c3d4",
     ".results.json.previous", "systems/notes.json", "folds/backup/systems/linear.json",
     "checkpoints.bak/step-000001/manifest.json"],
)  # fmt: skip
def test_files_that_only_look_like_those_of_a_run_are_a_persons_own(tmp_path, name: str):
    write_text(tmp_path / "folder" / name, "mine")
    with pytest.raises(UserError, match="other files"):
        runs.check_run(tmp_path / "folder", CONFIG, False)
    start_run(tmp_path / "run")
    write_text(tmp_path / "run" / name, "mine")
    contents.remove_leftovers(tmp_path / "run")
    runs.clear_run(tmp_path / "run")
    assert (tmp_path / "run" / name).read_text() == "mine"


def test_a_run_inside_another_run_is_refused_and_its_files_are_not_those_of_the_outer_one(tmp_path):
    start_run(tmp_path / "outer")
    with pytest.raises(UserError, match="inside another run"):
        runs.check_place(tmp_path / "outer" / "seeds" / "7", [])
    start_run(tmp_path / "outer" / "seeds" / "7")  # as an earlier version allowed
    runs.clear_run(tmp_path / "outer")
    assert runs.check_run(tmp_path / "outer" / "seeds" / "7", CONFIG, False) is True


@pytest.mark.parametrize("name", ["~/runs", "a\0b", "na\udcffme"])
def test_names_that_no_file_should_have_are_refused(tmp_path, monkeypatch, name: str):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        runs.check_place(Path(name), [])
    if "~" not in name:
        with pytest.raises(UserError, match="cannot be written as text"):
            runs.check_place(Path("run"), [name])


def test_an_output_never_replaces_the_data_or_a_file_of_a_run(tmp_path):
    start_run(tmp_path / "run")
    data = tmp_path / "a.csv"
    data.write_text("text\n")
    (tmp_path / "link.csv").symlink_to(data)
    for out in (
        data,
        tmp_path / "link.csv",
        tmp_path / "run/metrics.jsonl",
        tmp_path / "run/predictions/linear.jsonl",
        tmp_path,
    ):
        with pytest.raises(UserError, match="The output"):
            runs.check_replaceable(out, [data])
    for out in (tmp_path / "b.csv", tmp_path / "run" / "answers.csv", Path("/dev/null")):
        runs.check_replaceable(out, [data])


def test_links_in_the_place_of_temporary_files_are_not_followed(tmp_path):
    victim = tmp_path / "victim.txt"
    victim.write_text("precious")
    (tmp_path / ".tmp").symlink_to(victim)
    with open_output(tmp_path / "a.csv", tmp_path / ".tmp") as file:
        file.write("answers")
    (tmp_path / ".a.csv.owner.json").symlink_to(victim)
    with only_writer_of_file(tmp_path / "a.csv"):
        pass
    assert victim.read_text() == "precious" and (tmp_path / "a.csv").read_text() == "answers"


def test_every_prefix_of_a_start_can_be_started_over(tmp_path):
    start_run(tmp_path / "whole")
    files = ["asked.json", "config.toml", "environment.json", "data.json", "metrics.jsonl"]
    for count in range(len(files) + 1):
        run = tmp_path / str(count)
        run.mkdir()
        assert runs.check_run(run, CONFIG, False) is False
        temporary_path(run).write_text("a file that was being written")
        assert runs.check_run(run, CONFIG, False) is False
        write_record(run, RunRecord())
        for name in files[:count]:
            write_text(run / name, (tmp_path / "whole" / name).read_text())
        assert runs.check_run(run, CONFIG, False) is False
        assert runs.clear_run(run) == [] and list(everything(run)) == [record.RECORD]


def test_leftovers_of_a_killed_process_are_removed_and_nothing_else(tmp_path):
    start_run(tmp_path)
    before = everything(tmp_path)
    for name in ALL_FILES:
        if "tmp" in name or "ab12_xyz" in name:
            write_text(tmp_path / name, "half")
    (tmp_path / ".mine").mkdir()
    contents.remove_leftovers(tmp_path)
    (tmp_path / ".mine").rmdir()
    (tmp_path / "checkpoints").rmdir()  # it was empty otherwise
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"format": 2}',
        b'{"format": 2, "state": "started", "base": {}, "versions": {}, "files": []}',
        b"\xff\xfe",
    ],
)
def test_a_damaged_record_is_as_good_as_none(tmp_path, damage: bytes):
    start_run(tmp_path)
    values = json.loads((tmp_path / record.RECORD).read_text())
    (tmp_path / record.RECORD).write_bytes(damage)
    assert read_record(tmp_path) is None and record.is_run(tmp_path)
    write_json(tmp_path / record.RECORD, {**values, "state": "finished"})  # edited: the seal shows it
    assert read_record(tmp_path) is None


# ---- one writer ------------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from loratory.storage.lock import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_refused_and_the_lock_of_a_killed_one_is_free(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="Another process") as caught, only_writer(tmp_path):
            pass
        assert f"process {holder.pid} on " in str(caught.value)
        holder.kill()
    with only_writer(tmp_path):
        pass
    assert contents.is_unused(tmp_path)


def test_the_lock_of_a_file_leaves_nothing_behind(tmp_path):
    path = tmp_path / "a.jsonl"
    with only_writer_of_file(path), pytest.raises(UserError, match="Another process"), only_writer_of_file(path):
        pass
    assert everything(tmp_path) == {}


# ---- settings and data -----------------------------------------------------------------------------------------------


def test_settings_survive_the_run_directory(tmp_path):
    write_text(tmp_path / "config.toml", runs.resolved_text(CONFIG))
    assert runs.read_config(tmp_path) == CONFIG


def test_a_folder_without_settings_is_not_a_run(tmp_path):
    with pytest.raises(UserError, match="Not a run directory"):
        runs.read_config(tmp_path)


def test_damaged_settings_of_a_run_are_reported(tmp_path):
    (tmp_path / "config.toml").write_text("[train\nepochs = 3")
    with pytest.raises(UserError) as caught:
        runs.read_config(tmp_path)
    assert str(tmp_path / "config.toml") in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_pipes_in_a_run_are_not_read(tmp_path):
    for name, read in (("config.toml", runs.read_config), ("metrics.jsonl", runs.read_metrics)):
        os.mkfifo(tmp_path / name)
        with pytest.raises(UserError, match="not a regular file"):
            read(tmp_path)
    os.mkfifo(tmp_path / "run.json")
    assert read_record(tmp_path) is None


def test_files_are_recorded_with_their_hash(tmp_path):
    data = tmp_path / "a.csv"
    data.write_text("text,label\na,b\n")
    before = runs.file_records([str(data), "hub:owner/name"])
    data.write_text("text,label\na,c\n")
    after = runs.file_records([str(data), "hub:owner/name"])
    assert before[0] != after[0] and before[1] == after[1] == {"path": "hub:owner/name", "sha256": None}


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
