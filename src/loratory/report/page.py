"""The report as a self-contained page."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from loratory.config import PROMPTING, TUNED
from loratory.metrics import (
    confusion,
    duration,
    interval,
    p_number,
    p_text,
    percent,
    points,
    points_interval,
    short,
    size,
    spread,
    unbroken,
)
from loratory.report.charts import LossChart, Points, confusion_grid, labels_to_show, loss_chart
from loratory.report.reading import REFERENCES, Report, Run, SystemResults, events_named, read_run, task_of
from loratory.report.report import describe
from loratory.report.results import _scores, parsed_answers
from loratory.report.terminal import DEMONSTRATION
from loratory.storage import write_text

# Kind, its systems, and what they are; then what each does.
KINDS = (
    ("prompting", PROMPTING, "The model as it came, prompted"),
    ("reference", REFERENCES, "Without a language model's answers, as a yardstick"),
    ("tuned", TUNED, "The tuned model"),
)
MEANINGS = {
    "prompt": "answers freely", "prompt-choose": "chooses by probability",
    "few-shot": "solved examples in the prompt", "few-shot-choose": "solved examples, then choosing",
    "linear": "on the words", "embed": "on the untouched model's states", "copy": "copies from the text",
    "tuned": "answers freely", "tuned-choose": "chooses by probability",
}  # fmt: skip
RULES = {
    "sum": "the most probable label",
    "mean": "the label that is most probable a token, which does not favour short ones",
    "prior": "the label whose probability is raised most over its mean on other prompts",
}
# Measures whose names are more than words joined by "_".
METRIC_NAMES = {"micro_f1": "Micro-F1", "macro_f1": "Macro-F1", "mrr": "MRR", "chrf": "chrF", "rougeL": "ROUGE-L"}
EXAMPLES_SHOWN = 8
LABEL_ROWS_SHOWN = 200
LIKELIEST_SHOWN = 3
RENDERED_SHOWN = 2
TOKENS_SHOWN = 800


def write_report(run: Path) -> Report:
    """Writes report.json and report.html into the run directory, each whole or not at all; returns the report.

    Raises UserError like ``build_report``.
    """
    found = read_run(run)
    report = describe(found)
    # report.json comes last: where it is, the run is finished.
    write_text(run / "report.html", _page(found, report))
    write_text(run / "report.json", json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return report


@functools.cache
def page_environment() -> jinja2.Environment:
    """The templates of the package's pages, which share one look, and the filters they use. All text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    shown = (percent, points, p_number, p_text, duration, interval, points_interval, spread)
    environment.filters |= {f.__name__: f for f in (*shown, short, size, unbroken, metric_name)}
    environment.filters |= {"count": "{:,}".format}
    environment.globals |= {"meanings": MEANINGS, "rules": RULES, "most_likely": most_likely}
    return environment


def _page(run: Run, report: Report) -> str:
    before, after = (run.systems[report["verdict"][role]] for role in ("before", "after"))
    systems = {s["name"]: s for s in report["systems"]}
    trials, single = _trials(run), bool(systems[after.name]["per_label"])
    return (
        page_environment()
        .get_template("report.html")
        .render(
            report=report,
            run=run,
            kinds=[(kind, title, [systems[n] for n in names if n in systems]) for kind, names, title in KINDS],
            before=systems[before.name],
            after=systems[after.name],
            two=before.name != after.name,
            tuned=after.name in TUNED,
            demonstration=DEMONSTRATION,
            task=task_of(run),
            level=_chance_level(systems[after.name], after),
            repeats=report["folds"]["values"]
            if report["folds"]
            else {s["name"]: s["values"] for s in report["seeds"] or ()},
            adapter_exists=(run.folder / "adapter" / "adapter_config.json").exists(),
            trials=trials,
            single=single,
            loss=_loss_chart(run, trials),
            label_rows=_label_rows(systems[before.name], systems[after.name]) if single else [],
            label_rows_shown=LABEL_ROWS_SHOWN,
            changed=changed_examples(before, after, run.data.get("test_prompts")),
            rendered=[(r["source"], _cut_tokens(r["tokens"])) for r in run.data.get("rendered", ())[:RENDERED_SHOWN]],
            estimated=(events_named(run, "estimate") or [{"stages": {}}])[-1]["stages"],
            **(_confusion(before, after, run.data["labels"]) if single else {"grids": [], "labels_shown": 0}),
        )
    )


