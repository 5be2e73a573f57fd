"""Runs examples on the built-in models with a small budget: ``python examples/run.py [NAME ...] [--full]``.

An example whose data is not there is passed over, and said to be. ``--full``: with the budget of its own task file, and
what it found is written into the README of its folder.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from loratory.charts import percent
from loratory.config import Config
from loratory.tasks import TASKS

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
    parser.add_argument("--full", action="store_true", help="with the whole budget")
    asked = parser.parse_args()
    prepare()
    for name in asked.names or known:
        folder = EXAMPLES / name
        missing = missing_data(folder)
        if missing:
            print(f"{name}: passed over, there is no {missing}")
            continue
        run(folder, asked.full)
        report = json.loads((RUNS / name / "report.json").read_text())
        print(f"{name}: {report['verdict']['sentence']}", flush=True)
        if asked.full:
            (folder / "README.md").write_text(page(folder, report), encoding="utf-8")


def prepare() -> None:
    """Makes the data of ``title-choice``."""
    for part in ("train", "test"):
        out = ROOT / "runs" / "data" / f"title-choice-{part}.jsonl"
        script = EXAMPLES / "title-choice" / "prepare.py"
        subprocess.run([sys.executable, script, PAPERS / f"papers-{part}.jsonl", out], check=True)


def missing_data(folder: Path) -> str | None:
    """The first file of an example's data that is not there."""
    task = folder / "task.toml"
    files = Config.load(task).data.train if task.exists() else ()
    return next((path for path in files if not Path(path).exists()), None)


def run(folder: Path, full: bool) -> None:
    """A folder holds a task file, or a program of its own."""
    if (folder / "run.py").exists():
        command = [sys.executable, folder / "run.py", *([] if full else ["--small"])]
    else:
        out = RUNS / folder.name
        command = [LORATORY, "run", folder / "task.toml", "--run.out", out, "--overwrite", "--yes"]
        command += [] if full else SMALL
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


# ---- its page --------------------------------------------------------------------------------------------------------


def page(folder: Path, report: Report) -> str:
    """What the example is, the command, and what it found."""
    if report["task"] not in TASKS:  # the program that knows it has registered it for itself
        key = next(iter(report["systems"][0]["metrics"]))
        name, second = report["metric"], (key.replace("_", " "), key)
    else:
        name, second = TASKS[report["task"]].metric_text, TASKS[report["task"]].second
    rows = [row(system, second[1]) for system in report["systems"]]
    table = [f"| system | {name} | 95 % interval | {second[0]} |", "| --- | --- | --- | --- |", *rows]
    counts = f"{report['train_examples']:,} training, {report['test_examples']:,} test examples"
    seconds = report["seconds"]["total"]
    facts = f"{counts}, {report['total_parameters'] / 1e6:.1f} million parameters of which "
    facts += f"{report['trainable_parameters']:,} train; {seconds / 60:.0f} minutes."
    parts = [f"# {folder.name}", about(folder), f"```\n{command_of(folder)}\n```", "\n".join(table)]
    parts += [report["verdict"]["sentence"], report["forgetting"]["sentence"], facts]
    return "\n\n".join(parts) + "\n"


def about(folder: Path) -> str:
    """The comment that the task file begins with, or the program's first paragraph."""
    if (folder / "run.py").exists():
        return (folder / "run.py").read_text(encoding="utf-8").split('"""')[1].split("\n\n")[0]
    lines = (folder / "task.toml").read_text(encoding="utf-8").splitlines()
    comments = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    return "\n".join(line.removeprefix("#").strip() for line in comments if not line.startswith("#  "))


def command_of(folder: Path) -> str:
    here = folder.relative_to(ROOT)
    return f"python {here}/run.py" if (folder / "run.py").exists() else f"loratory run {here}/task.toml"


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
