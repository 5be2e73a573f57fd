"""The report as a self-contained HTML page."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from loratory.metrics import (
    confusion,
    duration,
    interval,
    label_indices,
    macro_f1_p_value,
    non_breaking,
    p_number,
    p_text,
    percent,
    points,
    points_interval,
    short,
    size,
    spread,
)
from loratory.report.advice import suggestions
from loratory.report.charts import LossChart, confusion_grid, labels_to_show, loss_chart
from loratory.report.reading import Report, Run, SystemResults, events_named, learning_curve, read_run, task_of, trials
from loratory.report.report import describe
from loratory.report.results import parsed_answers, scores_of
from loratory.report.terminal import DEMONSTRATION
from loratory.report.verdict import STATES, best_simple
from loratory.settings import BLEND, PROMPTING, REFERENCES, TUNED
from loratory.storage import write_text

# The kinds of systems: CSS class, systems, heading. MEANINGS: one phrase for each system.
KINDS = (
    ("prompting", PROMPTING, "Base model, prompted"),
    ("reference", REFERENCES, "Simple baselines"),
    ("tuned", TUNED, "Tuned model"),
    ("blend", (BLEND,), "All together"),
)
MEANINGS = {
    "prompt": "free-form answer", "prompt-choose": "most probable choice",
    "few-shot": "solved examples in the prompt", "few-shot-choose": "solved examples, most probable choice",
    "linear": "TF-IDF features", "embed": "hidden states of the base model", "copy": "copies from the text",
    "encoder": "vectors of a sentence encoder", "blend": "weighted probabilities of the systems above",
    "tuned": "free-form answer", "tuned-choose": "most probable choice",
}  # fmt: skip
RULES = {
    "sum": "the most probable label",
    "mean": "the label with the highest mean log-probability per token, which does not favor short labels",
    "prior": "the label whose log-probability most exceeds its mean over other prompts",
}
# Display names of metrics that cannot be derived from their keys.
METRIC_NAMES = {"micro_f1": "Micro-F1", "macro_f1": "Macro-F1", "mrr": "MRR", "chrf": "chrF", "rougeL": "ROUGE-L"}
EXAMPLES_SHOWN = 8
LABEL_ROWS_SHOWN = 200
LIKELIEST_SHOWN = 3
RENDERED_SHOWN = 2
TOKENS_SHOWN = 800


def write_report(run: Path) -> Report:
    """Writes report.html and report.json atomically into the run directory; returns the report.

    Raises UserError like ``build_report``.
    """
    results = read_run(run)
    report = describe(results)
    write_text(run / "report.html", _page(results, report))
    write_text(run / "report.json", json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return report


@functools.cache
def page_environment() -> jinja2.Environment:
    """The Jinja environment of the HTML pages: templates, filters and globals. All text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    formatters = (percent, points, p_number, p_text, duration, interval, points_interval, spread)
    environment.filters |= {f.__name__: f for f in (*formatters, short, size, non_breaking, metric_name)}
    environment.filters |= {"count": "{:,}".format}
    environment.globals |= {"meanings": MEANINGS, "rules": RULES, "most_likely": most_likely}
    return environment


def _page(run: Run, report: Report) -> str:
    before, after = (run.systems[report["verdict"][role]] for role in ("before", "after"))
    systems = {s["name"]: s for s in report["systems"]}
    single, two = bool(systems[after.name]["per_label"]), before.name != after.name
    simple = best_simple(report["systems"], report["comparisons"])
    return (
        page_environment()
        .get_template("report.html")
        .render(
            report=report,
            run=run,
            kinds=[(kind, title, [systems[n] for n in names if n in systems]) for kind, names, title in KINDS],
            before=systems[before.name],
            after=systems[after.name],
            simple=systems[simple] if simple else None,
            two=two,
            tuned=after.name in TUNED,
            warnings=[event["message"] for event in events_named(run, "warning")],
            demonstration=DEMONSTRATION,
            states=STATES,
            suggestions=suggestions(run, report),
            task=task_of(run),
            level=_chance_level(systems[after.name], after),
            repeats=report["folds"]["values"]
            if report["folds"]
            else {s["name"]: s["values"] for s in report["seeds"] or ()},
            adapter_exists=(run.folder / "adapter" / "adapter_config.json").exists(),
            trials=trials(run),
            single=single,
            macro_f1_p=_macro_f1_test(run, before, after) if single and two else None,
            loss=_loss_chart(run),
            label_rows=_label_rows(systems[before.name], systems[after.name]) if single else [],
            label_rows_shown=LABEL_ROWS_SHOWN,
            changed=changed_examples(before, after, run.data.get("test_prompts")),
            rendered=[(r["source"], _cut_tokens(r["tokens"])) for r in run.data.get("rendered", ())[:RENDERED_SHOWN]],
            estimated=(events_named(run, "estimate") or [{"stages": {}}])[-1]["stages"],
            **(_confusion(before, after, run.data["labels"]) if single else {"grids": [], "labels_shown": 0}),
        )
    )


