"""The sandbox stops misbehaving programs, keeps them from changing anything, and counts them as failed."""

import socket
import threading
import time

import pytest

from loratory.evaluation.sandbox import run_program, sandbox_problem

pytestmark = pytest.mark.skipif(sandbox_problem() is not None, reason=f"no sandbox here: {sandbox_problem()}")


def failed(code: str, **limits) -> str:
    outcome = run_program(code, **limits)
    assert not outcome.passed
    return outcome.reason


def test_a_correct_program_passes_and_can_use_the_standard_library():
    code = "import re, math, heapq, collections, random, json, datetime, itertools, functools, string, decimal\n"
    code += "assert sorted([2, 1]) == [1, 2] and math.isclose(random.random(), 0.5, abs_tol=1)\nprint('said')"
    outcome = run_program(code)
    assert outcome.passed, outcome.reason


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("assert 1 == 2", "AssertionError"),
        ("def f(:", "SyntaxError"),
        ("undefined", "NameError"),
        ("import sys\nsys.exit(0)", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import os\nos._exit(0)", "exited with status 0 before its tests finished"),
    ],
)
def test_a_program_that_ends_early_fails(code, reason):
    assert failed(code) == reason


def test_a_program_cannot_claim_that_it_passed():
    code = "import os\nfor fd in range(3, 9):\n try: os.write(fd, b'passed')\n except OSError: pass\nos._exit(0)"
    assert "before its tests" in failed(code)


@pytest.mark.thorough
@pytest.mark.parametrize("code", ["while True: pass", "import time\ntime.sleep(60)", "import signal\nsignal.pause()"])
def test_an_endless_program_is_stopped(code, monkeypatch):
    monkeypatch.setattr("loratory.evaluation.sandbox.STARTING", 2.0)
    started = time.monotonic()
    assert failed(code, seconds=1.0) == "time"
    assert time.monotonic() - started < 20


def test_a_program_that_uses_too_much_memory_fails():
    assert failed("x = bytearray(2 * 10**9)") == "memory"


@pytest.mark.parametrize(
    "code",
    [
        "import os\nwhile True: os.fork()",
        "import subprocess\nsubprocess.run(['/bin/true'])",
        "import os\nos.execv('/bin/true', ['true'])",
        "import os\nos.system('true')\nassert False",
        "import threading\nthreading.Thread(target=print).start()",
        "import os\nos.kill(os.getppid(), 9)",
    ],
)
def test_a_program_cannot_start_or_end_processes(code):
    before = threading.active_count()
    assert failed(code)
    assert threading.active_count() == before


def test_a_program_cannot_write_outside_its_folder(tmp_path):
    target = tmp_path / "kept.txt"
    target.write_text("as it was")
    target.chmod(0o644)
    for code in (
        f"open({str(target)!r}, 'w').write('changed')",
        f"open({str(tmp_path / 'new.txt')!r}, 'w')",
        f"import os\nos.remove({str(target)!r})",
        f"import os\nos.rename({str(target)!r}, {str(tmp_path / 'moved')!r})",
        f"import os\nos.truncate({str(target)!r}, 0)",
        f"import os\nos.chmod({str(target)!r}, 0)",
        f"import os\nos.symlink('/etc/passwd', {str(tmp_path / 'link')!r})",
        f"import os\nos.mkdir({str(tmp_path / 'folder')!r})",
        "open('/etc/loratory-was-here', 'w')",
    ):
        assert failed(code) in ("PermissionError", "OSError")
    assert target.read_text() == "as it was" and target.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_a_program_cannot_read_other_files(tmp_path):
    (tmp_path / "secret").write_text("x")
    assert failed(f"open({str(tmp_path / 'secret')!r})") == "PermissionError"
    assert failed("open('/etc/passwd')") == "PermissionError"
    assert failed("import os\nos.listdir('/')") == "PermissionError"


def test_a_program_can_write_limited_files_in_its_folder():
    assert run_program("open('a.txt', 'w').write('x')\nassert open('a.txt').read() == 'x'").passed
    assert failed("with open('a', 'wb') as f:\n while True: f.write(b'x' * 65536)")


def test_a_program_cannot_connect():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        assert failed(f"import socket\nsocket.create_connection(('127.0.0.1', {port}))") in (
            "PermissionError",
            "OSError",
        )
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_program_does_not_see_the_environment(monkeypatch):
    monkeypatch.setenv("LORATORY_SECRET", "x")
    assert run_program("import os\nassert 'LORATORY_SECRET' not in os.environ").passed


def test_limits_cannot_be_raised():
    code = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))"
    assert failed(code) in ("PermissionError", "OSError", "ValueError")
