"""Kills commands and lets their file operations fail, then repeats each: nothing may be lost, stuck or different.

    python tests/robustness/chaos.py [--sample N] [--out benchmarks/results/chaos.json]

Every command is killed before one of its file operations after the other, and at random times, and operations fail with
the errors of a full, broken or read-only disk. Afterwards the same command, undisturbed, must succeed, and its adapter,
predictions, rules and report must be those of a run that nothing disturbed.
"""

import argparse
import errno
import hashlib
import json
import os
import platform
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from forked import Ended, run_command
from tiny import ANIMALS, write_tiny_model

TASK = """
[model]
name = "base"
dtype = "float32"
[data]
train = "animals.csv"
answer = "sound"
retain = "retain.jsonl"
[prompt]
system = "One of: {labels}."
[adapter]
dropout = 0.1
[train]
epochs = 2
batch_size = 8
learning_rate = [0.003, 0.01]
checkpoint_every = 2
[run]
out = "run"
threads = 1
systems = ["prompt-choose", "linear", "tuned-choose"]
"""
NOTE = "run/notes.md"  # a file of the person, which nothing may touch
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EROFS")
OPERATIONS = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")


@dataclass(frozen=True)
class Command:
    """A command, and what it starts from."""

    name: str
    arguments: list[str]
    from_finished: bool
    """Whether it starts from a finished run; else from none."""
    every: int
    """One in so many of its file operations is disturbed: the more it has, the fewer."""


COMMANDS = (
    Command("run", ["run", "task.toml"], False, 4),
    Command("overwrite", ["run", "task.toml", "--overwrite"], True, 8),
    Command("evaluate", ["evaluate", "run"], True, 1),
    Command("predict", ["predict", "run", "new.jsonl", "--out", "answers.csv"], True, 1),
)


@dataclass(frozen=True)
class Trial:
    """One disturbance, and what came of it."""

    command: str
    kind: str
    """killed before an operation, killed at a time, the name of an error, or a limit on the size of files."""
    at: float
    code: int
    outcome: str
    """fine; or what went wrong."""


# ---- disturbances ----------------------------------------------------------------------------------------------------


def at_operation(folder: Path, disturb: Callable[[int], None]) -> Callable[[], None]:
    """Calls ``disturb`` with the number, from 0, of every operation that changes files in the folder, before it."""

    def prepare() -> None:
        count = [0]

        def hook(event: str, values: tuple) -> None:
            writes = event == "open" and isinstance(values[2], int) and values[2] & WRITES
            if not (writes or event in OPERATIONS):
                return
            named = values[:1] if event == "open" else values[:2]
            paths = [os.fsdecode(value) for value in named if isinstance(value, (str, bytes, os.PathLike))]
            if any(Path(path).absolute().is_relative_to(folder) for path in paths):
                count[0] += 1
                disturb(count[0] - 1)

        sys.addaudithook(hook)

    return prepare


def kill_at(number: int) -> Callable[[int], None]:
    def disturb(operation: int) -> None:
        if operation == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return disturb


def fail_at(number: int, name: str) -> Callable[[int], None]:
    """From this operation on, every operation fails, as on a disk that stays full; with EIO only this one."""

    def disturb(operation: int) -> None:
        if operation == number or (operation > number and name != "EIO"):
            code = getattr(errno, name)
            raise OSError(code, os.strerror(code), "a file")

    return disturb


def limit_files(size: int) -> Callable[[], None]:
    """Writes end short at ``size`` bytes a file, also those of libraries in other languages."""

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return prepare


# ---- what must be equal ----------------------------------------------------------------------------------------------


def fingerprint(folder: Path) -> dict[str, str]:
    """Hashes of whatever the commands produce, without times and memory."""
    run = folder / "run"
    report = json.loads((run / "report.json").read_text())
    for key in ("seconds", "peak_memory_bytes", "train_tokens_per_second"):
        del report[key]
    for system in report["systems"]:
        del system["seconds"], system["seconds_per_example"]
    parts = {"report": re.sub(r"\d+(\.\d+)? (s|ms|min)\b", "time", json.dumps(report, sort_keys=True)).encode()}
    names = [*run.glob("adapter/*"), *run.glob("predictions/**/*.jsonl"), run / "asked.json", run / "config.toml"]
    parts |= {str(path.relative_to(run)): path.read_bytes() for path in names}
    if (folder / "answers.csv").exists():
        parts["answers.csv"] = (folder / "answers.csv").read_bytes()
    return {name: hashlib.sha256(content).hexdigest() for name, content in sorted(parts.items())}


def check(folder: Path, command: Command, ended: Ended, expected: dict[str, str]) -> str:
    """Repeats the command, and says whether everything is as if nothing had happened."""
    if "Traceback" in ended.output:
        return f"a traceback: {ended.output[-600:]}"
    again = run_command(command.arguments)
    finished = command.name == "run" and again.code == 2 and "already finished" in again.output
    if again.code != 0 and not finished:
        return f"stuck: {again.code} {again.output[-600:]}"
    if (folder / NOTE).exists() != command.from_finished:
        return "lost: the file of the person"
    found = fingerprint(folder)
    different = [name for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]
    names = [path.name for path in folder.rglob("*")]
    left = [name for name in names if name.endswith((".tmp", ".lock", ".owner.json", ".part"))]
    return f"different: {different}" if different else f"left behind: {left}" if left else "fine"


# ---- trials ----------------------------------------------------------------------------------------------------------


