"""A person's mistake ends with code 2 and one message that names the culprit; no traceback, and nothing is written."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from conftest import SHARED, needs_shared

from loratory.cli.main import main
from loratory.config import Config, config_to_dict
from loratory.machine import versions
from loratory.storage import START_FILES, RunRecord, hashes_of, json_text, resolved_text, write_record

STORIES = SHARED / "data" / "models" / "stories260K"
ROWS = [(f"{animal} number {i}", sound) for i in range(6) for animal, sound in (("cow", "moo"), ("cat", "meow"))]


def csv(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["text,sound", *(",".join(row) for row in rows)]) + "\n"


def with_row(text: str, sound: str) -> str:
    """The good rows and one more, in line 14."""
    return csv([*ROWS, (text, sound)])


def write_task(folder: Path, files: dict[str, str | bytes], changes: dict[str, Any]) -> Path:
    """A task that would run, with some of its files and keys replaced; a key "section.key" of None is left out."""
    values: dict[str, dict[str, Any]] = {
        "model": {"name": str(STORIES), "device": "cpu", "dtype": "float32"},
        "data": {"train": "sounds.csv", "answer": "sound"},
        "train": {"epochs": 1},
        "run": {"out": str(folder / "out")},
    }
    for key, value in changes.items():
        section, name = key.split(".")
        values.setdefault(section, {})[name] = value
        if value is None:
            del values[section][name]
    for name, content in {"sounds.csv": csv(ROWS), "task.toml": tomli_w.dumps(values), **files}.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder / "task.toml"


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.fixture
def mistake(tmp_path, monkeypatch, capsys) -> Callable[..., str]:
    """Runs a command line that must end with code 2, one message and no change to the folder; returns the message."""
    monkeypatch.chdir(tmp_path)

    def of(*arguments: str) -> str:
        before = everything(tmp_path)
        try:
            code = main(list(arguments))
        except SystemExit as ended:  # the parser of the flags ends the process by itself
            code = ended.code
        out, err = capsys.readouterr()
        assert code == 2, err
        assert out == "" and "Traceback" not in err
        assert sum(line.startswith("error: ") for line in err.splitlines()) <= 1
        assert everything(tmp_path) == before
        return err.partition("error: ")[2] or err

    return of


# What is wrong, files, keys, and what the message must name.
TASKS: dict[str, tuple[dict[str, str | bytes], dict[str, Any], list[str]]] = {
    "a missing data file": ({}, {"data.train": "sound.csv"}, ["not found", "sound.csv"]),
    "a data file of an unknown kind": ({}, {"data.train": "task.toml"}, ["Unknown type", ".toml"]),
    "a missing answer column": ({}, {"data.answer": "sounds"}, ["'sounds'", "sounds.csv:2", "did you mean 'sound'?"]),
    "no answer column named": ({}, {"data.answer": None}, ["data.answer", "text, sound", 'answer = "COLUMN"']),
    "a placeholder unlike any column": ({}, {"prompt.user": "{x}"}, ["{x}", "one of the columns text"]),
    "no data named": ({}, {"data.train": None}, ["data.train"]),
    "an empty answer": ({"sounds.csv": with_row("dog", " ")}, {}, ["is missing", "sounds.csv:14"]),
    "a row too wide": ({"sounds.csv": with_row("dog, the", "woof")}, {}, ["sounds.csv:14", "expected: 2", "found: 3"]),
    "a label unknown to training": (
        {"test.csv": csv([("a cow", "moo"), ("a dog", "woof")])},
        {"data.test": "test.csv"},
        ["test.csv:3", "'woof'"],
    ),
    "one label only": ({"sounds.csv": csv([("cow", "moo")] * 9)}, {}, ["same answer", "'moo'"]),
    "too few rows": ({"sounds.csv": csv([("cow", "moo"), ("cat", "meow")])}, {}, ["Too few rows", "sounds.csv:2"]),
    "no rows": ({"sounds.csv": "text,sound\n"}, {}, ["no rows", "sounds.csv"]),
    "an empty file": ({"sounds.csv": ""}, {}, ["no rows", "sounds.csv"]),
    "a damaged UTF-8 file": (
        {"sounds.csv": csv(ROWS).replace("cat", "chät").encode().replace(b"ch\xc3\xa4t", b"ch\xc3t", 1)},
        {},
        ["not UTF-8", "sounds.csv:3"],
    ),
    "malformed json": (
        {"a.jsonl": json.dumps({"text": "a", "sound": "b"}) + '\n{"text": "a"\n'},
        {"data.train": "a.jsonl"},
        ["Malformed JSON", "a.jsonl:2"],
    ),
    "an unknown key": ({}, {"train.epoch": 3}, ["'train.epoch'", "task.toml", "did you mean 'epochs'?"]),
    "an unknown section": ({}, {"modle.name": "x"}, ["'modle'", "did you mean 'model'?"]),
    "a wrong type": ({}, {"train.epochs": "3"}, ["train.epochs", "an integer", "'3' (str)"]),
    "a value out of range": ({}, {"adapter.rank": 0}, ["adapter.rank", "from 1 to 65536", "found: 0"]),
    "a placeholder without a column": ({}, {"prompt.user": "{txt}"}, ["{txt}", "prompt.user", "did you mean 'text'?"]),
    "a prompt that shows the answer": ({}, {"prompt.user": "{text} {sound}"}, ["shows the answer", "{sound}"]),
    "an open brace": ({}, {"prompt.system": "{labels"}, ["prompt.system"]),
    "an unknown template argument": ({}, {"prompt.template_kwargs": {"enable_thinking": False}}, ["'enable_thinking'"]),
    "a date that is none": ({}, {"prompt.date": "1.2.2025"}, ["prompt.date", "'1.2.2025'"]),
    "an example longer than the context": (
        {"sounds.csv": with_row("dog " * 600, "moo")}, {}, ["1 of ", "sounds.csv:14", "at most 512 tokens", "overlong"],
    ),
    "broken TOML": ({"task.toml": "[train\nepochs = 3"}, {}, ["not valid TOML", "task.toml", "line 1"]),
    "a missing model folder": ({}, {"model.name": "./none"}, ["Model folder not found", "./none"]),
    "a hub model without a network": ({}, {"model.name": "nobody/none"}, ["cannot be reached", "nobody/none"]),
    "a folder without a model": ({"empty/a.txt": ""}, {"model.name": "empty"}, ["No model in this folder", "empty"]),
    "a model in a pickle": (
        {"old/config.json": "{}", "old/pytorch_model.bin": b"\x80\x04"},
        {"model.name": "old"},
        ["pickle", "pytorch_model.bin", "old"],
    ),
    "an unknown device": ({}, {"model.device": "gpu"}, ["device", "gpu"]),
    "a device of another kind": ({}, {"model.device": "meta"}, ["Unknown device", "meta", "auto, cpu, cuda"]),
    "an Apple GPU elsewhere": ({}, {"model.device": "mps"}, ["No Apple GPU", "mps"]),
    "more threads than any machine has": ({}, {"run.threads": 10**9}, ["run.threads", "4096"]),
    "weights in float16 that are all trained": (
        {}, {"model.dtype": "float16", "adapter.kind": "full"}, ["float16", "[model] dtype"]
    ),
    "targets that the model lacks": ({}, {"adapter.targets": ["query"]}, ["adapter", "targets", "query", "q_proj"]),
    "a list of rates without validation": (
        {}, {"train.learning_rate": [1e-4, 1e-3], "data.validation_share": 0.0}, ["learning_rate", "validation"],
    ),
}  # fmt: skip


@needs_shared
@pytest.mark.parametrize("what", TASKS)
def test_a_mistake_in_task_or_data_is_named_and_nothing_is_written(what: str, tmp_path, mistake):
    files, changes, words = TASKS[what]
    message = mistake("run", str(write_task(tmp_path, files, changes)))
    for word in words:
        assert word in message
    assert not (tmp_path / "out").exists()


@needs_shared
@pytest.mark.parametrize("verb", ["train", "show"])
@pytest.mark.parametrize("what", ["a missing data file", "an unknown key", "a placeholder without a column"])
def test_the_other_verbs_name_the_same_mistakes(verb: str, what: str, tmp_path, mistake):
    files, changes, words = TASKS[what]
    message = mistake(verb, str(write_task(tmp_path, files, changes)))
    assert all(word in message for word in words)


@needs_shared
def test_a_text_that_no_encoding_knows_is_no_crash(tmp_path, capsys):
    # Half of an emoji, as cut-off tweets have it: valid JSON, but no character.
    rows = [{"text": f"{text} \ud83d", "sound": sound} for text, sound in ROWS]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    task = write_task(tmp_path, {"a.jsonl": lines}, {"data.train": "a.jsonl"})
    code = main(["show", str(task), "--json"])
    out, err = capsys.readouterr()
    assert (code == 0 and len(json.loads(out)) == 2) or (code == 2 and "a.jsonl:" in err)


# ---- the run directory -----------------------------------------------------------------------------------------------


def begin(folder: Path, task: Path, finished: bool, **changes: Any) -> None:
    """A run as it stands after its beginning, or as it is finished."""
    config = Config.load(task)
    folder.mkdir()
    requested = json_text({**config_to_dict(config), **changes})
    (folder / "asked.json").write_text(requested)
    (folder / "config.toml").write_text(resolved_text(config))
    record = RunRecord("finished" if finished else "started", {}, versions(), hashes_of(folder, START_FILES))
    write_record(folder, record)


@needs_shared
@pytest.mark.parametrize(
    ("finished", "changes", "words"),
    [
        (True, {}, ["already finished", "--overwrite"]),
        (False, {"train": {"epochs": 5}}, ["other settings", "--overwrite"]),
    ],
)
def test_a_run_of_somebody_is_not_written_over(tmp_path, mistake, finished: bool, changes: dict, words: list[str]):
    task = write_task(tmp_path, {}, {})
    begin(tmp_path / "out", task, finished, **changes)
    message = mistake("run", str(task))
    assert all(word in message for word in [*words, str(tmp_path / "out")])


@needs_shared
@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_other_files_in_the_run_directory_are_never_removed(tmp_path, mistake, flags: list[str]):
    task = write_task(tmp_path, {"out/thesis.tex": "years of work"}, {})
    assert "other files" in mistake("run", str(task), *flags)


@needs_shared
def test_a_mistake_keeps_the_run_that_it_was_to_overwrite(tmp_path, mistake):
    task = write_task(tmp_path, {}, {"prompt.user": "{txt}"})
    begin(tmp_path / "out", task, True)
    assert "{txt}" in mistake("run", str(task), "--overwrite")


# ---- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rnu"], ["'rnu'", "run"]),
        (["run", "none.toml"], ["not found", "none.toml"]),
        (["run", "."], ["folder", "without .toml files", "--answer COLUMN"]),
        (["run", "--train.epoch", "3"], ["--train.epoch"]),
        (["run", "--train.epochs", "three"], ["--train.epochs", "three"]),
        (["run", "--train.epochs", "0"], ["train.epochs", "at least 1"]),
        (["run", "--run.systems", "prmpt"], ["run.systems", "prmpt"]),
        (["evaluate"], ["run"]),
        (["evaluate", "none"], ["Not a run directory", "none"]),
        (["predict", "none", "none.csv"], ["No tuned model", "none"]),
        (["ask", "Is it so?", "--run", "none"], ["No tuned model", "none", "nothing at this path", "check the path"]),
        (["ask", "Is it so?", "--model", "./none"], ["Model folder not found", "./none"]),
        (["ask"], ["text"]),
    ],
)
def test_a_mistake_on_the_command_line_is_named(arguments: list[str], words: list[str], mistake):
    message = mistake(*arguments)
    for word in words:
        assert word.lower() in message.lower()


def test_rows_for_a_folder_that_is_no_run_are_not_answered(tmp_path, mistake):
    (tmp_path / "a.csv").write_text("text\ncow\n")
    assert "No tuned model" in mistake("predict", str(tmp_path), "a.csv", "--out", "answers.jsonl")


TYPOS = [
    ["run", "tasc.toml"],
    ["run", "sounds.csv", "--answer", "sond"],
    ["train", "task.toml", "--data.answer", "sond"],
    ["check", "sonds.csv", "--answer", "sound"],
    ["init", "sounds.csv", "--answer", "sond"],
    ["predict", "runs/nowhere", "sounds.csv"],
    ["evaluate", "runs/nowhere"],
    ["ask", "Hello?", "--run", "runs/nowhere"],
    ["chat", "runs/nowhere"],
    ["fill", "[MASK]", "--run", "runs/nowhere"],
    ["compare", "runs/nowhere", "runs/nothing"],
]


def test_typos_are_told_before_pytorch_is_loaded(tmp_path):
    write_task(tmp_path, {}, {})
    code = "import sys; from loratory.cli.main import main"
    code += f"; print([main(arguments) for arguments in {TYPOS}], 'torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip().endswith(f"{[2] * len(TYPOS)} False"), done.stdout + done.stderr


def test_data_in_the_place_of_the_run_is_told_apart_from_a_missing_run(tmp_path, mistake):
    (tmp_path / "my rows.csv").write_text("text\ncow\n")
    (tmp_path / "run").mkdir()
    message = mistake("predict", "my rows.csv", "run")
    assert "swapped" in message and "loratory predict run 'my rows.csv'" in message


def test_a_data_file_without_an_answer_column_names_the_columns_and_the_flag(tmp_path, mistake):
    (tmp_path / "sounds.csv").write_text(csv(ROWS))
    message = mistake("run", "sounds.csv")
    assert "one of the columns text, sound" in message and "found: no --answer" in message


def test_the_task_files_in_a_folder_are_proposed(tmp_path, mistake):
    write_task(tmp_path, {}, {})
    (tmp_path / "tasks").mkdir()
    (tmp_path / "task.toml").rename(tmp_path / "tasks" / "sounds.toml")
    assert str(Path("tasks") / "sounds.toml") in mistake("run", "tasks")


@needs_shared
@pytest.mark.parametrize(
    ("finished", "words"),
    [(True, ["a finished run", "loratory evaluate out"]), (False, ["an unfinished run", "repeat the command"])],
)
def test_a_run_directory_in_the_place_of_a_task_file_says_how_to_go_on(tmp_path, mistake, finished, words):
    begin(tmp_path / "out", write_task(tmp_path, {}, {}), finished)
    message = mistake("run", "out")
    assert all(word in message for word in ["not a task file", *words])


@needs_shared
def test_a_run_without_a_tuned_model_says_how_to_resume_it(tmp_path, mistake):
    begin(tmp_path / "out", write_task(tmp_path, {}, {}), False)
    message = mistake("predict", "out", "sounds.csv")
    assert "training has not finished" in message and "repeat the command that started the run" in message


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["rnu"], 2), (["run", "none.toml"], 2), (["--version"], 0), ([], 0), (["run", "--help"], 0)],
)
def test_the_process_ends_with_the_code_that_says_what_happened(arguments: list[str], code: int, tmp_path):
    program = "from loratory.cli.main import entry_point; entry_point()"
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert bool(done.stderr) == (code != 0) and bool(done.stdout) == (code == 0)


@pytest.mark.parametrize(
    ("words", "flag"),
    [(["ask", "hi", "--max-new-tokens", "0"], "--max-new-tokens"), (["show", "--count", "-1"], "--count")],
)
def test_a_number_that_asks_for_nothing_is_rejected(words, flag, capsys):
    assert main(words) == 2
    assert flag in capsys.readouterr().err


def test_a_misspelled_verb_is_proposed(capsys):
    assert main(["rnu"]) == 2
    assert "did you mean 'run'?" in capsys.readouterr().err


def test_the_help_shows_a_default_of_zero(capsys):
    assert main(["run", "--help-all"]) == 0
    assert "(default: 0)" in " ".join(capsys.readouterr().out.split())
