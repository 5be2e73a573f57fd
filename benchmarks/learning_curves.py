"""Accuracy of the classifiers that need no tuning, by the number of training rows, beside what the sweep tuned.

    python benchmarks/learning_curves.py --data FOLDER [--encoder minilm] [--picture FILE.svg]

Writes ``results/learning-curves.json``: for each data set of ``data_sets.py`` and each number of rows, the accuracy of
three draws of ``linear`` and ``encoder``, all rows for training. The picture adds the tuned model, for which up to a
fifth of the rows is validation: from ``results/sweep.jsonl`` the trainings with the automatic number of steps, at the
automatic learning rate where that was run and else at a third of it, and the mean of the draws in
``results/accuracy.jsonl``.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import FOLDER, RESULTS, provenance, read_lines, save
from data_sets import DATA_SETS, write

from loratory.data import Example, load_split
from loratory.evaluation.baselines import FittedClassifier, encoder_classifier, linear_classifier
from loratory.events import ProgressCallback, ignore_progress
from loratory.machine import resolve_machine
from loratory.models import Encoder, load_encoder
from loratory.settings import DataConfig, PromptConfig

SIZES = (60, 120, 250, 500, 1000, 2000)
DRAWS = (0, 1, 2)
AUTOMATIC = {"steps": 120, "batch_size": 16, "rank": 8}
RATES = (4e-4, 1.3e-3)  # the automatic one last
NAMES = ("tickets", "titles", "sentences", "questions", "papers")
COLORS = {"linear": "#7a8694", "encoder": "#2a78b8", "tuned": "#c8553d"}


@dataclasses.dataclass(frozen=True)
class Remembering(Encoder):
    """An encoder that encodes every text once."""

    known: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def encode(self, texts: Sequence[str], progress: ProgressCallback) -> np.ndarray:
        if new := [text for text in dict.fromkeys(texts) if text not in self.known]:
            self.known.update(zip(new, super().encode(new, progress), strict=True))
        return np.stack([self.known[text] for text in texts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with arxiv/ and banking77/")
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--out", type=Path, default=RESULTS / "learning-curves.json")
    parser.add_argument("--picture", type=Path, default=FOLDER.parent / "docs" / "img" / "learning-curves.svg")
    args = parser.parse_args()
    if args.out.exists():
        result = json.loads(args.out.read_text(encoding="utf-8"))
    else:
        encoder = load_encoder(args.encoder, resolve_machine("cpu", "float32", 0))
        fields = {field.name: getattr(encoder, field.name) for field in dataclasses.fields(encoder)}
        encoder = Remembering(**fields)
        curves = {name: curve(name, args.data, encoder) for name in NAMES}
        result = {**provenance("learning-curves"), "encoder": args.encoder, "curves": curves}
        save(result, args.out)
    draw(result["curves"], tuned_curves(), args.picture)


def curve(name: str, data: Path, encoder: Encoder) -> dict[str, dict[str, list[float]]]:
    """The accuracy of each draw, by system and number of rows."""
    rows = DATA_SETS[name](data)
    found: dict[str, dict[str, list[float]]] = {"linear": {}, "encoder": {}}
    with tempfile.TemporaryDirectory() as folder:
        for size in (size for size in SIZES if size <= len(rows.pool)):
            for seed in DRAWS:
                train, test = write(Path(folder), name, size, seed, data)
                config = DataConfig((str(train),), (), (str(test),), "label", validation_share=0.0)
                split = load_split(config, PromptConfig(user="{text}"), seed)
                for system in found:
                    fitted = fit(system, split.train, seed, encoder)
                    value = accuracy(fitted, split.test)
                    found[system].setdefault(str(size), []).append(value)
                    print(f"{name} {size} draw {seed} {system}: {100 * value:.1f} %", file=sys.stderr, flush=True)
    return found


def fit(system: str, train: Sequence[Example], seed: int, encoder: Encoder) -> FittedClassifier:
    if system == "linear":
        return linear_classifier(train, seed)
    return encoder_classifier(encoder, train, seed, ignore_progress)


def accuracy(fitted: FittedClassifier, test: Sequence[Example]) -> float:
    rows = fitted.classify(test, ignore_progress)
    answers = [max(row, key=lambda label: row[label]) for row in rows]
    return statistics.mean(answer == example.answer for answer, example in zip(answers, test, strict=True))


def tuned_curves() -> dict[str, dict[int, float]]:
    """The accuracy of the tuned model, by data set and number of rows."""
    curves: dict[str, dict[int, float]] = {}
    sweep = read_lines(RESULTS / "sweep.jsonl")
    for rate in RATES:
        for record in (r for r in sweep if r["settings"] == {"learning_rate": rate, **AUTOMATIC}):
            curves.setdefault(record["data"], {})[record["size"]] = record["accuracy"]["test"]
    draws: dict[tuple[str, int], list[float]] = {}
    for record in read_lines(RESULTS / "accuracy.jsonl"):
        if "tuned-choose" in record["accuracy"]:
            name, _, size = record["data"].rpartition("-")
            draws.setdefault((name, int(size)), []).append(record["accuracy"]["tuned-choose"])
    for (name, size), values in draws.items():
        curves.setdefault(name, {})[size] = statistics.mean(values)
    return curves


def draw(curves: dict[str, Any], tuned: dict[str, dict[int, float]], path: Path) -> None:
    """One panel for each data set."""
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    style = {"svg.fonttype": "none", "svg.hashsalt": "loratory", "font.size": 10, "axes.spines.top": False,
             "axes.spines.right": False}  # fmt: skip
    with plt.rc_context(style):
        figure, panels = plt.subplots(1, len(curves), figsize=(3 * len(curves), 3.2), layout="constrained", sharey=True)
        for (name, systems), axes in zip(curves.items(), panels, strict=True):
            for system, values in systems.items():
                sizes = [int(size) for size in values]
                means = [100 * statistics.mean(values[str(size)]) for size in sizes]
                axes.plot(sizes, means, "o-", color=COLORS[system], label=system, markersize=4)
            points = sorted(tuned.get(name, {}).items())
            if points:
                axes.plot(*zip(*((n, 100 * v) for n, v in points), strict=True), "s-", color=COLORS["tuned"],
                          label="tuned", markersize=5)  # fmt: skip
            axes.set(title=name, xscale="log", xlabel="rows", ylim=(20, 100))
            axes.xaxis.set_major_locator(FixedLocator(SIZES))
            axes.xaxis.set_major_formatter(FixedFormatter([f"{size}" for size in SIZES]))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.tick_params(axis="x", labelrotation=60)
            axes.grid(axis="y", color="#e3e6ea")
        panels[0].set_ylabel("test accuracy in %")
        handles = {
            label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    main()
