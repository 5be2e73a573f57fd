"""Systems other than Linux lack some modules and folders; nothing may need them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.thorough

# The other libraries choose by the name of the system, which stays Linux, so they are imported before. Without fcntl,
# filelock uses a file that it creates and removes.
ELSEWHERE = """
import os, sys
import datasets, peft, sacrebleu, sklearn.linear_model, torch, transformers
from transformers import LlamaForCausalLM
for name in [name for name in sys.modules if name.split(".")[0] == "filelock"]:
    del sys.modules[name]
for name in ("fcntl", "resource", "readline"):
    sys.modules[name] = None
def hook(event, values):
    if event == "open" and str(values[0]).startswith(("/proc/", "/sys/")):
        raise FileNotFoundError(2, "No such file or directory", values[0])
sys.addaudithook(hook)
import signal
del signal.SIGHUP
from loratory.cli.main import main
task, new, folder = sys.argv[1:]
codes = [
    main(["run", task]),
    main(["predict", folder + "/run", new, "--out", folder + "/answers.csv"]),
    main(["evaluate", folder + "/run", "--json"]),
    main(["run", task]),
]
assert "fcntl" not in [name for name, module in sys.modules.items() if module]
sys.exit(0 if codes == [0, 0, 0, 2] else f"{codes}")
"""


def test_a_run_needs_nothing_that_only_linux_has(tmp_path: Path, tiny_folder: Path, animals: Path):
    task, new = tmp_path / "task.toml", tmp_path / "new.jsonl"
    task.write_text(
        f"[model]\nname = '{tiny_folder}'\n[data]\ntrain = '{animals}'\nanswer = 'sound'\n[train]\nepochs = 1\n"
        f"[run]\nout = '{tmp_path / 'run'}'\nsystems = ['linear', 'prompt-choose', 'tuned-choose']\n"
    )
    new.write_text('{"text": "The cow sleeps"}\n')
    command = [sys.executable, "-c", ELSEWHERE, str(task), str(new), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "finished"
    assert (tmp_path / "answers.csv").read_text().startswith("text,answer,confidence\n")
