"""How many test examples each system answers correctly, with automatic settings, beside SetFit.

    python benchmarks/accuracy.py --data FOLDER [--only papers titles] [--draws 0 1 2] [--setfit-python PYTHON]

Each line of ``results/accuracy.jsonl`` is one run: Loratory, or with ``--setfit-python`` SetFit with the weights of
all-MiniLM-L6-v2 in ``--setfit-model``, on one draw of the training rows of one data set. What is in the file is not
run again, so that a benchmark that was stopped goes on. ``--table`` prints the results.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import FOLDER, RESULTS, read_lines, run_child, run_json
from data_sets import write

SYSTEMS = ("prompt-choose", "linear", "embed", "encoder", "tuned-choose", "blend")
DELIVERED = "delivered"
SETFIT = "setfit"


@dataclass(frozen=True)
class DataSet:
    """How many rows of a data set are given; Loratory splits validation rows off, SetFit trains on all."""

    source: str
    rows: int
    validation_share: float

    @property
    def name(self) -> str:
        return f"{self.source}-{self.rows}"


DATA = (
    DataSet("tickets", 60, 0.2),
    DataSet("titles", 600, 1 / 6),
    DataSet("papers", 600, 1 / 6),
    DataSet("banking77", 616, 0.2),
    DataSet("banking77", 1500, 0.2),
)


def main() -> None:
    args = arguments()
    if args.table:
        print(table(read_lines(args.out)))
        return
    known = {key(record) for record in read_lines(args.out)}
    kind = SETFIT if args.setfit_python else args.model
    for draw in args.draws:
        for data in DATA:
            if (args.only and data.name not in args.only) or (kind, data.name, draw) in known:
                continue
            record = {"model": kind, "data": data.name, "draw": draw} | measure(data, draw, args)
            with args.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            print(summary(record), file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with arxiv/ and banking77/")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--only", nargs="+", choices=[data.name for data in DATA])
    parser.add_argument("--draws", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS / "accuracy.jsonl")
    parser.add_argument("--keep", type=Path, help="keep the run directories in this folder")
    parser.add_argument("--setfit-python", type=Path, help="the Python of an environment with SetFit")
    parser.add_argument("--setfit-model", type=Path, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--table", action="store_true")
    return parser.parse_args()


def key(record: dict[str, Any]) -> tuple[str, str, int]:
    return record["model"], record["data"], record["draw"]


def measure(data: DataSet, draw: int, args: argparse.Namespace) -> dict[str, Any]:
    """Runs one of the two on one draw."""
    with tempfile.TemporaryDirectory(prefix="accuracy-") as name:
        folder = Path(name)
        train, test = write(folder, data.source, data.rows, draw, args.data)
        if args.setfit_python:
            script = FOLDER / "peer_setfit.py"
            iterations = 20 if data.rows <= 100 else 5  # 20 would take an hour or more on the larger ones
            options = ["--model", args.setfit_model, "--seed", str(draw), "--iterations", str(iterations)]
            return run_json([args.setfit_python, script, *options, train, test])
        run = (args.keep or folder) / f"{data.name}-{draw}"
        shutil.rmtree(run, ignore_errors=True)
        task = folder / "task.toml"
        task.write_text(task_file(data, draw, train, test, run, args.model), encoding="utf-8")
        child = run_child([sys.executable, "-m", "loratory.cli", "run", task])
        if child.code != 0:
            raise SystemExit(f"loratory run ended with exit code {child.code}")
        return results(run) | {"wall_seconds": child.seconds, "peak_memory_bytes": child.peak_memory_bytes}


def task_file(data: DataSet, draw: int, train: Path, test: Path, run: Path, model: str) -> str:
    """The task file of a run: everything that is not about the data is automatic."""
    return f"""\
[model]
name = {json.dumps(model)}
[data]
train = {json.dumps(str(train))}
test = {json.dumps(str(test))}
answer = "label"
validation_share = {data.validation_share}
[prompt]
system = "Sort the text into one of: {{labels}}."
user = "{{text}}"
[train]
seed = {draw}
[run]
out = {json.dumps(str(run))}
systems = {json.dumps(SYSTEMS)}
"""


def results(run: Path) -> dict[str, Any]:
    """Accuracy by system, the right answers of each as text of 0 and 1, and the seconds of each phase."""
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    return {
        "accuracy": {system["name"]: system["value"] for system in report["systems"]},
        "validation": {system["name"]: system["validation_value"] for system in report["systems"]},
        "delivered": report["verdict"]["delivered"],
        "right": {
            name: "".join(
                str(int(row["answer"] == row["expected"])) for row in read_lines(run / "predictions" / f"{name}.jsonl")
            )
            for name in SYSTEMS
        },
        "seconds": report["seconds"],
    }


def summary(record: dict[str, Any]) -> str:
    values = "  ".join(f"{name} {100 * value:.1f}" for name, value in record["accuracy"].items())
    return f"{record['model']} {record['data']} {record['draw']}: {values}  {record['wall_seconds']:.0f} s"


def table(records: list[dict[str, Any]]) -> str:
    """The mean accuracy over the draws by data set and system, in percent."""
    values: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        accuracy = dict(record["accuracy"])
        if "delivered" in record:
            accuracy[DELIVERED] = accuracy[record["delivered"]]
        for name, value in accuracy.items():
            values[record["data"], "" if record["model"] == SETFIT else record["model"]][name].append(100 * value)
    columns = (*SYSTEMS, DELIVERED, SETFIT)
    lines = [f"| data | draws | {' | '.join(columns)} |", f"| --- | --- |{' --- |' * len(columns)}"]
    for (data, model), by_system in values.items():
        if not model:
            continue
        by_system |= values.get((data, ""), {})
        cells = [f"{statistics.mean(by_system[c]):.1f}" if by_system.get(c) else "" for c in columns]
        lines.append(f"| {data} ({model}) | {len(by_system['linear'])} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
