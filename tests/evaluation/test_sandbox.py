"""The sandbox stops misbehaving programs, keeps them from changing anything, and counts them as failed."""

import resource
import socket
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loratory.evaluation.calls import Containers, Peer
from loratory.evaluation.sandbox import MAX_FILES, run_program, sandbox_problem

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


CHECK = "assert f(2) == 4"
FORGERIES = {
    "writes to every descriptor": """
import os
for fd in range(3, 64):
    for text in (b'["passed", ""]', b'\\x00\\x00\\x00\\x10["return", 4, []]'):
        try: os.write(fd, text)
        except OSError: pass
os._exit(0)""",
    "searches its callers' frames": """
import sys
frame = sys._getframe()
while frame:
    for name in list(frame.f_locals) + list(frame.f_globals):
        if "verdict" in name or "nonce" in name or "secret" in name: print(name)
    frame = frame.f_back
def f(x): return 5""",
    "searches all objects": """
import gc, os
for value in gc.get_objects():
    if isinstance(value, dict) and "writing" in value and "operations" in value:
        value["operations"] = {name: lambda *_: True for name in ("call", "run", "is_alive")}
def f(x): return 5""",
    "equals everything": """
class Any(int):
    __eq__ = lambda self, other: True
    __hash__ = int.__hash__
class Other:
    __eq__ = lambda self, other: True
def f(x): return Any(5) if x else Other()""",
    "replaces built-in functions": """
import builtins
builtins.all = builtins.any = builtins.isinstance = lambda *_: True
def f(x): return 5""",
    "exits when it is asked": "import os\ndef f(x): os._exit(0)",
    "exits later": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): raise SystemExit(0)",
    "is the type of a message": "def f(x): return ['return', 4, []]",
}  # fmt: skip


@pytest.mark.parametrize("how", FORGERIES)
def test_a_program_cannot_claim_that_it_passed(how):
    outcome = run_program(FORGERIES[how], tests=CHECK)
    assert not outcome.passed and outcome.reason
    assert run_program("def f(x): return 2 * x", tests=CHECK).passed


def test_a_test_that_expects_an_exception_is_not_passed_by_a_program_that_has_ended():
    tests = "try:\n    f(-1)\n    assert False\nexcept Exception:\n    pass"
    assert not run_program("import os\ndef f(x): os._exit(0)", tests=tests).passed
    assert run_program("def f(x): raise ValueError(x)", tests=tests).passed


def test_an_object_that_equals_everything_equals_no_plain_value():
    program = "class Same:\n    def __eq__(self, other): return True\ndef f(): return Same()"
    for expected in ("1", "'a'", "[1]", "None", "(1,)", "{}", "True"):
        assert not run_program(program, tests=f"assert f() == {expected}").passed
        assert not run_program(program, tests=f"assert {expected} == f()").passed


def test_a_program_does_not_change_the_built_in_functions_of_its_tests():
    program = "def abs(x): return 0\ndef f(x): return 99.0"
    assert not run_program(program, tests="assert abs(f(1) - 1) < 1e-6").passed
    assert run_program("def sum(a, b): return a * b", tests="assert sum(2, 3) == 6").passed  # as in MBPP