def _chance_level(described: dict[str, Any], system: SystemResults) -> tuple[str, float] | None:
    """What no thought at all would reach: its name and value; None for free answers."""
    if described["per_label"]:
        most = max(values["support"] for values in described["per_label"].values())
        return "always the most frequent label", most / len(system.test)
    chances = [1 / len(line["probabilities"]) for line in system.test if line["probabilities"]]
    return ("a guess", float(np.mean(chances))) if chances else None


def _trials(run: Run) -> list[dict[str, Any]]:
    """The trials of the log; a trial told twice counts once."""
    return list({e["trial"]: e for e in events_named(run, "trial")}.values())


def _loss_chart(run: Run, trials: list[dict[str, Any]]) -> LossChart | None:
    """The curves of the trial that was chosen, or else of the last one.

    A resumed run repeats the steps since its checkpoint: of each step, the last line counts.
    """
    chosen = [e for e in trials if e["chosen"]] or events_named(run, "step")[-1:]
    if not chosen:
        return None

    def pairs(event: str) -> Points:
        return sorted(
            {e["step"]: e["loss"] for e in events_named(run, event) if e["trial"] == chosen[-1]["trial"]}.items()
        )

    return loss_chart(pairs("step"), pairs("validation"), chosen[-1].get("best_step"))


def _cut_tokens(tokens: list[list[Any]]) -> list[list[Any]]:
    """The tokens, without the middle ones of a very long text: a note, marked by None, says how many they are."""
    left_out = len(tokens) - TOKENS_SHOWN
    if left_out <= 0:
        return tokens
    half = TOKENS_SHOWN // 2
    return [*tokens[:half], [f"{left_out} tokens are not shown", None], *tokens[-half:]]


def _label_rows(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, dict, dict]]:
    """Label, its metrics before and after; the weakest labels after tuning first."""
    rows = [(label, before["per_label"][label], values) for label, values in after["per_label"].items()]
    return sorted(rows, key=lambda row: (row[2]["support"] == 0, row[2]["f1"]))


def _confusion(before: SystemResults, after: SystemResults, labels: Sequence[str]) -> dict[str, Any]:
    systems = [before] if before.name == after.name else [before, after]
    counts = [confusion([line["expected"] for line in s.test], parsed_answers(s, labels), labels) for s in systems]
    shown = labels_to_show(counts)
    grids = [(s.name, confusion_grid(c, labels, shown)) for s, c in zip(systems, counts, strict=True)]
    return {"grids": grids, "labels_shown": len(shown)}


def changed_examples(a: SystemResults, b: SystemResults, prompts: list[str] | None) -> dict[str, dict[str, Any]]:
    """Test examples by which of two systems answers better (only_b, only_a, neither): how many, and the first few.

    Neither: worth the same with both, and not everything. Where answers are not just right or wrong, those that differ
    most come first.
    """
    worth_a, worth_b = _scores(a.test), _scores(b.test)
    gain, groups = worth_b - worth_a, {}
    members = {"only_b": gain > 0, "only_a": gain < 0, "neither": (gain == 0) & (worth_b < 1)}
    for name, chosen in members.items():
        positions = sorted(np.flatnonzero(chosen).tolist(), key=lambda i: -abs(gain[i]))
        examples = [
            {"number": i + 1, "prompt": prompts[i] if prompts else None, "a": a.test[i], "b": b.test[i]}
            for i in positions[:EXAMPLES_SHOWN]
        ]
        groups[name] = {"total": len(positions), "examples": examples}
    return groups


def metric_name(key: str) -> str:
    """What people call a measure."""
    return METRIC_NAMES.get(key, key.replace("_", " ").capitalize())


def most_likely(line: dict[str, Any]) -> list[tuple[str, float]]:
    """The most probable labels of a prediction with their probabilities, and always the answer and the right one."""
    probabilities = line["probabilities"] or {}
    ranked = sorted(probabilities, key=lambda label: -probabilities[label])
    wanted = {*ranked[:LIKELIEST_SHOWN], line["answer"], line["expected"]}
    return [(label, probabilities[label]) for label in ranked if label in wanted]
