"""The first sentence of the report, and the state that it expresses: did tuning help?"""

import math
from typing import Any

from loratory.metrics import Task, duration, holm, p_text, percent, spread
from loratory.report.reading import Run, task_of
from loratory.report.results import SIGNIFICANT, compare_systems, is_better
from loratory.settings import PROMPTING, REFERENCES, TUNED

STATES = {
    "best": "Best: nothing simpler is as good",
    "helped": "Helped, but something simpler is as good or better",
    "no_change": "No change that this test could show",
    "worse": "Worse than prompting",
    "cannot_tell": "Cannot tell: too few test examples",
}
"""The values of ``verdict.state`` in words."""
# How a sentence names the simple systems: as a subject, and as an owner.
SIMPLE_BASELINES = {
    "linear": ("a linear model", "a linear model's"),
    "encoder": ("a classifier on a sentence encoder", "a sentence encoder's"),
    "embed": ("a classifier on hidden states", "a hidden-state classifier's"),
    "copy": ("copying from the text", "copying's"),
}


def write_verdict(
    task: Task,
    systems: list[dict],
    comparisons: list[dict],
    seeds: list[dict] | None,
    before: str,
    after: str,
    tested: str,
    examples: tuple[int, int],
) -> dict[str, Any]:
    """The report's ``verdict``. ``tested`` names the test examples, as in "200 test examples".

    ``examples``: how many test examples there are, and how many would show a difference of 10 points. ``state`` is one
    of STATES; it is absent if nothing was tuned or no prompting was measured, since nothing is compared then.
    """
    by_name = {s["name"]: s for s in systems}
    by_other = {c["a"]: c for c in comparisons}
    prompting, linear = by_other.get(before), by_other.get("linear")
    state = _state(prompting, [c for c in comparisons if c["a"] in REFERENCES], examples) if prompting else None
    if after not in TUNED:
        best = max(systems, key=lambda s: s["value"])
        sentence = f"Nothing tuned was measured: {best['name']} is the best so far, {task.headline(best)} on {tested}"
    elif prompting is None or state is None:
        sentence = "No baseline was measured, so there is nothing to compare with: the tuned model reaches"
        sentence += f" {task.headline(by_name[after])} on {tested}"
    else:
        sentence = _against_prompting(prompting, state, by_name, tested, task)
    simple = best_simple(systems, comparisons)
    helped = state in ("best", "helped")
    sentence += _against_simple_baseline(by_other[simple], by_name[simple], helped) + "." if simple else "."
    if state == "cannot_tell":
        sentence += f" To show a difference of 10 points, about {rounded_up(examples[1]):,} test examples are needed."
    for series in seeds or ():
        if series["name"] == after:
            sentence += f" Over {len(series['values'])} seeds, {after} reaches {spread(series)}."
    return {
        "before": before,
        "after": after,
        "helped": helped,
        "beats_linear": None if linear is None else is_better(linear),
        **({"state": state} if state else {}),
        "sentence": sentence,
    }


def _state(prompting: dict[str, Any], simple: list[dict[str, Any]], examples: tuple[int, int]) -> str:
    """The state, from the comparisons of the tuned system with "before" and with the simple systems."""
    if is_better(prompting):
        return "best" if all(is_better(c) for c in simple) else "helped"
    if is_significant(prompting):
        return "worse"
    available, needed = examples
    return "no_change" if available >= needed else "cannot_tell"


def is_significant(comparison: dict[str, Any]) -> bool:
    return comparison["p_value"] < SIGNIFICANT


def best_simple(systems: list[dict[str, Any]], comparisons: list[dict[str, Any]]) -> str | None:
    """The best of the simple systems that the tuned one does not beat, or of all if it beats all; None if untuned."""
    values = {s["name"]: s["value"] for s in systems}
    compared = [c for c in comparisons if c["a"] in REFERENCES]
    rivals = [c for c in compared if not is_better(c)] or compared
    return max((c["a"] for c in rivals), key=lambda name: values[name], default=None)


def rounded_up(count: int) -> int:
    """The count, rounded up to two digits."""
    unit = 10 ** max(0, len(str(count)) - 2)
    return math.ceil(count / unit) * unit


def name_delivered(task: Task, systems: list[dict[str, Any]], name: str, after: str) -> str:
    """The sentence about the system that was chosen to answer with; empty if it is the tuned one, "after"."""
    if name == after:
        return ""
    chosen = next(s for s in systems if s["name"] == name)
    return f" By probability, the best on validation is {name}: {task.headline(chosen)} on the test examples."


def overlooked_prompting(run: Run, systems: list[dict[str, Any]], before: str) -> str:
    """A warning if another prompting is significantly better on the test examples than the one chosen on validation.

    Otherwise a small validation set could flatter the tuned model. Empty if there is no such prompting.
    """
    task = task_of(run)
    others = [s for s in systems if s["name"] in PROMPTING and s["name"] != before] if before in PROMPTING else []
    pairs = [compare_systems(run.systems[before], run.systems[s["name"]], task) for s in others]
    adjusted = holm([pair["p_value"] for pair in pairs])
    better = [s for s, pair, p in zip(others, pairs, adjusted, strict=True) if is_better({**pair, "p_value": p})]
    if not better:
        return ""
    best = max(better, key=lambda s: s["value"])
    count = run.data["validation_examples"]
    why = f"{count:,} validation examples did not show it" if count else "there were no validation examples to show it"
    return f" On the test examples, {best['name']} was the best prompting ({task.headline(best)}); {why}."


def _against_prompting(c: dict[str, Any], state: str, by_name: dict[str, dict], tested: str, task: Task) -> str:
    values = f"{task.headline(by_name[c['b']])} against {task.format_value(by_name[c['a']])}"
    values += f" for {_prompting_in_words(c['a'], by_name, task)} on {tested}"
    p = p_text(c["p_value"])
    return {
        "best": f"Tuning helped: {values} ({p})",
        "helped": f"Tuning helped: {values} ({p})",
        "worse": f"Tuning did not help; it made the answers worse: {values} ({p})",
        "no_change": f"Tuning did not help: {values}, no significant difference ({p})",
        "cannot_tell": f"Cannot tell: {values}, no significant difference ({p})",
    }[state]


def _prompting_in_words(before: str, by_name: dict[str, dict], task: Task) -> str:
    """The prompting that the tuned model is compared with, and how it was chosen if several were measured."""
    if not task.has_answers:
        return "the base model"
    if sum(name in PROMPTING for name in by_name) == 1:
        return f"prompting ({before})"
    if by_name[before]["validation_value"] is None:
        return f"prompting ({before}, the default without validation examples)"
    return f"the prompting chosen on validation ({before})"


def _against_simple_baseline(c: dict[str, Any], rule: dict[str, Any], helped: bool) -> str:
    """The clause about the best simple system, which is the better choice unless tuning beats it."""
    name, owner = SIMPLE_BASELINES[rule["name"]]
    value, p = percent(rule["value"]), p_text(c["p_value"])
    cost = "trains in seconds" if rule["seconds"] < 60 else f"takes {duration(rule['seconds'])}"
    if rule["name"] == "copy":
        cost = "needs no training"
    if is_better(c):
        return f", {'and' if helped else 'but'} the tuned model beats {owner} {value} ({p})"
    if is_significant(c):
        return f", {'but' if helped else 'and'} {name} reaches {value} ({p}) and {cost}"
    return f", {'but' if helped else 'and'} {name} reaches {value} and {cost}: no significant difference ({p})"