class Arena:
    """A folder with a task, in which commands are run from the same start again and again."""

    def __init__(self, folder: Path):
        self.folder, self.finished = folder / "arena", folder / "finished"
        self.folder.mkdir()
        write_tiny_model(self.folder / "base")
        names = list(ANIMALS)
        rows = [f"The {names[i % 3]} number {i} sleeps,{ANIMALS[names[i % 3]]}" for i in range(48)]
        (self.folder / "animals.csv").write_text("text,sound\n" + "\n".join(rows) + "\n")
        (self.folder / "new.jsonl").write_text("".join(f'{{"text": "The {names[i % 3]} {i}"}}\n' for i in range(600)))
        (self.folder / "retain.jsonl").write_text("".join(f'{{"text": "Some words, {i} of them"}}\n' for i in range(5)))
        (self.folder / "task.toml").write_text(TASK)
        os.chdir(self.folder)

    def reset(self, command: Command) -> None:
        shutil.rmtree(self.folder / "run", ignore_errors=True)
        for name in ("answers.csv", "answers.csv.part"):
            (self.folder / name).unlink(missing_ok=True)
        if command.from_finished:
            shutil.copytree(self.finished, self.folder / "run")

    def undisturbed(self, command: Command) -> tuple[dict[str, str], int, float]:
        """What the command produces, its number of file operations and its seconds."""
        self.reset(command)
        counter = self.folder.parent / "count"
        counter.write_text("")

        def count(number: int) -> None:
            with counter.open("a") as file:  # outside of the folder: it does not count itself
                file.write(f"{number}\n")

        ended = run_command(command.arguments, at_operation(self.folder, count))
        assert ended.code == 0, ended.output
        if command.name == "run":
            (self.folder / NOTE).write_text("mine")
            shutil.copytree(self.folder / "run", self.finished)
            (self.folder / NOTE).unlink()
        return fingerprint(self.folder), len(counter.read_text().split()), ended.seconds

    def trial(self, command: Command, kind: str, at: float, expected: dict[str, str]) -> Trial:
        self.reset(command)
        if kind == "killed before an operation":
            ended = run_command(command.arguments, at_operation(self.folder, kill_at(int(at))))
        elif kind == "killed at a time":
            ended = run_command(command.arguments, kill_after=at)
        elif kind == "limit on files":
            ended = run_command(command.arguments, limit_files(int(at)))
        else:
            ended = run_command(command.arguments, at_operation(self.folder, fail_at(int(at), kind)))
            if ended.code not in (0, 1, 2) or (ended.code and "error: " not in ended.output):
                return Trial(command.name, kind, at, ended.code, f"no message: {ended.output[-600:]}")
        return Trial(command.name, kind, at, ended.code, check(self.folder, command, ended, expected))


def planned(command: Command, operations: int, seconds: float, rng: random.Random) -> list[tuple[str, float]]:
    """Every disturbance of a command."""
    kills = [("killed before an operation", n) for n in range(0, operations, command.every)]
    times = [("killed at a time", rng.uniform(0.02, seconds)) for _ in range(max(10, operations // 8))]
    errors = [(ERRORS[n % len(ERRORS)], n) for n in range(0, operations, 2 * command.every + 1)]
    limits = [("limit on files", 2.0**power) for power in range(6, 18)]
    return [*kills, *times, *errors, *limits]


def run_trials(folder: Path, sample: int | None, seed: int = 0) -> list[Trial]:
    """Runs the trials, or a sample of so many for each command."""
    arena, rng, trials = Arena(folder), random.Random(seed), []
    for command in COMMANDS:
        expected, operations, seconds = arena.undisturbed(command)
        plan = planned(command, operations, seconds, rng)
        plan = plan if sample is None else rng.sample(plan, min(sample, len(plan)))
        started = time.monotonic()
        for number, (kind, at) in enumerate(plan, 1):
            trials.append(arena.trial(command, kind, at, expected))
            if trials[-1].outcome != "fine":
                print(f"{command.name}, {kind} {at:g}: {trials[-1].outcome}", flush=True)
            if number % 25 == 0 or number == len(plan):
                left = (time.monotonic() - started) / number * (len(plan) - number)
                print(f"{command.name}: {number}/{len(plan)}, {left:.0f} s left", flush=True)
    return trials


def summary(trials: list[Trial]) -> dict:
    """The record of the trials as JSON."""
    kills = sum(t.kind.startswith("killed") for t in trials)
    bad = [asdict(t) for t in trials if t.outcome != "fine"]
    counts = Counter(f"{t.command}: {t.kind}" for t in trials)
    return {
        "platform": platform.platform(),
        "kills": kills,
        "errors": len(trials) - kills,
        "trials": dict(sorted(counts.items())),
        "lost": sum(t["outcome"].startswith("lost") for t in bad),
        "stuck": sum(t["outcome"].startswith("stuck") for t in bad),
        "different": sum(t["outcome"].startswith("different") for t in bad),
        "other": sum(not t["outcome"].startswith(("lost", "stuck", "different")) for t in bad),
        "bad": bad,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, help="trials per command; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where to write the record")
    args = parser.parse_args()
    out = args.out and args.out.resolve()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        record = summary(run_trials(Path(folder).resolve(), args.sample, args.seed))
        os.chdir("/")
    print(json.dumps({key: value for key, value in record.items() if key != "trials"}, indent=1))
    if out:
        out.write_text(json.dumps(record, indent=1) + "\n")
    return bool(record["bad"])


if __name__ == "__main__":
    sys.exit(main())
