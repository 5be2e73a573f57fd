"""Statistics of a run's systems, and of pairs of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from loratory.metrics import (
    Task,
    examples_needed,
    holm,
    mcnemar_exact,
    mean_interval,
    paired_difference_interval,
    paired_mean_interval,
    parsed_answer,
    per_label,
    proportion_interval,
)
from loratory.report.reading import Run, SystemResults, events_named, task_of
from loratory.settings import BLEND, PROMPTING, REFERENCES, TUNED, TrainConfig

SIGNIFICANT = 0.05
# Systems with probabilities, by what it takes to use them.
SIMPLEST_FIRST = ("linear", "encoder", "prompt-choose", "few-shot-choose", "embed", "tuned-choose", BLEND)
SMALLEST_PROBABILITY = 1e-6
ONE_OF_SEVERAL = ("classification", "choice")
# How much was forgotten if the loss rises by less than this, in nats per token: 0.1 raises perplexity by a tenth.
FORGOTTEN = ((0.02, "nothing"), (0.1, "little"), (0.5, "something"), (float("inf"), "much"))


def describe_forgetting(run: Run) -> dict[str, Any] | None:
    """Loss (nats per token) and perplexity on text outside the task, before and after; None if not measured."""
    logged = {e["when"]: e for e in events_named(run, "retained")}
    if set(logged) != {"before", "after"}:
        return None
    before, after = logged["before"]["loss"], logged["after"]["loss"]
    amount = next(words for rise, words in FORGOTTEN if after - before < rise)
    sentence = f"On {logged['after']['texts']} texts outside the task, perplexity went from"
    sentence += f" {np.exp(before):.1f} to {np.exp(after):.1f}: {amount} was forgotten."
    return {"before": before, "after": after, "texts": logged["after"]["texts"], "sentence": sentence}


def describe_seeds(run: Run) -> list[dict[str, Any]] | None:
    """The tuned systems with each seed, the run's own first; None if there was only one seed."""
    first_seed = run.settings.get("train", {}).get("seed", TrainConfig().seed)
    described = []
    for name in TUNED:
        series = {seed: part[name] for seed, part in run.seeds.items() if name in part}
        if series and name in run.systems:
            values = [_value(system.test) for system in (run.systems[name], *series.values())]
            statistics = {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1))}
            described.append({"name": name, "seeds": [first_seed, *series], "values": values, **statistics})
    return described or None


def describe_folds(run: Run) -> dict[str, Any] | None:
    """Every system on each fold; None without cross-validation."""
    if not run.data.get("folds"):
        return None
    values = {name: [_value(fold[name].test) for fold in run.folds if name in fold] for name in run.systems}
    return {"count": run.data["folds"], "values": values}


def parsed_answers(system: SystemResults, labels: Sequence[str]) -> list[str | None]:
    return [parsed_answer(line["answer"], labels) for line in system.test]


def scores_of(lines: Sequence[dict[str, Any]]) -> np.ndarray:
    """The score of each answer, from 0 to 1."""
    return np.array([line.get("worth", line["correct"]) for line in lines], dtype=np.float64)


def _value(lines: Sequence[dict[str, Any]]) -> float:
    return float(scores_of(lines).mean())


def describe_system(system: SystemResults, task: Task, labels: Sequence[str]) -> dict[str, Any]:
    scores = scores_of(system.test)
    if task.is_binary:
        low, high = proportion_interval(int(scores.sum()), len(scores))
    else:
        low, high = mean_interval(scores, 0.0, 1.0)
    expected = [line["expected"] for line in system.test]
    return {
        "name": system.name,
        "value": float(scores.mean()),
        "low": low,
        "high": high,
        "validation_value": _value(system.validation) if system.validation else None,
        "metrics": task.extra_metrics(system.test, labels),
        "per_label": per_label(expected, parsed_answers(system, labels), labels) if labels and task.is_binary else None,
        "note": system.metadata["note"],
        "rule": system.metadata["rule"],
        "seconds": system.metadata["seconds"],
        "seconds_per_example": system.metadata["seconds_per_example"],
    }


