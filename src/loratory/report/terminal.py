"""The report as tables for the terminal."""

from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from loratory.metrics import TASKS, duration, interval, p_number, percent, points, points_interval, spread
from loratory.report.reading import Report
from loratory.report.verdict import STATES

DEMONSTRATION = (
    "This is the small demonstration model that comes with Loratory. It is too weak for real work: "
    "choose a real model with --model.name."
)
# The color of each state; its words say the same.
COLORS = {"best": "green", "helped": "yellow", "no_change": "blue", "worse": "red", "cannot_tell": "magenta"}


def render_table(report: Report, suggestions: Sequence[str] = ()) -> Group:
    """The report for the terminal (rich): verdict, systems, comparisons. At most 80 columns wide, except for notes.

    ``suggestions``: what to do next.
    """
    task = TASKS[report["task"]]
    secondary_label, key = task.secondary_metric
    systems = text_table(["system"], [task.metric_label, "95 % CI", "validation", secondary_label, "per answer"])
    chosen = {report["verdict"]["before"], report["verdict"]["after"]}
    for s in report["systems"]:
        validation = "–" if s["validation_value"] is None else percent(s["validation_value"])
        secondary = f"{s['metrics'][key]:.3f}" if key in s["metrics"] else "–"
        row = (s["name"], percent(s["value"]), interval(s), validation, secondary)
        systems.add_row(*row, duration(s["seconds_per_example"]), style="bold" if s["name"] in chosen else "")
    notes = [f"{s['name']}: {s['note']}" for s in report["systems"] if s["note"]]
    notes += [
        f"{s['name']}: {percent(s['metrics']['unparsed'])} of the answers name no label"
        for s in report["systems"]
        if s["metrics"].get("unparsed")
    ]
    notes += prompt_notes(report)
    notes += [f"{s['name']} was not measured: {s['reason']}" for s in report.get("not_measured", ())]
    notes += [f"{s['name']} over {len(s['values'])} seeds: {spread(s)}" for s in report["seeds"] or ()]
    if report["folds"]:
        values = " ".join(
            f"{100 * value:.1f}" for value in report["folds"]["values"].get(report["verdict"]["after"], ())
        )
        notes.append(f"{report['verdict']['after']} per fold: {values}")
    if report["forgetting"]:
        notes.append(report["forgetting"]["sentence"])
    comparisons = text_table(["baseline", "tuned system"], ["points", "95 % CI", "p (Holm)"])
    for c in report["comparisons"]:
        row = (c["a"], c["b"], points(c["difference"]), points_interval(c), p_number(c["p_value"]))
        comparisons.add_row(*row)
    # Text, not str: rich would interpret [square brackets] in a note as markup.
    blocks = [[Text(DEMONSTRATION, style="yellow")]] if report["demonstration"] else []
    verdict, state = [Text(report["verdict"]["sentence"], style="bold")], report["verdict"].get("state")
    if state:
        verdict.append(Text(STATES[state], style=f"bold {COLORS[state]}"))
    verdict += [Text(f"What to do next: {sentence}") for sentence in suggestions]
    blocks += [verdict, [systems, *(Text(n, style="dim") for n in notes)]]
    blocks += [[comparisons]] if report["comparisons"] else []
    return Group(*(line for block in blocks for line in (*block, "")))


def prompt_notes(report: Report) -> list[str]:
    """A sentence on what the search for a prompt gained on validation; none without a search."""
    tried = report.get("prompts_tried", ())
    if not tried:
        return []
    wordings, drawn = ([p for p in tried if bool(p["shots"]) == shown] for shown in (False, True))
    best = next(p for p in wordings if p["chosen"])
    label = TASKS[report["task"]].metric_label
    text = f"prompt: the best of {len(wordings)} wordings on {best['examples']} validation examples, {label}"
    text += f" {percent(best['validation_value'])}"
    text += "" if best is wordings[0] else f" against {percent(wordings[0]['validation_value'])} with the first"
    draws = f"; few-shot examples: the best of {len(drawn)} draws" if drawn else ""
    return [f"{text}{draws}"]


def text_table(words: list[str], numbers: list[str]) -> Table:
    """An empty table for the terminal; ``words`` and ``numbers`` are the headings of text and numeric columns."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for heading in words + numbers:
        table.add_column(heading, justify="right" if heading in numbers else "left", no_wrap=True)
    return table
