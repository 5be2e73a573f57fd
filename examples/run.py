"""Runs the examples on the built-in models: ``python examples/run.py [NAME ...] [--full]``.

By default each example runs with a small budget, to check that it works. ``--full`` uses the budget of the task file
and writes the results to the README of the example's folder. Examples with missing data are skipped, with a message.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from loratory.config import Config
from loratory.metrics import TASKS, duration, percent

EXAMPLES = Path(__file__).parent
ROOT = EXAMPLES.parent
RUNS = ROOT / "runs" / "examples"
LORATORY = Path(sys.executable).parent / "loratory"
SMALL = ["--data.limit-train", "48", "--data.limit-validation", "16", "--data.limit-test", "24", "--train.epochs", "1"]
PAPERS = ROOT / "src" / "loratory" / "builtin"
Report = dict[str, Any]


def main() -> None:
    known = sorted(path.name for path in EXAMPLES.glob("[a-z]*/"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*known, []], metavar="NAME", help=", ".join(known))
    parser.add_argument("--full", action="store_true", help="use the budget of the task files and write the READMEs")
    args = parser.parse_args()
    prepare()
    for name in args.names or known:
        folder = EXAMPLES / name
        missing = missing_data(folder)
        if missing:
            print(f"{name}: skipped, {missing} does not exist")
            continue
        reports = {file: run(file, args.full) for file in files_of(folder)}
        for report in reports.values():
            print(f"{name}: {report['verdict']['sentence']}", flush=True)
        if args.full:
            (folder / "README.md").write_text(page(folder, reports), encoding="utf-8")


def files_of(folder: Path) -> list[Path]:
    """The task files of a folder, or its program."""
    return sorted(folder.glob("*.toml")) or [folder / "run.py"]


def prepare() -> None:
    """Creates the data of ``title-choice``."""
    for part in ("train", "test"):
        out = ROOT / "runs" / "data" / f"title-choice-{part}.jsonl"
        script = EXAMPLES / "title-choice" / "prepare.py"
        subprocess.run([sys.executable, script, PAPERS / f"papers-{part}.jsonl", out], check=True)


def missing_data(folder: Path) -> str | None:
    """The first missing training file of an example, or None."""
    files = [path for task in folder.glob("*.toml") for path in Config.load(task).data.train]
    return next((path for path in files if not Path(path).exists()), None)


def run(file: Path, full: bool) -> Report:
    """Runs a task file or a program and returns its report."""
    name = file.parent.name if file.stem in ("task", "run") else f"{file.parent.name}-{file.stem}"
    if file.suffix == ".py":
        command = [sys.executable, file, *([] if full else ["--small"])]
    else:
        command = [LORATORY, "run", file, "--run.out", RUNS / name, "--overwrite", "--yes", *([] if full else SMALL)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((RUNS / name / "report.json").read_text())


# ---- README ----------------------------------------------------------------------------------------------------------


def page(folder: Path, reports: dict[Path, Report]) -> str:
    """The README of an example: its description, and for each of its files the command and the results."""
    parts = [f"# {folder.name}", about(next(iter(reports)))]
    for file, report in reports.items():
        parts += [f"```sh\n{command_of(file)}\n```", *results(report)]
    return "\n\n".join(parts) + "\n"


def results(report: Report) -> list[str]:
    """The table of systems, and the sentences below it."""
    if report["task"] not in TASKS:  # a custom task, registered only in its own program
        key = next(iter(report["systems"][0]["metrics"]))
        name, second = report["metric"], (key.replace("_", " "), key)
    else:
        name, second = TASKS[report["task"]].metric_label, TASKS[report["task"]].secondary_metric
    rows = [row(system, second[1]) for system in report["systems"]]
    table = [f"| system | {name} | 95 % interval | {second[0]} |", "| --- | --- | --- | --- |", *rows]
    facts = f"{report['train_examples']:,} training examples, {report['test_examples']:,} test examples; "
    facts += f"{report['total_parameters'] / 1e6:.1f} million parameters, {report['trainable_parameters']:,} of them "
    facts += f"trainable; total time {duration(report['seconds']['total'])}."
    return ["\n".join(table), report["verdict"]["sentence"], report["forgetting"]["sentence"], facts]


def about(file: Path) -> str:
    """The first comment of a task file, or the first paragraph of a program's docstring."""
    if file.suffix == ".py":
        return file.read_text(encoding="utf-8").split('"""')[1].split("\n\n")[0]
    lines = file.read_text(encoding="utf-8").splitlines()
    comments = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    return "\n".join(line.removeprefix("#").strip() for line in comments if not line.startswith("#  "))


def command_of(file: Path) -> str:
    here = file.relative_to(ROOT)
    return f"python {here}" if file.suffix == ".py" else f"loratory run {here}"


def row(system: dict[str, Any], key: str) -> str:
    metrics = system["metrics"]
    cells = (
        system["name"],
        percent(system["value"]),
        f"{percent(system['low'])} to {percent(system['high'])}",
        f"{metrics[key]:.3f}" if key in metrics else "",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
