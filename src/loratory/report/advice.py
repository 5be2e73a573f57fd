"""What went wrong in training, and what to do next, by rules over what was measured."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from loratory.metrics import p_text, percent
from loratory.report.reading import LearningCurve, Report, Run, learning_curve, read_run
from loratory.report.results import needed_examples, scores_of
from loratory.report.verdict import best_simple, is_significant, rounded_up
from loratory.settings import TUNED

MOST = 3
FEW_STEPS = 50
FEW_TRAINING_EXAMPLES = 200
FEW_PER_LABEL = 20
# The loss is still falling if the last part of the curve lies below the one before by this share.
STILL_FALLING = 0.03


def next_steps(folder: Path, report: Report) -> list[str]:
    """The suggestions for a run directory and its report."""
    return suggestions(read_run(folder), report)


def suggestions(run: Run, report: Report) -> list[str]:
    """At most three sentences on what to do next, most useful first; none if nothing was tuned."""
    if report["verdict"]["after"] not in TUNED:
        return []
    return [sentence for rule in RULES if (sentence := rule(run, report))][:MOST]


def remarks(run: Run, after: str) -> str:
    """What a reader must know about a training that failed or changed nothing; otherwise empty."""
    curve, sentences = learning_curve(run), ""
    if after in TUNED and curve and curve.training and (ends := _ends_if_not_learned(curve)):
        sentences += f" Training failed: the loss went from {ends[0]:.3g} to {ends[1]:.3g}."
    if _same_answers(run, after):
        count = len(run.systems[after].test)
        how = "when it chooses among labels, " if after.endswith("choose") else ""
        sentences += f" Nothing moved: {how}the tuned model gives the same answers as the base model to all {count:,}"
        sentences += " test examples."
    return sentences


def _ends_if_not_learned(curve: LearningCurve) -> tuple[float, float] | None:
    """The loss of the first and of the last steps if it has not fallen or is not finite; None if it has fallen."""
    losses = [loss for _, loss in curve.training]
    part = max(1, min(10, len(losses) // 4))
    first, last = float(np.mean(losses[:part])), float(np.mean(losses[-part:]))
    return (first, last) if len(losses) > 1 and not last < first else None


def _same_answers(run: Run, after: str) -> bool:
    """Whether the base model gives the same answers when asked in the same way, and not all are right."""
    base = run.systems.get(after.replace("tuned", "prompt"))
    if after not in TUNED or base is None:
        return False
    tuned, wrong = run.systems[after], scores_of(base.test).min() < 1
    same = np.array_equal(scores_of(tuned.test), scores_of(base.test))
    return wrong and same and [line["answer"] for line in tuned.test] == [line["answer"] for line in base.test]


# ---- Rules: each returns a sentence, or None if it does not apply ----------------------------------------------------


def lower_learning_rate(run: Run, report: Report) -> str | None:
    curve = learning_curve(run)
    if curve is None or not curve.training or _ends_if_not_learned(curve) is None:
        return None
    rate = curve.trial.get("learning_rate")
    return "Lower the learning rate: training did not reduce the loss." + (
        f" Try --train.learning-rate {rate / 3:.1g}." if rate else ""
    )


def measure_on_more(run: Run, report: Report) -> str | None:
    verdict, folds = report["verdict"], report["folds"]
    if verdict.get("state") != "cannot_tell":
        return None
    needed = rounded_up(needed_examples(run, verdict["before"], verdict["after"]))
    sentence = (
        f"Measure on more test examples: there are {report['test_examples']:,}, and about {needed:,} would show a"
    )
    sentence += " difference of 10 points."
    own_test = run.settings.get("data", {}).get("test")
    return sentence + ("" if folds or own_test else " Cross-validation (--data.folds 5) tests every row.")


def use_simpler(run: Run, report: Report) -> str | None:
    simple = best_simple(report["systems"], report["comparisons"])
    if simple is None:
        return None
    comparison = next(c for c in report["comparisons"] if c["a"] == simple)
    values = {s["name"]: s["value"] for s in report["systems"]}
    reached = f"it reaches {percent(values[simple])} against {percent(values[comparison['b']])} for {comparison['b']}"
    if comparison["difference"] < 0 and is_significant(comparison):
        return f"Use {simple}: {reached} ({p_text(comparison['p_value'])}) and needs no tuning of a language model."
    if report["verdict"].get("state") == "helped":
        return f"Consider {simple}: {reached}, no significant difference, and needs no tuning of a language model."
    return None


def choose_a_real_model(run: Run, report: Report) -> str | None:
    if not report["demonstration"]:
        return None
    return "Choose a larger model with --model.name: this one is a small model for demonstration."


def train_longer(run: Run, report: Report) -> str | None:
    curve = learning_curve(run)
    if curve is None or not curve.training or _ends_if_not_learned(curve):
        return None
    last_step = curve.training[-1][0]
    if curve.trial.get("best_step", last_step) not in (None, last_step):
        return None  # an earlier epoch was better
    if pair := _still_falling(curve):
        falling = f"from {pair[0]:.3g} to {pair[1]:.3g}"
        return f"Train longer (--train.epochs): the loss was still falling at the end, {falling}."
    if last_step < FEW_STEPS:
        return f"Train longer (--train.epochs): {last_step} optimizer steps are few."
    return None


def _still_falling(curve: LearningCurve) -> tuple[float, float] | None:
    """The loss of the last two validations, or without them of the last two tenths of the steps, if it was falling."""
    losses = [loss for _, loss in curve.validation]
    if len(losses) < 2:
        steps = [loss for _, loss in curve.training]
        tenth = len(steps) // 10
        if tenth < 5:
            return None
        losses = [float(np.mean(steps[-2 * tenth : -tenth])), float(np.mean(steps[-tenth:]))]
    previous, last = losses[-2:]
    falling = math.isfinite(last) and last < (1 - STILL_FALLING) * previous
    return (previous, last) if falling and last == min(losses) else None


def collect_more(run: Run, report: Report) -> str | None:
    count, labels = report["train_examples"], len(report["labels"])
    if count >= max(FEW_TRAINING_EXAMPLES, FEW_PER_LABEL * labels):
        return None
    return f"Collect more training examples: {count:,} are few" + (f" for {labels} labels." if labels else ".")


RULES: tuple[Callable[[Run, Report], str | None], ...] = (
    lower_learning_rate, use_simpler, measure_on_more, choose_a_real_model, train_longer, collect_more,
)  # fmt: skip