CALLS = {
    "changed arguments": ("def f(x): x.append(len(x))", "a = [5]\nassert f(a) is None and a == [5, 1]"),
    "nested and shared arguments": ("def f(x): x[0].append(1)", "a = []\nb = [a, a]\nf(b)\nassert b == [[1], [1]]"),
    "the argument itself": ("def f(x): return x", "a = [1]\nassert f(a) is a"),
    "many types": (
        "import decimal, fractions, datetime, collections\ndef f(x): return x, type(x).__name__",
        "import decimal, fractions, datetime, collections\n"
        "for x in (1.5, float('inf'), 10**400, -3, 'ü\\ud800', b'x', (1, (2,)), {1: {2}}, frozenset('a'), 2j,\n"
        "          range(3), decimal.Decimal('1.10'), fractions.Fraction(1, 3), datetime.date(2020, 1, 2),\n"
        "          collections.Counter('aab'), datetime.datetime(2020, 1, 2, 3), datetime.timedelta(1, 2),\n"
        "          collections.deque([1]), None, True, {}, [[]]):\n"
        "    assert f(x) == (x, type(x).__name__), x",
    ),
    "classes and instances": (
        "class Node:\n    def __init__(self, v): self.v, self.next = v, None\n    def up(self): self.v += 1",
        "n = Node(1)\nn.next = Node(2)\nn.next.up()\nassert n.next.v == 3 and n.next is n.next\n"
        "assert not hasattr(n, 'w')",
    ),
    "generators": ("def f(n):\n    yield from range(n)", "assert list(f(3)) == [0, 1, 2] and sum(f(4)) == 6"),
    "functions of the tests": ("def f(g, x): return g(x) + 1", "assert f(lambda x: 2 * x, 5) == 11"),
    "returned functions": ("def f(n): return lambda x: x + n", "assert f(2)(3) == 5"),
    "exceptions": (
        "class Own(ValueError): pass\ndef f(): raise Own('why')",
        "try:\n    f()\nexcept ValueError as e:\n    assert str(e) == 'why'\nelse:\n    assert False\n"
        "try:\n    f()\nexcept Own:\n    pass",
    ),
    "modules of the program": ("import math\ndef f(): return math.pi", "assert math.isclose(f(), 3.14, abs_tol=0.01)"),
    "keyword arguments": ("def f(a, *, b=2): return a - b", "assert f(1, b=5) == -4 and f(1) == -1"),
}  # fmt: skip


@pytest.mark.parametrize("what", CALLS)
def test_tests_use_a_program_as_if_it_ran_in_their_process(what):
    program, tests = CALLS[what]
    outcome = run_program(program, tests=tests)
    assert outcome.passed, outcome.reason


def test_a_program_can_only_call_the_functions_of_its_tests():
    tests = "answer = [0]\ndef given(x): return x\nf(given)\nassert answer == [1]"
    for attempt in ("g.__globals__['answer'][0] = 1", "g.__call__.__self__", "g.x = 1", "str(g)", "len(g)"):
        assert not run_program(f"def f(g): {attempt}", tests=tests).passed


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda x: st.lists(x) | st.dictionaries(st.text(), x) | st.tuples(x, x) | st.frozensets(st.integers(), max_size=1),
    max_leaves=20,
)


peer = Peer(0, 1, {})


@given(plain)
@settings(max_examples=50, deadline=None)
def test_plain_data_is_the_same_after_a_message(value):
    sent = Containers()
    encoded = peer.encode(value, sent)
    received = peer.decode(encoded, peer.filled(peer.contents(sent), []))
    assert received == value and repr(received) == repr(value)


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
    assert failed("import os\nos.mkdir('a')") == "PermissionError"


@pytest.mark.parametrize(
    "code",
    [
        "n = 0\nwhile True:\n    open(str(n), 'w').close()\n    n += 1",
        "for n in range(60):\n    open(str(n), 'wb').write(bytes(10**6))\nimport time\ntime.sleep(60)",
    ],
)
def test_a_program_that_fills_its_folder_is_ended(code):
    assert MAX_FILES == 64
    started = time.monotonic()
    assert failed(code, seconds=20.0) == "files"
    assert time.monotonic() - started < 10


def test_what_a_program_prints_or_sends_does_not_fill_the_memory_of_this_process():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    flood = "import os\ndata = bytes(2**20)\nfor _ in range(300):\n for fd in (1, 2, 3, 4, 5, 6):\n"
    flood += "  try: os.write(fd, data)\n  except OSError: pass"
    assert failed(flood, seconds=3.0)
    assert failed("def f(): return 'x' * 10**8", tests="f()") in ("ValueError", "memory")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_a_process_of_the_sandbox_has_no_other_descriptors(tmp_path):
    with (tmp_path / "secret").open("w") as file:
        code = "import os\ndef is_open(fd):\n    try: os.fstat(fd)\n    except OSError: return False\n    return True\n"
        code += f"assert not is_open({file.fileno()}) and sum(map(is_open, range(64))) <= 6"
        assert run_program(code).passed


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
