"""Feeds thousands of hostile and damaged inputs to the commands: each must end with exit code 0 or 2 and a message.

    python tests/robustness/fuzz.py [--count N] [--kind KIND] [--number N] [--out benchmarks/results/fuzz.json]

Every input is made from a valid one by seed, so --kind and --number repeat a single case. A case fails if the command
crashes, prints a traceback, ends with another code, runs for more than 30 seconds or takes more than 2 GB.
"""

import argparse
import contextlib
import gzip
import json
import os
import platform
import random
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import tomli_w
from forked import Ended, run_command
from fuzz_reading import damaged, make_file
from tiny import ANIMALS, CHATML, write_tiny_model

from loratory.cli.main import main as main_command
from loratory.data import cell_text, guess_task_file
from loratory.data.rows import columns_of, read_table
from loratory.errors import UserError
from loratory.machine import git_state

SECONDS, MEGABYTES = 30.0, 2048.0
DEEP = "a very deep list"  # stands for one: Python itself cannot write it
TASK: dict[str, Any] = {
    "model": {"name": "base", "dtype": "float32"},
    "data": {"train": "data.jsonl", "answer": "sound"},
    "prompt": {"system": "One of: {labels}.", "user": "Text: {text}"},
    "train": {"epochs": 1, "batch_size": 8, "learning_rate": 0.01},
    "run": {"out": "run", "threads": 1, "systems": ["prompt-choose", "linear", "tuned-choose"]},
}
TEXTS = (
    "", " ", "\x00", "\x1b[2J\x1b]0;title\x07", "\u202egnp.exe", "a" * 5000, "{", "{{", "{text", "{text.__class__}",
    "{0}", "%s", "../../etc/passwd", "/dev/zero", "/dev/stdin", "hub:", "hub:a/b", "\ud83d", "\u2028", "<|im_end|>",
    "𝔘𝔫𝔦", "-0", "$(touch x)", "=cmd|' /C calc'!A0", "\ufeff", "NaN", "null", "x" * 300 + "/y", "CON", "~", ".", "..",
    "nan", "/",
)  # fmt: skip
NUMBERS = (
    0, -1, 1, 2, 1.5, 1e-320, 1e308, float("nan"), float("inf"), -float("inf"), 2**31, 2**63, 2**64, 10**30, -(2**63),
    10**6, 255,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One input, and what came of it."""

    kind: str
    number: int
    command: str
    code: int
    seconds: float
    megabytes: float
    problem: str


# ---- values ----------------------------------------------------------------------------------------------------------


def nasty(rng: random.Random, depth: int = 0) -> Any:
    """A value that nobody expects, as JSON or TOML may contain it."""
    match rng.randrange(8 if depth < 3 else 5):
        case 0 | 1:
            return rng.choice(TEXTS)
        case 2 | 3:
            return rng.choice(NUMBERS)
        case 4:
            return rng.choice([True, False, None])
        case 5:
            return [nasty(rng, depth + 1) for _ in range(rng.randrange(4))]
        case 6:
            return {rng.choice(TEXTS)[:20] or "k": nasty(rng, depth + 1) for _ in range(rng.randrange(3))}
        case _:
            return DEEP


def changed_value(value: Any, rng: random.Random) -> Any:
    """The value with one part of it replaced, removed, repeated or renamed."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(sorted(value, key=str))
        match rng.randrange(6):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return {**value, rng.choice(TEXTS)[:40] or "new": nasty(rng)}
            case 2:
                return {k if k != key else f"{k}{rng.choice(TEXTS)[:10]}": v for k, v in value.items()}
            case _:
                return {**value, key: changed_value(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        place = rng.randrange(len(value))
        part = [*value[:place], changed_value(value[place], rng), *value[place + 1 :]]
        return part * rng.choice([1, 1, 1, 40])
    return nasty(rng)


def as_json(value: Any) -> str:
    """The value as JSON, with lists nested more deeply than a parser may go."""
    return json.dumps(value).replace(json.dumps(DEEP), "[" * 3000 + "]" * 3000)


def changed_json(path: Path, rng: random.Random) -> None:
    """Replaces a JSON file with a damaged one."""
    content = path.read_bytes()
    if rng.random() < 0.25:
        path.write_bytes(damaged(content, rng, TEXTS))
        return
    value = json.loads(content)
    for _ in range(rng.choice([1, 1, 1, 3])):
        value = changed_value(value, rng)
    path.write_text(as_json(value), encoding="utf-8")


# ---- kinds of input --------------------------------------------------------------------------------------------------


def rows(count: int = 24) -> list[dict[str, Any]]:
    names = list(ANIMALS)
    return [{"text": f"The {names[i % 3]} number {i}", "sound": ANIMALS[names[i % 3]]} for i in range(count)]


def fuzz_task(rng: random.Random) -> list[str]:
    """A task file with wrong, missing or absurd settings."""
    task = Path("task.toml")
    if rng.random() < 0.3:
        task.write_bytes(damaged(task.read_bytes(), rng, TEXTS))
    else:
        value: Any = json.loads(json.dumps(TASK))
        for _ in range(rng.choice([1, 1, 2])):
            section = rng.choice(sorted(value)) if isinstance(value, dict) and value else None
            value = (
                changed_value(value, rng) if section is None else {**value, section: changed_value(value[section], rng)}
            )
        try:
            task.write_text(tomli_w.dumps(_for_toml(value)), encoding="utf-8")
        except (TypeError, ValueError, AttributeError, RecursionError):  # it cannot be written as TOML
            task.write_text(f"[data]\ntrain = {json.dumps(str(rng.choice(TEXTS)))}\n", encoding="utf-8")
    return ["show", "task.toml", "--json"]


def _for_toml(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k).encode("utf-8", "replace").decode(): _for_toml(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_for_toml(item) for item in value if item is not None]
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def fuzz_data(rng: random.Random) -> list[str]:
    """A data file that is damaged, absurd or of another format than its name says."""
    records = rows()
    for _ in range(rng.choice([0, 1, 3])):
        records[rng.randrange(len(records))] = changed_value(records[0], rng)
    lines = "".join(as_json(record) + "\n" for record in records).encode()
    fields = [record if isinstance(record, dict) else {"text": str(record)} for record in records]
    table = "text,sound\n" + "".join(f'"{_cell(f, "text")}","{_cell(f, "sound")}"\n' for f in fields)
    contents = {
        "jsonl": lines,
        "json": as_json(records).encode(),
        "csv": table.encode("utf-8", "surrogatepass"),
        "tsv": table.replace(",", "\t").encode("utf-8", "surrogatepass"),
        "jsonl.gz": gzip.compress(lines * rng.choice([1, 1, 2000])),
        "parquet": _parquet(),
    }
    suffix = rng.choice(sorted(contents))
    content = contents[suffix if rng.random() < 0.9 else rng.choice(sorted(contents))]
    name = f"fuzzed.{suffix}"
    Path(name).write_bytes(damaged(content, rng, TEXTS) if rng.random() < 0.7 else content)
    if rng.random() < 0.5:
        return [
            "init",
            name,
            "--answer",
            rng.choice(["sound", "sound", "text", "none"]),
            "--model",
            "base",
            "--overwrite",
        ]
    Path("task.toml").write_text(tomli_w.dumps({**TASK, "data": {"train": name, "answer": "sound"}}))
    return ["show", "task.toml", "--json"]


def _cell(record: dict[str, Any], key: str) -> str:
    return str(record.get(key, ""))[:10_000].replace('"', '""')


def _parquet() -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows()), sink)
    return sink.getvalue().to_pybytes()


def fuzz_model(rng: random.Random) -> list[str]:
    """A model folder with a wrong configuration, tokenizer or weights."""
    shutil.copytree("base", "fuzzed")
    names = ["config.json", "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
    name = rng.choice([*names, "model.safetensors", "model.safetensors"])
    path = Path("fuzzed") / name
    if not path.exists():
        path.write_text("{}")
    if name != "model.safetensors":
        changed_json(path, rng)
    elif rng.random() < 0.5:
        path.write_bytes(damaged(path.read_bytes(), rng, TEXTS))
    else:
        _change_header(path, rng)
    return ["ask", "Is it so?", "--model", "./fuzzed", "--max-new-tokens", "2"]


def _change_header(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = as_json(changed_value(json.loads(content[8 : 8 + length]), rng)).encode()
    stated = rng.choice([len(header), len(header), 2**40, 0, len(header) + 10**6])
    path.write_bytes(struct.pack("<Q", stated) + header + content[8 + length :])


PIECES = (
    "{% for m in messages %}", "{% endfor %}", "{% if messages %}", "{% endif %}", "{{ m.content }}", "{{ bos_token }}",
    "{{ messages[0].content }}", "{% for i in range(10**7) %}", "{% for i in range(1000) %}", "{{ 'a' * 10**8 }}",
    "{{ '%999999999d' % 1 }}", "{% set x = [0] * 10**9 %}", "{{ messages | tojson }}", "{{ ''.__class__.__mro__ }}",
    "{{ raise_exception('no') }}", "{{ 1 / 0 }}", "{{ undefined.x }}", "{{ x }}", "{% set x = 'a' %}", "text",
    "{% set x = x ~ x %}", "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "{{ strftime_now('%Y') }}",
    "{{ add_generation_prompt }}",
    "{% include 'x' %}", "{% generation %}", "{% endgeneration %}", "{{ messages | map(attribute='content') | join }}",
    "{{ range(10**12) | list }}", "{{ cycler(*range(10**7)) }}", "{{ 'a'.center(10**9) }}", "{{ lipsum(n=10**6) }}",
    "{{ '{:>99999999}'.format(1) }}", "{{ 10 ** 10 ** 7 }}", "{{ namespace }}", "{", "%}",
)  # fmt: skip


def fuzz_template(rng: random.Random) -> list[str]:
    """A chat template that is malformed, endless, enormous or nosy."""
    shutil.copytree("base", "fuzzed")
    pieces = [rng.choice(PIECES) for _ in range(rng.randrange(1, 8))]
    template = "".join(pieces)
    if rng.random() < 0.5:
        place = rng.randrange(len(CHATML))
        template = CHATML[:place] + template + CHATML[place:]
    if rng.random() < 0.3:
        template = "".join(f"{{% for i{k} in range(9999) %}}" for k in range(6)) + template + "{% endfor %}" * 6
    (Path("fuzzed") / "chat_template.jinja").write_text(template)
    Path("task.toml").write_text(tomli_w.dumps({**TASK, "model": {"name": "fuzzed"}}))
    return ["show", "task.toml", "--json"]


def fuzz_adapter(rng: random.Random) -> list[str]:
    """A damaged or manipulated adapter, half of the time with --force."""
    name = rng.choice(["adapter_config.json", "loratory.json", "loratory.json", "adapter_model.safetensors"])
    path = Path("run/adapter") / name
    if path.suffix == ".json":
        changed_json(path, rng)
    elif rng.random() < 0.5:
        path.write_bytes(damaged(path.read_bytes(), rng, TEXTS))
    else:
        _change_header(path, rng)
    return ["predict", "run/adapter", "data.jsonl", *(["--force"] if rng.random() < 0.5 else [])]


def fuzz_run(rng: random.Random) -> list[str]:
    """A run directory whose records are damaged."""
    names = [p for p in Path("run").rglob("*") if p.suffix in (".json", ".jsonl", ".toml")]
    path = rng.choice(sorted(names))
    if path.suffix == ".json":
        changed_json(path, rng)
    else:
        path.write_bytes(damaged(path.read_bytes(), rng, TEXTS))
    return rng.choice(
        [["run", "task.toml"], ["evaluate", "run"], ["compare", "run", "other", "--json"], ["ask", "x", "--run", "run"]]
    )


def fuzz_request(rng: random.Random) -> list[str]:
    """Rows to answer, and questions to ask, that nobody expects."""
    if rng.random() < 0.3:
        text = str(nasty(rng)).replace("\x00", "").encode("utf-8", "replace").decode()
        return ["ask", f"x{text}", "--run", "run", "--max-new-tokens", "2"]
    records = [changed_value(row, rng) for row in rows(6)]
    content = "".join(as_json(record) + "\n" for record in records).encode()
    Path("new.jsonl").write_bytes(damaged(content, rng, TEXTS) if rng.random() < 0.3 else content)
    return ["predict", "run", "new.jsonl"]


def fuzz_reading(rng: random.Random) -> list[str]:
    """A data file of any kind and encoding, for reading and guessing only."""
    return [str(make_file(Path.cwd(), rng)), rng.choice(["text", "label", "label", "column_2"])]


def read_only(arguments: list[str]) -> int:
    """Reads a file, and guesses a task file for one of its columns."""
    name, answer = arguments
    try:
        table = read_table(name)
        columns = columns_of(table.rows)
        for row in table.rows:
            assert row.source.startswith(str(Path(name).parent))
            assert all(isinstance(cell_text(row.value(column)), str) for column in columns)
        for finding in table.findings:
            assert finding.severity == "note" and ": " in finding.message, finding
    except UserError as error:
        print(f"error: {error}")
        assert error.where, error
        return 2
    with contextlib.suppress(UserError):  # most columns of these files are no answers
        guess_task_file([name], answer, lambda _: False)
    return 0


KINDS: dict[str, Callable[[random.Random], list[str]]] = {
    "task": fuzz_task,
    "data": fuzz_data,
    "model": fuzz_model,
    "template": fuzz_template,
    "adapter": fuzz_adapter,
    "run": fuzz_run,
    "request": fuzz_request,
    "reading": fuzz_reading,
}


# ---- the cases -------------------------------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """A valid example of everything that is then damaged, in folder/valid."""
    valid = folder / "valid"
    write_tiny_model(valid / "base")
    (valid / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    (valid / "task.toml").write_text(tomli_w.dumps(TASK))
    # The run is made where the cases find it, because a run knows its folder.
    shutil.copytree(valid, folder / "case", dirs_exist_ok=True)
    os.chdir(folder / "case")
    for out in ("run", "other"):
        ended = run_command(["run", "task.toml", "--run.out", out])
        assert ended.code == 0, ended.output
        shutil.copytree(out, valid / out)


def run_case(folder: Path, kind: str, number: int) -> Case:
    """Makes one input in a fresh folder, and runs the command on it."""
    os.chdir(folder)
    shutil.rmtree(folder / "case")
    shutil.copytree(folder / "valid", folder / "case")
    os.chdir(folder / "case")
    command = KINDS[kind](random.Random(f"{kind} {number}"))
    run = read_only if kind == "reading" else main_command
    ended = run_command(command, limit=SECONDS + 5, command=run)
    problem = problem_of(ended, command)
    return Case(kind, number, " ".join(command)[:200], ended.code, ended.seconds, ended.megabytes, problem)


def problem_of(ended: Ended, command: list[str]) -> str:
    """What is wrong with how a command ended; empty if nothing is."""
    if ended.seconds > SECONDS:
        return f"{ended.seconds:.0f} s"
    if "Traceback" in ended.output or ended.code not in (0, 2):
        return ended.output[-1500:] or f"code {ended.code}"
    if ended.code == 2 and "error: " not in ended.output and "╭" not in ended.output:
        return f"no message: {ended.output[-500:]}"
    if ended.megabytes > MEGABYTES:
        return f"{ended.megabytes:.0f} MB"
    if "\x1b" in ended.output or "\u202e" in ended.output:
        return "an escape sequence reached the terminal"
    return ""


def summary(cases: list[Case], earlier: dict[str, Any]) -> dict[str, Any]:
    """The record of the cases as JSON. Kinds that were not run keep their entry in the ``earlier`` record."""
    by_kind = {kind: group for kind in KINDS if (group := [case for case in cases if case.kind == kind])}
    kinds = earlier.get("kinds", {}) | {
        kind: {
            "commit": git_state(Path(__file__).parent),
            "cases": len(group),
            "accepted": sum(case.code == 0 for case in group),
            "refused": sum(case.code == 2 for case in group),
            "slowest_seconds": max((round(case.seconds, 2) for case in group), default=0),
            "largest_megabytes": max((round(case.megabytes) for case in group), default=0),
        }
        for kind, group in by_kind.items()
    }
    problems = [case for case in earlier.get("problems", []) if case["kind"] not in by_kind]
    return {
        "platform": platform.platform(),
        "cases": sum(kind["cases"] for kind in kinds.values()),
        "kinds": kinds,
        "problems": [*problems, *(asdict(case) for case in cases if case.problem)],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=720, help="cases of each kind")
    parser.add_argument("--kind", choices=KINDS, help="only this kind")
    parser.add_argument("--number", type=int, help="only this case")
    parser.add_argument("--out", type=Path, help="the record, in which the kinds that are run are replaced")
    args = parser.parse_args()
    out, cases, started = args.out and args.out.resolve(), [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name).resolve()
        for part in ("valid", "case"):
            (folder / part).mkdir()
        if args.kind != "reading":
            prepare(folder)
        for kind in [args.kind] if args.kind else KINDS:
            for number in range(args.count) if args.number is None else [args.number]:
                cases.append(run_case(folder, kind, number))
                if cases[-1].problem:
                    print(f"--kind {kind} --number {number}: {cases[-1].command}\n  {cases[-1].problem}", flush=True)
            print(f"{kind}: {len(cases)} cases in {time.monotonic() - started:.0f} s", flush=True)
        os.chdir("/")
    record = summary(cases, json.loads(out.read_text()) if out and out.exists() else {})
    print(json.dumps({**record, "problems": len(record["problems"])}, indent=1))
    if out:
        out.write_text(json.dumps(record, indent=1) + "\n")
    return bool(record["problems"])


if __name__ == "__main__":
    sys.exit(main())
