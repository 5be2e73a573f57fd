"""Runs the examples: ``python examples/run.py [NAME ...] [--real]``.

Without ``--real``, each example runs on a built-in model with a small budget, to check that it works.

``--real`` uses the model and the budget of the task files. That takes hours on two CPU cores, so an example that has a
recorded result is run again only if it is named, and an interrupted one is resumed. After each, its result is written
to ``examples/results/`` and the pages that show figures of it are brought up to date.

Examples with missing data are skipped, with a message.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))

from records import DEMO, EXAMPLES, ROOT, examples, record_path
from run_blocks import blocks

from loratory.config import Config
from loratory.metrics import TASKS
from loratory.settings import BUILTINS

RUNS = ROOT / "runs" / "examples"
SMALL_RUNS = ROOT / "runs" / "examples-small"
DATA = ROOT / "runs" / "data"
PAPERS = ROOT / "src" / "loratory" / "builtin"
MBPP = ROOT.parent / "shared" / "data" / "mbpp" / "mbpp.jsonl"
LORATORY = Path(sys.executable).parent / "loratory"
SMALL = ["--data.limit-train", "48", "--data.limit-validation", "16", "--data.limit-test", "24", "--data.folds", "0"]
SMALL += ["--train.epochs", "1", "--overwrite"]


def main() -> None:
    known = examples()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*known, []], metavar="NAME", help=", ".join(known))
    parser.add_argument("--real", action="store_true", help="with the real models and budgets; records the results")
    args = parser.parse_args()
    prepare()
    for name in args.names or known:
        file, is_recorded = known[name], record_path(name).exists()
        missing = missing_data(file)
        if missing:
            print(f"{name}: skipped, {missing} does not exist", flush=True)
        elif args.real and is_recorded and not args.names:
            print(f"{name}: recorded before", flush=True)
        elif args.real:
            report = run(command_of(file, RUNS / name, is_recorded), RUNS / name)
            write_record(name, recorded(report, RUNS / name))
            print(f"{name}: {report['verdict']['sentence']}", flush=True)
        elif file != DEMO:  # it has a command of its own, make demo
            report = run(small_command_of(file, SMALL_RUNS / name), SMALL_RUNS / name)
            print(f"{name}: {report['verdict']['sentence']}", flush=True)


# ---- data ------------------------------------------------------------------------------------------------------------


def prepare() -> None:
    """Creates the data that the repository does not contain."""
    for part in ("train", "test"):
        paths = PAPERS / f"papers-{part}.jsonl", DATA / f"title-choice-{part}.jsonl"
        subprocess.run([sys.executable, EXAMPLES / "title-choice" / "prepare.py", *paths], check=True)
    if MBPP.exists():
        subprocess.run([sys.executable, EXAMPLES / "mbpp" / "prepare.py", MBPP, DATA], check=True)
    page = (ROOT / "docs" / "quick-start.md").read_text(encoding="utf-8")
    first_block = next(code for kind, code, _ in blocks(page) if kind == "sh")  # it writes messages.csv
    subprocess.run(["bash", "-euo", "pipefail", "-c", first_block], cwd=DATA, check=True)


def missing_data(file: Path) -> str | None:
    """The first missing training file of an example, or None."""
    files = Config.load(file).data.train if file.suffix == ".toml" else ()
    return next((path for path in files if not Path(path).exists()), None)


# ---- runs ------------------------------------------------------------------------------------------------------------


def command_of(file: Path, out: Path, overwrite: bool) -> list[str | Path]:
    """The command that runs an example as it stands; ``make demo`` installs no sentence encoder."""
    again = ["--overwrite"] * overwrite + ["--model.encoder", "none"] * (file == DEMO)
    if file.suffix == ".py":
        return [sys.executable, file, *again]
    return [LORATORY, "run", file, "--run.out", out, "--yes", *again]


def small_command_of(file: Path, out: Path) -> list[str | Path]:
    """The command that runs an example on a built-in model with few rows."""
    if file.suffix == ".py":
        return [sys.executable, file, "--small"]
    model = [] if Config.load(file).model.name in BUILTINS else ["--model.name", BUILTINS[0]]
    return [LORATORY, "run", file, "--run.out", out, "--yes", *SMALL, *model]


def run(command: list[str | Path], out: Path) -> dict[str, Any]:
    """Runs a command and returns the report that it wrote to the run directory ``out``."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


# ---- records ---------------------------------------------------------------------------------------------------------


def recorded(report: dict[str, Any], out: Path) -> dict[str, Any]:
    """What the pages show of a run: an extract of its report and of its environment."""
    environment = json.loads((out / "environment.json").read_text(encoding="utf-8"))
    task = TASKS.get(report["task"])  # None: a custom task, which is registered only in its own program
    key = next(iter(report["systems"][0]["metrics"]))
    counts = ("train_examples", "validation_examples", "test_examples", "trainable_parameters", "total_parameters")
    forgetting = report["forgetting"]
    return {
        "model": json.loads((out / "asked.json").read_text(encoding="utf-8"))["model"]["name"],
        "task": report["task"],
        "metric_label": task.metric_label if task else report["metric"],
        "second_metric": task.secondary_metric if task else (key.replace("_", " "), key),
        **{name: report[name] for name in counts},
        "folds": report["folds"]["count"] if report["folds"] else None,
        "systems": {system["name"]: figures(system) for system in report["systems"]},
        "not_measured": report.get("not_measured", []),
        "verdict": report["verdict"]["sentence"],
        **{name: report["verdict"][name] for name in ("before", "after", "helped")},
        "forgetting": {when: round(math.exp(forgetting[when]), 1) for when in ("before", "after")}
        | {"texts": forgetting["texts"], "sentence": forgetting["sentence"]},
        "seconds": {stage: round(value, 1) for stage, value in report["seconds"].items()},
        **{name: environment[name] for name in ("device", "dtype", "threads", "cpu")},
        "versions": {name: environment["versions"][name] for name in ("loratory", "torch", "transformers")},
    }


def figures(system: dict[str, Any]) -> dict[str, float]:
    """The headline metric of a system, its interval, and its other metrics."""
    values = {name: system[name] for name in ("value", "low", "high")} | system["metrics"]
    return {name: round(value, 6) for name, value in values.items() if value is not None}


def write_record(name: str, record: dict[str, Any]) -> None:
    """Writes a record, and all pages that are generated."""
    record_path(name).parent.mkdir(exist_ok=True)
    record_path(name).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    subprocess.run([sys.executable, ROOT / "docs" / "generate.py"], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
