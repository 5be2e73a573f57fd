"""Defines a custom task: the answer is a number, and a near miss gets a partial score.

    python examples/number/run.py [--small] [--overwrite]

The model counts the sentences of an abstract. The papers are fictional and come with the package. ``--small`` takes few
rows and the built-in model. An interrupted run is resumed, and ``--overwrite`` starts anew.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import loratory
from loratory.config import config_from_dict
from loratory.metrics import TASKS, Lines, Task
from loratory.models import builtin_folder
from loratory.settings import SYSTEMS

OUT = Path(__file__).parents[2] / "runs"


def closeness(line: Mapping[str, Any], answers: Sequence[str]) -> float:
    """1 for the right number, 1/2 if it is off by one, 1/3 if it is off by two, and so on; 0 without a number."""
    number = re.search(r"\d+", line["answer"])
    return 1 / (1 + abs(int(number[0]) - int(answers[0]))) if number else 0.0


def exactly_right(lines: Lines, labels: Sequence[str]) -> dict[str, float]:
    """The share of answers that equal the expected number."""
    return {"right": sum(line["answer"] == line["expected"] for line in lines) / len(lines)}


# How an answer is scored, what the report shows next to the score, and which systems are compared.
TASKS["number"] = Task(
    metric="closeness",
    metric_label="closeness",
    score=closeness,
    is_binary=False,
    extra_metrics=exactly_right,
    secondary_metric=("exactly right", "right"),
    headline_name="closeness",
    format_value=lambda system: f"{system['value']:.2f}",
)
SYSTEMS["number"] = ("prompt", "few-shot", "tuned")


def main() -> None:
    small = "--small" in sys.argv
    for part in ("train", "test"):
        write(builtin_folder().parent / f"papers-{part}.jsonl", OUT / "data" / f"sentences-{part}.jsonl")
    config = {
        "task": "number",
        "model": {"name": "builtin" if small else "smollm2-135m"},
        "data": {
            "train": [str(OUT / "data" / "sentences-train.jsonl")],
            "test": [str(OUT / "data" / "sentences-test.jsonl")],
            "answer": "sentences",
            **({"limit_train": 48, "limit_test": 24} if small else {"limit_train": 300}),
        },
        "prompt": {"user": "How many sentences has this text? Answer with a number.\n\n{abstract}"},
        "train": {"epochs": 1 if small else 4, "batch_size": 8},
        "run": {"out": str(OUT / ("examples-small" if small else "examples") / "number")},
    }
    run = loratory.finetune(config_from_dict(config, __file__), overwrite=small or "--overwrite" in sys.argv)
    print(json.loads((run / "report.json").read_text())["verdict"]["sentence"])


def write(papers: Path, out: Path) -> None:
    """Writes the abstracts, each with its number of sentences."""
    abstracts = [json.loads(line)["abstract"] for line in papers.read_text(encoding="utf-8").splitlines()]
    rows = [{"abstract": text, "sentences": str(len(re.findall(r"[.?!](\s|$)", text)))} for text in abstracts]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