def _chance_level(described: dict[str, Any], system: SystemResults) -> tuple[str, float] | None:
    """The name and value of the trivial baseline, majority class or random choice; None for free-form answers."""
    if described["per_label"]:
        most = max(values["support"] for values in described["per_label"].values())
        return "majority class", most / len(system.test)
    chances = [1 / len(line["probabilities"]) for line in system.test if line["probabilities"]]
    return ("random choice", float(np.mean(chances))) if chances else None


def _loss_chart(run: Run) -> LossChart | None:
    curve = learning_curve(run)
    return loss_chart(curve.training, curve.validation, curve.trial.get("best_step")) if curve else None


def _macro_f1_test(run: Run, before: SystemResults, after: SystemResults) -> float:
    """The p-value of the difference in macro-F1 between two systems."""
    labels = run.data["labels"]
    expected = label_indices([line["expected"] for line in after.test], labels)
    a, b = (label_indices(parsed_answers(system, labels), labels) for system in (before, after))
    return macro_f1_p_value(expected, a, b, len(labels))


def _cut_tokens(tokens: list[list[Any]]) -> list[list[Any]]:
    """The tokens, with the middle of a long text replaced by a note on its length; the note has None as its flag."""
    left_out = len(tokens) - TOKENS_SHOWN
    if left_out <= 0:
        return tokens
    half = TOKENS_SHOWN // 2
    return [*tokens[:half], [f"{left_out} tokens not shown", None], *tokens[-half:]]


def _label_rows(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, dict, dict]]:
    """Each label with its metrics before and after, sorted by F1 after tuning, lowest first."""
    rows = [(label, before["per_label"][label], values) for label, values in after["per_label"].items()]
    return sorted(rows, key=lambda row: (row[2]["support"] == 0, row[2]["f1"]))


def _confusion(before: SystemResults, after: SystemResults, labels: Sequence[str]) -> dict[str, Any]:
    systems = [before] if before.name == after.name else [before, after]
    counts = [confusion([line["expected"] for line in s.test], parsed_answers(s, labels), labels) for s in systems]
    shown = labels_to_show(counts)
    grids = [(s.name, confusion_grid(c, labels, shown)) for s, c in zip(systems, counts, strict=True)]
    return {"grids": grids, "labels_shown": len(shown)}


def changed_examples(a: SystemResults, b: SystemResults, prompts: list[str] | None) -> dict[str, dict[str, Any]]:
    """Test examples grouped by which system scores higher: the size of each group and its first examples.

    ``only_b`` and ``only_a``: b or a scores higher; largest difference first. ``neither``: equal scores below 1.
    """
    scores_a, scores_b = scores_of(a.test), scores_of(b.test)
    gain, groups = scores_b - scores_a, {}
    members = {"only_b": gain > 0, "only_a": gain < 0, "neither": (gain == 0) & (scores_b < 1)}
    for name, selected in members.items():
        positions = sorted(np.flatnonzero(selected).tolist(), key=lambda i: -abs(gain[i]))
        examples = [
            {"number": i + 1, "prompt": prompts[i] if prompts else None, "a": a.test[i], "b": b.test[i]}
            for i in positions[:EXAMPLES_SHOWN]
        ]
        groups[name] = {"total": len(positions), "examples": examples}
    return groups


def metric_name(key: str) -> str:
    """The display name of a metric."""
    return METRIC_NAMES.get(key, key.replace("_", " ").capitalize())


def most_likely(line: dict[str, Any]) -> list[tuple[str, float]]:
    """The most probable labels of a prediction with their probabilities; includes the answer and the expected label."""
    probabilities = line["probabilities"] or {}
    ranked = sorted(probabilities, key=lambda label: -probabilities[label])
    included = {*ranked[:LIKELIEST_SHOWN], line["answer"], line["expected"]}
    return [(label, probabilities[label]) for label in ranked if label in included]
