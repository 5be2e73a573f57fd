"""The first sentence of the report: did tuning help?"""

from typing import Any

from loratory.config import PROMPTING, TUNED
from loratory.metrics import Task, duration, p_text, percent, spread
from loratory.report.reading import Run, task_of
from loratory.report.results import SIGNIFICANT, compare_systems, is_better

# How a sentence names the simplest systems: as a subject, and as an owner.
SIMPLE_BASELINES = {"linear": ("a linear model", "a linear model's"), "copy": ("copying from the text", "copying's")}


def write_verdict(
    task: Task,
    systems: list[dict],
    comparisons: list[dict],
    seeds: list[dict] | None,
    before: str,
    after: str,
    tested: str,
) -> dict[str, Any]:
    """The report's ``verdict``. ``tested`` names the test examples, as in "200 test examples"."""
    by_name = {s["name"]: s for s in systems}
    by_other = {c["a"]: c for c in comparisons}
    prompting, linear = by_other.get(before), by_other.get("linear")
    helped = prompting is not None and is_better(prompting)
    if after not in TUNED:
        best = max(systems, key=lambda s: s["value"])
        sentence = f"Nothing has been tuned yet: {best['name']} is the best so far, {task.headline(best)} on {tested}"
    elif prompting is None:
        sentence = "No baseline was measured, so there is nothing to compare with: the tuned model reaches"
        sentence += f" {task.headline(by_name[after])} on {tested}"
    else:
        sentence = _against_prompting(prompting, by_name, tested, task)
    rule = "linear" if linear else "copy"
    sentence += _against_simple_baseline(by_other[rule], by_name[rule], helped) + "." if rule in by_other else "."
    for series in seeds or ():
        if series["name"] == after:
            sentence += f" Over {len(series['values'])} seeds, {after} reaches {spread(series)}."
    return {
        "before": before,
        "after": after,
        "helped": helped,
        "beats_linear": None if linear is None else is_better(linear),
        "sentence": sentence,
    }


def overlooked_prompting(run: Run, systems: list[dict[str, Any]], before: str) -> str:
    """A warning if another prompting is significantly better on the test examples than the one chosen on validation.

    Otherwise a small validation set could flatter the tuned model. Empty if there is no such prompting.
    """
    task = task_of(run)
    others = [s for s in systems if s["name"] in PROMPTING and s["name"] != before] if before in PROMPTING else []
    better = [s for s in others if is_better(compare_systems(run.systems[before], run.systems[s["name"]], task))]
    if not better:
        return ""
    best = max(better, key=lambda s: s["value"])
    few = f"{run.data['validation_examples']:,} validation examples"
    return (
        f" On the test examples, {best['name']} was the best prompting ({task.headline(best)}); {few} did not show it."
    )


def _against_prompting(c: dict[str, Any], by_name: dict[str, dict], tested: str, task: Task) -> str:
    values = f"{task.headline(by_name[c['b']])} against {task.format_value(by_name[c['a']])} for the best prompting"
    values += f" ({c['a']}) on {tested}"
    if is_better(c):
        return f"Tuning helped: {values} ({p_text(c['p_value'])})"
    if c["p_value"] < SIGNIFICANT:
        return f"Tuning did not help; it made the answers worse: {values} ({p_text(c['p_value'])})"
    return f"Tuning did not help: {values}, no significant difference ({p_text(c['p_value'])})"


def _against_simple_baseline(c: dict[str, Any], rule: dict[str, Any], helped: bool) -> str:
    """The clause about the simplest baseline, which is the better choice unless tuning beats it."""
    name, owner = SIMPLE_BASELINES[rule["name"]]
    value, p = percent(rule["value"]), p_text(c["p_value"])
    cost = "needs no training"
    if rule["name"] == "linear":
        cost = "trains in seconds" if rule["seconds"] < 60 else f"takes {duration(rule['seconds'])}"
    if is_better(c):
        return f", {'and' if helped else 'but'} the tuned model beats {owner} {value} ({p})"
    if c["p_value"] < SIGNIFICANT:
        return f", {'but' if helped else 'and'} {name} reaches {value} ({p}) and {cost}"
    return f", {'but' if helped else 'and'} {name} reaches {value} and {cost}: no significant difference ({p})"