def choose_before_and_after(systems: list[dict[str, Any]]) -> tuple[str, str]:
    """The prompting system ("before") and the tuned system ("after") that are best on validation.

    Ties go to the system that scores labels. If one kind was not measured, the other kind's best stands for both; if
    neither was, the first system does.
    """

    def best(kind: tuple[str, ...]) -> str | None:
        scores = {s["name"]: -1.0 if s["validation_value"] is None else s["validation_value"] for s in systems}
        # A system that scores labels also gives probabilities.
        return max((n for n in scores if n in kind), key=lambda n: (scores[n], n.endswith("choose")), default=None)

    before, after = best(PROMPTING), best(TUNED)
    return before or after or systems[0]["name"], after or before or systems[0]["name"]


def compare_with_after(run: Run, before: str, after: str) -> list[dict[str, Any]]:
    """Comparisons of "after" with "before" and the reference systems, on the same test examples; none if untuned."""
    if after not in TUNED:
        return []
    baselines = [name for name in (before, *REFERENCES) if name != after and name in run.systems]
    pairs = [compare_systems(run.systems[name], run.systems[after], task_of(run)) for name in baselines]
    adjusted = holm([pair["p_value"] for pair in pairs])
    return [
        {"a": name, "b": after, **pair, "p_value": p} for name, pair, p in zip(baselines, pairs, adjusted, strict=True)
    ]


def delivered(run: Run, after: str) -> str:
    """The system to answer with, chosen on validation: the one that gives the right labels the highest mean
    log-probability, or the simplest of those that are less than half a standard error of the paired difference worse.

    Systems without probabilities do not take part. If none has any, or if an answer is not one of several labels, it is
    ``after``.
    """
    if run.data["task"] not in ONE_OF_SEVERAL:
        return after
    log_probs = {name: found for name in SIMPLEST_FIRST if (found := _validation_log_probs(run, name)) is not None}
    if not log_probs:
        return after
    best = max(log_probs, key=lambda name: log_probs[name].mean())
    for name, values in log_probs.items():
        worse = log_probs[best] - values
        error = worse.std(ddof=1) / np.sqrt(len(worse)) if len(worse) > 1 else 0.0
        if name == best or worse.mean() < error / 2:
            return name
    return best


def _validation_log_probs(run: Run, name: str) -> np.ndarray | None:
    """The log-probability of the right label for each validation example; None if the system has no probabilities."""
    lines = run.systems[name].validation if name in run.systems else []
    if not lines or not all(line["probabilities"] for line in lines):
        return None
    values = [line["probabilities"].get(line["expected"], 0.0) for line in lines]
    return np.log(np.maximum(values, SMALLEST_PROBABILITY))


def compare_systems(a: SystemResults, b: SystemResults, task: Task) -> dict[str, Any]:
    """The difference b - a on the same test examples, with an interval and an unadjusted p-value.

    ``only_a`` and ``only_b`` count the answers that score higher with a and with b.
    """
    differences = paired_differences(a, b)
    only_a, only_b = int((differences < 0).sum()), int((differences > 0).sum())
    if task.is_binary:
        low, high = paired_difference_interval(only_a, only_b, len(differences))
        p_value = mcnemar_exact(only_a, only_b)
    else:
        low, high, p_value = paired_mean_interval(differences)
    return {
        "only_a": only_a, "only_b": only_b, "difference": float(differences.mean()), "low": low, "high": high,
        "p_value": p_value,
    }  # fmt: skip


def paired_differences(a: SystemResults, b: SystemResults) -> np.ndarray:
    """Score of b minus score of a on each test example."""
    return scores_of(b.test) - scores_of(a.test)


def needed_examples(run: Run, before: str, after: str) -> int:
    """How many test examples would show a difference of 10 points between two systems (see ``examples_needed``)."""
    return examples_needed(paired_differences(run.systems[before], run.systems[after]), task_of(run).is_binary)


def is_better(comparison: dict[str, Any]) -> bool:
    return comparison["difference"] > 0 and comparison["p_value"] < SIGNIFICANT
