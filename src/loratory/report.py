"""A run directory becomes report.json, report.html and a table for the terminal. Nothing is computed but statistics."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from loratory import charts, metrics, significance
from loratory.charts import duration, p_number, p_text, percent, points, short, size
from loratory.errors import UserError
from loratory.runs import read_metrics, write_text

PROMPTING = ("prompt", "prompt-choose", "few-shot", "few-shot-choose")
REFERENCES = ("linear", "embed")
TUNED = ("tuned", "tuned-choose")
SYSTEMS = PROMPTING + REFERENCES + TUNED
KINDS = {
    **dict.fromkeys(PROMPTING, "prompting"),
    **dict.fromkeys(REFERENCES, "reference"),
    **dict.fromkeys(TUNED, "tuned"),
}
STAGES = ("load", "check", "baselines", "train", "evaluate")
SIGNIFICANT = 0.05
EXAMPLES_SHOWN = 8
LABEL_ROWS_SHOWN = 200

Report = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """One system: what was noted about it, and its predictions (lines of the contract); validation may be empty."""

    name: str
    facts: dict[str, Any]
    test: list[dict[str, Any]]
    validation: list[dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """What a run directory says, as read from its files."""

    folder: Path
    config: str
    environment: dict[str, Any]
    data: dict[str, Any]
    events: list[dict[str, Any]]
    systems: dict[str, Measured]


def build_report(run: Path) -> Report:
    """The report of a run directory, as report.schema.json describes it.

    Raises UserError if the folder lacks its files, holds no measured system, or systems of different test examples.
    """
    return _build(_read_run(run))


def write_report(run: Path) -> Report:
    """Writes report.json and report.html into the run directory, each whole or not at all; returns the report.

    Raises UserError like ``build_report``.
    """
    found = _read_run(run)
    report = _build(found)
    # report.json comes last: where it is, the run is finished.
    write_text(run / "report.html", _page(found, report))
    write_text(run / "report.json", json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return report


def render_table(report: Report) -> Group:
    """The report for a terminal (rich), at most 80 columns wide but for notes: the verdict, systems, comparisons."""
    systems = _table(["system"], ["accuracy", "95 % interval", "validation", "macro-F1", "time each"])
    chosen = {report["verdict"]["before"], report["verdict"]["after"]}
    for s in report["systems"]:
        validation = "–" if s["validation_value"] is None else percent(s["validation_value"])
        interval = f"{100 * s['low']:.1f} to {100 * s['high']:.1f}"
        row = (s["name"], percent(s["value"]), interval, validation, f"{s['metrics']['macro_f1']:.3f}")
        systems.add_row(*row, duration(s["seconds_per_example"]), style="bold" if s["name"] in chosen else "")
    # Text, not str: rich would read [square brackets] in a note as its markup.
    notes = [Text(f"{s['name']}: {s['note']}", style="dim") for s in report["systems"] if s["note"]]
    compared = _table(["from", "to"], ["points", "95 % interval", "p (Holm)"])
    for c in report["comparisons"]:
        interval = f"{100 * c['low']:+.1f} to {100 * c['high']:+.1f}"
        compared.add_row(c["a"], c["b"], points(c["difference"]), interval, p_number(c["p_value"]))
    blocks = [[Text(report["verdict"]["sentence"], style="bold")], [systems, *notes]]
    blocks += [[compared]] if report["comparisons"] else []
    return Group(*(line for block in blocks for line in (*block, "")))


def _table(words: list[str], numbers: list[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for heading in words + numbers:
        table.add_column(heading, justify="right" if heading in numbers else "left", no_wrap=True)
    return table


# Reading


def _read_run(folder: Path) -> Run:
    names = [name for name in SYSTEMS if (folder / "systems" / f"{name}.json").exists()]
    if not names:
        fix = "let the run finish: repeat the command that started it"
        raise UserError("No system was measured in this run", str(folder), expected="systems/<name>.json", fix=fix)
    systems = {name: _read_system(folder, name) for name in names}
    expected = [[line["expected"] for line in system.test] for system in systems.values()]
    if not expected[0] or any(answers != expected[0] for answers in expected):
        raise UserError("The systems were not measured on the same test examples", str(folder / "predictions"))
    config = folder / "config.toml"
    return Run(
        folder=folder,
        config=config.read_text(encoding="utf-8") if config.exists() else "",
        environment=json.loads(_read_text(folder / "environment.json")),
        data=json.loads(_read_text(folder / "data.json")),
        events=read_metrics(folder),
        systems=systems,
    )


def _read_system(folder: Path, name: str) -> Measured:
    validation = folder / "predictions" / "validation" / f"{name}.jsonl"
    return Measured(
        name=name,
        facts=json.loads(_read_text(folder / "systems" / f"{name}.json")),
        test=_read_lines(folder / "predictions" / f"{name}.jsonl"),
        validation=_read_lines(validation) if validation.exists() else [],
    )


def _read_text(path: Path) -> str:
    if not path.exists():
        raise UserError("A file of the run is missing", str(path), fix="let the run finish, or start it anew")
    return path.read_text(encoding="utf-8")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    # Not splitlines(): JSON may hold U+2028 and its like unescaped inside a string.
    return [json.loads(line) for line in _read_text(path).split("\n") if line]


def _named(run: Run, event: str) -> list[dict[str, Any]]:
    return [e for e in run.events if e["event"] == event]


# The report


def _build(run: Run) -> Report:
    systems = [_describe_system(system, run.data["labels"]) for system in run.systems.values()]
    before, after = _choose(systems)
    comparisons = _compare(run, before, after)
    trained = (_named(run, "trained") or [{}])[-1]
    seconds = {name: sum(e["seconds"] for e in _named(run, "stage") if e["name"] == name) for name in STAGES}
    return {
        "task": run.data["task"],
        "model": run.environment["model"],
        "metric": "accuracy",
        "train_examples": run.data["train_examples"],
        "validation_examples": run.data["validation_examples"],
        "test_examples": run.data["test_examples"],
        "trainable_parameters": trained.get("trainable_parameters", 0),
        "total_parameters": trained.get("total_parameters", 0),
        "labels": run.data["labels"],
        "systems": systems,
        "comparisons": comparisons,
        "verdict": _verdict(systems, comparisons, before, after, run.data["test_examples"]),
        "seconds": {**seconds, "total": sum(seconds.values())},
        "peak_memory_bytes": max((e["peak_memory_bytes"] for e in _named(run, "memory")), default=0),
        "train_tokens_per_second": trained.get("tokens_per_second"),
        "data_checks": run.data["checks"],
        "forgetting": None,
    }


def _parsed(system: Measured, labels: Sequence[str]) -> list[str | None]:
    answers = (line["answer"] for line in system.test)
    return [None if answer is None else metrics.parse_label(answer, labels) for answer in answers]


def _right(lines: Sequence[dict[str, Any]]) -> np.ndarray:
    return np.array([line["correct"] for line in lines], dtype=bool)


def _describe_system(system: Measured, labels: Sequence[str]) -> dict[str, Any]:
    right, total = int(_right(system.test).sum()), len(system.test)
    low, high = significance.wilson_interval(right, total)
    expected, answers = [line["expected"] for line in system.test], _parsed(system, labels)
    others = metrics.classification_metrics(expected, answers, labels, [line["probabilities"] for line in system.test])
    return {
        "name": system.name,
        "value": right / total,
        "low": low,
        "high": high,
        "validation_value": float(_right(system.validation).mean()) if system.validation else None,
        "metrics": {name: value for name, value in others.items() if name != "accuracy"},
        "per_label": metrics.per_label(expected, answers, labels),
        "note": system.facts["note"],
        "rule": system.facts["rule"],
        "seconds": system.facts["seconds"],
        "seconds_per_example": system.facts["seconds_per_example"],
    }


def _choose(systems: list[dict[str, Any]]) -> tuple[str, str]:
    """Names of "before" and "after": the best on validation of either kind, the first on ties.

    A kind that was not measured takes the other's name; the first system stands for both if neither was.
    """

    def best(kind: tuple[str, ...]) -> str | None:
        scores = {s["name"]: -1.0 if s["validation_value"] is None else s["validation_value"] for s in systems}
        return max((name for name in scores if name in kind), key=lambda name: scores[name], default=None)

    before, after = best(PROMPTING), best(TUNED)
    return before or after or systems[0]["name"], after or before or systems[0]["name"]


def _compare(run: Run, before: str, after: str) -> list[dict[str, Any]]:
    """What "after" is held against, on the same test examples; nothing if nothing was tuned."""
    if after not in TUNED:
        return []
    right = {name: _right(system.test) for name, system in run.systems.items()}
    comparisons = []
    for other in (before, *REFERENCES):
        if other == after or other not in right:
            continue
        only_a = int((right[other] & ~right[after]).sum())
        only_b = int((right[after] & ~right[other]).sum())
        low, high = significance.paired_difference_interval(only_a, only_b, len(right[after]))
        comparisons.append({
            "a": other, "b": after, "only_a": only_a, "only_b": only_b,
            "difference": (only_b - only_a) / len(right[after]), "low": low, "high": high,
        })  # fmt: skip
    adjusted = significance.holm([significance.mcnemar_exact(c["only_a"], c["only_b"]) for c in comparisons])
    return [{**c, "p_value": p} for c, p in zip(comparisons, adjusted, strict=True)]


# The verdict


def _verdict(systems: list[dict], comparisons: list[dict], before: str, after: str, total: int) -> dict[str, Any]:
    by_name = {s["name"]: s for s in systems}
    by_other = {c["a"]: c for c in comparisons}
    prompting, linear = by_other.get(before), by_other.get("linear")
    if after not in TUNED:
        best = max(systems, key=lambda s: s["value"])
        sentence = f"Nothing was tuned yet: {best['name']} has the most right so far, {percent(best['value'])} of"
        sentence += f" {total} test examples."
    else:
        if prompting is None:
            sentence = "No baseline was measured, so there is no before to compare with: the tuned model has"
            sentence += f" {percent(by_name[after]['value'])} of {total} test examples right"
        else:
            sentence = _against_prompting(prompting, by_name, total)
        helped = prompting is not None and _is_above(prompting)
        sentence += _against_linear(linear, by_name["linear"], helped) + "." if linear else "."
    return {
        "before": before,
        "after": after,
        "helped": prompting is not None and _is_above(prompting),
        "beats_linear": None if linear is None else _is_above(linear),
        "sentence": sentence,
    }


def _is_above(comparison: dict[str, Any]) -> bool:
    return comparison["difference"] > 0 and comparison["p_value"] < SIGNIFICANT


def _against_prompting(c: dict[str, Any], by_name: dict[str, dict], total: int) -> str:
    values = f"{percent(by_name[c['b']]['value'])} against {percent(by_name[c['a']]['value'])} for the best prompting"
    values += f" ({c['a']}) on {total} test examples"
    if _is_above(c):
        return f"Tuning helped: {values} ({p_text(c['p_value'])})"
    if c["p_value"] < SIGNIFICANT:
        return f"Tuning did not help, it made the answers worse: {values} ({p_text(c['p_value'])})"
    return f"Tuning did not help: {values}, no measurable difference ({p_text(c['p_value'])})"


def _against_linear(c: dict[str, Any], linear: dict[str, Any], helped: bool) -> str:
    """The clause about the linear model, which anyone should use where tuning is not above it."""
    value, p = percent(linear["value"]), p_text(c["p_value"])
    trains = "trains in seconds" if linear["seconds"] < 60 else f"takes {duration(linear['seconds'])}"
    if _is_above(c):
        return f", {'and' if helped else 'but'} the tuned model is above a linear model's {value} ({p})"
    if c["p_value"] < SIGNIFICANT:
        return f", {'but' if helped else 'and'} a linear model reaches {value} ({p}) and {trains}"
    return f", {'but' if helped else 'and'} a linear model reaches {value} and {trains}: no measurable difference ({p})"


# The page


def _page(run: Run, report: Report) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {f.__name__: f for f in (percent, points, p_number, p_text, duration, size, short)}
    environment.filters |= {"count": "{:,}".format, "kind_of": KINDS.__getitem__}
    template = environment.from_string(files("loratory").joinpath("report_template.html").read_text(encoding="utf-8"))
    before, after = (run.systems[report["verdict"][role]] for role in ("before", "after"))
    systems = {s["name"]: s for s in report["systems"]}
    return template.render(
        report=report,
        run=run,
        systems=systems,
        before=systems[before.name],
        after=systems[after.name],
        tuned=after.name in TUNED,
        adapter_exists=(run.folder / "adapter" / "adapter_config.json").exists(),
        loss=charts.loss_chart(*_losses(run)),
        label_rows=_label_rows(systems[before.name], systems[after.name]),
        label_rows_shown=LABEL_ROWS_SHOWN,
        changed=_changed(run, before, after),
        **_confusion(before, after, run.data["labels"]),
    )


def _losses(run: Run) -> tuple[charts.Points, charts.Points]:
    """``(step, loss)`` in training and on validation, of the trial that was chosen, or else of the last one.

    A resumed run repeats the steps since its checkpoint: of each step, the last line counts.
    """
    chosen = [e["trial"] for e in _named(run, "trial") if e["chosen"]] or [e["trial"] for e in _named(run, "step")]

    def pairs(event: str) -> charts.Points:
        return sorted({e["step"]: e["loss"] for e in _named(run, event) if e["trial"] == chosen[-1]}.items())

    return (pairs("step"), pairs("validation")) if chosen else ([], [])


def _label_rows(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, dict, dict]]:
    """Label, its metrics before and after; the weakest labels after tuning first."""
    rows = [(label, before["per_label"][label], values) for label, values in after["per_label"].items()]
    return sorted(rows, key=lambda row: (row[2]["support"] == 0, row[2]["f1"]))


def _confusion(before: Measured, after: Measured, labels: Sequence[str]) -> dict[str, Any]:
    systems = [before] if before.name == after.name else [before, after]
    counts = [metrics.confusion([line["expected"] for line in s.test], _parsed(s, labels), labels) for s in systems]
    shown = charts.labels_to_show(counts)
    grids = [(s.name, charts.confusion_grid(c, labels, shown)) for s, c in zip(systems, counts, strict=True)]
    return {"grids": grids, "labels_shown": len(shown)}


def _changed(run: Run, before: Measured, after: Measured) -> list[tuple[str, str, int, list[dict[str, Any]]]]:
    """Test examples by what tuning did to them: heading, what that means, how many, and the first few of them."""
    prompts = run.data.get("test_prompts")
    right_before, right_after = _right(before.test), _right(after.test)
    groups = []
    for heading, meaning, members in (
        ("Fixed", "wrong before, right after", ~right_before & right_after),
        ("Broken", "right before, wrong after", right_before & ~right_after),
        ("Still wrong", "wrong before and after", ~right_before & ~right_after),
    ):
        positions = np.flatnonzero(members)
        examples = [
            {"prompt": prompts[i] if prompts else None, "before": before.test[i], "after": after.test[i]}
            for i in positions[:EXAMPLES_SHOWN].tolist()
        ]
        groups.append((heading, meaning, len(positions), examples))
    return groups
