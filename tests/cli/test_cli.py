"""The command line as a program sees it: exit codes, JSON on standard output, everything else on standard error."""

import json
import os
import platform
import signal
import subprocess
import sys
import time

import pytest

from loratory.cli import allocator
from loratory.cli import main as cli
from loratory.cli.main import main

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
TASK = """
[model]
name = "{model}"
dtype = "float32"
[data]
train = "{data}"
answer = "sound"
[prompt]
system = "One of: {{labels}}."
few_shot = 1
[train]
epochs = {epochs}
batch_size = 8
learning_rate = 0.01
checkpoint_every = 0
[run]
out = "{out}"
systems = ["linear", "prompt-choose", "tuned-choose"]
"""


def write_task(tmp_path, model, data, epochs=1):
    path = tmp_path / "task.toml"
    path.write_text(TASK.format(model=model, data=data, out=tmp_path / "run", epochs=epochs))
    return path


@pytest.fixture
def task(tmp_path, tiny_folder, animals):
    return write_task(tmp_path, tiny_folder, animals)


@pytest.mark.thorough
def test_run_predict_and_ask(task, tmp_path, capsys):
    assert main(["run", str(task), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["test_examples"] == 10
    run = tmp_path / "run"
    (tmp_path / "in.jsonl").write_text('{"text": "The cow sleeps"}\n{"text": "The cat sleeps", "sound": "Meow"}\n')
    assert main(["predict", str(run), str(tmp_path / "in.jsonl")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2
    assert all(line["answer"] in report["labels"] for line in lines)
    out = tmp_path / "out.jsonl"
    assert main(["predict", str(run / "adapter"), str(tmp_path / "in.jsonl"), "--out", str(out)]) == 0
    assert [json.loads(line) for line in out.read_text().splitlines()] == lines
    capsys.readouterr()
    assert main(["ask", "text: The cow", "--run", str(run), "--max-new-tokens", "3", "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out)["answer"], str)
    assert main(["evaluate", str(run), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert [s["value"] for s in again["systems"]] == [s["value"] for s in report["systems"]]


def test_flags_override_the_task_file(task, tmp_path, capsys):
    out = tmp_path / "elsewhere"
    arguments = ["train", str(task), "--train.epochs", "2", "--adapter.rank", "3", "--run.out", str(out), "--json"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == {"run": str(out)}
    assert json.loads((out / "adapter/adapter_config.json").read_text())["r"] == 3
    assert not (out / "report.json").exists()
    assert not (out / "systems").exists()


def test_the_verdict_is_the_first_line(task, capsys):
    assert main(["run", str(task)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(("Tuning helped", "Tuning did not help", "Cannot tell"))


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["predict", "--help"], ["--version"]])
def test_help_and_version_exit_with_0(arguments, capsys):
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == 0
    assert capsys.readouterr().out


def test_an_unknown_flag_exits_with_2(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run", "--train.epoch", "3"])
    assert stop.value.code == 2


@pytest.mark.thorough
def test_ctrl_c_in_training_saves_exits_130_and_the_same_command_goes_on(tmp_path, tiny_folder, animals):
    task = write_task(tmp_path, tiny_folder, animals, epochs=2000)
    command = [sys.executable, "-m", "loratory.cli", "run", str(task)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ, text=True)
    log = tmp_path / "run/metrics.jsonl"
    until = time.monotonic() + 90
    while time.monotonic() < until and not (log.exists() and log.read_text().count('"step"') > 2):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "is saved" in errors
    assert "Traceback" not in errors
    saved = [path.name for path in (tmp_path / "run/checkpoints").iterdir()]  # the newest, and the best epoch's
    assert max(int(name.removeprefix("step-")) for name in saved) == log.read_text().count('"event": "step"')


@pytest.fixture
def started(monkeypatch):
    """What the process would be started anew as, and whether it would."""
    calls = []
    monkeypatch.setattr(os, "execv", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(sys, "argv", ["loratory", "run"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "loratory.cli", "run", "task.toml"])
    for name in allocator.ALLOCATOR:
        monkeypatch.setenv(name, "1")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    return calls


def test_the_program_starts_anew_with_an_allocator_that_keeps_memory(started):
    allocator.keep_freed_memory()
    assert started == [(sys.executable, [sys.executable, "-m", "loratory.cli", "run", "task.toml"])]
    assert {name: os.environ[name] for name in allocator.ALLOCATOR} == allocator.ALLOCATOR
    allocator.keep_freed_memory()
    assert len(started) == 1, "once"


def test_an_allocator_that_somebody_set_up_is_left_alone(started, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=3")
    allocator.keep_freed_memory()
    assert started == []


@pytest.mark.parametrize("library", [("glibc", "2.34"), ("musl", "1.2"), ("", "")])
def test_an_allocator_that_would_not_gain_is_left_alone(started, monkeypatch, library):
    monkeypatch.setattr(platform, "libc_ver", lambda: library)
    allocator.keep_freed_memory()
    assert started == []


def test_a_program_on_standard_input_is_not_started_anew(started, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["-", "run"])
    allocator.keep_freed_memory()
    assert started == []


@pytest.mark.parametrize("words", [["run", "--help"], ["show"], ["--version"], ["chat"]])
def test_what_computes_little_is_not_started_anew(started, monkeypatch, words):
    monkeypatch.setattr(sys, "argv", ["loratory", *words])
    monkeypatch.setattr(cli, "main", lambda arguments: 0)
    with pytest.raises(SystemExit):
        cli.entry_point()
    assert started == []
