"""Figures of recorded runs in pages: the page of an example, and figures in prose.

``python examples/run.py --real`` writes ``examples/results/NAME.json``. A figure in prose stands between two comments,
which no reader sees:

    <!--=examples/topics tuned-choose-->83.3 %<!--/-->

The first word of the mark is the record (``examples/results/topics.json``), the second one says which figure of it:

- ``SYSTEM``, ``SYSTEM.low``, ``SYSTEM.high``: the headline metric of a system and its 95 % interval, in percent;
- ``before``, ``after``: the headline metric of the prompting and of the tuned system that the verdict compares;
- ``SYSTEM.METRIC``: another metric of a system, such as ``tuned.perplexity``;
- ``forgetting.before``, ``forgetting.after``: the perplexity on other texts;
- ``time``, and any other key of the record: the duration of the run, a count, or a sentence;
- ``verdict-block``: the verdict as a code block.

Until there is a record, NOT_YET stands there. `filled` brings the figures of a text up to date; ``docs/generate.py``
does so for all pages, and a test compares.
"""

import json
import re
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

from loratory.metrics import duration, non_breaking, percent

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
DEMO = ROOT / "src" / "loratory" / "builtin" / "demo.toml"
NOT_YET = "(not measured yet)"
MARK = re.compile(r"<!--=(?P<record>\S+) (?P<figure>[^\s>]+)-->(?P<text>.*?)<!--/-->", re.DOTALL)
WIDTH = 120
Record = dict[str, Any]


# ---- examples and their records --------------------------------------------------------------------------------------


def examples() -> dict[str, Path]:
    """The task files and programs of the examples by name, and the demonstration."""
    files = sorted([*EXAMPLES.glob("*/*.toml"), *EXAMPLES.glob("*/run.py")])
    return {_name(file): file for file in files} | {"demo": DEMO}


def _name(file: Path) -> str:
    """The folder's name, followed by that of the task file if the folder has several."""
    return file.parent.name if file.stem in ("task", "run") else f"{file.parent.name}-{file.stem}"


def record_path(name: str) -> Path:
    return EXAMPLES / "results" / f"{name}.json"


def read_record(name: str) -> Record | None:
    """The recorded result of an example; None if it has not been run yet."""
    path = record_path(name)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


# ---- figures in prose ------------------------------------------------------------------------------------------------


def filled(text: str) -> str:
    """The text with the figures of all its marks brought up to date. Raises KeyError for a figure that does not exist,
    and ValueError for a mark at the start of a line, which Markdown would take for a block of HTML."""
    return MARK.sub(_with_figure, text)


def _with_figure(mark: re.Match[str]) -> str:
    is_block = mark["figure"].endswith("-block")
    if not is_block and mark.string[: mark.start()].rpartition("\n")[2].strip("> ") == "":
        raise ValueError(f"a mark must not begin a line: {mark[0]}")
    folder, _, name = mark["record"].partition("/")
    if folder != "examples" or name not in examples():
        raise KeyError(mark["record"])
    record = read_record(name)
    text = figure(record, mark["figure"]) if record else NOT_YET
    return f"<!--={mark['record']} {mark['figure']}-->{text}<!--/-->"


def figure(record: Record, path: str) -> str:
    """What a mark shows of a record."""
    if path == "verdict-block":
        lines = textwrap.fill(non_breaking(record["verdict"]), WIDTH, break_on_hyphens=False)
        return f"\n\n```\n{lines.replace(chr(0xA0), ' ')}\n```\n\n"
    if path == "time":
        return duration(record["seconds"]["total"])
    first, _, rest = path.partition(".")
    if first in ("before", "after"):
        first = record[first]
    if first in record["systems"]:
        return _in_words(rest or "value", record["systems"][first][rest or "value"])
    if first == "forgetting":
        return _in_words("perplexity", record["forgetting"][rest])
    return _in_words(first, record[first])


def _in_words(key: str, value: Any) -> str:
    if key in ("value", "low", "high"):
        return percent(value)
    if "perplexity" in key:
        return f"{value:.1f}"
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


# ---- the page of an example ------------------------------------------------------------------------------------------


def example_pages() -> dict[Path, Any]:
    """The pages of the examples that have been run, and a function that writes each."""
    folders: dict[Path, dict[Path, Record | None]] = {}
    for name, file in examples().items():
        if file != DEMO:
            folders.setdefault(file.parent, {})[file] = read_record(name)
    return {
        folder / "README.md": partial(example_page, folder, records)
        for folder, records in folders.items()
        if all(records.values())
    }


def example_page(folder: Path, records: dict[Path, Record]) -> str:
    """Its description, for each of its files the command and the results, and the notes, if there are any."""
    parts = [f"# {folder.name}", _about(next(iter(records)))]
    for file, record in records.items():
        parts += [f"```sh\n{_command(file)}\n```", *_results(record)]
    notes = folder / "notes.md"
    if notes.exists():
        parts.append(filled(notes.read_text(encoding="utf-8")).strip())
    return "\n\n".join(parts) + "\n"


def _about(file: Path) -> str:
    """The first comment of a task file, or the first paragraph of a program's docstring."""
    if file.suffix == ".py":
        return file.read_text(encoding="utf-8").split('"""')[1].split("\n\n")[0]
    lines = file.read_text(encoding="utf-8").splitlines()
    comments = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    return "\n".join(line.removeprefix("#").strip() for line in comments if not line.startswith("#  "))


def _command(file: Path) -> str:
    here = file.relative_to(ROOT)
    return f"python {here}" if file.suffix == ".py" else f"loratory run {here}"


def _results(record: Record) -> list[str]:
    """The table of systems, and the sentences below it."""
    label, key = record["second_metric"]
    head = [f"| system | {record['metric_label']} | 95 % interval | {label} |", "| --- | --- | --- | --- |"]
    rows = [_row(name, system, key) for name, system in record["systems"].items()]
    left_out = [f"{missing['name']} was not measured: {missing['reason']}." for missing in record["not_measured"]]
    sentences = [record["verdict"], record["forgetting"]["sentence"]]
    return ["\n".join([*head, *rows]), *left_out, *sentences, _facts(record)]


def _row(name: str, system: dict[str, float], key: str) -> str:
    interval = f"{percent(system['low'])} to {percent(system['high'])}"
    return (
        f"| {name} | {percent(system['value'])} | {interval} | {_in_words(key, system[key]) if key in system else ''} |"
    )


def _facts(record: Record) -> str:
    """The model, the amounts of data and the duration."""
    counts = f"{record['train_examples']:,} training, {record['validation_examples']:,} validation and "
    counts += f"{record['test_examples']:,} test examples"
    if record["folds"]:
        counts = f"{record['test_examples']:,} examples in {record['folds']} folds"
    model = f"{record['model']}, {record['total_parameters'] / 1e6:.1f} million parameters, "
    model += f"{record['trainable_parameters']:,} of them trained"
    threads = f"{record['threads']} CPU thread" + "s" * (record["threads"] > 1)
    return f"{counts}; {model}; {duration(record['seconds']['total'])} on {threads}."
