"""A sample of what ``make chaos`` does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.thorough
def test_a_disturbed_command_repeated_gives_what_an_undisturbed_one_gives():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
    command = [sys.executable, str(HERE / "chaos.py"), "--sample", "1"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert '"lost": 0' in ended.stdout
